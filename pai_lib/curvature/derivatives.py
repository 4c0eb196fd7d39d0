"""The loss at one point and its first derivatives: gradient, Hessian-vector product, synaptic flow.

The loss is L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ)/T, yₙ) with ℓ the cross-entropy, f the logits and T the
temperature, in evaluation mode; g = ∇L and H = ∇²L. Every function takes any model that returns
logits N×C, leaves weights, buffers, gradients, mode and ``requires_grad`` as it found them, and
returns ``{parameter name: tensor}``.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from ..data.batch import Batch, as_batch, each_of, of_each
from ..names import checked_keywords
from ..progress import steps
from .adjoints import DirectAdjoints
from .calls import ByParameter, evaluation_mode, first_called, substituted
from .graph import differentiable
from .parameters import resolve_parameters
from .problem import ONCE, Problem, chunks, problem_at, sentences, size


def summed_gradient(problem: Problem, part: slice, chunk: int | None) -> list[Tensor]:
    """Gradient of the mean loss of a slice of the samples, chunk by chunk."""
    total = [torch.zeros_like(leaf) for leaf in problem.leaves]
    for piece in steps(chunks(problem, chunk, part.start, part.stop), "piece"):
        torch._foreach_add_(total, problem.loss_gradient(piece, size(piece) / size(part)))
    return total


TWICE = 3  # times the memory of a gradient that the graph of a gradient holds for each sample


def hessian_products(
    problem: Problem, part: slice, draw: Callable[[], list[Tensor]], count: int, chunk: int | None
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield (v, Hv) for ``count`` vectors; the graph of the gradient is built once when it fits in one chunk."""
    pieces = chunks(problem, chunk, part.start, part.stop, TWICE)
    curved = None
    for i in steps(range(count), "vector"):
        vectors = draw()
        total: list[Tensor] = []
        for piece in pieces:
            if curved is None or len(pieces) > 1:
                with DirectAdjoints():
                    grads = problem.loss_gradient(
                        piece, size(piece) / size(part), create_graph=True
                    )
                if i == 0 and piece is pieces[0] and not differentiable(grads):
                    raise ValueError(ONCE)
                # A loss without any curvature has a gradient without a graph. Edges do not hold the
                # gradient.
                curved = {k: get_gradient_edge(g) for k, g in enumerate(grads) if g.requires_grad}
                del grads
            product: Any = [torch.zeros_like(leaf) for leaf in problem.leaves]
            if curved:
                outputs, along = list(curved.values()), [vectors[k] for k in curved]
                keep = len(pieces) == 1 and i + 1 < count
                with sentences():
                    product = torch.autograd.grad(
                        outputs, problem.leaves, along, retain_graph=keep, materialize_grads=True
                    )
            total = list(torch._foreach_add(total, product) if total else product)
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
        ``{name: tensor of the parameter's shape}``. Cost: one forward and backward pass.

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

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        vectors: v, ``{parameter name: tensor of its shape}``; H is restricted to these parameters.
        temperature: T, divides the logits.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        H v under the same names. Cost: about two gradients.
    """
    if not isinstance(vectors, Mapping):
        raise TypeError(
            f"vectors is a {type(vectors).__name__}: it must be a mapping of parameter names to tensors."
        )
    with problem_at(
        model, batch, temperature, list(vectors), "Hessian product", progress
    ) as problem:
        for name, leaf in problem.theta.items():
            if not isinstance(vectors[name], Tensor):
                raise TypeError(
                    f"vectors[{name!r}] is a {type(vectors[name]).__name__}: it must be a tensor."
                )
            if vectors[name].shape != leaf.shape:
                raise ValueError(
                    f"vectors[{name!r}] has shape {tuple(vectors[name].shape)}, its parameter {tuple(leaf.shape)}."
                )
        whole = slice(0, problem.samples)
        values = [vectors[name].to(leaf) for name, leaf in problem.theta.items()]
        ((_, product),) = hessian_products(problem, whole, lambda: values, 1, chunk)
        return problem.mapped(product)


class _OnesForTokens(TorchFunctionMode):
    """While active, every embedding of a token is a vector of ones."""

    met = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function not in (F.embedding, F.embedding_bag):
            return function(*args, **(kwargs or {}))
        self.met = True
        given = inspect.signature(function).bind(*args, **(kwargs or {})).arguments
        return function(**given | {"weight": torch.ones_like(given["weight"]), "max_norm": None})


@contextlib.contextmanager
def _float64_by_default() -> Iterator[None]:
    """Have tensors that a model makes itself (a first state, say) be of the precision of the flow."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
        ``{name: float64 tensor of the parameter's shape}``. Cost: one pass with one input, in
        float64.
    """
    names, batch = resolve_parameters(model, parameters), as_batch(batch)
    if len(each_of(batch.inputs)[0]) == 0:
        raise ValueError("The batch is empty: at least one sample is needed for its shape.")

    def positive(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.double().abs() if tensor.is_floating_point() else tensor.clone()

    def ones(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor[:1].to(device).clone()
        return torch.ones(1, *tensor.shape[1:], dtype=torch.float64, device=device)

    own = {name: t for name, t in (*model.named_parameters(), *model.named_buffers())}
    device = own[names[0]].device
    floating = [tensor.is_floating_point() for tensor in each_of(batch.inputs)]
    with (
        _float64_by_default(),
        torch.inference_mode(False),
        evaluation_mode(model),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        contextlib.nullcontext() if all(floating) else _OnesForTokens() as tokens,
    ):
        values = {name: positive(t) for name, t in {**own, **(state or {})}.items()}
        theta = [values[name].requires_grad_() for name in names]
        with substituted(model, values):
            out = first_called(model, of_each(batch.inputs, ones))
            if not (isinstance(out, Tensor) and out.is_floating_point() and out.requires_grad):
                raise ValueError(
                    "Synaptic flow needs a model that returns a real floating-point tensor which depends on its "
                    f"weights, not {'one that does not' if isinstance(out, Tensor) else type(out).__name__}."
                )
            if tokens is not None and not any(floating) and not tokens.met:
                raise ValueError(
                    f"Synaptic flow needs inputs of ones, and these are {each_of(batch.inputs)[0].dtype} that no "
                    "embedding takes: have the model take floating-point inputs."
                )
            with sentences():
                grads = torch.autograd.grad(out.sum(), theta, materialize_grads=True)
    return {name: (t * g).detach() for name, t, g in zip(names, theta, grads, strict=True)}
