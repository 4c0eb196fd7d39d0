"""What is known of PyTorch's operations by their names in the graph, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from .graph import BATCH_NORMS, Use, nodes, operation

# Piecewise linear in their tensor operands together, as a test checks for each in float64: shapes,
# sums, means, maxima, sorting, rectifiers. Not CopySlices, which hides the operation that wrote
# into a part of a tensor.
PIECEWISE_LINEAR = set(
    """
    Abs AccumulateGrad AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D Add
    Alias Amax Amin Aminmax AsStrided AvgPool2D AvgPool3D BlockDiag Cat Ceil ChannelShuffle Clamp
    ClampMax ClampMin Clone Col2Im ConstantPadNd Copy Cummax Cummin Cumsum DiagEmbed Diagonal
    Embedding Expand Flip Floor Fmax Fmin Fmod Frac FractionalMaxPool2D FractionalMaxPool3D Gather
    Hardshrink Hardsigmoid Hardtanh Im2Col Index IndexAdd IndexCopy IndexFill IndexPut IndexSelect
    Kthvalue LeakyRelu MaskedFill MaskedScatter MaskedSelect Max MaxPool2DWithIndices
    MaxPool3DWithIndices MaxUnpool2D MaxUnpool3D Maximum Mean Median Min Minimum Mode NanToNum
    Nanmedian Nansum Neg Permute PixelShuffle PixelUnshuffle ReflectionPad1D ReflectionPad2D
    ReflectionPad3D Relu Remainder Repeat ReplicationPad1D ReplicationPad2D ReplicationPad3D
    ReshapeAlias Roll Rot90 Round RreluWithNoise Rsub Scatter ScatterAdd Select SelectScatter Sign
    Slice SliceScatter Softshrink Sort Split SplitWithSizes Squeeze Stack Sub Sum T Take Threshold
    ToCopy Topk Trace Transpose Tril Triu Trunc Unbind Unfold UnsafeSplit UnsafeView Unsqueeze
    UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D
    UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D
    UpsampleTrilinear3D View Where
    """.split()
)
# Linear in their first operand, if the others are fixed.
FIRST_OPERAND = {"Div", "GridSampler2D", "GridSampler3D"}
# Products of their first two operands, and of the two that come after what is added to them.
PRODUCTS = {"Bmm", "Convolution", "Dot", "Mm", "Mul", "Mv", "PreluKernel", *BATCH_NORMS}
ADDED_PRODUCTS = {"Addbmm", "Addcmul", "Addmm", "Addmv", "Addr", "Baddbmm"}

# What stands at i of the first axis comes from i of the operands' first axis alone: of operands of
# as many axes, of the first operand, of one whose reduced axes are others, and of any.
ELEMENTWISE = set(
    """
    Abs Add Clamp ClampMax ClampMin Clone Div Elu Erf Exp Fmax Fmin Gelu Hardshrink Hardsigmoid
    Hardswish Hardtanh LeakyRelu Log LogSigmoid MaskedFill Maximum Minimum Mish Mul Neg Pow
    PreluKernel Relu Rsub Sigmoid Silu Softplus Softshrink Sqrt Sub Tanh Threshold ToCopy Where
    """.split()
)
OF_THE_FIRST = {"AdaptiveAvgPool2D", "AvgPool2D", "ConstantPadNd", "Convolution", *BATCH_NORMS}
OF_THE_FIRST |= {"MaxPool2DWithIndices", "Mm"}
ALONG_AXES = {"Amax", "Cat", "LogSoftmax", "Mean", "Softmax", "Sum"}
SHAPES = {"ReshapeAlias", "UnsafeView", "View"}


def curved_operation(logits: Tensor, parameters: dict[str, Tensor]) -> str | None:
    """Say what makes the logits curved in some single weight, or may; ``None`` if nothing does.

    Outputs are piecewise linear in every single weight if every operation is, where a product
    counts as linear when its two factors depend on different weights. Operations that no weight
    reaches do not count.
    """
    chosen = {id(parameter) for parameter in parameters.values()}
    weights: dict[Node | None, set[int]] = {None: set()}  # those of them that a node depends on
    for node in nodes(logits.grad_fn):
        name = operation(node)
        operands = [weights[child] for child, _ in node.next_functions]
        weight = {id(getattr(node, "variable", None))} & chosen
        weights[node] = weight.union(*operands)
        if not weights[node]:
            continue
        bends = f"The operation {name!r} makes the logits curved in a single weight, on which"
        if name in FIRST_OPERAND:
            if any(operands[1:]):
                return f"{bends} its second operand depends"
        elif name in PRODUCTS or name in ADDED_PRODUCTS:
            factors = operands[1:] if name in ADDED_PRODUCTS else operands
            if len(factors) > 1 and factors[0] & factors[1]:  # not a product with a number
                return f"{bends} both factors depend"
        elif name not in PIECEWISE_LINEAR:
            return f"The operation {name!r} is not known to be piecewise linear"
        if getattr(node, "_saved_training", False):
            return f"The operation {name!r} is not known to be piecewise linear"
    return None


def keeps_samples_apart(
    logits: Tensor, uses: Iterable[Use], inputs: Iterable[GradientEdge] = ()
) -> bool:
    """Whether operations alone prove that row i of a use, and input i, reach only the logits of i.

    So it is in most convolutional networks: from each of them to the logits the samples are the
    first axis, and every operation keeps it. ``False`` says nothing, but that other means are
    needed.
    """
    input_nodes = {edge.node for edge in inputs}
    starts = input_nodes | {use.edge.node for use in uses}
    reached: set[Node | None] = set()  # nodes that something of the samples goes through
    for node in nodes(logits.grad_fn):
        operands = [(i, *edge) for i, edge in enumerate(node.next_functions) if edge[0] in reached]
        if node not in starts and not operands:
            continue
        reached.add(node)
        shape = tuple(node._input_metadata[0].shape)
        if shape[:1] != (len(logits),):
            return False
        for position, child, number in operands:
            operand_shape = tuple(child._input_metadata[number].shape)
            if operand_shape[:1] != shape[:1]:
                return False
            if not _keeps_first_axis(node, position, len(operand_shape) == len(shape)):
                return False
    return input_nodes <= reached


def _keeps_first_axis(node: Any, position: int, as_many_axes: bool) -> bool:
    """Whether a node has at i of its first axis what that operand has there."""
    name = operation(node)
    if name in ELEMENTWISE:
        return as_many_axes
    if name in OF_THE_FIRST:
        return position == 0 and not getattr(node, "_saved_training", False)
    if name == "Addmm":
        return position == 1
    if name in ALONG_AXES:
        axes = getattr(node, "_saved_dim", ())
        axes = axes if isinstance(axes, tuple) else (axes,)
        return len(axes) > 0 and all(0 < axis < 2**32 for axis in axes)  # a negative one is larger
    return name in SHAPES
