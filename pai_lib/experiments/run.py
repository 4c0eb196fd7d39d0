"""Run a spec: prune a network, train it, test it, and say what happened."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..curvature.calls import ByParameter
from ..curvature.diagonals import check_exact
from ..data.dataset import Dataset
from ..data.loading import load_data
from ..draws import random_stream
from ..models import build_model
from ..names import checked_keywords
from ..pruning import masks
from ..pruning.criteria import get_criterion
from ..pruning.inspection import effective_sparsity
from ..pruning.masks import prune
from ..pruning.ranking import ScoresNotFiniteError, make_mask
from ..pruning.scoring import score
from ..training.checkpoint import Checkpoint, epochs_done
from ..training.device import in_channels_last, resolve_device
from ..training.loop import TrainingDivergedError, check_trainable, evaluate, train, warm_up
from .mask_spec import AnySpec
from .provenance import now, own_code, peak_memory, reset_peak_memory, run_provenance
from .records import Record, Store
from .shared import Shared, seconds
from .spec import FIELDS, RunSpec, check_given, check_name


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
    if not isinstance(spec, RunSpec):
        raise TypeError(f"spec is a {type(spec).__name__}: it must be a RunSpec.")
    work = partial(Work, progress=progress, shared=shared or Shared())
    return recorded(spec, store, data, work, device)


def recorded(
    spec: AnySpec, store: Store | None, whole: Dataset | None, work: Callable[..., Any], device: Any
) -> Any:
    """Return the record that the store has of a spec, else that of its work, which is kept.

    Args:
        spec: what is to be recorded.
        store: where records are kept; ``None`` keeps none.
        whole: the spec's data set if it is loaded already.
        work: makes of spec, data and device what does the work by ``record(checkpoint)``, or
            refuses it.
        device: as in ``run``.
    """
    if store is not None and not isinstance(store, Store):
        raise TypeError(f"store={store!r}: it must be a Store, or None to keep no record.")
    at = resolve_device(device)
    check_name("dataset", spec.dataset)
    if whole is None:
        whole = load_data(spec.dataset, image_size=spec.image_size)
    else:
        check_given(spec, whole)
    spec = spec.with_data(whole.fingerprint)
    if store is None:
        return work(spec, whole, at).record(None)
    if record := store.find(spec, whole.fingerprint):
        return record
    prepared = work(spec, whole, at)
    store.check_writable()
    with store.lock(spec):
        if record := store.find(spec, whole.fingerprint):  # another process was faster
            return record
        store.tidy(spec)
        record = prepared.record(store.checkpoint(spec))
        store.save(record)
        store.checkpoint(spec).unlink(missing_ok=True)
    return record


def perform(
    spec: RunSpec,
    whole: Dataset,
    device: torch.device,
    *,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] | None = None,
    shared: Shared | None = None,
) -> Record:
    """Run a spec, whatever has been recorded.

    Order: build the model, warm up its batch norms, score a class-balanced batch, mask, train under
    the mask, test once after the last epoch. With ``when="trained"`` the network is first
    trained as that of the dense run with the same fields is; after scoring it is trained again from
    the first learning rate on, with a new optimizer and new random batches (learning-rate
    rewinding: Renda et al., 2020). Nothing is chosen on test data.

    Args:
        spec: what to run.
        whole: the spec's data set.
        device: where to run.
        checkpoint: file of the run while it is unfinished; it is used if it fits spec and data.
        stop: asked before each epoch of training.
        shared: parts of earlier runs that this one may use.

    Returns:
        The record, as that of ``run``.

    Raises:
        TrainingStoppedError: when ``stop`` said so; the checkpoint is written.
        ValueError: as ``run``.
    """
    spec = spec.with_data(whole.fingerprint)
    return Work(spec, whole, device, stop=stop, shared=shared or Shared()).record(checkpoint)


def needs_exact(spec: RunSpec) -> bool:
    """Whether a run's criterion needs the exact diagonal, which not every network has."""
    dense = spec.criterion == "dense"
    return not dense and "exact" in get_criterion(spec.criterion, spec.variant).needs


# Fields that do not shape the network that is scored.
_SCORING = "criterion variant sparsity scope group probes temperature rounds control when".split()
_TRAINING = (
    "epochs lr momentum weight_decay lr_drops lr_drop_factor optimizer schedule lr_warmup "
    "label_smoothing precision"
).split()


@lru_cache(maxsize=1)  # a sweep splits and moves its data once
def _part(whole: Dataset, fraction: float, device: torch.device) -> Dataset:
    return whole.split(fraction)[0].to(device)


