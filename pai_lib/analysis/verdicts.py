"""What the records say about each claim of the paper: one contrast a claim, one rule for all.

The contrasts, the margin and the rule were fixed before the campaign that they are applied to was
complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from .protocols import PROTOCOL, plain_runs
from .statistics import LEVEL, holm, p_value, paired, points

MARGIN = 0.5  # percentage points that count as a match
SEEDS = 5  # the fewest that are judged
FISHER, HUTCHINSON = ("fisher_diag", "fisher_pruning"), ("hutchinson_diag", "hutchinson_pruning")
SEE_DATA = ("grad_norm", "snip", "grasp", "fts", *FISHER, *HUTCHINSON, "hts")


@dataclass(frozen=True)
class Contrast:
    """A claim, and the difference of mean accuracies over seeds that it is judged by."""

    key: str
    claim: str
    treated: Mapping[str, object]  # fields of the runs; criteria are averaged within a seed
    baseline: Mapping[str, object]
    match: bool = False  # the claim is to be no worse than the baseline, by the margin

    @property
    def bound(self) -> float:
        """What the difference must be above, in percentage points."""
        return -MARGIN if self.match else 0.0


CONTRASTS = (
    Contrast(
        "identify",
        "Fisher and Hutchinson diagonals identify the weights to keep better than "
        "first-order scores do.",
        {"criterion": FISHER + HUTCHINSON, "sparsity": 0.98},
        {"criterion": ("grad_norm", "snip"), "sparsity": 0.98},
    ),
    Contrast(
        "warm-up",
        "Updating the batch-norm statistics first improves the criteria that see data.",
        {"criterion": SEE_DATA, "sparsity": 0.98},
        {"criterion": SEE_DATA, "sparsity": 0.98, "warmup": 0},
    ),
    Contrast(
        "hutchinson",
        "Hutchinson-based criteria match or beat other methods of pruning at initialization.",
        {"criterion": (*HUTCHINSON, "hts"), "sparsity": 0.98},
        {"criterion": ("snip", "grasp", "synflow"), "sparsity": 0.98},
        match=True,
    ),
    Contrast(
        "after-training",
        "After the warm-up, at high sparsity, the Hutchinson diagonal beats magnitude "
        "pruning after training.",
        {"criterion": ("hutchinson_diag",), "sparsity": 0.98},
        {"criterion": ("magnitude",), "sparsity": 0.98, "when": "trained"},
    ),
    Contrast(
        "fts",
        "FTS is competitive with the state of the art at extreme sparsity.",
        {"criterion": ("fts",), "sparsity": 0.99},
        {"criterion": ("snip", "synflow"), "sparsity": 0.99},
        match=True,
    ),
)

# Registered for campaigns/width32.yaml before its first run; not among the paper's claims. With
# eight seeds: a difference is told by two-sided t tests at 5 %, corrected over these four (Holm,
# 1979); the two with a bound are called equivalent within it if both one-sided t tests at 5 % say
# so, corrected over the two.
HEADLINE_SEEDS = 8
EQUIVALENCE = {"hp-noise": 1.0, "hp-shuffled": 1.0}  # percentage points
HEADLINE = (
    Contrast(
        "hp-noise",
        "HP does better than fresh noise of the scale of its estimate.",
        {"criterion": ("hutchinson_pruning",), "sparsity": 0.98},
        {"criterion": ("scaled_noise",), "sparsity": 0.98},
    ),
    Contrast(
        "hp-shuffled",
        "HP does better than its own mask shuffled within layers.",
        {"criterion": ("hutchinson_pruning",), "sparsity": 0.98},
        {"criterion": ("hutchinson_pruning",), "sparsity": 0.98, "control": "shuffle"},
    ),
    Contrast(
        "shuffled-erk",
        "HP's densities, with random weights in each layer, do better than those of a "
        "formula (ERK).",
        {"criterion": ("hutchinson_pruning",), "sparsity": 0.98, "control": "shuffle"},
        {"criterion": ("random",), "sparsity": 0.98, "scope": "erk"},
    ),
    Contrast(
        "hp-snip",
        "HP does better than SNIP.",
        {"criterion": ("hutchinson_pruning",), "sparsity": 0.98},
        {"criterion": ("snip",), "sparsity": 0.98},
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A claim as judged; differences in percentage points of test accuracy."""

    contrast: Contrast
    verdict: str  # "supported", "mixed", "not supported" or "not tested yet"
    differences: Mapping[int, float]  # by seed
    mean: float = math.nan
    low: float = math.nan  # of the 95 % t interval
    high: float = math.nan
    p: float = math.nan  # two-sided, that the mean is the bound (0, or the margin below it); Holm's

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.differences)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return f"{self.n} of the {SEEDS} seeds that a verdict needs are recorded"
        interval = f"95 % interval {points(self.low)} to {points(self.high)}"
        test = f"n = {self.n} seeds, p = {self.p:.2g} after correction"
        return f"{points(self.mean)} points of accuracy ({interval}, {test})"


def judge(frame: pd.DataFrame) -> list[Verdict]:
    """Judge every claim by records of one protocol, as ``records_frame`` gives them.

    A seed counts if all of a contrast's runs have ended with it; its difference is paired, for
    these runs have initialization, data order and scoring samples in common. A claim is *supported*
    if the mean difference is significantly above the bound (0; for a match, minus the margin), *not
    supported* if significantly below it, *mixed* if neither, and *not tested yet* with fewer than
    five seeds. Significance is at 5 % by two-sided t tests, corrected for the number of claims
    tested (Holm, 1979).

    Raises:
        ValueError: if the records are of more than one protocol.
    """
    mixed = [name for name in PROTOCOL if frame[name].map(str).nunique() > 1]
    if mixed:
        raise ValueError(f"The records differ in {', '.join(mixed)}: judge one protocol at a time.")
    verdicts, p = {}, {}
    for contrast in CONTRASTS:
        differences = 100 * (by_seed(frame, contrast.treated) - by_seed(frame, contrast.baseline))
        differences = differences.dropna()
        verdict = Verdict(contrast, "not tested yet", differences.to_dict())
        if verdict.n >= SEEDS:
            mean, half, _ = paired(differences)
            verdict = replace(verdict, mean=mean, low=mean - half, high=mean + half)
            p[contrast.key] = p_value(differences, contrast.bound)
        verdicts[contrast.key] = verdict
    for key, adjusted in holm(p).items():
        above = verdicts[key].mean > verdicts[key].contrast.bound
        word = "mixed" if adjusted >= LEVEL else "supported" if above else "not supported"
        verdicts[key] = replace(verdicts[key], verdict=word, p=adjusted)
    return list(verdicts.values())


def by_seed(frame: pd.DataFrame, settings: Mapping[str, object]) -> pd.Series:
    """Mean accuracy over the criteria of plain runs with these settings, by seed that has all."""
    rows = plain_runs(frame, **{"warmup": 98, **settings})
    table = rows.pivot_table(index="seed", columns="criterion", values="test_accuracy")
    complete = table.reindex(columns=list(settings["criterion"]))  # type: ignore[call-overload]
    return complete.mean(axis=1, skipna=False).astype(float)
