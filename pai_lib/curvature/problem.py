"""A loss at one point: the logits as a function of leaf tensors, for any slice of a batch.

The loss is L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ)/T, yₙ) with ℓ the cross-entropy, f the logits and T the
temperature, in evaluation mode. The model is left as it was.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..data.batch import Batch, Inputs, as_batch, check_labels, each_of, of_each
from ..models import check_logits
from ..names import check_number, count_of
from ..progress import Bar
from .calls import (
    ByParameter,
    DetachedValues,
    answered,
    evaluation_mode,
    plain_attention,
    repeating,
    substituted,
)
from .graph import REENTRANT, runs_own_functions, unreached, uses_batch_statistics
from .operations import keeps_samples_apart
from .parameters import resolve_parameters

Watched = tuple[Tensor, list[GradientEdge], bool]  # as ``Problem.watched`` returns
BATCH_STATISTICS = (
    "A batch norm used the statistics of the batch (track_running_stats=False), so the loss of one "
    "sample depends on the others: per-sample curvature is not defined, nor a batch in pieces."
)
MIXED = (
    "The logits of one sample depend on another (as with x - x.mean(0)), so per-sample curvature "
    "is not defined for this model, nor a batch in pieces."
)
FEW = 8  # samples that are looked at where operations prove the rest


def plain(tensor: Tensor) -> Tensor:
    """The tensor without its graph; a copy if of inference mode, which no graph may hold."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


