"""The loss at one point and its first derivatives: gradient, Hessian-vector product, synaptic flow.

The loss is L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ)/T, yₙ) with ℓ the cross-entropy, f the logits and T the
temperature, in evaluation mode; g = ∇L and H = ∇²L. Every function takes any model that returns
logits N×C, leaves weights, buffers, gradients, mode and ``requires_grad`` as it found them, and
returns ``{parameter name: tensor}``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from ..data.batch import Batch, as_batch, each_of, of_each
from ..draws import default_dtype
from ..names import checked_keywords, nearest
from ..progress import steps
from .adjoints import DirectAdjoints
from .calls import ByParameter, answered, evaluation_mode, repeating, substituted
from .graph import differentiable, unreached
from .parameters import resolve_parameters
from .problem import Problem, chunks, problem_at, sentences, size

ONCE = (
    "A function of the model forbids a second derivative (once_differentiable, or weight norm in "
    "activation checkpointing), and PyTorch would take it for zero: Hessians cannot be had of it."
)
TWICE = 3  # times the memory of a gradient that the graph of a gradient holds for each sample


def summed_gradient(problem: Problem, part: slice, chunk: int | None) -> list[Tensor]:
    """Gradient of the mean loss of a slice of the samples, chunk by chunk."""
    total = problem.zeros()
    for piece in steps(chunks(problem, chunk, part), "piece"):
        torch._foreach_add_(total, problem.loss_gradient(piece, size(piece) / size(part)))
    return total


def hessian_products(
    problem: Problem, part: slice, draw: Callable[[], list[Tensor]], count: int, chunk: int | None
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield (v, Hv) for ``count`` vectors; in one piece the gradient's graph is built once."""
    pieces = chunks(problem, chunk, part, TWICE)
    edges: list[GradientEdge] = []
    direct = True
    for i in steps(range(count), "vector"):
        vectors, total = draw(), problem.zeros()
        for piece in pieces:
            if i == 0 or len(pieces) > 1:
                share = size(piece) / size(part)
                if direct:
                    try:
                        with DirectAdjoints():
                            gradients = problem.loss_gradient(piece, share, True)
                        direct = i > 0 or differentiable(gradients)
                    except ValueError:  # as of a forward derivative, or again without it
                        direct, problem.independent = False, False
                if not direct:
                    gradients = problem.loss_gradient(piece, share, True)
                    if i == 0 and not differentiable(gradients):
                        raise ValueError(ONCE)
                edges = [get_gradient_edge(gradient) for gradient in gradients]
                del gradients  # the edges do not hold them
            keep_graph = len(pieces) == 1 and i + 1 < count
            product = torch.autograd.grad(
                edges, problem.leaves, vectors, retain_graph=keep_graph, materialize_grads=True
            )
            torch._foreach_add_(total, product)
        yield vectors, total


@checked_keywords
def gradient(
    model: nn.Module,
    batch: Batch,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    chunk: int | None = None,
    progress: bool = True,
) -> ByParameter:
    """Gradient g = ∇L of the mean loss.

    Args:
        model: returns logits N×C for the batch's inputs.
        batch: inputs N×… and integer labels N.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        chunk: samples a forward pass; bounds the memory, does not change the result.
        progress: show a bar if it takes long.

    Returns:
        ``{name: tensor of the parameter's shape}``, at the cost of a forward and backward pass.

    Raises:
        ValueError: for an unusable batch, model output, temperature, chunk or parameter name.
    """
    with problem_at(model, batch, temperature, parameters, "gradient", progress) as problem:
        return problem.mapped(summed_gradient(problem, slice(0, problem.samples), chunk))


@checked_keywords
def hessian_vector_product(
    model: nn.Module,
    batch: Batch,
    vectors: ByParameter,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    progress: bool = True,
) -> ByParameter:
    """Product H v by differentiating gᵀv (Pearlmutter, 1994); H is never formed.

    Of a ``torch.autograd.Function`` of one's own PyTorch differentiates what its ``backward`` makes
    of ``ctx.saved_tensors``; what it keeps elsewhere counts as a constant, and nothing tells.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        vectors: v, ``{parameter name: tensor of its shape}``; H is restricted to these parameters.
        temperature: T, divides the logits.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        H v under the same names, at the cost of about two gradients.
    """
    if not isinstance(vectors, Mapping):
        raise TypeError(f"vectors is a {type(vectors).__name__}: it must map names to tensors.")
    names, what = list(vectors), "Hessian product"
    with problem_at(model, batch, temperature, names, what, progress) as problem:
        for name, leaf in problem.theta.items():
            _check_real(f"vectors[{name!r}]", vectors[name], leaf.shape)
        whole = slice(0, problem.samples)
        values = [vectors[name].to(leaf) for name, leaf in problem.theta.items()]
        ((_, product),) = hessian_products(problem, whole, lambda: values, 1, chunk)
        return problem.mapped(product)


