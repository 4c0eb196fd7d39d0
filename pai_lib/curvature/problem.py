"""A loss at one point: the logits as a function of leaf tensors, for any slice of a batch.

The loss is L(θ) = (1/N) Σₙ ℓ(f(xₙ; θ)/T, yₙ) with ℓ the cross-entropy, f the logits and T the
temperature, in evaluation mode. The model is left as it was.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.batch import Batch, Inputs, as_batch, each_of, of_each
from ..models import check_logits
from ..names import count_of
from ..progress import Bar
from .calls import (
    ByParameter,
    ValuesAlone,
    answered,
    check_repeats,
    evaluation_mode,
    first_called,
    plain,
    substituted,
)
from .graph import REENTRANT, hides_weights, runs_own_functions
from .operations import keeps_samples_apart
from .parameters import resolve_parameters

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


FEW = 8  # samples that are looked at where operations prove the rest


class Problem:
    """A loss at one point: leaf tensors for the chosen parameters, and the logits as a function of them."""

    def __init__(self, model: nn.Module, batch: Batch, temperature: float, names: list[str]):
        self.model, self.temperature = model, temperature
        self.theta = {name: plain(model.get_parameter(name)).requires_grad_() for name in names}
        self.leaves = list(self.theta.values())
        first = self.leaves[0]
        for name, leaf in self.theta.items():
            if leaf.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"The model is in {leaf.dtype} ({name!r}): curvature needs float32 or float64 weights."
                )
        batch = as_batch(batch)
        _check_batch(batch, first)
        self.inputs = of_each(batch.inputs, lambda tensor: plain(tensor.to(first.device)))
        self.labels = plain(batch.labels.to(first.device, torch.int64))
        self.samples = len(self.labels)
        self.numbers = sum(tensor[0].numel() for tensor in each_of(self.inputs))  # of one sample
        self.watched: list[
            GradientEdge
        ] = []  # the inputs of the last logits, where they can be differentiated
        self.called = self.independent = self.blind = False  # not known yet
        self.mixes_samples = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
            for module in model.modules()
        )

    @property
    def state(self) -> ByParameter:
        """What the model computes with: the leaves, and copies of all that it might change."""
        others = {
            name: plain(p) for name, p in self.model.named_parameters() if name not in self.theta
        }
        return {
            **others,
            **{name: b.detach().clone() for name, b in self.model.named_buffers()},
            **self.theta,
        }

    def logits(self, part: slice, watch: bool = False) -> Tensor:
        """f(x)/T for a slice of the samples, n×C; ``watch`` has the inputs take part in the graph."""
        if size(part) < self.samples:
            self.check_independent()
        return self.watched_logits(part) if watch else self.logits_of(self.taken(part))

    def watched_logits(self, part: slice) -> Tensor:
        """f(x)/T for a slice of the samples, whose inputs take part in the graph."""
        self.watched = []

        def taken(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor[part].clone()  # a model may write into its input
            shift = torch.zeros_like(
                tensor[part], requires_grad=True
            )  # no leaf input: flop counters fail
            self.watched.append(get_gradient_edge(shift))
            return tensor[part] + shift

        values = ValuesAlone()
        logits = self.logits_of(of_each(self.inputs, taken), values)
        self.blind = values.found or runs_own_functions(logits)
        return logits

    def logits_of(self, inputs: Inputs, values: ValuesAlone | None = None) -> Tensor:
        """f(x)/T for any inputs n×…, n×C; ``values`` looks at what the model does."""
        count, seen = len(each_of(inputs)[0]), values or contextlib.nullcontext()
        if self.called:
            with seen:
                out = answered(self.model, inputs)
            return check_logits(out, count) / self.temperature
        self.called = True
        few = of_each(inputs, lambda tensor: tensor[:2].detach().clone())
        with seen:
            out = first_called(self.model, inputs)
        logits = check_logits(out, count, int(self.labels.max()))
        check_repeats(self.model, few)
        if logits.shape[1] < 2:
            raise ValueError(
                "The model has one output: a cross-entropy needs two classes at least."
            )
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("The model's logits hold NaN or infinite values.")
        return logits / self.temperature

    def check_independent(self) -> None:
        """Raise ValueError if a sample's logits change with the samples beside it; looks once, at all of them.

        Where operations do not prove it, it costs two forward passes: every sample is seen in two
            batches, of
        different companions, sizes and places.
        """
        if self.independent or self.samples == 1:
            return
        self.independent = True
        if self.mixes_samples:
            raise ValueError(BATCH_STATISTICS)
        before = self.watched, self.blind
        logits = self.watched_logits(slice(0, min(FEW, self.samples)))
        proved = not self.blind and keeps_samples_apart(logits, (), self.watched)
        self.watched, self.blind = before
        if proved:
            return self.check_few(logits, 0)
        same = []
        for piece in chunks(self, max(2, default_chunk(self))):
            start = max(0, min(piece.start, piece.stop - 2))  # two samples at least
            with torch.no_grad():
                whole = self.logits_of(self.taken(slice(start, max(piece.stop, 2))))
            same += [
                self.agrees(whole[i::2], slice(start + i, max(piece.stop, 2), 2)) for i in range(2)
            ]
        if not bool(torch.stack(same).all()):
            raise ValueError(MIXED)

    def check_companions(self, logits: Tensor, start: int) -> None:
        """Raise ValueError if logits, of samples from ``start`` on, change without some of those samples.

        Of inputs whose gradients tell the rest, twice three samples do: what one sample does to all
            others shows
        in those that are without it. Of tokens, and where values go on without gradients, all are
        looked at.
        """
        if self.mixes_samples:
            raise ValueError(BATCH_STATISTICS)
        if self.blind or len(self.watched) < len(each_of(self.inputs)):
            return self.check_independent()
        self.check_few(logits, start)

    def check_few(self, logits: Tensor, start: int) -> None:
        """Raise ValueError if logits, of samples from ``start`` on, are not what some have without others."""
        step = max(2, -(-len(logits) // 3))
        parts = [slice(i, len(logits), step) for i in range(2)]
        same = [
            self.agrees(logits[part], slice(start + part.start, start + part.stop, step))
            for part in parts
        ]
        if not bool(torch.stack(same).all()):
            raise ValueError(MIXED)

    def taken(self, part: slice) -> Inputs:
        """Copies of some samples' inputs, since a model may write into them."""
        return of_each(self.inputs, lambda tensor: tensor[part].clone())

    def agrees(self, logits: Tensor, part: slice) -> Tensor:
        """Whether these are the logits that some samples have as a batch of their own: a single bool."""
        with torch.no_grad():
            error = (self.logits_of(self.taken(part)) - logits).abs().max()
        # Kernels depend on the size of a batch, those of other devices more than the CPU's.
        within = torch.finfo(logits.dtype).eps * (1e3 if logits.device.type == "cpu" else 1e4)
        return error <= within * logits.detach().abs().max()

    def loss(self, part: slice) -> Tensor:
        """Mean loss of a slice of the samples."""
        return F.cross_entropy(self.logits(part), self.labels[part])

    def loss_gradient(
        self, part: slice, share: float, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """Gradient of ``share`` times the mean loss of a slice of the samples."""
        loss = self.loss(part) * share
        grads: Any = (None,) * len(self.leaves)
        if loss.requires_grad:
            with sentences():
                grads = torch.autograd.grad(
                    loss, self.leaves, create_graph=create_graph, allow_unused=True
                )
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


@contextlib.contextmanager
def sentences() -> Iterator[None]:
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
        raise TypeError(
            f"Labels must be a tensor or array of integers, not {type(labels).__name__}."
        )
    if count == 0:
        raise ValueError("The batch is empty: at least one sample is needed.")
    for tensor in (*each_of(inputs), labels):
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
            what = (
                "has no values (it is on the meta device)"
                if tensor.is_meta
                else f"is of layout {tensor.layout}"
            )
            raise ValueError(f"A tensor of the batch {what}: it must be a dense one.")
    if labels.shape != (count,) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(
            f"Labels must be {count} integers, one a sample, not {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if (lowest := int(labels.long().min())) < 0:
        raise ValueError(f"Label {lowest} is out of range: labels start at 0.")
    for tensor in each_of(inputs):
        if not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError("The inputs hold NaN or infinite values.")
        if tensor.dtype != weight.dtype:
            raise ValueError(
                f"The inputs are {tensor.dtype} and the model is {weight.dtype}: make them equal."
            )


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Have a GPU's products and convolutions round to 24 bits, not to the 11 of TF32."""
    if device.type != "cuda":
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextlib.contextmanager
def problem_at(
    model: nn.Module, batch: Batch, temperature: float, parameters: str | Iterable[str], what: str = "",
    progress: bool = False,
) -> Iterator[Problem]:  # fmt: skip
    """Set up the loss of a model on a batch, and leave the model as it was; a bar tells of ``what`` takes long."""
    try:
        usable = 0 < temperature < float("inf")
    except TypeError:
        raise TypeError(f"temperature={temperature!r}: it must be a number.") from None
    if not usable:
        raise ValueError(f"temperature={temperature}: it must be positive and finite.")
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        problem = Problem(model, batch, temperature, resolve_parameters(model, parameters))
        # Fused attention has no second derivative on the CPU; reduced precision has no place in a
        # derivative.
        with (
            torch.autocast(problem.leaves[0].device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            substituted(model, problem.state),
            _full_precision(problem.leaves[0].device),
            Bar(what, progress),
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
    chunk = count_of("chunk", chunk)
    parts = -(-count // chunk)
    edges = [start + count * i // parts for i in range(parts + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def default_chunk(problem: Problem) -> int:
    """Samples a forward pass where nothing else is asked for."""
    return max(1, min(64, 2**20 // max(1, problem.numbers)))


def groups_of(problem: Problem, group: int | None) -> list[slice]:
    """Slices of ``group`` samples in their order, the last one may be smaller; ``None`` is one of all."""
    n = problem.samples
    group = n if group is None else count_of("group", group)
    return [slice(i, min(i + group, n)) for i in range(0, n, group)]


def size(part: slice) -> int:
    """Number of samples in a slice."""
    return part.stop - part.start