class Problem:
    """A loss at one point: leaf tensors for the chosen parameters, and logits as their function."""

    def __init__(self, model: nn.Module, batch: Batch, temperature: float, names: list[str]):
        self.model, self.temperature = model, temperature
        tensors = (*model.named_parameters(), *model.named_buffers())
        # What the model computes with: copies, since a forward pass may write to it.
        self.state = {name: tensor.detach().clone() for name, tensor in tensors}
        self.theta = {name: self.state[name].requires_grad_() for name in names}
        self.leaves = list(self.theta.values())
        for leaf in self.leaves:
            if leaf.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"The model is in {leaf.dtype}, not in float32 or float64.")
        batch = as_batch(batch)
        _check_batch(batch)
        device = self.leaves[0].device
        self.inputs = of_each(batch.inputs, lambda tensor: plain(tensor.to(device)))
        self.labels = plain(batch.labels.to(device, torch.int64))
        self.samples = len(self.labels)
        self.highest_label = int(self.labels.max())
        self.independent = False  # not looked at yet, nor what follows
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # whether all logits are
        self.in_range = self.finite  # and over the temperature
        self.reached: set[str] = set()  # parameters, by gradients: a piece may miss an expert

    def logits(self, part: slice) -> Tensor:
        """f(x)/T for a slice of the samples, n×C."""
        if size(part) < self.samples:
            self.check_independent(chunk=size(part))
        return self._scaled(answered(self.model, self.taken(part)), size(part))

    def taken(self, part: slice) -> Inputs:
        """Copies of some samples' inputs, since a model may write into them."""
        return of_each(self.inputs, lambda tensor: tensor[part].clone())

    def _scaled(self, output: Any, samples: int) -> Tensor:
        """Logits/T of what the model returned for some samples."""
        logits = check_logits(output, samples, self.highest_label)
        if logits.shape[1] < 2:
            raise ValueError("The model has one output: a cross-entropy needs two at least.")
        self.finite = self.finite & torch.isfinite(logits.detach()).all()  # read at the end
        scaled = logits / self.temperature
        self.in_range = self.in_range & torch.isfinite(scaled.detach()).all()
        # Of a model on several devices they may be elsewhere.
        return scaled.to(self.labels.device)

    def independent_logits(self, part: slice) -> Tensor:
        """As ``logits``; ValueError if a sample's change with the samples beside it."""
        if self.independent or size(part) < self.samples:
            return self.logits(part)
        whole = self.watched(part)
        self.check_independent(whole)
        return whole[0]

    def check_independent(self, whole: Watched | None = None, chunk: int = 1) -> None:
        """Raise ValueError if a sample's logits change with the samples beside it; looks once.

        Where operations do not prove that they cannot, it costs two forward passes, or one where
        the logits of the whole batch are given: every sample is seen in two batches, of different
        companions, sizes and places, and in larger ones than chunks: an expert may be full.
        """
        if self.independent or self.samples == 1:
            return
        self.independent = True
        part = slice(0, self.samples if whole else min(FEW, self.samples))
        logits, edges, hidden = whole or self.watched(part)
        if uses_batch_statistics(logits):
            raise ValueError(BATCH_STATISTICS)
        if not hidden and keeps_samples_apart(logits, (), edges):
            # What one sample does to all others shows in twice three that are without most.
            agreements = [self._agree(part, math.ceil(len(logits) / 3), logits)]
        else:
            agreements = []
            # Eight times as many samples fit where no graph is kept.
            chunk = len(logits) if whole else max(2, 8 * max(chunk, default_chunk(self)))
            for start in range(0, self.samples, chunk):
                part = slice(min(start, self.samples - 2), min(start + chunk, self.samples))
                agreements.append(self._agree(part, 2, logits if whole else None))
        if not bool(torch.stack(agreements).all()):
            raise ValueError(MIXED)

    def watched(self, part: slice) -> Watched:
        """Logits n×C whose graph begins at the inputs, where it does, and whether it hides a part.

        Of inputs without a gradient, as tokens, it hides what becomes of them.
        """
        edges: list[GradientEdge] = []

        def shifted(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.clone()
            shift = torch.zeros_like(tensor, requires_grad=True)
            edges.append(get_gradient_edge(shift))
            return tensor + shift  # no leaf, with which flop counters fail

        inputs = of_each(self.taken(part), shifted)
        with DetachedValues() as values:
            output = answered(self.model, inputs)
        logits = self._scaled(output, size(part))
        hidden = values.found or len(edges) < len(each_of(inputs)) or runs_own_functions(logits)
        return logits, edges, hidden

    def _agree(self, part: slice, step: int, logits: Tensor | None = None) -> Tensor:
        """Whether samples have, with each ``step``-th alone, the logits that they have among all.

        It looks at those from the first and from the second one on, and returns a single bool.
        """
        step, errors = max(2, step), []
        with torch.no_grad():
            if logits is None:
                logits = self._scaled(answered(self.model, self.taken(part)), size(part))
            for i in range(2):
                output = answered(self.model, self.taken(slice(part.start + i, part.stop, step)))
                some = logits[i::step]
                errors.append((self._scaled(output, len(some)) - some).abs().max())
            # Kernels depend on the size of a batch, those of other devices more than the CPU's.
            rounding = torch.finfo(logits.dtype).eps * (1e3 if logits.device.type == "cpu" else 1e4)
            return torch.stack(errors).max() <= rounding * logits.abs().max()

    def loss_gradient(
        self, part: slice, share: float, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """Gradient of ``share`` times the mean loss of a slice of the samples."""
        loss = F.cross_entropy(self.logits(part), self.labels[part]) * share
        gradients: Any = (None,) * len(self.leaves)
        if loss.requires_grad:
            gradients = torch.autograd.grad(
                loss, self.leaves, create_graph=create_graph, allow_unused=True
            )
        pairs = list(zip(self.theta, gradients, strict=True))
        self.reached.update(name for name, gradient in pairs if gradient is not None)
        with torch.set_grad_enabled(create_graph):
            return tuple(torch.fill(self.theta[n], 0) if g is None else g for n, g in pairs)

    def check_reached(self) -> None:
        """Raise ValueError if no piece had a gradient of some parameter, or a use."""
        for name in [name for name in self.theta if name not in self.reached]:
            raise unreached(name, self.watched(slice(0, 1))[0])

    def zeros(self) -> list[Tensor]:
        """A zero for each leaf, of its shape."""
        return [torch.zeros_like(leaf) for leaf in self.leaves]

    def mapped(self, tensors: Iterable[Tensor]) -> ByParameter:
        """Give tensors, in the order of ``leaves``, their parameters' names; see check_reached."""
        self.check_reached()
        return {name: t.detach() for name, t in zip(self.theta, tensors, strict=True)}


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Raise ValueError where PyTorch cannot differentiate an operation."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        wording = r"(?:the )?derivative for '?(?:aten::)?_?(\w+?)(_backward)?(?:: \w+)?'? is not"
        lacking = re.match(wording, text) or re.match(r"double backwards on (\w+) not", text)
        if "use_reentrant" in text:
            raise ValueError(REENTRANT) from error
        if lacking is None:
            raise
        if "backward" not in text:
            without = f"PyTorch has no derivative of the operation {lacking[1]!r}"
            raise ValueError(f"{without}, which this model uses.") from error
        without = f"PyTorch has no second derivative of the operation {lacking[1]!r}"
        raise ValueError(f"{without}: Hessians cannot be had of this model.") from error


def _check_batch(batch: Batch) -> None:
    """Raise ValueError or TypeError for inputs and labels that no loss can be taken of."""
    inputs, labels = each_of(batch.inputs), batch.labels
    if labels is None:
        raise ValueError("This criterion needs labels, and the batch has none.")
    if len(inputs[0]) == 0:
        raise ValueError("The batch is empty: at least one sample is needed.")
    check_labels(labels, len(inputs[0]))
    if (lowest := int(labels.long().min())) < 0:
        raise ValueError(f"Label {lowest} is out of range: labels start at 0.")
    # -inf may be an attention's mask; what it makes infinite is seen in the logits.
    usable = (torch.isfinite(tensor) | (tensor == -torch.inf) for tensor in inputs)
    if not all(bool(values.all()) for values in usable):
        raise ValueError("The inputs hold NaN or infinite values.")


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Have products and convolutions round to 24 bits, not to TF32's 11 or, on a CPU, bf16's 8."""
    backends: Any = torch.backends
    gpu, cpu = backends.cudnn, backends.mkldnn
    places = [(place, gpu) for place in (backends.cuda.matmul, gpu.conv, gpu.rnn)]
    places += [(place, cpu) for place in (cpu.matmul, cpu.conv, cpu.rnn)]
    # What is as its backend is goes on to follow it.
    before = [
        (place, "none" if place.fp32_precision == above.fp32_precision else place.fp32_precision)
        for place, above in places
    ]
    try:
        for place, _ in before:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in before:
            place.fp32_precision = precision


@contextlib.contextmanager
def problem_at(
    model: nn.Module,
    batch: Batch,
    temperature: float,
    parameters: str | Iterable[str],
    what: str = "",
    progress: bool = False,
) -> Iterator[Problem]:
    """Set up the loss of a model on a batch, and leave the model as it was.

    A bar tells of ``what`` takes long.
    """
    check_number("temperature", temperature, "above 0")
    temperature = float(temperature)
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model, on_copies=True):
        problem = Problem(model, batch, temperature, resolve_parameters(model, parameters))
        # Fused attention has no second derivative on the CPU; reduced precision has no place in a
        # derivative.
        with (
            torch.autocast(problem.leaves[0].device.type, enabled=False),
            plain_attention(),
            substituted(model, problem.state),
            _full_precision(),
            Bar(what, progress),
            repeating(model, problem.taken, [slice(0, 2), *chunks(problem, None)]),
            sentences(),
        ):
            try:
                yield problem
            finally:  # NaN agree with nothing: other errors follow from them
                if not bool(problem.finite):
                    raise ValueError("The model's logits hold NaN or infinite values.")
                if not bool(problem.in_range):
                    raise ValueError(f"temperature={temperature}: the logits over it are infinite.")


def chunks(
    problem: Problem, chunk: int | None, part: slice | None = None, copies: int = 1
) -> list[slice]:
    """Nearly equal slices of at most ``chunk`` samples, of a part of the batch or the whole.

    ``copies`` divides the default: how many times a gradient's memory is held for each sample.
    """
    part = part or slice(0, problem.samples)
    default = max(1, default_chunk(problem) // copies)
    chunk = default if chunk is None else count_of("chunk", chunk)
    pieces = -(-size(part) // chunk)
    edges = [part.start + size(part) * i // pieces for i in range(pieces + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def default_chunk(problem: Problem) -> int:
    """Samples a forward pass: 64, or fewer where these are more than 2²⁰ numbers."""
    numbers_a_sample = sum(tensor[0].numel() for tensor in each_of(problem.inputs))
    return max(1, min(64, 2**20 // max(1, numbers_a_sample)))


def groups_of(problem: Problem, group: int | None) -> list[slice]:
    """Slices of ``group`` samples in order, the last may be smaller; ``None`` is one of all."""
    samples = problem.samples
    group = samples if group is None else count_of("group", group)
    return [slice(start, min(start + group, samples)) for start in range(0, samples, group)]


def size(part: slice) -> int:
    """Number of samples in a slice."""
    return part.stop - part.start
