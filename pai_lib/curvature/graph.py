"""What was executed: reads PyTorch's autograd graph to find where each weight was used, and how.

Modules only declare; the graph tells what ran. It shows functional calls, attention's fused
projections and in-place activations, it counts how often a weight was used, and it knows the input
that each use saw, so that per-sample gradients need no hooks. A use that is not understood is an
error, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}

REENTRANT = (
    "The model uses activation checkpointing with use_reentrant=True, which hides its weights from derivatives: "
    "use use_reentrant=False."
)


class Use(NamedTuple):
    """One use of a parameter in the forward pass."""

    kind: str  # "convolution", "linear" or "channel" (a bias or the scale of a norm)
    edge: GradientEdge  # gives the loss gradient at the operation's output
    inputs: Tensor | None  # what multiplied the parameter; None for a bias
    parameter: Tensor
    channel_axis: int = -1  # of the output
    options: tuple = ()  # of a convolution: stride, padding, dilation, groups

    @property
    def shape(self) -> Sequence[int]:
        """Shape of the operation's output."""
        return self.edge.node._input_metadata[self.edge.output_nr].shape

    @property
    def rows(self) -> int:
        """Number of the output's rows: each belongs to one sample, a sample may have several."""
        return self.shape[0] if self.channel_axis == 1 else math.prod(self.shape[:-1])


class Layout(NamedTuple):
    """Which rows belong to which sample: ``positions`` rows a sample, or as told row by row."""

    positions: int = 1
    fastest: bool = (
        False  # samples vary fastest along the rows: positions × samples, not samples × positions
    )
    owner: Tensor | None = (
        None  # sample of each row where no such rule holds; -1 for a row without a gradient
    )


def operation(node: Node) -> str:
    """Name of the operation behind a graph node: ``ReluBackward0`` is ``Relu``; a user's own keeps its name."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return type(node).__name__
    return node.name().rsplit("::", 1)[-1].split("Backward")[0]


def nodes(
    *roots: Node | None,
) -> list[Any]:  # of Node, which does not declare what an operation saved
    """All nodes below some, each after everything it depends on."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False) for root in roots if root is not None]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order


def hides_weights(output: Tensor) -> bool:
    """Whether a part of the computation was hidden from the graph by reentrant activation checkpointing."""
    return any(operation(node) == "CheckpointFunctionBackward" for node in nodes(output.grad_fn))


def runs_own_functions(output: Tensor) -> bool:
    """Whether a part of the computation has a derivative that the user wrote (``torch.autograd.Function``)."""
    return any(
        isinstance(node, torch.autograd.function.BackwardCFunction)
        for node in nodes(output.grad_fn)
    )


def differentiable(gradients: Iterable[Tensor]) -> bool:
    """Whether gradients can be differentiated once more: PyTorch takes what forbids it for zero."""
    return not any(
        operation(node) == "Error" for node in nodes(*(gradient.grad_fn for gradient in gradients))
    )


def find_uses(logits: Tensor, parameters: dict[str, Tensor]) -> dict[str, Use]:
    """Find the one place where each parameter entered the computation of ``logits``.

    Args:
        logits: output N×C whose graph is read.
        parameters: name to leaf tensor, as used in the forward pass.

    Raises:
        ValueError: if a parameter was not used, was used more than once, or in a way whose
            per-sample gradient is not known here.
    """
    consumers: dict[Node | None, list[tuple[Node, int]]] = {}
    leaves: dict[int, Node] = {}
    for node in nodes(logits.grad_fn):
        if (variable := getattr(node, "variable", None)) is not None:
            leaves[id(variable)] = node
        for position, (child, _) in enumerate(node.next_functions):
            consumers.setdefault(child, []).append((node, position))
    found = {}
    for name, tensor in parameters.items():
        uses = consumers.get(leaves.get(id(tensor)), [])
        if id(tensor) not in leaves or len(uses) != 1:
            count = len(uses) if id(tensor) in leaves else 0
            if hides_weights(logits):
                raise ValueError(REENTRANT)
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
        found[name] = use
    return found


