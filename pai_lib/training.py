"""Batch-norm warm-up, training under a mask, evaluation."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from .data import Batch, Dataset
from .derivatives import ByParameter, evaluation_mode
from .masks import apply_mask

PRECISIONS = ("float32", "bf16")


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite; ``where`` says when."""

    where = "training"


def random_stream(seed: int, purpose: str) -> torch.Generator:
    """CPU generator that depends on seed and purpose, so that data order, probes and controls are independent."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def warm_up(model: nn.Module, data: Dataset, updates: int = 98, batch_size: int = 512, seed: int = 0) -> int:
    """Update batch-norm running statistics by forward passes over training data, and nothing else.

    Each pass moves a statistic 10 % (the norm's momentum) towards its batch's value; after 98, one epoch of
    CIFAR-10 at batch 512, 0.003 % of the initial value is left. Images are shuffled and unaugmented, in float32.

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
            model(batch.inputs)
    return updates


def learning_rate(epoch: int, epochs: int, lr: float, drops: Iterable[float], factor: float) -> float:
    """Learning rate of an epoch (from 0): times ``factor`` for each drop, a fraction of the run, now past.

    >>> [learning_rate(e, 160, 0.03, (0.5, 0.75), 0.2) for e in (0, 79, 80, 120)]
    [0.03, 0.03, 0.006, 0.0012]
    """
    passed = sum(epoch >= max(1, round(drop * epochs)) for drop in drops)
    return float(f"{lr * factor**passed:.12g}")


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
    precision: str = "float32",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Train in place by SGD with momentum; weights outside the mask are exactly zero from first to last step.

    Zero weights with zero gradients stay zero through momentum and weight decay, so only gradients are masked.

    Args:
        model: returns logits N×C; on the data's device.
        data: training images.
        mask: ``{parameter name: bool tensor}``, True = kept; ``None`` trains the dense network.
        epochs: passes over the training images.
        batch_size: images a step.
        lr: first learning rate.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter.
        lr_drops: fractions of the run at which the learning rate is multiplied by ``lr_drop_factor``.
        lr_drop_factor: see there.
        precision: ``"float32"``, or ``"bf16"`` for autocast with float32 weights.
        seed: of order and augmentation.
        progress: show a bar.

    Returns:
        Curves with one value an epoch: ``loss``, ``accuracy`` (both on the training batches as they were
        seen) and ``lr``.

    Raises:
        TrainingDivergedError: at the end of the epoch in which the loss stopped being finite.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: it must be one of {', '.join(PRECISIONS)}.")
    device = data.train_images.device
    model.to(memory_format=torch.channels_last).train()  # faster convolutions on CPU and GPU alike
    if mask is not None:
        apply_mask(model, mask)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)
    order = random_stream(seed, "order")
    curves: dict[str, list[float]] = {"loss": [], "accuracy": [], "lr": []}
    bar = tqdm(range(epochs), desc="training", unit="epoch", disable=not progress)
    for epoch in bar:
        rate = learning_rate(epoch, epochs, lr, lr_drops, lr_drop_factor)
        optimizer.param_groups[0]["lr"] = rate
        seen, total, correct = 0, torch.zeros((), device=device), torch.zeros((), device=device)
        for batch in data.epoch(batch_size, order):
            inputs = batch.inputs.contiguous(memory_format=torch.channels_last)  # N×C×H×W
            with _autocast(device, precision):
                logits = model(inputs).float()  # N×C
            loss = F.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            if mask is not None:
                gradients, kept = _masked_gradients(model, mask)
                torch._foreach_mul_(gradients, kept)
            optimizer.step()
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


def _masked_gradients(model: nn.Module, mask: ByParameter) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [(model.get_parameter(name).grad, kept) for name, kept in mask.items()]
    return [g for g, _ in pairs if g is not None], [kept for g, kept in pairs if g is not None]


@contextlib.contextmanager
def _autocast(device: torch.device, precision: str) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
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
