"""Batch-norm warm-up, training under a mask, evaluation."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from .checkpoints import Checkpoint
from .data import Batch, Dataset
from .derivatives import ByParameter, evaluation_mode
from .masks import apply_mask

PRECISIONS = ("float32", "bf16")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("steps", "cosine")


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite; ``where`` says when."""

    where = "training"


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop before its last epoch; its checkpoint holds what was done."""


def random_stream(seed: int, purpose: str) -> torch.Generator:
    """CPU generator that depends on seed and purpose, so that data order, probes and controls are independent."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def warm_up(model: nn.Module, data: Dataset, updates: int = 98, batch_size: int = 512, seed: int = 0) -> int:
    """Update batch-norm running statistics by forward passes over training data, and nothing else.

    Each pass moves a statistic 10 % (the norm's momentum) towards its batch's value; after 98, one epoch of
    CIFAR-10 at batch 512, 0.003 % of the initial value is left. Images are shuffled and unaugmented, in the
    norms' precision.

    Args:
        model: its batch norms' buffers change in place; weights, mode and other layers' behaviour do not.
        data: training images, on the model's device.
        updates: number of forward passes; epochs repeat until they are done.
        batch_size: images a pass.
        seed: of the order.

    Returns:
        Number of updates made: ``updates``, or 0 for a model without batch norm.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    order = random_stream(seed, "warm-up")
    epochs = (data.epoch(batch_size, order, augment=False) for _ in itertools.count())
    with evaluation_mode(model), torch.no_grad():
        for norm in norms:
            norm.training = True
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), updates):
            model(batch.inputs.to(next(norms[0].buffers()).dtype))
    return updates


def learning_rate(
    epoch: int, epochs: int, lr: float, drops: Iterable[float] = (), factor: float = 1.0,
    schedule: str = "steps", warmup: int = 0,
) -> float:  # fmt: skip
    """Learning rate of an epoch, counted from 0.

    In the first ``warmup`` epochs it rises linearly to ``lr`` (Goyal et al., 2017). Then ``"steps"`` multiplies it
    by ``factor`` at each of ``drops``, fractions of the run; ``"cosine"`` takes half a cosine from ``lr`` towards
    zero (Loshchilov & Hutter, 2017).

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
    return float(f"{lr:.12g}")


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

    Zero weights with zero gradients stay zero through momentum and weight decay, so only gradients are masked.

    Args:
        model: returns logits N×C; on the data's device.
        data: training images.
        mask: ``{parameter name: bool tensor}``, True = kept; ``None`` trains the dense network.
        epochs: passes over the training images.
        batch_size: images a step.
        lr: first learning rate.
        momentum: of SGD; of AdamW the first coefficient, beside 0.999 (Loshchilov & Hutter, 2019).
        weight_decay: on every parameter; coupled in SGD, decoupled in AdamW.
        lr_drops: fractions of the run at which the learning rate is multiplied by ``lr_drop_factor``.
        lr_drop_factor: see there.
        optimizer: ``"sgd"`` or ``"adamw"``.
        schedule: ``"steps"``, with the two above, or ``"cosine"``.
        lr_warmup: epochs in which the learning rate rises to ``lr``.
        label_smoothing: fraction of each label that is spread evenly over all classes, in the training loss.
        precision: ``"float32"``, or ``"bf16"`` for autocast with float32 weights.
        seed: of order and augmentation.
        compile: compile the model with ``torch.compile``: faster after the first steps, equal up to rounding.
        progress: show a bar.
        checkpoint: goes on from the state in it, bit for bit; is written before an epoch when it is due.
        stop: asked before each epoch; once it is true the checkpoint is written and training stops.

    Returns:
        Curves with one value an epoch: ``loss``, ``accuracy`` (both on the training batches as they were
        seen) and ``lr``.

    Raises:
        TrainingDivergedError: at the end of the epoch in which the loss stopped being finite.
        TrainingStoppedError: when ``stop`` said so.
    """
    chosen = (("precision", precision), ("optimizer", optimizer), ("schedule", schedule))
    for (name, value), known in zip(chosen, (PRECISIONS, OPTIMIZERS, SCHEDULES), strict=True):
        if value not in known:
            raise ValueError(f"{name}={value!r}: it must be one of {', '.join(known)}.")
    device = data.train_labels.device
    _keep_freed_memory()
    model.to(memory_format=torch.channels_last).train()  # faster convolutions on CPU and GPU alike
    forward = torch.compile(model, dynamic=False) if compile else model  # once more for a smaller last batch
    masked: list[tuple[nn.Parameter, Tensor]] = []
    if mask is not None:
        apply_mask(model, mask)
        for name, kept in mask.items():  # in the gradients' dtype and layout: one fast product for all
            masked.append((parameter := model.get_parameter(name), torch.empty_like(parameter).copy_(kept)))
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": device.type == "cuda"}
    if optimizer == "adamw":
        descent: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), betas=(momentum, 0.999), **options)
    else:
        descent = torch.optim.SGD(model.parameters(), momentum=momentum, **options)
    order = random_stream(seed, "order")
    curves: dict[str, list[float]] = {"loss": [], "accuracy": [], "lr": []}
    first, start = 0, time.perf_counter()
    if checkpoint is not None and checkpoint.training:
        checkpoint.restore(model, descent, order)
        first, curves = checkpoint.training["epoch"], checkpoint.training["curves"]
        start -= checkpoint.training["seconds"]
    bar = tqdm(range(first, epochs), "training", epochs, unit="epoch", initial=first, disable=not progress)
    for epoch in bar:
        stopping = stop is not None and stop()
        if checkpoint is not None and (stopping or checkpoint.due):
            seconds = time.perf_counter() - start
            checkpoint.keep(model, descent, order, epoch=epoch, curves=curves, seconds=seconds)
        if stopping:
            raise TrainingStoppedError(f"Training was stopped after {epoch} of {epochs} epochs.")
        rate = learning_rate(epoch, epochs, lr, lr_drops, lr_drop_factor, schedule, lr_warmup)
        descent.param_groups[0]["lr"] = rate
        seen, total, correct = 0, torch.zeros((), device=device), torch.zeros((), device=device)
        for batch in data.epoch(batch_size, order):
            inputs = batch.inputs.contiguous(memory_format=torch.channels_last)  # N×C×H×W
            with _autocast(device, precision):
                logits = forward(inputs).float()  # N×C
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
            descent.zero_grad()
            loss.backward()
            used = [(parameter.grad, kept) for parameter, kept in masked if parameter.grad is not None]
            if used:
                torch._foreach_mul_(*map(list, zip(*used, strict=True)))
            descent.step()
            seen += len(inputs)
            total += loss.detach() * len(inputs)
            correct += (logits.detach().argmax(1) == batch.labels).sum()
        mean_loss = float(total) / seen
        if not math.isfinite(mean_loss):
            error = TrainingDivergedError(f"The training loss became {mean_loss}.")
            error.where = f"epoch {epoch + 1}"
            raise error
        curves["loss"].append(mean_loss)
        curves["accuracy"].append(float(correct) / seen)
        curves["lr"].append(rate)
        bar.set_postfix(loss=f"{mean_loss:.3f}", accuracy=f"{curves['accuracy'][-1]:.3f}")
    return curves


def compiled() -> bool:
    """Whether runs compile their models: ``PAI_COMPILE=1`` in the environment.

    Like the device, and unlike the precision, it changes results by rounding only: a record tells it, its
    specification does not.
    """
    value = os.environ.get("PAI_COMPILE", "0")
    if value not in ("0", "1"):
        raise ValueError(f"PAI_COMPILE={value}: it must be 0 or 1.")
    return value == "1"


@functools.cache
def _keep_freed_memory() -> None:
    """Have glibc keep what a step has freed for the next one, which else gets large tensors anew, page by page.

    It cost up to a third of the time of a step on a CPU; the price is a process that stays as large as it was.
    """
    with contextlib.suppress(OSError, AttributeError):  # not on other systems
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX: no mapping; M_TRIM_THRESHOLD: return nothing
            ctypes.CDLL("libc.so.6").mallopt(parameter, value)


@contextlib.contextmanager
def _autocast(device: torch.device, precision: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
            if device.type == "cpu":  # where flash attention goes back several times slower than plain products
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Accuracy (a fraction) and mean cross-entropy of a model over batches, in evaluation mode and float32."""
    seen, correct, loss = 0, 0, 0.0
    with evaluation_mode(model), torch.no_grad():
        for inputs, labels in batches:
            logits = model(inputs)  # N×C
            seen += len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    if not seen:
        raise ValueError("There are no samples to evaluate on.")
    return correct / seen, loss / seen