def _understand(node: Any, position: int, parameter: Tensor, transposed: bool) -> Use | None:
    name, edge = operation(node), GradientEdge(node, 0)
    match name, position, parameter.ndim:
        case "Convolution", 1, _ if not node._saved_transposed:
            options = (
                node._saved_stride,
                node._saved_padding,
                node._saved_dilation,
                node._saved_groups,
            )
            return Use("convolution", edge, node._saved_input, parameter, 1, options)
        case "Convolution", 2, _:
            return Use("channel", edge, None, parameter, 1)
        case "Addmm", 2, 2 if transposed and node._saved_alpha == 1:
            return Use("linear", edge, node._saved_mat1, parameter)
        case "Mm", 1, 2 if transposed:
            return Use("linear", edge, node._saved_self, parameter)
        case ("Addmm", 0, 1) | ("Add", 1, 1) if _plain_bias(node, parameter):
            return Use("channel", edge, None, parameter)
        case norm, 1, 1 if norm in BATCH_NORMS and not node._saved_training:
            x = node._saved_input  # N × C × …
            shape = (1, -1) + (1,) * (x.ndim - 2)
            epsilon = node._saved_eps if norm == "NativeBatchNorm" else node._saved_epsilon
            mean, var = node._saved_running_mean.view(shape), node._saved_running_var.view(shape)
            return Use("channel", edge, (x - mean) * (var + epsilon).rsqrt(), parameter, 1)
        case norm, 2, 1 if norm in BATCH_NORMS and not node._saved_training:
            return Use("channel", edge, None, parameter, 1)
    return None


def _plain_bias(node: Any, parameter: Tensor) -> bool:
    factor = node._saved_beta if operation(node) == "Addmm" else node._saved_alpha
    return factor == 1 and node._input_metadata[0].shape[-1] == len(parameter)


EXPONENTS = 64  # samples that one pass tells apart, by powers of two that float32 holds beside its gradients


def signatures(gradients: Sequence[Tensor], axes: Sequence[int]) -> list[Tensor]:
    """Two numbers a row of each gradient, rows × 2: one that is linear in the row, and its norm."""
    pairs = []
    for gradient, axis in zip(gradients, axes, strict=True):
        rows = gradient.flatten(1) if axis == 1 else gradient.flatten(0, -2)  # rows × …
        weights = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device).cos_()
        pairs.append(torch.stack([rows @ weights, torch.linalg.vector_norm(rows, dim=1)], 1))
    return pairs


def owners(plain: Tensor, scaled: Sequence[Tensor], samples: int) -> tuple[Tensor, Tensor]:
    """Sample that each row belongs to, and whether every row with a gradient belongs to one sample alone.

    Gradients are linear in what comes back from the logits, and a power of two scales them without
    rounding: where sample n was scaled by 2ⁿ, the rows of sample n are scaled by 2ⁿ, and a row of
    several by no such number.

    Args:
        plain: signatures of a gradient's rows.
        scaled: those where sample n was scaled by 2 to a digit of n, base ``EXPONENTS``; the lowest
            digit first.
        samples: number of samples.

    Returns:
        Sample numbers, -1 for a row without a gradient, and a single bool.
    """
    (value, norm), info = plain.unbind(1), torch.finfo(plain.dtype)
    alive = norm > info.tiny / info.eps  # the square of less is zero
    powers = torch.tensor(
        [2.0**i for i in range(EXPONENTS)], dtype=value.dtype, device=value.device
    )
    owner, sound = torch.zeros_like(value, dtype=torch.int64), torch.isfinite(norm).all()
    for place, other in enumerate(scaled):
        digit = (
            (other[:, 0] / value).abs().log2().round().nan_to_num(0).clamp(0, EXPONENTS - 1).long()
        )
        error = (other[:, 0] - value * powers[digit]).abs()
        sound = sound & ((error <= 1e3 * info.eps * norm * powers[digit]) | ~alive).all()
        owner = owner + digit * EXPONENTS**place
    return torch.where(alive, owner, -1), sound & (owner < samples).all()


