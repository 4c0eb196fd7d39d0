"""Make the masks of one network by every criterion, without training, and say what each leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..curvature.calls import ByParameter
from ..curvature.diagonals import check_exact, ggn_diag
from ..data.dataset import Dataset
from ..draws import random_stream
from ..names import checked_keywords
from ..pruning.criteria import get_criterion
from ..pruning.inspection import effective_sparsity
from ..pruning.masks import prune, shared_fraction
from ..pruning.ranking import host_numbers, make_mask
from ..pruning.scoring import score
from ..training.device import resolve_device
from ..training.loop import TrainingStoppedError
from .mask_spec import MaskSpec
from .provenance import peak_memory, reset_peak_memory, run_provenance
from .records import MaskRecord, Store
from .run import Work, recorded
from .shared import Shared, seconds


@checked_keywords
def run_masks(
    spec: MaskSpec,
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    data: Dataset | None = None,
    progress: bool = True,
    shared: Shared | None = None,
) -> MaskRecord:
    """Make every mask of a spec; or return the record if the store has it for the same data.

    Each mask is that of ``run`` with the same fields, and nothing is trained. With a store, the
    work is locked against other processes; what is interrupted begins anew.

    Args:
        spec: which masks.
        store: where records are kept; ``None`` keeps none.
        device: ``None`` is CUDA where there is one, else the CPU.
        data: the spec's data set if it is loaded already.
        progress: show a bar.
        shared: parts of earlier runs that this one may use.

    Returns:
        The record.

    Raises:
        ValueError: for a device, data set or scoring batch that cannot be had, or an exact
            criterion or reference where the network is not piecewise linear, before work starts;
            for scores that cannot be ranked.
        OSError: for a store that cannot be written, before work starts.
    """
    at = resolve_device(device)

    def prepared(whole: Dataset) -> Callable[[Path | None], MaskRecord]:
        work = prepare(spec.with_data(whole.fingerprint), whole, at, progress, shared)
        return lambda checkpoint: _record(spec, work, None)

    return recorded(spec, store, data, prepared)


def prepare(
    spec: MaskSpec,
    whole: Dataset,
    device: torch.device | None = None,
    progress: bool = False,
    shared: Shared | None = None,
) -> Work:
    """What comes before the masks; ValueError, as ``run_masks``, for what cannot be."""
    first = spec.as_run(spec.criteria[0], spec.sparsities[0])
    at = device or torch.device("cpu")
    work = Work(first, whole, at, progress, shared=shared or Shared())
    needs = {need for key in spec.criteria for need in get_criterion(key).needs}
    if spec.reference == "exact" or "exact" in needs:
        check_exact(work.model, work.batch)
    return work


def perform_masks(
    spec: MaskSpec,
    whole: Dataset,
    device: torch.device,
    *,
    stop: Callable[[], bool] | None = None,
    shared: Shared | None = None,
) -> MaskRecord:
    """Make every mask of a spec, whatever has been recorded.

    Order: build the model, warm up its batch norms, score a class-balanced batch by the reference,
    then criterion by criterion: score, and rank for each sparsity (in several rounds: prune for
    each). ``stop`` is asked before each criterion, and TrainingStoppedError is raised if it says
    so: then nothing is kept.
    """
    spec = spec.with_data(whole.fingerprint)
    return _record(spec, prepare(spec, whole, device, shared=shared), stop)


@torch.enable_grad()
def _record(spec: MaskSpec, work: Work, stop: Callable[[], bool] | None) -> MaskRecord:
    work.go_on(None)
    measured, start = reset_peak_memory(work.device), seconds(work.device)
    work.warm_up()
    scores = _reference(spec, work)
    references = {sparsity: make_mask(scores, sparsity) for sparsity in spec.sparsities}
    del scores
    made = []
    for key in spec.criteria:
        if stop is not None and stop():
            raise TrainingStoppedError("Asked to stop before the last criterion.")
        for sparsity, mask, spent in _masks(spec, work, key):
            made.append(
                {
                    "criterion": key,
                    "sparsity": sparsity,
                    "kept": list(host_numbers(torch.sum, mask).values()),
                    "effective_sparsity": effective_sparsity(work.model, mask, work.batch),
                    "shared": shared_fraction(mask, references[sparsity]),
                    "seconds": round(spent, 3),
                }
            )
    sizes = {name: kept.numel() for name, kept in mask.items()}
    state = work.state.result
    result = {
        **{name: state[name] for name in ("parameters", "warmup_updates")},
        "warmup_seconds": state["scoring_seconds"],
        "seconds": round(seconds(work.device) - start, 3),
        "peak_memory_bytes": peak_memory(work.device) if measured else None,
        "layers": sizes,
        "masks": made,
    }
    provenance = run_provenance(work.device, spec.precision, work.state.started, [])
    return MaskRecord(spec, result, None, work.about(), provenance)


def _reference(spec: MaskSpec, work: Work) -> ByParameter:
    """Scores of the mask that all others are compared with."""
    if spec.reference == "exact":
        return score(work.model, work.batch, "exact_diag", **work.scoring())

    def drawn() -> ByParameter:
        stream = random_stream(spec.seed, "reference")
        return ggn_diag(work.model, work.batch, "mc", generator=stream, progress=work.progress)

    return work.remember(("reference", "mc"), drawn)


def _masks(spec: MaskSpec, work: Work, key: str) -> Iterator[tuple[float, ByParameter, float]]:
    """Yield each sparsity, the mask of a criterion, and the seconds that it takes by itself."""
    start = work.clock()
    if get_criterion(key).rounds > 1:
        for sparsity in spec.sparsities:
            start = work.clock()
            mask = prune(work.model, work.batch, key, sparsity, **work.scoring())
            yield sparsity, mask, work.clock() - start
        return
    scores = score(work.model, work.batch, key, **work.scoring())
    scored = work.clock() - start
    for sparsity in spec.sparsities:
        start = work.clock()
        mask = make_mask(scores, sparsity)
        yield sparsity, mask, scored + work.clock() - start
