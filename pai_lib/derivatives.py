"""The loss at one point and its first derivatives: gradient, Hessian-vector product, synaptic flow.

The loss is L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ)/T, yₙ) with ℓ the cross-entropy, f the logits and T the temperature, in
evaluation mode; g = ∇L and H = ∇²L. Every function takes any model that returns logits N×C, leaves weights,
buffers, gradients, mode and ``requires_grad`` as it found them, and returns ``{parameter name: tensor}``.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .adjoints import DirectAdjoints, PlainOperations
from .data import Batch, Inputs, as_batch, each_of, of_each
from .graph import REENTRANT, differentiable, hides_weights
from .models import resolve_parameters
from .parameters import checked_keywords

ByParameter = dict[str, Tensor]
BATCH_STATISTICS = (
    "A batch norm used the statistics of the batch (track_running_stats=False), so the loss of one sample "
    "depends on the others: per-sample curvature is not defined for this model, nor a batch in pieces."
)
MIXED = (
    "The logits of one sample depend on another (as with x - x.mean(0)), so per-sample curvature is not defined "
    "for this model, nor a batch in pieces."
)
ONCE = (
    "A function of the model forbids a second derivative (once_differentiable), and PyTorch would take it for "
    "zero: Hessians cannot be had of this model."
)


class Problem:
    """A loss at one point: leaf tensors for the chosen parameters, and the logits as a function of them."""

    def __init__(self, model: nn.Module, batch: Batch, temperature: float, names: list[str]):
        self.model, self.temperature = model, temperature
        self.theta = {name: _own(model.get_parameter(name)).requires_grad_() for name in names}
        self.leaves = list(self.theta.values())
        first = self.leaves[0]
        for name, leaf in self.theta.items():
            if leaf.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"The model is in {leaf.dtype} ({name!r}): curvature needs float32 or float64 weights."
                )
        batch = as_batch(batch)
        _check_batch(batch, first)
        self.inputs = of_each(batch.inputs, lambda tensor: _own(tensor.to(first.device)))
        self.labels = _own(batch.labels.to(first.device, torch.int64))
        self.samples = len(self.labels)
        self.numbers = sum(tensor[0].numel() for tensor in each_of(self.inputs))  # of one sample
        self.watched: list[GradientEdge] = []  # the inputs of the last logits, where they can be differentiated
        self.called = self.independent = False  # not known yet
        self.mixes_samples = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
            for module in model.modules()
        )

    @property
    def state(self) -> ByParameter:
        """What the model computes with: the leaves, and copies of all that it might change."""
        others = {name: _own(p) for name, p in self.model.named_parameters() if name not in self.theta}
        return {**others, **{name: b.detach().clone() for name, b in self.model.named_buffers()}, **self.theta}

    def logits(self, part: slice, watch: bool = False) -> Tensor:
        """f(x)/T for a slice of the samples, n×C; ``watch`` has the inputs take part in the graph."""
        if size(part) < self.samples:
            self.check_independent()
        self.watched = []

        def taken(tensor: Tensor) -> Tensor:
            if not (watch and tensor.is_floating_point()):
                return tensor[part].clone()  # a model may write into its input
            shift = torch.zeros_like(tensor[part], requires_grad=True)  # no leaf input: flop counters fail
            self.watched.append(get_gradient_edge(shift))
            return tensor[part] + shift

        return self.logits_of(of_each(self.inputs, taken))

    def logits_of(self, inputs: Inputs) -> Tensor:
        """f(x)/T for any inputs n×…, n×C."""
        if self.called:
            with PlainOperations():
                return called(self.model, inputs) / self.temperature
        self.called = True
        out, count = first_called(self.model, inputs), len(each_of(inputs)[0])
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != count:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"The model must return logits of shape ({count}, classes), not {shape}.")
        if self.labels.max() >= out.shape[1]:
            raise ValueError(
                f"Label {int(self.labels.max())} is out of range: the model has {out.shape[1]} outputs."
            )
        return out / self.temperature

    def check_independent(self) -> None:
        """Raise ValueError if a sample's logits change with the samples beside it; looks once, at all of them.

        It costs a forward pass: every sample is seen in two batches, of different companions, sizes and places.
        """
        if self.independent or self.samples == 1:
            return
        self.independent = True
        if self.mixes_samples:
            raise ValueError(BATCH_STATISTICS)
        same = []
        for piece in chunks(self, max(2, default_chunk(self))):
            start = max(0, min(piece.start, piece.stop - 2))  # two samples at least
            with torch.no_grad():
                whole = self.logits_of(self.taken(slice(start, max(piece.stop, 2))))
            same += [self.agrees(whole[i::2], slice(start + i, max(piece.stop, 2), 2)) for i in range(2)]
        if not bool(torch.stack(same).all()):
            raise ValueError(MIXED)

    def check_companions(self, logits: Tensor, start: int) -> None:
        """Raise ValueError if logits, of samples from ``start`` on, change without some of those samples.

        Of inputs whose gradients tell the rest, twice three samples do: what one sample does to all others shows
        in those that are without it. Of tokens all are looked at.
        """
        if self.mixes_samples:
            raise ValueError(BATCH_STATISTICS)
        if len(self.watched) < len(each_of(self.inputs)):
            return self.check_independent()
        step = max(2, -(-len(logits) // 3))
        parts = [slice(i, len(logits), step) for i in range(2)]
        same = [self.agrees(logits[part], slice(start + part.start, start + part.stop, step)) for part in parts]
        if not bool(torch.stack(same).all()):
            raise ValueError(MIXED)

    def taken(self, part: slice) -> Inputs:
        """Copies of some samples' inputs, since a model may write into them."""
        return of_each(self.inputs, lambda tensor: tensor[part].clone())

    def agrees(self, logits: Tensor, part: slice) -> Tensor:
        """Whether these are the logits that some samples have as a batch of their own: a single bool."""
        with torch.no_grad():
            error = (self.logits_of(self.taken(part)) - logits).abs().max()
        # Kernels depend on the size of a batch; on other devices than the CPU some round to 11 bits.
        within = 1e3 * torch.finfo(logits.dtype).eps if logits.device.type == "cpu" else 2e-2
        return error <= within * logits.detach().abs().max()

    def loss(self, part: slice) -> Tensor:
        """Mean loss of a slice of the samples."""
        return F.cross_entropy(self.logits(part), self.labels[part])

    def loss_gradient(self, part: slice, share: float, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Gradient of ``share`` times the mean loss of a slice of the samples."""
        loss = self.loss(part) * share
        grads: Any = (None,) * len(self.leaves)
        if loss.requires_grad:
            with _sentences():
                grads = torch.autograd.grad(loss, self.leaves, create_graph=create_graph, allow_unused=True)
        for name, grad in zip(self.theta, grads, strict=True):
            if grad is None:
                hidden = hides_weights(self.logits(part, watch=True))
                raise ValueError(
                    REENTRANT
                    if hidden
                    else f"The loss does not depend on {name!r}: leave it out with parameters=[...]."
                )
        return grads

    def mapped(self, tensors: Iterable[Tensor]) -> ByParameter:
        """Give tensors, in the order of ``leaves``, their parameters' names."""
        return {name: t.detach() for name, t in zip(self.theta, tensors, strict=True)}


def _own(tensor: Tensor) -> Tensor:
    """The tensor without its graph; a copy where it was made in inference mode, which no graph may hold."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def called(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model: a mapping holds its keyword arguments, a tuple its positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def first_called(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model, and say in a sentence what is wrong with that.

    Raises:
        ValueError: for inputs that the model does not take, and for a model that draws random numbers.
    """
    tensors = each_of(inputs)
    given = ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in tensors).replace("torch.", "")
    if not isinstance(inputs, Tensor):
        kind = (
            f"a mapping of {', '.join(inputs)}"
            if isinstance(inputs, Mapping)
            else f"a tuple of {len(tensors)} tensors"
        )
        signature = inspect.signature(model.forward)
        try:
            signature.bind(**inputs) if isinstance(inputs, Mapping) else signature.bind(*inputs)
        except TypeError as error:
            raise ValueError(
                f"The inputs are {kind}, and the model's forward{signature} does not take them: {error}."
            ) from None
    before = _random_states(tensors[0].device)
    try:
        with PlainOperations():
            out = called(model, inputs)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"The model's forward pass fails for inputs of {given}: {said}") from error
    if not all(map(torch.equal, before, _random_states(tensors[0].device))):
        torch.set_rng_state(before[0])
        raise ValueError(
            "The model draws random numbers in evaluation mode (as F.dropout does without "
            "training=self.training), so scores would differ from call to call: switch that off."
        )
    return out


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Say in a sentence what PyTorch cannot differentiate."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if "use_reentrant" in said:
            raise ValueError(REENTRANT) from error
        if said.startswith("derivative for") and "is not implemented" in said:
            operation = said.split()[2].removeprefix("aten::").removesuffix("_backward")
            raise ValueError(
                f"PyTorch has no second derivative of the operation {operation!r}: Hessians cannot be had of this "
                "model."
            ) from error
        raise