def lies(owner: Tensor, samples: int, fastest: bool) -> Tensor:
    """Whether rows lie as samples × positions, or as positions × samples: a single bool."""
    row = torch.arange(len(owner), device=owner.device)
    expected = row % samples if fastest else row // max(1, len(owner) // samples)
    return ((owner == expected) | (owner == -1)).all() & (len(owner) % samples == 0)


def squared_gradients(use: Use, gradient: Tensor, groups: list[slice], layout: Layout) -> Tensor:
    """Σ over groups of (Σ over the group's samples of the parameter's gradient)², in the parameter's shape.

    A convolution or token layer costs one weight gradient a group, small enough to stay in cache,
    and one copy of the weight; a linear layer with one row a sample needs (g ⊗ a)² = g² ⊗ a², a
    single product.

    Args:
        use: where the parameter was used.
        gradient: loss gradient at the output of that use.
        groups: slices of the sample axis that cover it.
        layout: which rows belong to which sample.
    """
    if use.kind == "channel":
        product = gradient if use.inputs is None else gradient * use.inputs
        summed = (
            product.flatten(2).sum(2) if use.channel_axis == 1 and product.ndim > 2 else product
        )
        parts = [
            rows.sum(0) for rows in _by_group(summed.flatten(0, -2), groups, layout)
        ]  # channels
        return torch.stack(parts).square_().sum(0)
    assert use.inputs is not None  # only a bias has none
    if use.kind == "convolution":
        return _convolution_squares(use, gradient, groups, layout)
    g, a = gradient.flatten(0, -2), use.inputs.flatten(0, -2)  # rows × out, rows × in
    if len(groups) == len(g) and layout.owner is None:  # a sample a group, a row a sample
        return g.square().T @ a.square()
    total = torch.zeros_like(use.parameter)
    for g_part, a_part in zip(
        _by_group(g, groups, layout), _by_group(a, groups, layout), strict=True
    ):
        total += (g_part.T @ a_part).square_()
    return total


def _by_group(tensor: Tensor, groups: list[slice], layout: Layout) -> list[Tensor]:
    """The rows of each group of samples; rows are the first axis."""
    if len(groups) == 1:
        return [tensor]
    samples, rest = groups[-1].stop, tensor.shape[1:]
    if layout.owner is not None:
        order = layout.owner.argsort(stable=True)  # rows without a gradient come first
        ends = layout.owner.add(1).bincount(minlength=samples + 1).cumsum(0).cpu().tolist()
        return [tensor[order[ends[group.start] : ends[group.stop]]] for group in groups]
    if layout.positions == 1:
        return [tensor[group] for group in groups]
    if layout.fastest:
        return [tensor.view(-1, samples, *rest)[:, group].flatten(0, 1) for group in groups]
    return [tensor.view(samples, -1, *rest)[group].flatten(0, 1) for group in groups]


FEW_POSITIONS = (
    32  # up to so many of a convolution's output, one matrix product a sample is the faster way
)


def _convolution_squares(use: Use, gradient: Tensor, groups: list[slice], layout: Layout) -> Tensor:
    stride, padding, dilation, channel_groups = use.options
    assert use.inputs is not None
    x, total = use.inputs, torch.zeros_like(use.parameter)
    as_product = (
        gradient.ndim == 4 and channel_groups == 1 and gradient[0, 0].numel() <= FEW_POSITIONS
    )
    if as_product:
        x = F.unfold(x, total.shape[2:], dilation, padding, stride)  # rows × in·kernel × positions
        gradient = gradient.flatten(2)  # rows × out × positions
        flat = total.flatten(1)  # out × in·kernel
        one = torch.empty_like(flat)
    for g, a in zip(_by_group(gradient, groups, layout), _by_group(x, groups, layout), strict=True):
        if as_product:
            g, a = (part.transpose(0, 1).flatten(1) for part in (g, a))  # … × rows·positions
            flat.addcmul_(torch.mm(g, a.T, out=one), one)
        elif len(g):
            _, weight, _ = torch.ops.aten.convolution_backward(
                g, a, use.parameter, None, stride, padding, dilation, False, [0] * len(stride), channel_groups,
                [False, True, False],
            )  # fmt: skip
            total.addcmul_(weight, weight)
    return total
