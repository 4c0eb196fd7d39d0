"""What was executed: reads PyTorch's autograd graph to find where each weight was used, and how.

Modules only declare; the graph tells what ran. It shows functional calls, attention's fused
projections and in-place activations, it counts how often a weight was used, and it knows the input
that each use saw, so that per-sample gradients need no hooks. A use that is not understood is an
error, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}
REENTRANT_NODE = "CheckpointFunctionBackward"
REENTRANT = (
    "The model uses activation checkpointing with use_reentrant=True, which hides its weights from "
    "derivatives: use use_reentrant=False."
)

UNREACHED = (
    "No gradient reaches {!r}: it is not used, or only where none flows (as with torch.no_grad, "
    "detach or a comparison): leave it out with parameters=[...]."
)


class Use(NamedTuple):
    """One use of a parameter in the forward pass."""

    kind: str  # "convolution", "linear" or "channel" (a bias or the scale of a norm)
    edge: GradientEdge  # gives the loss gradient at the operation's output
    inputs: Tensor | None  # what multiplied the parameter; None for a bias
    parameter: Tensor
    channel_axis: int = -1  # of the output
    options: tuple[Any, ...] = ()  # of a convolution: stride, padding, dilation, groups


def operation(node: Node) -> str:
    """Name of a node's operation: ``ReluBackward0`` is ``Relu``; a user's own keeps its name."""
    if isinstance(node, BackwardCFunction):
        return type(node).__name__
    return node.name().rsplit("::", 1)[-1].split("Backward")[0]


def nodes(*roots: Node | None) -> list[Any]:  # a Node does not declare what its operation saved
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


def unreached(name: str, output: Tensor) -> ValueError:
    """Say why no gradient of an output, which has one at the inputs, comes to a parameter."""
    hidden = any(operation(node) == REENTRANT_NODE for node in nodes(output.grad_fn))
    return ValueError(REENTRANT if hidden else UNREACHED.format(name))


def uses_batch_statistics(output: Tensor) -> bool:
    """Whether a batch norm ran that did; an instance norm, of one row, is none."""
    ran = (node for node in nodes(output.grad_fn) if operation(node) in BATCH_NORMS)
    return any(node._saved_training and len(node._saved_input) > 1 for node in ran)


def runs_own_functions(output: Tensor) -> bool:
    """Whether a derivative is one that the user wrote (``torch.autograd.Function``)."""
    return any(isinstance(node, BackwardCFunction) for node in nodes(output.grad_fn))


def differentiable(gradients: Iterable[Tensor]) -> bool:
    """Whether gradients can be differentiated once more: PyTorch takes what forbids it for zero.

    So it does with a norm in weight norm, where activation checkpointing keeps it from ours.
    """
    roots = [gradient.grad_fn for gradient in gradients]
    wrong = {"Error", "WeightNormInterface"}
    return None not in roots and wrong.isdisjoint(map(operation, nodes(*roots)))


def find_uses(logits: Tensor, parameters: dict[str, Tensor]) -> dict[str, Use]:
    """Find the one place where each parameter entered the computation of ``logits``, if it did.

    Args:
        logits: output N×C whose graph is read.
        parameters: name to leaf tensor, as used in the forward pass.

    Raises:
        ValueError: if a parameter was used more than once, or in a way whose per-sample gradient
            is not known here.
    """
    consumers: dict[Node | None, list[tuple[Node, int]]] = {}  # and which of their operands it is
    leaves: dict[int, Node] = {}
    for node in nodes(logits.grad_fn):
        if operation(node) == REENTRANT_NODE:
            raise ValueError(REENTRANT)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node
        for position, (child, _) in enumerate(node.next_functions):
            consumers.setdefault(child, []).append((node, position))
    uses = {}
    used = {name: leaf for name, leaf in parameters.items() if id(leaf) in leaves}
    for name, parameter in used.items():
        users = consumers[leaves[id(parameter)]]
        if len(users) != 1:
            raise ValueError(
                f"Parameter {name!r} was used {len(users)} times in the forward pass, and "
                "per-sample curvature needs exactly one use: leave it out with parameters=[...]."
            )
        node, position = users[0]
        transposed = operation(node) == "T" and len(consumers[node]) == 1
        if transposed:  # a linear layer multiplies by weightᵀ
            node, position = consumers[node][0]
        use = _understand(node, position, parameter, transposed)
        if use is None:
            raise ValueError(
                f"Parameter {name!r} was used by {operation(node)!r}, whose per-sample gradient is "
                "not known (of convolution, linear and batch norm it is): leave it out with "
                "parameters=[...]."
            )
        uses[name] = use
    return uses


def _understand(node: Any, position: int, parameter: Tensor, transposed: bool) -> Use | None:
    """The use of a parameter as the operand at a position; ``None`` for one that is not known."""
    edge = GradientEdge(node, 0)
    match operation(node), position, parameter.ndim:
        case "Convolution", 1, _ if not node._saved_transposed:
            strides = node._saved_stride, node._saved_padding, node._saved_dilation
            options = *strides, node._saved_groups
            return Use("convolution", edge, node._saved_input, parameter, 1, options)
        case "Convolution", 2, _:
            return Use("channel", edge, None, parameter, 1)
        case "Addmm", 2, 2 if transposed and node._saved_alpha == 1:
            return Use("linear", edge, node._saved_mat1, parameter)
        case "Mm", 1, 2 if transposed:
            return Use("linear", edge, node._saved_self, parameter)
        case "Addmm", 0, 1 if node._saved_beta == 1 and _one_a_channel(node, parameter):
            return Use("channel", edge, None, parameter)
        case "Add", 1, 1 if node._saved_alpha == 1 and _one_a_channel(node, parameter):
            return Use("channel", edge, None, parameter)
        case norm, 1 | 2, 1 if norm in BATCH_NORMS and not node._saved_training:
            inputs = _normalised(node) if position == 1 else None
            return Use("channel", edge, inputs, parameter, 1)
    return None


def _one_a_channel(node: Any, parameter: Tensor) -> bool:
    shape = node._input_metadata[0].shape  # of a sum of two biases there is no channel
    return len(shape) > 1 and shape[-1] == len(parameter)


def _normalised(node: Any) -> Tensor:
    """What a batch norm in evaluation mode multiplies by its scale, N×C×…."""
    x, mean, variance = node._saved_input, node._saved_running_mean, node._saved_running_var
    epsilon = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return (x - mean.view(shape)) * (variance.view(shape) + epsilon).rsqrt()
