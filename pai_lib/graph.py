"""What was executed: reads PyTorch's autograd graph to find where each weight was used, and how.

Modules only declare; the graph tells what ran. It shows functional calls, attention's fused projections and
in-place activations, it counts how often a weight was used, and it knows the input that each use saw, so that
per-sample gradients need no hooks. A use that is not understood is an error, never a zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

_BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}
# Piecewise linear in their one tensor operand: shapes, sums, means, maxima, rectifiers. Not CopySlices, which
# hides the operation that wrote in place into a part of a tensor.
_PIECEWISE_LINEAR = set(
    """
    AccumulateGrad Abs AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D Add Alias Amax
    Amin AsStrided AvgPool2D AvgPool3D Cat Clamp ClampMin ClampMax Clone ConstantPadNd Copy Expand
    Flip Hardtanh Index IndexSelect LeakyRelu Max MaxPool2DWithIndices MaxPool3DWithIndices Maximum Mean Min
    Minimum Narrow Neg Permute PixelShuffle ReflectionPad2D Relu Repeat ReplicationPad2D ReshapeAlias Roll Rsub
    Select Slice Split SplitWithSizes Squeeze Stack Sub Sum T Threshold ToCopy Transpose Unbind Unsqueeze
    UnsafeSplit UnsafeView UpsampleBilinear2D UpsampleNearest2D View Where
    """.split()
)
# Products and the positions of their two factors.
_PRODUCTS = {
    "Addmm": (1, 2),
    "Baddbmm": (1, 2),
    **dict.fromkeys({"Bmm", "Convolution", "Mm", "Mul", "Mv"} | _BATCH_NORMS, (0, 1)),
}


BATCH_STATISTICS = (
    "A batch norm used the statistics of the batch (track_running_stats=False), so the loss of one sample "
    "depends on the others: per-sample curvature is not defined for this model."
)


class Use(NamedTuple):
    """One use of a parameter in the forward pass."""

    kind: str  # "convolution", "linear" or "channel" (a bias or the scale of a norm)
    edge: GradientEdge  # gives the loss gradient at the operation's output
    inputs: Tensor | None  # what multiplied the parameter; None for a bias
    parameter: Tensor
    channel_axis: int = -1  # of the output
    options: tuple = ()  # of a convolution: stride, padding, dilation, groups


def operation(node: Node) -> str:
    """Name of the operation behind a graph node: ``ReluBackward0`` is ``Relu``; a user's own keeps its name."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return type(node).__name__
    return node.name().rsplit("::", 1)[-1].split("Backward")[0]


