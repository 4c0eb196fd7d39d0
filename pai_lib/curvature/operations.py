"""What is known of PyTorch's operations by their names in the autograd graph, and what follows for a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from .graph import BATCH_NORMS, Use, nodes, operation

# Piecewise linear in their tensor operands together, as a test checks for each in float64: shapes,
# sums, means, maxima, sorting, rectifiers. Not CopySlices, which hides the operation that wrote
# into a part of a tensor.
PIECEWISE_LINEAR = frozenset(
    """
    Abs AccumulateGrad AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D Add Alias Amax
    Amin Aminmax AsStrided AvgPool2D AvgPool3D BlockDiag Cat Ceil ChannelShuffle Clamp ClampMax ClampMin
    Clone Col2Im ConstantPadNd Copy Cummax Cummin Cumsum DiagEmbed Diagonal Embedding Expand Flip Floor Fmax
    Fmin Fmod Frac FractionalMaxPool2D FractionalMaxPool3D Gather Hardshrink Hardsigmoid Hardtanh Im2Col
    Index IndexAdd IndexCopy IndexFill IndexPut IndexSelect Kthvalue LeakyRelu MaskedFill MaskedScatter
    MaskedSelect Max MaxPool2DWithIndices MaxPool3DWithIndices MaxUnpool2D MaxUnpool3D Maximum Mean Median
    Min Minimum Mode NanToNum Nanmedian Nansum Neg Permute PixelShuffle PixelUnshuffle ReflectionPad1D
    ReflectionPad2D ReflectionPad3D Relu Remainder Repeat ReplicationPad1D ReplicationPad2D ReplicationPad3D
    ReshapeAlias Roll Rot90 Round RreluWithNoise Rsub Scatter ScatterAdd Select SelectScatter Sign Slice
    SliceScatter Softshrink Sort Split SplitWithSizes Squeeze Stack Sub Sum T Take Threshold ToCopy Topk
    Trace Transpose Tril Triu Trunc Unbind Unfold UnsafeSplit UnsafeView Unsqueeze UpsampleBicubic2D
    UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D
    UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D UpsampleTrilinear3D View Where
    """.split()
)
# Linear in their first operand, if the others are fixed.
FIRST_OPERAND = ("Div", "GridSampler2D", "GridSampler3D")
# Products and the positions of their two factors.
PRODUCTS = {
    **dict.fromkeys(("Addbmm", "Addcmul", "Addmm", "Addmv", "Addr", "Baddbmm"), (1, 2)),
    **dict.fromkeys(
        {"Bmm", "Convolution", "Dot", "Mm", "Mul", "Mv", "PreluKernel"} | BATCH_NORMS, (0, 1)
    ),
}
# These keep the first axis of their operands of as many axes: what stands there at i comes from
# there at i alone.
ELEMENTWISE = frozenset(
    """
    Abs Add Clamp ClampMax ClampMin Clone Div Elu Erf Exp Fmax Fmin Gelu Hardshrink Hardsigmoid Hardswish
    Hardtanh LeakyRelu Log LogSigmoid MaskedFill Maximum Minimum Mish Mul Neg Pow PreluKernel Relu Rsub
    Sigmoid Silu Softplus Softshrink Sqrt Sub Tanh Threshold ToCopy Where
    """.split()
)
BATCHED = BATCH_NORMS | {
    "AdaptiveAvgPool2D",
    "AvgPool2D",
    "Convolution",
    "ConstantPadNd",
    "MaxPool2DWithIndices",
}
SHAPES = frozenset({"ReshapeAlias", "UnsafeView", "View"})


def curved_operation(logits: Tensor, parameters: dict[str, Tensor]) -> str | None:
    """Say what makes the logits curved in some single weight, or may make them so; ``None`` if nothing does.

    Outputs are piecewise linear in every single weight if every operation is, where a product
    counts as linear when its two factors depend on different weights. Operations that no weight
    reaches do not count.
    """
    bits = {id(parameter): 1 << i for i, parameter in enumerate(parameters.values())}
    behind: dict[Node | None, int] = {None: 0}  # the weights that a node depends on, one bit each
    for node in nodes(logits.grad_fn):
        name, parts = operation(node), [behind[child] for child, _ in node.next_functions]
        behind[node] = bits.get(id(getattr(node, "variable", None)), 0)
        for part in parts:
            behind[node] |= part
        left, right = PRODUCTS.get(name, (0, 1))
        if not behind[node]:
            continue
        if name in FIRST_OPERAND and any(parts[1:]):
            return (
                f"The operation {name!r} makes the logits curved in a single weight, on which its second operand "
                "depends"
            )
        if (
            name in PRODUCTS and len(parts) > 1 and parts[left] & parts[right]
        ):  # not a product with a number
            return f"The operation {name!r} makes the logits curved in a single weight, on which both factors depend"
        if name not in {*FIRST_OPERAND, *PRODUCTS, *PIECEWISE_LINEAR} or getattr(
            node, "_saved_training", False
        ):
            return f"The operation {name!r} is not known to be piecewise linear"
    return None


def keeps_samples_apart(
    logits: Tensor, uses: Iterable[Use], inputs: Iterable[GradientEdge]
) -> bool:
    """Whether the operations alone prove that row i of every use, and input i, reach the logits of sample i alone.

    So it is in most convolutional networks: from each of them to the logits the samples are the
        first axis, and
    every operation keeps it. ``False`` says nothing, but that other means are needed.
    """
    starts = {use.edge.node for use in uses} | {edge.node for edge in inputs}
    reaching: set[Node | None] = set()  # nodes that something of the samples goes through
    for node in nodes(logits.grad_fn):
        children = [
            (i, child, number)
            for i, (child, number) in enumerate(node.next_functions)
            if child in reaching
        ]
        if node not in starts and not children:
            continue
        reaching.add(node)
        shape = tuple(node._input_metadata[0].shape)
        if shape[:1] != (len(logits),):
            return False
        for position, child, number in children:
            below = tuple(child._input_metadata[number].shape)
            if below[:1] != shape[:1] or not _keeps_first_axis(
                node, position, len(below) == len(shape)
            ):
                return False
    return {edge.node for edge in inputs} <= reaching


def _keeps_first_axis(node: Any, position: int, same_axes: bool) -> bool:
    name = operation(node)
    if name in ELEMENTWISE:
        return same_axes
    if name in BATCHED:
        return position == 0 and not getattr(node, "_saved_training", False)
    if name in ("Addmm", "Mm"):
        return position == (1 if name == "Addmm" else 0)
    if name in ("Mean", "Sum", "Amax", "Cat", "Softmax", "LogSoftmax"):
        axes = getattr(node, "_saved_dim", 0)
        axes = axes if isinstance(axes, tuple | list) else (axes,)
        return all(0 < axis < 2**32 for axis in axes) and bool(
            axes
        )  # a negative one is a large number here
    return name in SHAPES
