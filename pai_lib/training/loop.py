"""Batch-norm warm-up, training under a mask, evaluation."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from ..curvature.calls import ByParameter, called, fails_in_a_sentence, plain_attention
from ..data.batch import Batch, as_batch, check_labels, each_of
from ..data.dataset import Dataset
from ..draws import random_stream
from ..models import check_logits, check_model
from ..names import check_known, check_number, checked_keywords, count_of
from ..pruning.masks import apply_mask, check_mask
from .checkpoint import Checkpoint
from .device import fitting, measuring, training
from .products import products

PRECISIONS = ("float32", "bf16")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("steps", "cosine")


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite; ``where`` says when."""

    def __init__(self, message: str, where: str = "training"):
        super().__init__(message)
        self.where = where


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop before its last epoch; its checkpoint holds what was done."""


@checked_keywords
def warm_up(
    model: nn.Module, data: Dataset, updates: int = 98, batch_size: int = 512, seed: int = 0
) -> int:
    """Update batch-norm running statistics by forward passes over training data, and nothing else.

    Each pass moves a statistic 10 % (the norm's momentum) towards its batch's value; after 98, one
    epoch of CIFAR-10 at batch 512, 0.003 % of the initial value is left. Images are shuffled and
    unaugmented, in the precision of the model's weights.

    Args:
        model: its batch norms' buffers change in place; weights, mode and other layers' behaviour
            do not.
        data: training images, on the model's device.
        updates: number of forward passes; epochs repeat until they are done.
        batch_size: images a pass.
        seed: of the order.

    Returns:
        Number of updates made, which is 0 for a model without batch norm.

    Raises:
        ValueError: for a negative number, or a model that is lazy, made in inference mode or on
            another device.
    """
    count_of("updates", updates, 0)
    _check_place(model, data, batch_size)
    order, fit = random_stream(seed, "warm-up"), fitting(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    epochs = (data.epoch(batch_size, order, augment=False) for _ in itertools.count())
    with measuring(model, seed):
        for norm in norms:
            norm.training = True
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), updates):
            with fails_in_a_sentence(batch.inputs):
                called(model, fit(batch.inputs))
        statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    for buffer, statistic in statistics:
        buffer.copy_(statistic)
    return updates


def learning_rate(
    epoch: int,
    epochs: int,
    lr: float,
    drops: Iterable[float] = (),
    factor: float = 1.0,
    schedule: str = "steps",
    warmup: int = 0,
) -> float:
    """Learning rate of an epoch, counted from 0.

    In the first ``warmup`` epochs it rises linearly to ``lr`` (Goyal et al., 2017). Then
    ``"steps"`` multiplies it by ``factor`` at each of ``drops``, fractions of the run; ``"cosine"``
    takes half a cosine from ``lr`` towards zero (Loshchilov & Hutter, 2017).

    >>> [learning_rate(e, 160, 0.03, (0.5, 0.75), 0.2) for e in (0, 79, 80, 120)]
    [0.03, 0.03, 0.006, 0.0012]
    >>> [learning_rate(e, 8, 0.1, schedule="cosine", warmup=4) for e in (0, 3, 4, 6)]
    [0.02, 0.08, 0.1, 0.05]
    """
    if epoch < warmup:
        lr *= (epoch + 1) / (warmup + 1)
    elif schedule == "cosine":
        lr *= (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2
    else:
        lr *= factor ** sum(epoch >= max(1, round(drop * epochs)) for drop in drops)
    return float(f"{float(lr):.12g}")


def _check_place(model: nn.Module, data: Dataset, batch_size: int) -> None:
    """Raise ValueError for a model whose tensors cannot be updated from these data."""
    check_model(model)
    count_of("batch_size", batch_size)
    if not isinstance(data, Dataset):
        kind = type(data).__name__
        raise TypeError(f"data is a {kind}: it must be a Dataset, as load_data returns.")
    check_labels(data.train_labels, len(data.train_images))
    tensors, device = [*model.parameters(), *model.buffers()], data.train_labels.device
    if any(tensor.is_inference() for tensor in tensors):
        raise ValueError("The model was made in inference mode: use a copy.deepcopy made outside.")
    if tensors and device not in {tensor.device for tensor in tensors}:
        places = f"The model is on {tensors[0].device} and the data on {device}"
        raise ValueError(f"{places}: move one with .to(...).")
    images = len(data.train_labels)
    if images < min(2, batch_size):
        raise ValueError(f"There are {images} training images: at least 2 are needed.")


def check_trainable(
    model: nn.Module, data: Dataset, mask: ByParameter, batch_size: int, seed: int
) -> int:
    """Return the highest label; raise ValueError for what would go wrong in the first step."""
    _check_place(model, data, batch_size)
    check_mask(model, mask)
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if not dtypes:
        raise ValueError("No parameter of the model requires a gradient: nothing can be trained.")
    for coarse in dtypes & {torch.float16, torch.bfloat16}:
        advice = "train model.float(), with precision='bf16' for speed"
        raise ValueError(f"The weights are {coarse}: {advice}.")
    lowest, highest = (int(label) for label in data.train_labels.aminmax())
    if lowest < 0:
        raise ValueError(f"Label {lowest} is out of range: labels start at 0.")
    blank = torch.zeros(2, *data.image_shape, dtype=torch.float32, device=data.train_labels.device)
    with measuring(model, seed), fails_in_a_sentence(blank):
        check_logits(called(model, fitting(model)(blank)), len(blank), highest)
        if batch_size == 1:  # norms may need more than one number a channel
            model.train()
            called(model, fitting(model)(blank[:1]))
    return highest


@checked_keywords
def train(
    model: nn.Module,
    data: Dataset,
    mask: ByParameter | None = None,
    *,
    epochs: int = 160,
    batch_size: int = 512,
    lr: float = 0.03,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    lr_drops: Iterable[float] = (0.5, 0.75),
    lr_drop_factor: float = 0.2,
    optimizer: str = "sgd",
    schedule: str = "steps",
    lr_warmup: int = 0,
    label_smoothing: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
    compile: bool = False,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, list[float]]:
    """Train in place; weights outside the mask are exactly zero from first to last step.

    Zero weights with zero gradients stay zero through momentum and weight decay, so only gradients
    are masked.

    Args:
        model: returns logits N×C; float32 or float64, on the data's device. Modes and memory layout
            of its tensors are at the end as before, and its gradients are gone.
        data: training images.
        mask: ``{parameter name: bool tensor}``, True = kept; ``None`` trains the dense network.
        epochs: passes over the training images.
        batch_size: images a step.
        lr: first learning rate.
        momentum: of SGD; of AdamW the first coefficient, beside 0.999 (Loshchilov & Hutter, 2019).
        weight_decay: on every parameter; coupled in SGD, decoupled in AdamW.
        lr_drops: fractions of the run at which the learning rate is multiplied by
            ``lr_drop_factor``.
        lr_drop_factor: see there.
        optimizer: ``"sgd"`` or ``"adamw"``.
        schedule: ``"steps"``, with the two above, or ``"cosine"``.
        lr_warmup: epochs in which the learning rate rises to ``lr``.
        label_smoothing: fraction of each label spread evenly over all classes in the loss.
        precision: ``"float32"``, or ``"bf16"`` for autocast with float32 weights. On a processor
            without instructions for bf16 its products are summed in float32 and rounded, as such
            instructions do, and it is no faster than float32.
        seed: of order, augmentation and what the model draws itself (dropout); no global random
            state changes.
        compile: compile the model with ``torch.compile``: faster after the first steps, equal up to
            rounding.
        progress: show a bar.
        checkpoint: goes on from the state in it, bit for bit; is written before an epoch when it is
            due.
        stop: asked before each epoch; once it is true the checkpoint is written and training stops.

    Returns:
        The curves ``loss``, ``accuracy`` (both on the training batches as they were seen) and
        ``lr``, with one value an epoch.

    Raises:
        ValueError: for an option, mask, model or labels that cannot be, before anything is changed.
        TrainingDivergedError: at the end of the epoch in which the loss stopped being finite.
        TrainingStoppedError: when ``stop`` said so.
    """
    _check_options(locals())
    mask, drops = {} if mask is None else mask, checked_drops(lr_drops)
    checkpoint = checkpoint or Checkpoint(None, {})
    highest, device = check_trainable(model, data, mask, batch_size, seed), data.train_labels.device
    descent = _descent(optimizer, model, lr, momentum, weight_decay, fused=device.type == "cuda")
    order = random_stream(seed, "order")
    with training(model, seed) as fit, products(device, precision, compile):
        network = torch.compile(model, dynamic=False) if compile else model  # of static shapes
        masked = _masked(model, mask)

        def forward(inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
            with _bf16(device) if precision == "bf16" else contextlib.nullcontext():
                logits = called(network, fit(inputs))
            logits = _wide(check_logits(logits, len(labels), highest)).to(labels.device)  # N×C
            return logits, F.cross_entropy(logits, labels, label_smoothing=float(label_smoothing))

        first, curves, seconds = _resumed(checkpoint, model, descent, order)
        start = time.perf_counter() - seconds
        remaining = range(first, epochs)
        bar = tqdm(remaining, "training", epochs, unit="epoch", initial=first, disable=not progress)
        for epoch in bar:
            stopping = stop is not None and stop()
            if stopping or checkpoint.due:
                seconds = time.perf_counter() - start
                checkpoint.keep(model, descent, order, epoch=epoch, curves=curves, seconds=seconds)
            if stopping:
                raise TrainingStoppedError(f"Training stopped after {epoch} of {epochs} epochs.")
            rate = learning_rate(epoch, epochs, lr, drops, lr_drop_factor, schedule, lr_warmup)
            descent.param_groups[0]["lr"] = rate
            loss, accuracy = _epoch(data.epoch(batch_size, order), forward, descent, masked, device)
            if not math.isfinite(loss):
                said = f"The training loss became {loss}."
                raise TrainingDivergedError(said, f"epoch {epoch + 1}")
            for curve, value in (("loss", loss), ("accuracy", accuracy), ("lr", rate)):
                curves[curve].append(value)
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
    return curves


def _check_options(given: Mapping[str, Any]) -> None:
    """Check the arguments of ``train`` that are no model, data or mask."""
    known = {"precision": PRECISIONS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    for name, names in known.items():
        check_known(name, given[name], names)
    for name in ("epochs", "lr_warmup"):
        count_of(name, given[name], 0)
    for name, kind in {"checkpoint": Checkpoint | None, "stop": Callable | None}.items():
        if not isinstance(given[name], kind):  # type: ignore[arg-type]
            raise TypeError(f"{name}={given[name]!r}: it must be a {kind}.")
    shares = ["label_smoothing", *["momentum"] * (given["optimizer"] == "adamw")]
    for name in ("lr", "lr_drop_factor", "momentum", "weight_decay", *shares):
        check_number(name, given[name], "at least 0" + " and below 1" * (name in shares))


def checked_drops(lr_drops: Any) -> tuple[float, ...]:
    """Return the drops of a learning rate; ValueError unless they are fractions that rise."""
    if not isinstance(lr_drops, Iterable):
        raise ValueError(f"lr_drops={lr_drops!r}: it must be a list of numbers.")
    drops = tuple(lr_drops)
    for drop in drops:
        check_number("lr_drops", drop, "above 0 and below 1, each a fraction of the run")
    if drops != (rising := tuple(sorted(set(drops)))):
        raise ValueError(f"lr_drops={drops}: each must be above the last, as lr_drops={rising}.")
    return drops


def _descent(
    name: str, model: nn.Module, lr: float, momentum: float, weight_decay: float, fused: bool
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": float(lr), "weight_decay": float(weight_decay), "fused": fused}
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=float(momentum), **options)
    return torch.optim.AdamW(model.parameters(), betas=(float(momentum), 0.999), **options)


def _resumed(
    checkpoint: Checkpoint, model: nn.Module, descent: torch.optim.Optimizer, order: torch.Generator
) -> tuple[int, dict[str, list[float]], float]:
    """Go back to a checkpoint, if it holds one; return its epoch, its curves and its seconds."""
    if not checkpoint.training:
        return 0, {"loss": [], "accuracy": [], "lr": []}, 0.0
    checkpoint.restore(model, descent, order)
    past = checkpoint.training
    return past["epoch"], past["curves"], past["seconds"]


def _masked(model: nn.Module, mask: ByParameter) -> list[tuple[nn.Parameter, Tensor]]:
    """Zero what a mask removes; return it in the layout of the gradients, for one fast product."""
    apply_mask(model, mask)
    parameters = [(model.get_parameter(name), kept) for name, kept in mask.items()]
    return [(parameter, torch.empty_like(parameter).copy_(kept)) for parameter, kept in parameters]


def _epoch(
    batches: Iterable[Batch],
    forward: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
    descent: torch.optim.Optimizer,
    masked: list[tuple[nn.Parameter, Tensor]],
    device: torch.device,
) -> tuple[float, float]:
    """Make a step on each batch; return mean loss and accuracy, which the host reads at the end."""
    seen = 0
    total, correct = torch.zeros(2, dtype=torch.float32, device=device)
    for inputs, labels in batches:
        logits, loss = forward(inputs, labels)
        descent.zero_grad()
        loss.backward()
        used = [(parameter.grad, kept) for parameter, kept in masked if parameter.grad is not None]
        if used:
            torch._foreach_mul_(*map(list, zip(*used, strict=True)))
        descent.step()
        seen += len(labels)
        total += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
    return float(total) / seen, float(correct) / seen


@contextlib.contextmanager
def _bf16(device: torch.device) -> Iterator[None]:
    # On a CPU flash attention's backward pass is slow.
    attention = plain_attention if device.type == "cpu" else contextlib.nullcontext
    with torch.autocast(device.type, torch.bfloat16), attention():
        yield


@checked_keywords
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Accuracy (a fraction) and mean cross-entropy of a model over batches.

    In evaluation mode and the precision of the model's weights. What a model draws even there comes
    from the same seed in every call.

    Args:
        model: returns logits N×C; is left as it was.
        batches: inputs and integer labels N, or one `Batch`; inputs in a tuple or a mapping are
            the model's arguments.

    Raises:
        ValueError: for no samples, for labels out of range, for a model that returns no logits.
    """
    check_model(model)
    if not isinstance(batches, Iterable):
        right = "it must hold pairs of inputs and labels, as data.test_batches() does"
        raise TypeError(f"batches is a {type(batches).__name__}: {right}.")
    fit, sums, seen = fitting(model), [], 0
    with measuring(model):
        for inputs, labels in map(as_batch, [batches] if isinstance(batches, Batch) else batches):
            check_labels(labels, len(each_of(inputs)[0]))
            if not len(labels):
                continue
            with fails_in_a_sentence(inputs):
                output = called(model, fit(inputs))
            logits = _wide(check_logits(output, len(labels)))  # N×C
            labels, classes = labels.to(logits.device, torch.int64), logits.shape[1]
            # What is out of range is told below; a GPU would not survive it.
            loss = F.cross_entropy(logits, labels.clamp(0, classes - 1), reduction="sum")
            numbers = ((logits.argmax(1) == labels).sum(), loss, *labels.aminmax())
            sums.append(torch.stack([number.double() for number in numbers]))
            seen += len(labels)
    if not seen:
        raise ValueError("There are no samples to evaluate on.")
    correct, losses, lowest, highest = torch.stack(sums).T.cpu().tolist()  # the host reads once
    for label in (min(lowest), max(highest)):
        if not 0 <= label < classes:
            outputs = f"the model has {classes} outputs, and labels start at 0"
            raise ValueError(f"Label {int(label)} is out of range: {outputs}.")
    return sum(correct) / seen, sum(losses) / seen


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
