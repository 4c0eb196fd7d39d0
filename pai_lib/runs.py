"""Run a spec: prune a network, train it, test it, and say what happened."""

from __future__ import annotations

import datetime
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .criteria import get_criterion, score
from .data import Batch, Dataset, load_data
from .derivatives import ByParameter
from .masks import (
    collapsed_layers,
    effective_sparsity,
    invert_scores,
    layer_density,
    make_mask,
    prune,
    shuffle_within_layers,
    sparsity_of,
)
from .models import build_model
from .provenance import device_name, git_revision, version
from .records import Record, Store
from .spec import RunSpec
from .training import TrainingDivergedError, evaluate, random_stream, train, warm_up


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or CUDA where there is one and the CPU elsewhere.

    Raises:
        ValueError: if CUDA is asked for where there is none; there is no silent fall-back.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise ValueError(f'device="{device}": it must be "cpu" or "cuda".') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda": PyTorch finds no CUDA device here; use device="cpu".')
    return device


def run(
    spec: RunSpec,
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    data: Dataset | None = None,
    progress: bool = True,
) -> Record:
    """Prune at initialization, train, test; or return the record if the store has it for the same data.

    Order: build the model, warm up its batch norms, score a class-balanced batch, mask, train under the mask,
    test once after the last epoch. Nothing is chosen on test data.

    Args:
        spec: what to run.
        store: where records are kept; ``None`` keeps none.
        device: ``None`` is CUDA where there is one, else the CPU.
        data: the spec's data set if it is loaded already.
        progress: show a bar.

    Returns:
        The record. A loss that stops being finite, in training or in the test, gives a record with a ``failure``.

    Raises:
        ValueError: for a device, data set or scoring batch that cannot be had, before work starts.
    """
    device = resolve_device(device)
    whole = load_data(spec.dataset) if data is None else data
    if store is not None:
        known = store.load(spec)
        if known is not None and known.data.get("fingerprint") == whole.fingerprint:
            return known
    part, _ = whole.split(spec.train_fraction)
    part = part.to(device)
    batch = part.scoring_batch(1 if spec.criterion == "dense" else spec.samples_per_class, spec.seed)
    started = datetime.datetime.now(datetime.UTC)
    model = build_model(
        spec.model, part.num_classes, in_channels=part.train_images.shape[1], width=spec.width, seed=spec.seed
    )
    result: dict = {"parameters": sum(p.numel() for p in model.parameters())}
    failure = None
    _reset_peak(device)
    with _timed(result, "scoring_seconds", device):
        mask = _mask(spec, model.to(device), part, batch, result)
    if mask is not None:
        result |= {
            "density": layer_density(mask),
            "collapsed": collapsed_layers(mask),
            "sparsity_reached": sparsity_of(mask),
            "effective_sparsity": effective_sparsity(model, mask, batch),
        }
    try:
        with _timed(result, "training_seconds", device):
            result["curves"] = _train(spec, model, part, mask, progress)
        accuracy, loss = evaluate(model, part.test_batches())
        if math.isfinite(loss):
            result |= {"test_accuracy": accuracy, "test_loss": loss}
        else:  # the last step of training may have broken it
            failure = {"reason": f"The test loss is {loss}.", "where": "test"}
    except TrainingDivergedError as error:
        failure = {"reason": str(error), "where": error.where}
    result["peak_memory_bytes"] = _peak(device)
    record = Record(
        spec,
        result,
        failure,
        {"fingerprint": whole.fingerprint, "train": len(part.train_labels), "test": len(part.test_labels)},
        provenance(device, spec.precision, started),
    )
    if store is not None:
        store.save(record)
    return record


@contextmanager
def _timed(result: dict, name: str, device: torch.device) -> Iterator[None]:
    """Note the seconds that a block took, also if it failed."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        result[name] = round(time.perf_counter() - start, 3)


def _mask(spec: RunSpec, model: nn.Module, data: Dataset, batch: Batch, result: dict) -> ByParameter | None:
    """The spec's mask; warms up the model's batch norms on the way and applies the spec's control."""
    result["warmup_updates"] = warm_up(model, data, spec.warmup, spec.batch_size, spec.seed)
    if spec.criterion == "dense":
        return None
    options = {
        "group": spec.group,
        "probes": spec.probes,
        "temperature": spec.temperature,
        "variant": spec.variant,
        "generator": random_stream(spec.seed, "scores"),
    }
    if spec.control == "invert":
        scores = score(model, batch, spec.criterion, **options)
        return make_mask(invert_scores(scores), spec.sparsity, spec.scope)
    mask = prune(model, batch, spec.criterion, spec.sparsity, scope=spec.scope, rounds=spec.rounds, **options)
    if spec.control == "shuffle":
        return shuffle_within_layers(mask, random_stream(spec.seed, "shuffle"))
    if spec.control == "reinit":  # new weights under the old mask; norms keep the warmed-up statistics
        fresh = build_model(
            spec.model, data.num_classes, in_channels=batch.inputs.shape[1], width=spec.width,
            seed=int(torch.randint(2**31, (), generator=random_stream(spec.seed, "reinit"))),
        )  # fmt: skip
        model.load_state_dict(dict(fresh.named_parameters()), strict=False)
    return mask


def _train(spec: RunSpec, model: nn.Module, data: Dataset, mask: ByParameter | None, progress: bool) -> dict:
    names = "epochs batch_size lr momentum weight_decay lr_drops lr_drop_factor precision seed".split()
    return train(model, data, mask, progress=progress, **{name: getattr(spec, name) for name in names})


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Peak memory: of this run on a GPU, of the process so far on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def provenance(device: torch.device, precision: str, started: datetime.datetime) -> dict:
    """What made a record: revision, versions, device, times."""
    revision, dirty = git_revision()
    return {
        "git": revision,
        "dirty": dirty,
        "pai_lib": version("pai-lib"),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def criterion_label(key: str) -> str:
    """Short label of a criterion, for figures and tables."""
    return "Dense" if key == "dense" else get_criterion(key).label