def _check_batch(batch: Batch, weight: Tensor) -> None:
    inputs, labels = batch
    count = len(each_of(inputs)[0])
    if labels is None:
        raise ValueError("This criterion needs labels, and the batch has none.")
    if not isinstance(labels, Tensor):
        raise TypeError(f"Labels must be a tensor or array of integers, not {type(labels).__name__}.")
    if count == 0:
        raise ValueError("The batch is empty: at least one sample is needed.")
    if labels.shape != (count,) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(
            f"Labels must be {count} integers, one a sample, not {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if int(labels.min()) < 0:
        raise ValueError(f"Label {int(labels.min())} is out of range: labels start at 0.")
    for tensor in each_of(inputs):
        if not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError("The inputs hold NaN or infinite values.")
        if tensor.dtype != weight.dtype:
            raise ValueError(f"The inputs are {tensor.dtype} and the model is {weight.dtype}: make them equal.")


@contextlib.contextmanager
def substituted(model: nn.Module, state: ByParameter) -> Iterator[None]:
    """Have a model compute with other tensors, by the names of its own, until the end of the block.

    Unlike ``torch.func.functional_call`` also while a backward pass recomputes (activation checkpointing).
    """
    named = (*model.named_parameters(), *model.named_buffers())
    others = {id(tensor): state[name] for name, tensor in named if name in state}
    modules = list(model.modules())
    holders: list[Any] = [store for module in modules for store in (module._parameters, module._buffers)]
    before = [dict(store) for store in holders]
    try:
        for store in holders:
            store.update({name: others[id(tensor)] for name, tensor in store.items() if id(tensor) in others})
        yield
    finally:
        for store, tensors in zip(holders, before, strict=True):
            store.update(tensors)


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
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        problem = Problem(model, batch, temperature, resolve_parameters(model, parameters))
        # Fused attention has no second derivative on the CPU; reduced precision has no place in a derivative.
        with (
            torch.autocast(problem.leaves[0].device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            substituted(model, problem.state),
        ):
            yield problem


def chunks(
    problem: Problem, chunk: int | None, start: int = 0, stop: int | None = None, copies: int = 1
) -> list[slice]:
    """Nearly equal slices of at most ``chunk`` samples; by default 2²⁰ input numbers and 64 samples at most.

    ``copies`` divides the default: how many times a gradient's memory is held for each sample.
    """
    count = (problem.samples if stop is None else stop) - start
    if chunk is None:
        chunk = max(1, default_chunk(problem) // copies)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: it must be at least 1.")
    parts = -(-count // chunk)
    edges = [start + count * i // parts for i in range(parts + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def default_chunk(problem: Problem) -> int:
    """Samples a forward pass where nothing else is asked for."""
    return max(1, min(64, 2**20 // max(1, problem.numbers)))


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
                if i == 0 and piece is pieces[0] and not differentiable(grads):
                    raise ValueError(ONCE)
                # A loss without any curvature has a gradient without a graph. Edges do not hold the gradient.
                curved = {k: get_gradient_edge(g) for k, g in enumerate(grads) if g.requires_grad}
                del grads
            product: Any = [torch.zeros_like(leaf) for leaf in problem.leaves]
            if curved:
                outputs, along = list(curved.values()), [vectors[k] for k in curved]
                keep = len(pieces) == 1 and i + 1 < count
                with _sentences():
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
        return problem.mapped(summed_gradient(problem, slice(0, problem.samples), chunk))


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
        whole = slice(0, problem.samples)
        values = [vectors[name].to(leaf) for name, leaf in problem.theta.items()]
        ((_, product),) = hessian_products(problem, whole, lambda: values, 1, chunk)
        return problem.mapped(product)


class _OnesForTokens(TorchFunctionMode):
    """While active, every embedding of a token is a vector of ones."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.embedding:
            tokens, table, *_ = inspect.signature(F.embedding).bind(*args, **(kwargs or {})).args
            return torch.ones(*tokens.shape, table.shape[1], dtype=table.dtype, device=table.device)
        return function(*args, **(kwargs or {}))


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
    buffer (or of ``state`` in their place), in float64 since R grows exponentially with depth. Of integer inputs
    (tokens) those of the first sample are kept, and what is looked up for them in an embedding is all ones.

    Returns:
        ``{name: float64 tensor of the parameter's shape}``. Cost: one pass with one input, in float64.
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
    tokens = not all(tensor.is_floating_point() for tensor in each_of(batch.inputs))
    with (
        torch.inference_mode(False),
        evaluation_mode(model),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _OnesForTokens() if tokens else contextlib.nullcontext(),
    ):
        values = {name: positive(t) for name, t in {**own, **(state or {})}.items()}
        theta = [values[name].requires_grad_() for name in names]
        with substituted(model, values):
            flow = first_called(model, of_each(batch.inputs, ones)).sum()
            with _sentences():
                grads = torch.autograd.grad(flow, theta, materialize_grads=True)
    return {name: (t * g).detach() for name, t, g in zip(names, theta, grads, strict=True)}
