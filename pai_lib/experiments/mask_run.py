"""Make the masks of one network by every criterion, without training, and say what each leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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
from ..training.loop import TrainingStoppedError
from .mask_spec import MaskSpec
from .provenance import own_code, peak_memory, reset_peak_memory, run_provenance
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
    if not isinstance(spec, MaskSpec):
        raise TypeError(f"spec is a {type(spec).__name__}: it must be a MaskSpec.")
    work = partial(MaskWork, progress=progress, shared=shared or Shared())
    return recorded(spec, store, data, work, device)


@dataclass
class MaskWork:
    """The masks of one network under way.

    Order: build the model, warm up its batch norms, score a class-balanced batch by the reference,
    then criterion by criterion: prune for each sparsity, by quantities that all have in common.
    ``stop`` is asked before each criterion; if it says so, TrainingStoppedError is raised and
    nothing is kept.
    """

    spec: MaskSpec
    whole: Dataset
    device: torch.device
    progress: bool = False
    stop: Callable[[], bool] | None = None
    shared: Shared = field(default_factory=Shared)

    def __post_init__(self) -> None:
        self.spec = spec = self.spec.with_data(self.whole.fingerprint)
        first = spec.as_run(spec.criteria[0], spec.sparsities[0])
        self.work = Work(first, self.whole, self.device, self.progress, shared=self.shared)
        needs = {need for key in spec.criteria for need in get_criterion(key).needs}
        if spec.reference == "exact" or "exact" in needs:
            check_exact(self.work.model, self.work.batch)

    @torch.enable_grad()
    def record(self, path: Path | None = None) -> MaskRecord:
        """Do it all; there is no checkpoint."""
        work, start = self.work, seconds(self.device)
        work.go_on(None)
        code = own_code(self.spec)  # now, as that of a run
        measured = reset_peak_memory(self.device)
        work.warm_up()
        scores = self.reference()
        references = {sparsity: make_mask(scores, sparsity) for sparsity in self.spec.sparsities}
        told = []
        for key in self.spec.criteria:
            if self.stop is not None and self.stop():
                raise TrainingStoppedError("It was asked to stop before the last criterion.")
            for sparsity, reference in references.items():
                begun = work.clock()
                mask = prune(work.model, work.batch, key, sparsity, **work.scoring())
                spent = round(work.clock() - begun, 3)
                sizes = {name: kept.numel() for name, kept in mask.items()}
                told.append(self.about(mask, reference))
                told[-1] |= {"criterion": key, "sparsity": sparsity, "seconds": spent}
        state = work.state.result
        result = {
            **{name: state[name] for name in ("parameters", "warmup_updates")},
            "warmup_seconds": state["scoring_seconds"],
            "seconds": round(seconds(self.device) - start, 3),
            "peak_memory_bytes": peak_memory(self.device) if measured else None,
            "layers": sizes,
            "masks": told,
        }
        made = run_provenance(self.device, self.spec.precision, work.state.started, [], code)
        return MaskRecord(self.spec, result, None, work.about(), made)

    def reference(self) -> ByParameter:
        """Scores of the masks that all others are compared with."""
        work = self.work
        if self.spec.reference == "exact":
            return score(work.model, work.batch, "exact_diag", **work.scoring())

        def drawn() -> ByParameter:
            stream = random_stream(self.spec.seed, "reference")
            return ggn_diag(work.model, work.batch, "mc", generator=stream, progress=self.progress)

        return work.remember(("reference", "mc"), drawn)

    def about(self, mask: ByParameter, reference: ByParameter) -> dict[str, Any]:
        """What a mask leaves."""
        return {
            "kept": list(host_numbers(torch.sum, mask).values()),
            "effective_sparsity": effective_sparsity(self.work.model, mask, self.work.batch),
            "shared": shared_fraction(mask, reference),
        }
