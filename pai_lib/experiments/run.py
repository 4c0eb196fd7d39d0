"""Run a spec: prune a network, train it, test it, and say what happened."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..curvature.calls import ByParameter, evaluation_mode
from ..data.loading import Dataset, load_data
from ..draws import random_stream
from ..models import build_model
from ..names import checked_keywords
from ..pruning.inspection import effective_sparsity
from ..pruning.masks import (
    collapsed_layers,
    invert_scores,
    layer_density,
    prune,
    shuffle_within_layers,
    sparsity_of,
)
from ..pruning.ranking import make_mask
from ..pruning.scoring import score
from ..training.checkpoint import Checkpoint, epochs_done
from ..training.device import in_channels_last, resolve_device
from ..training.loop import TrainingDivergedError, compiled, evaluate, train, warm_up
from .provenance import now, peak_memory, reset_peak_memory, run_provenance
from .records import Record, Store
from .spec import RunSpec


class Shared:
    """Parts of runs that several have in common, kept for the next of them.

    A part is found again only under a key that holds everything that shaped it. A run that finds
    one counts the seconds that it took when it was computed, so that the times of a run are those
    of a run alone.

    Args:
        networks: number of networks whose parts are kept, the latest ones.

    >>> shared = Shared()
    >>> for key in ("snip", "fts"):  # one warm-up, one gradient
    ...     spec = RunSpec(dataset="digits", model="resnet8", width=2, criterion=key, epochs=1)
    ...     record = run(spec, progress=False, shared=shared)
    >>> shared.seconds > 0
    True
    """

    def __init__(self, networks: int = 2):
        self.networks = networks
        self.known: dict[Hashable, dict[Hashable, tuple[Any, float]]] = {}
        self.seconds = 0.0  # saved so far

    def of(
        self, network: Hashable, device: torch.device
    ) -> Callable[[Hashable, Callable[[], Any]], Any]:
        """Return ``remember(key, compute)`` of a network, which computes only what is not known."""
        known = self.known[network] = self.known.pop(network, {})
        while len(self.known) > self.networks:
            del self.known[next(iter(self.known))]

        def remember(key: Hashable, compute: Callable[[], Any]) -> Any:
            if key in known:
                self.seconds += known[key][1]
            else:
                start, saved = (
                    _seconds(device),
                    self.seconds,
                )  # what is found on the way is part of the cost
                value = compute()
                known[key] = value, _seconds(device) - start + self.seconds - saved
            return known[key][0]

        return remember


@checked_keywords
def run(
    spec: RunSpec,
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    data: Dataset | None = None,
    progress: bool = True,
    shared: Shared | None = None,
) -> Record:
    """Prune, train, test; or return the record if the store has it for the same data.

    With a store, the run is locked against other processes, and goes on from its checkpoint if it
    has one.

    Args:
        spec: what to run.
        store: where records are kept; ``None`` keeps none.
        device: ``None`` is CUDA where there is one, else the CPU.
        data: the spec's data set if it is loaded already.
        progress: show a bar.
        shared: parts of earlier runs that this one may use; give the same one to runs of one seed
            in turn.

    Returns:
        The record. A loss that stops being finite, in training or in the test, gives a record with
        a ``failure``.

    Raises:
        ValueError: for a device, data set or scoring batch that cannot be had, before work starts.
        OSError: for a store that cannot be written, before work starts.
    """
    device = resolve_device(device)
    whole = load_data(spec.dataset, image_size=spec.image_size) if data is None else data
    if store is None:
        return perform(spec, whole, device, progress=progress, shared=shared)
    spec = spec.with_data(whole.fingerprint)
    if known := store.find(spec, whole.fingerprint):
        return known
    work = _Work(
        spec, whole, device, progress, shared=shared
    )  # refuses what cannot be before anything is written
    store.check_writable()
    with store.lock(spec):
        if known := store.find(spec, whole.fingerprint):  # another process was faster
            return known
        store.tidy(spec)
        record = work.record(store.checkpoint(spec))
        store.save(record)
        store.checkpoint(spec).unlink(missing_ok=True)
    return record


def perform(
    spec: RunSpec,
    whole: Dataset,
    device: torch.device,
    *,
    progress: bool = False,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] | None = None,
    shared: Shared | None = None,
) -> Record:
    """Run a spec, whatever has been recorded.

    Order: build the model, warm up its batch norms, score a class-balanced batch, mask, train under
        the mask, test
    once after the last epoch. With ``when="trained"`` the network is first trained as that of the
    dense run with the same fields is; after scoring it is trained again from the first learning
    rate on, with a new optimizer and new random batches (learning-rate rewinding: Renda et al.,
    2020). Nothing is chosen on test data.

    Args:
        spec: what to run.
        whole: the spec's data set.
        device: where to run.
        progress: show a bar.
        checkpoint: file of the run while it is unfinished; it is used if it fits spec and data.
        stop: asked before each epoch of training.
        shared: parts of earlier runs that this one may use.

    Returns:
        The record, as that of ``run``.

    Raises:
        TrainingStoppedError: when ``stop`` said so; the checkpoint is written.
        ValueError: as ``run``.
    """
    return _Work(spec, whole, device, progress, stop, shared).record(checkpoint)


def check(spec: RunSpec, whole: Dataset) -> None:
    """Raise ValueError, as ``run`` would, for a spec that its data do not allow."""
    _Work(spec, whole, torch.device("cpu"), progress=False)


# Fields that do not shape the network that is scored: those of scoring and masks, and those of
# training.
_SCORING = set(
    "criterion variant sparsity scope group probes temperature rounds control when".split()
)
_TRAINING = tuple(
    "epochs lr momentum weight_decay lr_drops lr_drop_factor optimizer schedule lr_warmup label_smoothing "
    "precision".split()
)


@lru_cache(maxsize=1)  # a sweep splits and moves its data once
def _part(whole: Dataset, fraction: float, device: torch.device) -> Dataset:
    return whole.split(fraction)[0].to(device)


class _Work:
    """A run under way: what is known of it so far is also in its checkpoint, from which another can go on."""

    def __init__(
        self, spec: RunSpec, whole: Dataset, device: torch.device, progress: bool,
        stop: Callable[[], bool] | None = None, shared: Shared | None = None,
    ) -> None:  # fmt: skip
        self.spec, self.whole, self.device = spec.with_data(whole.fingerprint), whole, device
        self.progress, self.stop, self.shared = progress, stop, shared or Shared()
        self.data = _part(whole, spec.train_fraction, device)
        self.batch = self.data.scoring_batch(
            1 if spec.criterion == "dense" else spec.samples_per_class, spec.seed
        )
        self.model = self.build(spec.seed)
        with torch.no_grad(), evaluation_mode(self.model):
            self.model(self.batch.inputs[:1])  # refuses images that do not fit
        later = _SCORING if spec.when == "trained" else _SCORING | set(_TRAINING)
        shaping = [getattr(spec, each.name) for each in fields(spec) if each.name not in later]
        self.remember = self.shared.of(
            (spec.when, whole.fingerprint, str(device), *shaping), device
        )

    @torch.enable_grad()
    def record(self, checkpoint: Path | None) -> Record:
        """Do what is left of the run."""
        spec, device = self.spec, self.device
        self.go_on(checkpoint)
        result, failure, measured = self.result, None, reset_peak_memory(device)
        try:
            mask = self.mask()
            with self.timed("training_seconds"):
                seed = spec.seed if spec.when == "init" else self.drawn("retraining")
                result["curves"] = self.train(mask, seed)
            with _located("test"):
                accuracy, loss = evaluate(self.model, self.data.test_batches())
            if math.isfinite(loss):
                result |= {"test_accuracy": accuracy, "test_loss": loss}
            else:  # the last step of training may have broken it
                failure = {"reason": f"The test loss is {loss}.", "where": "test"}
        except TrainingDivergedError as error:
            dense = "" if self.saved["phase"] == "masked" else "dense training, "
            failure = {"reason": str(error), "where": dense + error.where}
        result["peak_memory_bytes"] = peak_memory(device) if measured else None
        sizes = {"train": len(self.data.train_labels), "test": len(self.data.test_labels)}
        made = run_provenance(device, spec.precision, self.saved["started"], self.saved["resumed"])
        return Record(spec, result, failure, {"fingerprint": self.whole.fingerprint, **sizes}, made)

    def go_on(self, checkpoint: Path | None) -> None:
        """Take over what the checkpoint holds, if it fits."""
        shapes = str({name: list(tensor.shape) for name, tensor in self.model.state_dict().items()})
        network = hashlib.sha256(shapes.encode()).hexdigest()[
            :12
        ]  # an architecture may change with its code
        key = {"id": self.spec.id, "fingerprint": self.whole.fingerprint, "network": network}
        self.checkpoint = Checkpoint(checkpoint, key)
        self.saved = self.checkpoint.values  # JSON
        self.result = self.saved.setdefault("result", {})
        self.result["parameters"] = sum(p.numel() for p in self.model.parameters())
        here = run_provenance(self.device, self.spec.precision, now(), [])
        resumed = self.saved.setdefault("resumed", [])
        if (
            checkpoint is not None and self.checkpoint.training
        ):  # another process began, and maybe another version
            resumed.append(
                {**self.saved["here"], "epoch": epochs_done(checkpoint), "when": here["started"]}
            )
        self.saved["here"] = {name: here[name] for name in ("git", "torch", "device", "threads")}
        self.saved.setdefault("started", here["started"])

    def build(self, seed: int) -> nn.Module:
        size: dict[str, Any] = {"width": self.spec.width, "in_channels": self.batch.inputs.shape[1]}
        with torch.device("cpu"):  # whatever PyTorch's default is
            model = build_model(self.spec.model, self.data.num_classes, seed=seed, **size)
        return model.to(self.device)

    def drawn(self, purpose: str) -> int:
        """Seed of another stream than those of the run's own seed."""
        return int(
            torch.randint(2**31, (), generator=random_stream(self.spec.seed, purpose), device="cpu")
        )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a block, also if it failed, to those of the record."""
        earlier = (
            self.checkpoint.training.get("seconds", 0.0) if name == "training_seconds" else 0.0
        )
        start, saved = _seconds(self.device), self.shared.seconds
        try:
            with _located(name.removesuffix("_seconds")):
                yield
        finally:
            spent = earlier + _seconds(self.device) - start + self.shared.seconds - saved
            self.result[name] = round(self.result.get(name, 0.0) + spent, 3)

    def train(self, mask: ByParameter | None, seed: int) -> dict:
        options: dict[str, Any] = {
            name: getattr(self.spec, name) for name in ("batch_size", *_TRAINING)
        }
        options["compile"] = compiled()
        control: dict[str, Any] = {
            "progress": self.progress,
            "checkpoint": self.checkpoint,
            "stop": self.stop,
        }
        return train(in_channels_last(self.model), self.data, mask, seed=seed, **options, **control)

    def prepare(self) -> None:
        """Bring the network to where it is scored: warm it up and, where the spec says so, train it."""
        spec, model = self.spec, self.model

        def warmed_up() -> tuple[int, ByParameter]:
            updates = warm_up(model, self.data, spec.warmup, spec.batch_size, spec.seed)
            return updates, {name: buffer.clone() for name, buffer in model.named_buffers()}

        def trained() -> tuple[dict, ByParameter]:
            curves = self.train(None, spec.seed)
            return curves, {name: tensor.clone() for name, tensor in model.state_dict().items()}

        if "phase" not in self.saved:
            with self.timed("scoring_seconds"):
                self.result["warmup_updates"], statistics = self.remember(("warm-up",), warmed_up)
                model.load_state_dict(statistics, strict=False)
        if spec.when == "trained":
            self.saved["phase"] = "dense"
            with self.timed("training_seconds"):
                found = (
                    trained() if self.checkpoint.training else self.remember(("training",), trained)
                )
            self.result["dense_curves"], state = found
            in_channels_last(model).load_state_dict(state)

    def mask(self) -> ByParameter | None:
        """The spec's mask, with its control applied; ``None`` for the dense network."""
        if self.saved.get("phase") == "masked":
            return {
                name: kept.to(self.device) for name, kept in self.checkpoint.tensors.items()
            } or None
        self.prepare()
        mask = None
        if self.spec.criterion != "dense":
            with self.timed("scoring_seconds"):
                try:
                    mask = self.scored()
                except ValueError:
                    self.check_loss()
                    raise
            self.result |= {
                "density": layer_density(mask),
                "collapsed": collapsed_layers(mask),
                "sparsity_reached": sparsity_of(mask),
                "effective_sparsity": effective_sparsity(self.model, mask, self.batch),
            }
        self.saved["phase"] = "masked"
        self.checkpoint.next_phase(mask or {})
        return mask

    def check_loss(self) -> None:
        """Raise TrainingDivergedError if the last step of training has broken the network that is scored."""
        if not math.isfinite(loss := evaluate(self.model, [self.batch])[1]):
            error = TrainingDivergedError(f"The loss after training is {loss}.")
            error.where = f"epoch {self.spec.epochs}"
            raise error

    def scored(self) -> ByParameter:
        spec, model = self.spec, self.model
        options: dict[str, Any] = {
            n: getattr(spec, n) for n in ("group", "probes", "temperature", "variant")
        }
        options |= {"generator": random_stream(spec.seed, "scores"), "remember": self.remember}
        options["progress"] = self.progress
        if spec.control == "invert":
            scores = score(model, self.batch, spec.criterion, **options)
            return make_mask(invert_scores(scores), spec.sparsity, spec.scope)
        rule: dict[str, Any] = {"scope": spec.scope, "rounds": spec.rounds}
        mask = prune(model, self.batch, spec.criterion, spec.sparsity, **rule, **options)
        if spec.control == "shuffle":
            return shuffle_within_layers(mask, random_stream(spec.seed, "shuffle"))
        if spec.control == "reinit":  # new weights under the old mask; norms keep their statistics
            model.load_state_dict(
                dict(self.build(self.drawn("reinit")).named_parameters()), strict=False
            )
        return mask


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Note in what goes wrong where that was."""
    try:
        yield
    except Exception as error:
        vars(error)["where"] = getattr(error, "where", where)
        raise


def _seconds(device: torch.device) -> float:
    """Time now, after what the device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