@dataclass
class _State:
    """How far a run has come, in JSON types: its checkpoint keeps it for the next process."""

    started: str
    phase: str = "initial"  # then "dense", if it is trained before scoring, and "masked"
    result: dict[str, Any] = field(default_factory=dict[str, Any])
    resumed: list[dict[str, Any]] = field(default_factory=list)  # what made the earlier pieces
    here: dict[str, Any] = field(default_factory=dict[str, Any])  # what makes this one


@dataclass
class Work:
    """A run under way, or what comes before its mask.

    ValueError, as of ``run``, for a spec that its data do not allow.
    """

    spec: RunSpec
    whole: Dataset
    device: torch.device
    progress: bool = False
    stop: Callable[[], bool] | None = None
    shared: Shared = field(default_factory=Shared)

    def __post_init__(self) -> None:
        spec = self.spec
        self.code = own_code(spec)  # now: its file may be edited during the run
        self.data = _part(self.whole, spec.train_fraction, self.device)
        samples = 1 if spec.criterion == "dense" else spec.samples_per_class
        resampled = spec.control == "resample"
        seed = self.drawn("resample") if resampled else spec.seed
        self.batch = self.data.scoring_batch(samples, seed)
        self.model = self.build(spec.seed)
        check_trainable(self.model, self.data, {}, spec.batch_size, spec.seed)
        if needs_exact(spec):
            check_exact(self.model, self.batch)
        later = _SCORING if spec.when == "trained" else _SCORING + _TRAINING
        shaping = [getattr(spec, name) for name in FIELDS if name not in later]
        network = (spec.when, resampled, self.whole.fingerprint, str(self.device), *shaping)
        self.remember = self.shared.of(network, self.device)

    @torch.enable_grad()
    def record(self, path: Path | None) -> Record:
        """Do what is left of the run after the checkpoint of this path."""
        self.go_on(path)
        state, failure = self.state, None
        measured = reset_peak_memory(self.device)
        try:
            mask = self.mask()
            with self.timed("training"):
                seed = self.spec.seed if self.spec.when == "init" else self.drawn("retraining")
                state.result["curves"] = self.train(mask, seed)
            failure = self.test()
        except TrainingDivergedError as error:
            dense = "" if state.phase == "masked" else "dense training, "
            failure = {"reason": str(error), "where": dense + error.where}
        except ScoresNotFiniteError as error:
            if self.spec.when == "init":
                raise
            failure = {"reason": str(error), "where": "scoring"}  # where the loss is still finite
        state.result["peak_memory_bytes"] = peak_memory(self.device) if measured else None
        pieces = state.resumed
        made = run_provenance(self.device, self.spec.precision, state.started, pieces, self.code)
        return Record(self.spec, state.result, failure, self.about(), made)

    def about(self) -> dict[str, Any]:
        """What a record says of the data."""
        sizes = {"train": len(self.data.train_labels), "test": len(self.data.test_labels)}
        return {"fingerprint": self.whole.fingerprint, **sizes}

    def go_on(self, path: Path | None) -> None:
        """Begin, or take over what the checkpoint holds if it fits."""
        shapes = str({name: list(tensor.shape) for name, tensor in self.model.state_dict().items()})
        network = hashlib.sha256(shapes.encode()).hexdigest()[:12]  # it may change with its code
        key = {"id": self.spec.id, "fingerprint": self.whole.fingerprint, "network": network}
        key |= self.code
        self.checkpoint = Checkpoint(path, key)
        here = run_provenance(self.device, self.spec.precision, now(), [])
        known = {k: v for k, v in self.checkpoint.values.items() if k in _State.__annotations__}
        self.state = state = _State(**{"started": here["started"], **known})
        self.checkpoint.values = vars(state)
        if path is not None and self.checkpoint.training:  # another process, or another version
            piece = {"epoch": epochs_done(path), "when": here["started"]}
            state.resumed.append({**state.here, **piece})
        state.here = {name: here[name] for name in ("git", "torch", "device", "threads")}
        state.result["parameters"] = sum(p.numel() for p in self.model.parameters())

    def build(self, seed: int) -> nn.Module:
        """The network with the weights of a seed."""
        spec, channels = self.spec, self.batch.inputs.shape[1]
        size: dict[str, Any] = {"width": spec.width, "in_channels": channels}
        with torch.device("cpu"):  # whatever PyTorch's default is
            model = build_model(spec.model, self.data.num_classes, seed=seed, **size)
        return model.to(self.device)

    def drawn(self, purpose: str) -> int:
        """Seed of another stream than those of the run's own seed."""
        stream = random_stream(self.spec.seed, purpose)
        return int(torch.randint(2**31, (), generator=stream, device="cpu"))

    def clock(self) -> float:
        """Seconds, those included that what was shared took when it was computed."""
        return seconds(self.device) + self.shared.seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage, also if it failed, to those of the record."""
        training = self.checkpoint.training if stage == "training" else {}
        start = self.clock()
        try:
            with _located(stage):
                yield
        finally:
            spent = self.clock() - start
            result, name = self.state.result, f"{stage}_seconds"
            spent += training.get("seconds", 0.0)
            result[name] = round(result.get(name, 0.0) + spent, 3)

    def train(self, mask: ByParameter | None, seed: int) -> dict[str, Any]:
        """Train under a mask; return the curves."""
        names = ("batch_size", *_TRAINING)
        options: dict[str, Any] = {name: getattr(self.spec, name) for name in names}
        options |= {"seed": seed, "progress": self.progress}
        options |= {"checkpoint": self.checkpoint, "stop": self.stop}
        return train(in_channels_last(self.model), self.data, mask, **options)

    def mask(self) -> ByParameter | None:
        """The spec's mask, with its control applied; ``None`` for the dense network."""
        if self.state.phase == "masked":
            tensors = self.checkpoint.tensors.items()
            return {name: kept.to(self.device) for name, kept in tensors} or None
        if self.state.phase == "initial":
            self.warm_up()
        if self.spec.when == "trained":
            self.train_dense()
        mask = None
        if self.spec.criterion != "dense":
            with self.timed("scoring"):
                mask = self.scored()
            self.state.result |= {
                "density": masks.layer_density(mask),
                "collapsed": masks.collapsed_layers(mask),
                "sparsity_reached": masks.sparsity_of(mask),
                "effective_sparsity": effective_sparsity(self.model, mask, self.batch),
            }
        self.state.phase = "masked"
        self.checkpoint.next_phase(mask or {})
        return mask

    def warm_up(self) -> None:
        """Update the batch norms, and note how often and how long."""
        spec, model = self.spec, self.model

        def warmed_up() -> tuple[int, ByParameter]:
            updates = warm_up(model, self.data, spec.warmup, spec.batch_size, spec.seed)
            return updates, {name: buffer.clone() for name, buffer in model.named_buffers()}

        with self.timed("scoring"):
            updates, statistics = self.remember(("warm-up",), warmed_up)
            self.state.result["warmup_updates"] = updates
            model.load_state_dict(statistics, strict=False)

    def train_dense(self) -> None:
        """Train before scoring, as the dense run is trained."""

        def trained() -> tuple[dict[str, Any], ByParameter]:
            curves, tensors = self.train(None, self.spec.seed), self.model.state_dict()
            return curves, {name: tensor.clone() for name, tensor in tensors.items()}

        self.state.phase = "dense"
        with self.timed("training"):
            begun = bool(self.checkpoint.training)
            curves, weights = trained() if begun else self.remember(("training",), trained)
        self.state.result["dense_curves"] = curves
        in_channels_last(self.model).load_state_dict(weights)
        loss = evaluate(self.model, [self.batch])[1]
        if not math.isfinite(loss):  # the last step has broken it
            error = TrainingDivergedError(f"The loss after training is {loss}.")
            error.where = f"epoch {self.spec.epochs}"
            raise error

    def scoring(self) -> dict[str, Any]:
        """Options of ``score`` and ``prune``, with a random stream that begins."""
        names = ("group", "probes", "temperature", "variant")
        options = {name: getattr(self.spec, name) for name in names}
        options["generator"] = random_stream(self.spec.seed, "scores")
        return options | {"remember": self.remember, "progress": self.progress}

    def scored(self) -> ByParameter:
        """The mask of the spec's criterion, with its control applied."""
        spec, model, options = self.spec, self.model, self.scoring()
        if spec.control == "invert":
            scores = score(model, self.batch, spec.criterion, **options)
            return make_mask(masks.invert_scores(scores), spec.sparsity, spec.scope)
        options |= {"scope": spec.scope, "rounds": spec.rounds}
        mask = prune(model, self.batch, spec.criterion, spec.sparsity, **options)
        if spec.control == "shuffle":
            return masks.shuffle_within_layers(mask, random_stream(spec.seed, "shuffle"))
        if spec.control == "reinit":  # new weights under the old mask; norms keep their statistics
            fresh = dict(self.build(self.drawn("reinit")).named_parameters())
            model.load_state_dict(fresh, strict=False)
        return mask

    def test(self) -> dict[str, Any] | None:
        """Add accuracy and loss to the result, or return the failure."""
        with _located("test"):
            accuracy, loss = evaluate(self.model, self.data.test_batches())
        if not math.isfinite(loss):
            return {"reason": f"The test loss is {loss}.", "where": "test"}
        self.state.result |= {"test_accuracy": accuracy, "test_loss": loss}
        return None


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Note in what goes wrong where that was."""
    try:
        yield
    except Exception as error:
        vars(error)["where"] = getattr(error, "where", where)
        raise
