"""The loss at one point and its first derivatives: gradient, Hessian-vector product, synaptic flow.

The loss is L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ)/T, yₙ) with ℓ the cross-entropy, f the logits and T the temperature, in
evaluation mode; g = ∇L and H = ∇²L. Every function takes any model that returns logits N×C, leaves weights,
buffers, gradients, mode and ``requires_grad`` as it found them, and returns ``{parameter name: tensor}``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from .adjoints import DirectAdjoints
from .data import Batch
from .graph import BATCH_STATISTICS
from .models import resolve_parameters
from .parameters import checked_keywords

ByParameter = dict[str, Tensor]


class Problem:
    """A loss at one point: leaf tensors for the chosen parameters, and the logits as a function of them."""

    def __init__(self, model: nn.Module, batch: Batch, temperature: float, names: list[str]):
        self.model, self.temperature = model, temperature
        self.theta = {name: model.get_parameter(name).detach().requires_grad_() for name in names}
        self.others = {name: p.detach() for name, p in model.named_parameters() if name not in self.theta}
        self.others |= {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self.leaves = list(self.theta.values())
        first = self.leaves[0]
        for leaf in self.leaves:
            if leaf.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(f"The model is in {leaf.dtype}: curvature needs float32 or float64 weights.")
        _check_batch(batch, first)
        self.inputs, self.labels = batch.inputs.to(first.device), batch.labels.to(first.device, torch.int64)
        self.independent = False  # not known yet
        self.mixes_samples = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
            for module in model.modules()
        )

    def logits(self, part: slice) -> Tensor:
        """f(x)/T for a slice of the samples, n×C."""
        if self.mixes_samples and size(part) < len(self.inputs):
            raise ValueError(BATCH_STATISTICS)
        return self.logits_of(self.inputs[part])

    def logits_of(self, inputs: Tensor) -> Tensor:
        """f(x)/T for any inputs n×…, n×C."""
        out = torch.func.functional_call(self.model, {**self.theta, **self.others}, (inputs,))
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(inputs):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"The model must return logits of shape ({len(inputs)}, classes), not {shape}.")
        if self.labels.max() >= out.shape[1]:
            raise ValueError(
                f"Label {int(self.labels.max())} is out of range: the model has {out.shape[1]} outputs."
            )
        return out / self.temperature

    def check_independent(self) -> None:
        """Raise ValueError if the logits of the first sample depend on the second; looks once."""
        if self.independent:
            return
        self.independent = True
        pair = self.inputs[:2]
        if self.mixes_samples and len(pair) == 2:
            raise ValueError(BATCH_STATISTICS)
        if len(pair) == 2 and pair.is_floating_point():
            shift = torch.zeros_like(pair, requires_grad=True)  # no leaf input: flop counters fail
            first = self.logits_of(pair + shift)[0]  # C
            weights = torch.arange(1, len(first) + 1, dtype=first.dtype, device=first.device)
            (gradient,) = torch.autograd.grad(first, shift, weights, materialize_grads=True)
            if bool(gradient[1].any()):
                raise ValueError(
                    "The logits of one sample depend on another (as with x - x.mean(0)), so per-sample curvature "
                    "is not defined for this model."
                )

    def loss(self, part: slice) -> Tensor:
        """Mean loss of a slice of the samples."""
        return F.cross_entropy(self.logits(part), self.labels[part])

    def loss_gradient(self, part: slice, share: float, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Gradient of ``share`` times the mean loss of a slice of the samples."""
        loss = self.loss(part) * share
        grads: Any = (None,) * len(self.leaves)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, self.leaves, create_graph=create_graph, allow_unused=True)
        for name, grad in zip(self.theta, grads, strict=True):
            if grad is None:
                raise ValueError(f"The loss does not depend on {name!r}: leave it out with parameters=[...].")
        return grads

    def mapped(self, tensors: Iterable[Tensor]) -> ByParameter:
        """Give tensors, in the order of ``leaves``, their parameters' names."""
        return {name: t.detach() for name, t in zip(self.theta, tensors, strict=True)}