def _nodes(root: Node | None) -> list[Any]:  # of Node, which does not declare what an operation saved
    """All nodes below ``root``, each after everything it depends on."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False)] if root is not None else []
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order


def find_uses(logits: Tensor, parameters: dict[str, Tensor]) -> dict[str, Use]:
    """Find the one place where each parameter entered the computation of ``logits``.

    Args:
        logits: output N×C whose graph is read.
        parameters: name to leaf tensor, as used in the forward pass.

    Raises:
        ValueError: if a parameter was not used, was used more than once, or in a way whose per-sample
            gradient is not known here; and if batch norm mixed the samples.
    """
    consumers: dict[Node | None, list[tuple[Node, int]]] = {}
    leaves: dict[int, Node] = {}
    for node in _nodes(logits.grad_fn):
        if operation(node) in _BATCH_NORMS and node._saved_training:
            raise ValueError(BATCH_STATISTICS)
        if (variable := getattr(node, "variable", None)) is not None:
            leaves[id(variable)] = node
        for position, (child, _) in enumerate(node.next_functions):
            consumers.setdefault(child, []).append((node, position))
    found = {}
    for name, tensor in parameters.items():
        uses = consumers.get(leaves.get(id(tensor)), [])
        if id(tensor) not in leaves or len(uses) != 1:
            count = len(uses) if id(tensor) in leaves else 0
            raise ValueError(
                f"Parameter {name!r} was used {count} times in the forward pass, and per-sample curvature "
                "needs exactly one use: leave it out with parameters=[...]."
            )
        node, position = uses[0]
        transposed = operation(node) == "T" and len(consumers[node]) == 1
        if transposed:  # a linear layer multiplies by weightᵀ
            node, position = consumers[node][0]
        use = _understand(node, position, tensor, transposed)
        if use is None:
            raise ValueError(
                f"Parameter {name!r} was used by {operation(node)!r}, whose per-sample gradient is not known "
                "here (convolution, linear and batch norm are): leave it out with parameters=[...]."
            )
        rows = node._input_metadata[0].shape[0]
        if use.channel_axis == 1 and rows != len(logits):
            raise ValueError(f"The layer of {name!r} saw {rows} rows for {len(logits)} samples.")
        found[name] = use
    return found


def _understand(node: Any, position: int, parameter: Tensor, transposed: bool) -> Use | None:
    name, edge = operation(node), GradientEdge(node, 0)
    match name, position, parameter.ndim:
        case "Convolution", 1, _ if not node._saved_transposed:
            options = (node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_groups)
            return Use("convolution", edge, node._saved_input, parameter, 1, options)
        case "Convolution", 2, _:
            return Use("channel", edge, None, parameter, 1)
        case "Addmm", 2, 2 if transposed and node._saved_alpha == 1:
            return Use("linear", edge, node._saved_mat1, parameter)
        case "Mm", 1, 2 if transposed:
            return Use("linear", edge, node._saved_self, parameter)
        case ("Addmm", 0, 1) | ("Add", 1, 1) if _plain_bias(node, parameter):
            return Use("channel", edge, None, parameter)
        case norm, 1, 1 if norm in _BATCH_NORMS:
            x = node._saved_input  # N × C × …
            shape = (1, -1) + (1,) * (x.ndim - 2)
            epsilon = node._saved_eps if norm == "NativeBatchNorm" else node._saved_epsilon
            mean, var = node._saved_running_mean.view(shape), node._saved_running_var.view(shape)
            return Use("channel", edge, (x - mean) * (var + epsilon).rsqrt(), parameter, 1)
        case norm, 2, 1 if norm in _BATCH_NORMS:
            return Use("channel", edge, None, parameter, 1)
    return None


def _plain_bias(node: Any, parameter: Tensor) -> bool:
    factor = node._saved_beta if operation(node) == "Addmm" else node._saved_alpha
    return factor == 1 and node._input_metadata[0].shape[-1] == len(parameter)


def curved_operation(logits: Tensor) -> str | None:
    """First operation that makes the logits curved in some single weight; ``None`` if there is none.

    Outputs are piecewise linear in every single weight if every operation is, where a product counts as
    linear when its two factors depend on different weights. Operations that no weight reaches do not count.
    """
    behind: dict[Node | None, int] = {None: 0}  # the weights that a node depends on, one bit each
    for i, node in enumerate(_nodes(logits.grad_fn)):
        name, parts = operation(node), [behind[child] for child, _ in node.next_functions]
        if name == "Div":
            if any(parts[1:]):
                return name  # the divisor depends on a weight
        elif name in _PRODUCTS:
            left, right = _PRODUCTS[name]
            if len(parts) > 1 and parts[left] & parts[right]:  # not a product with a number
                return name
        elif name not in _PIECEWISE_LINEAR:
            return name
        union = 1 << i if getattr(node, "variable", None) is not None else 0
        for part in parts:
            union |= part
        behind[node] = union
    return None


def _rows(tensor: Tensor, channel_axis: int) -> Tensor:
    tensor = tensor.movedim(channel_axis, -1)
    return tensor.reshape(-1, tensor.shape[-1])


def sample_fastest(logits: Tensor, uses: dict[str, Use]) -> set[str]:
    """Names of the parameters whose layer stores its rows as positions × samples, not samples × positions.

    Attention does either and sizes cannot tell which. A backward pass from one sample's logits can: only that
    sample's rows receive a gradient. One pass nearly always tells; a layer of which a class token alone is
    used, or whose units are dead for the sample, needs another sample's.

    Raises:
        ValueError: if a sample's logits depend on other rows than its own.
    """
    n = len(logits)
    open_, fastest = [name for name, use in uses.items() if use.channel_axis == -1], set()
    for sample in dict.fromkeys((0, n - 1, *range(n))) if n > 1 else ():
        if not open_:
            break
        seed = torch.zeros_like(logits)
        seed[sample] = torch.arange(1, logits.shape[1] + 1)
        edges = [uses[name].edge for name in open_]
        grads = torch.autograd.grad(logits, edges, seed, retain_graph=True, materialize_grads=True)
        undecided = []
        for name, gradient in zip(open_, grads, strict=True):
            touched = _rows(gradient, -1).any(dim=1)  # rows
            where, positions = touched.nonzero()[:, 0], len(touched) // n
            slow = len(touched) % n == 0 and bool((where // positions == sample).all())
            fast = len(touched) % n == 0 and bool((where % n == sample).all())
            if not slow and not fast:
                raise ValueError(f"Cannot tell which inputs of the layer of {name!r} belong to which sample.")
            if len(where) == 0 or (slow and fast and positions > 1):
                undecided.append(name)
            elif not slow:
                fastest.add(name)
        open_ = undecided
    return fastest  # undecided to the end: the rows that matter are the same either way


def squared_gradients(use: Use, gradient: Tensor, groups: list[slice], fastest: bool = False) -> Tensor:
    """Σ over groups of (Σ over the group's samples of the parameter's gradient)², in the parameter's shape.

    A convolution or token layer costs one weight gradient a group, small enough to stay in cache, and one
    copy of the weight; a linear layer with one row a sample needs (g ⊗ a)² = g² ⊗ a², a single product.

    Args:
        use: where the parameter was used.
        gradient: loss gradient at the output of that use.
        groups: slices of the sample axis that cover it.
        fastest: whether samples vary fastest along the rows, see ``sample_fastest``.
    """
    n = groups[-1].stop
    if use.kind == "convolution":
        return _convolution_squares(use, gradient, groups)

    def by_sample(tensor: Tensor) -> Tensor:  # n × positions × channels
        rows = _rows(tensor, use.channel_axis)
        return rows.view(-1, n, rows.shape[1]).transpose(0, 1) if fastest else rows.view(n, -1, rows.shape[1])

    if use.kind == "channel":
        product = gradient if use.inputs is None else gradient * use.inputs
        per_sample = by_sample(product).sum(1)  # n × channels
        return torch.stack([per_sample[group].sum(0) for group in groups]).square_().sum(0)
    assert use.inputs is not None  # only a bias has none
    if len(groups) == n == gradient.shape[0]:
        return gradient.square().T @ use.inputs.square()
    g, a = by_sample(gradient), by_sample(use.inputs)  # n × positions × out, n × positions × in
    total = torch.zeros_like(use.parameter)
    for group in groups:
        total += (g[group].flatten(0, 1).T @ a[group].flatten(0, 1)).square_()
    return total


FEW_POSITIONS = 32  # up to so many of a convolution's output, one matrix product a sample is the faster way


def _convolution_squares(use: Use, gradient: Tensor, groups: list[slice]) -> Tensor:
    stride, padding, dilation, channel_groups = use.options
    assert use.inputs is not None
    total = torch.zeros_like(use.parameter)
    if gradient.ndim == 4 and channel_groups == 1 and gradient[0, 0].numel() <= FEW_POSITIONS:
        columns = F.unfold(use.inputs, total.shape[2:], dilation, padding, stride)  # n × in·kernel × positions
        flat, rows = total.flatten(1), gradient.flatten(2)  # out × in·kernel, n × out × positions
        one = torch.empty_like(flat)
        for group in groups:
            g, a = (part[group].transpose(0, 1).flatten(1) for part in (rows, columns))  # … × group·positions
            flat.addcmul_(torch.mm(g, a.T, out=one), one)
        return total
    for group in groups:
        _, one, _ = torch.ops.aten.convolution_backward(
            gradient[group], use.inputs[group], use.parameter, None, stride, padding, dilation, False,
            [0] * len(stride), channel_groups, [False, True, False],
        )  # fmt: skip
        total.addcmul_(one, one)
    return total