def _check_real(title: str, value: Any, shape: torch.Size) -> None:
    """Raise ValueError unless a value is a tensor of this shape that holds real numbers."""
    if not isinstance(value, Tensor) or value.shape != shape:
        raise ValueError(f"{title} must be a tensor of the shape {tuple(shape)}.")
    if value.is_complex() or value.is_meta:
        kind = "meta tensor, without values" if value.is_meta else f"{value.dtype} tensor"
        raise ValueError(f"{title} is a {kind}: it must hold real numbers.")


@checked_keywords
def synaptic_flow(
    model: nn.Module,
    batch: Batch,
    *,
    parameters: str | Iterable[str] = "prunable",
    state: ByParameter | None = None,
) -> ByParameter:
    """Synaptic flow θ ⊙ ∂R/∂θ (Tanaka et al., 2020); of the batch only the input's shape is used.

    R is the sum of the outputs on an all-ones input with the absolute value of every floating
    parameter and buffer (or of ``state`` in their place), in float64 since R grows exponentially
    with depth. Of integer inputs (tokens) those of the first sample are kept, and what is looked up
    for them in an embedding is all ones.

    Returns:
        ``{name: float64 tensor of the parameter's shape}``, at the cost of one pass with one input,
        in float64.
    """
    names, inputs = resolve_parameters(model, parameters), as_batch(batch).inputs
    if len(each_of(inputs)[0]) == 0:
        raise ValueError("The batch is empty: at least one sample is needed for its shape.")
    device = model.get_parameter(names[0]).device
    lookups = _OnesForTokens()
    floating = [tensor.is_floating_point() for tensor in each_of(inputs)]

    def positive(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if not tensor.is_floating_point():
            return tensor.clone()
        wide = tensor.double()
        return torch.where(wide == -math.inf, wide, wide.abs())  # what blocks attention does so

    def ones(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor[:1].to(device).clone()
        # With a gradient: of others, reentrant checkpointing would leave no trace.
        return torch.ones(tensor[:1].shape, device=device).requires_grad_() * 1

    with (
        default_dtype(torch.float64),  # of what a model makes itself, as a first state
        torch.inference_mode(False),
        evaluation_mode(model, on_copies=True),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        contextlib.nullcontext() if all(floating) else lookups,
    ):
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        for name in (state or {}).keys() - tensors.keys():
            raise ValueError(f"state: the model has no {name!r}: {nearest(name, tensors)}")
        for name, value in (state or {}).items():
            _check_real(f"state[{name!r}]", value, tensors[name].shape)
        values = {name: positive(t) for name, t in {**tensors, **(state or {})}.items()}
        theta = [values[name].requires_grad_() for name in names]
        again = repeating(model, lambda _: of_each(inputs, ones), [slice(0, 1)], always=0)
        with substituted(model, values), again:
            try:
                output = answered(model, of_each(inputs, ones))
            except ValueError as error:
                raise ValueError(f"{error} (Synaptic flow runs in float64.)") from error
            if not isinstance(output, Tensor) or not output.requires_grad:
                raise ValueError("Synaptic flow needs a model that returns a tensor of weights.")
            if not any(floating) and not lookups.used:
                raise ValueError("Synaptic flow needs inputs of ones: no embedding takes these.")
            with sentences():
                gradients = torch.autograd.grad(output.sum(), theta, allow_unused=True)
            for name in [n for n, g in zip(names, gradients, strict=True) if g is None]:
                raise unreached(name, output)
    return {name: (t * g).detach() for name, t, g in zip(names, theta, gradients, strict=True)}


class _OnesForTokens(TorchFunctionMode):
    """While active, every embedding of a token is a vector of ones."""

    used = False

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call not in (F.embedding, F.embedding_bag):
            return call(*args, **(kwargs or {}))
        self.used = True
        options = inspect.signature(call).bind(*args, **(kwargs or {})).arguments
        ones = {"weight": torch.fill(options["weight"], 1), "max_norm": None}
        return call(**options | ones)