def _check_batch(batch: Batch, weight: Tensor) -> None:
    inputs, labels = batch
    if labels is None:
        raise ValueError("This criterion needs labels, and the batch has none.")
    if len(inputs) == 0:
        raise ValueError("The batch is empty: at least one sample is needed.")
    if labels.shape != (len(inputs),) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(
            f"Labels must be {len(inputs)} integers, one a sample, not {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    if int(labels.min()) < 0:
        raise ValueError(f"Label {int(labels.min())} is out of range: labels start at 0.")
    if inputs.is_floating_point():
        if not bool(torch.isfinite(inputs).all()):
            raise ValueError("The inputs hold NaN or infinite values.")
        if inputs.dtype != weight.dtype:
            raise ValueError(f"The inputs are {inputs.dtype} and the model is {weight.dtype}: make them equal.")


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and give back each one's own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def problem_at(
    model: nn.Module, batch: Batch, temperature: float, parameters: str | Iterable[str]
) -> Iterator[Problem]:
    """Set up the loss of a model on a batch, and leave the model as it was."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: it must be positive and finite.")
    problem = Problem(model, batch, temperature, resolve_parameters(model, parameters))
    device = problem.leaves[0].device.type
    # Fused attention has no second derivative on the CPU; reduced precision has no place in a derivative.
    with (
        evaluation_mode(model),
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield problem


def chunks(
    problem: Problem, chunk: int | None, start: int = 0, stop: int | None = None, copies: int = 1
) -> list[slice]:
    """Nearly equal slices of at most ``chunk`` samples; by default 2²⁰ input numbers and 64 samples at most.

    ``copies`` divides the default: how many times a gradient's memory is held for each sample.
    """
    count = (len(problem.inputs) if stop is None else stop) - start
    if chunk is None:
        chunk = max(1, min(64, 2**20 // max(1, problem.inputs[0].numel())) // copies)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: it must be at least 1.")
    parts = -(-count // chunk)
    edges = [start + count * i // parts for i in range(parts + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def size(part: slice) -> int:
    """Number of samples in a slice."""
    return part.stop - part.start


def summed_gradient(problem: Problem, part: slice, chunk: int | None) -> list[Tensor]:
    """Gradient of the mean loss of a slice of the samples, chunk by chunk."""
    total = [torch.zeros_like(leaf) for leaf in problem.leaves]
    for piece in chunks(problem, chunk, part.start, part.stop):
        torch._foreach_add_(total, problem.loss_gradient(piece, size(piece) / size(part)))
    return total


TWICE = 3  # times the memory of a gradient that the graph of a gradient holds for each sample


def hessian_products(
    problem: Problem, part: slice, draw: Callable[[], list[Tensor]], count: int, chunk: int | None
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield (v, Hv) for ``count`` vectors; the graph of the gradient is built once when it fits in one chunk."""
    pieces = chunks(problem, chunk, part.start, part.stop, TWICE)
    curved = None
    for i in range(count):
        vectors = draw()
        total: list[Tensor] = []
        for piece in pieces:
            if curved is None or len(pieces) > 1:
                with DirectAdjoints():
                    grads = problem.loss_gradient(piece, size(piece) / size(part), create_graph=True)
                # A loss without any curvature has a gradient without a graph. Edges do not hold the gradient.
                curved = {k: get_gradient_edge(g) for k, g in enumerate(grads) if g.requires_grad}
                del grads
            product = [torch.zeros_like(leaf) for leaf in problem.leaves] if not curved else torch.autograd.grad(
                list(curved.values()), problem.leaves, [vectors[k] for k in curved],
                retain_graph=len(pieces) == 1 and i + 1 < count, materialize_grads=True,
            )  # fmt: skip
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
) -> ByParameter:
    """Gradient g = ∇L of the mean loss.

    Args:
        model: returns logits N×C for the batch's inputs.
        batch: inputs N×… and integer labels N.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        chunk: samples a forward pass; bounds the memory, does not change the result.

    Returns:
        ``{name: tensor of the parameter's shape}``. Cost: one forward and backward pass.

    Raises:
        ValueError: for an unusable batch, model output, temperature, chunk or parameter name.
    """
    with problem_at(model, batch, temperature, parameters) as problem:
        return problem.mapped(summed_gradient(problem, slice(0, len(problem.inputs)), chunk))


@checked_keywords
def hessian_vector_product(
    model: nn.Module,
    batch: Batch,
    vectors: ByParameter,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> ByParameter:
    """Product H v by differentiating gᵀv (Pearlmutter, 1994); H is never formed.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        vectors: v, ``{parameter name: tensor of its shape}``; H is restricted to these parameters.
        temperature: T, divides the logits.
        chunk: samples a forward pass.

    Returns:
        H v under the same names. Cost: about two gradients.
    """
    with problem_at(model, batch, temperature, list(vectors)) as problem:
        for name, leaf in problem.theta.items():
            if vectors[name].shape != leaf.shape:
                raise ValueError(
                    f"vectors[{name!r}] has shape {tuple(vectors[name].shape)}, its parameter {tuple(leaf.shape)}."
                )
        whole = slice(0, len(problem.inputs))
        values = [vectors[name].to(leaf) for name, leaf in problem.theta.items()]
        ((_, product),) = hessian_products(problem, whole, lambda: values, 1, chunk)
        return problem.mapped(product)


@checked_keywords
def synaptic_flow(
    model: nn.Module,
    batch: Batch,
    *,
    parameters: str | Iterable[str] = "prunable",
    state: ByParameter | None = None,
) -> ByParameter:
    """Synaptic flow θ ⊙ ∂R/∂θ (Tanaka et al., 2020); of the batch only the input's shape is used.

    R is the sum of the outputs on an all-ones input with the absolute value of every floating parameter and
    buffer (or of ``state`` in their place), in float64 since R grows exponentially with depth.

    Returns:
        ``{name: float64 tensor of the parameter's shape}``. Cost: one pass with one input, in float64.
    """
    names = resolve_parameters(model, parameters)
    if len(batch.inputs) == 0:
        raise ValueError("The batch is empty: at least one sample is needed for its shape.")

    def positive(tensor: Tensor) -> Tensor:
        return tensor.detach().double().abs() if tensor.is_floating_point() else tensor.detach().clone()

    own = {name: t for name, t in (*model.named_parameters(), *model.named_buffers())}
    values = {name: positive(t) for name, t in {**own, **(state or {})}.items()}
    theta = [values[name].requires_grad_() for name in names]
    ones = torch.ones(1, *batch.inputs.shape[1:], dtype=torch.float64, device=theta[0].device)
    with evaluation_mode(model), torch.enable_grad(), torch.autocast(ones.device.type, enabled=False):
        flow = torch.func.functional_call(model, values, (ones,)).sum()
        grads = torch.autograd.grad(flow, theta, materialize_grads=True)
    return {name: (t * g).detach() for name, t, g in zip(names, theta, grads, strict=True)}
