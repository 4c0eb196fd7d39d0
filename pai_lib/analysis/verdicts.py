"""What the records say about each claim of the paper: one contrast a claim, and one rule for all of them.

The contrasts, the margin and the rule were fixed before the campaign that they are applied to was
complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..experiments.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 0.5  # percentage points that count as a match
LEVEL = 0.05  # of the tests, all claims together (Holm, 1979)
SEEDS = 5  # the fewest that are judged
FISHER, HUTCHINSON = ("fisher_diag", "fisher_pruning"), ("hutchinson_diag", "hutchinson_pruning")
PLAIN = {"control": "none", "variant": "cited", "scope": "global", "when": "init"}
VARIED = (
    "criterion",
    "sparsity",
    "seed",
    "variant",
    "scope",
    "temperature",
    "rounds",
    "warmup",
    "control",
    "when",
)

# What makes two runs comparable: the fields that no contrast varies, and the very same training
# images.
PROTOCOL = [
    *(name for name in RunSpec.__dataclass_fields__ if name not in VARIED),
    "train_images",
    "fingerprint",
]


@dataclass(frozen=True)
class Contrast:
    """A claim, and the difference of mean accuracies over seeds that it is judged by."""

    key: str
    claim: str
    treated: Mapping[
        str, object
    ]  # fields of the runs; a tuple of criteria is averaged within a seed
    baseline: Mapping[str, object]
    match: bool = False  # the claim is to be no worse than the baseline, by the margin


CONTRASTS = (
    Contrast(
        "identify",
        "Fisher and Hutchinson diagonals identify the weights to keep better than first-order scores do.",
        {"criterion": FISHER + HUTCHINSON, "sparsity": 0.98},
        {"criterion": ("grad_norm", "snip"), "sparsity": 0.98},
    ),
    Contrast(
        "warm-up",
        "Updating the batch-norm statistics first improves the criteria that see data.",
        {
            "criterion": ("grad_norm", "snip", "grasp", "fts", *FISHER, *HUTCHINSON, "hts"),
            "sparsity": 0.98,
        },
        {
            "criterion": ("grad_norm", "snip", "grasp", "fts", *FISHER, *HUTCHINSON, "hts"),
            "sparsity": 0.98,
            "warmup": 0,
        },
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
        "After the warm-up, at high sparsity, the Hutchinson diagonal beats magnitude pruning after training.",
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
        "HP's densities, with random weights in each layer, do better than those of a formula (ERK).",
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
    from scipy import stats

    mixed = [name for name in PROTOCOL if frame[name].map(str).nunique() > 1]
    if mixed:
        raise ValueError(
            f"The records differ in {', '.join(mixed)}: judge those of one protocol at a time."
        )
    tested, verdicts = {}, {}
    for contrast in CONTRASTS:
        differences = (
            100 * (by_seed(frame, contrast.treated) - by_seed(frame, contrast.baseline)).dropna()
        )
        verdicts[contrast.key] = Verdict(contrast, "not tested yet", differences.to_dict())
        if len(differences) >= SEEDS:
            bound = -MARGIN if contrast.match else 0.0
            tested[contrast.key] = stats.ttest_1samp(differences, bound), bound
    adjusted = stepped_down({key: float(test.pvalue) for key, (test, _) in tested.items()})
    for key, (test, bound) in tested.items():
        found = verdicts[key]
        mean, interval = sum(found.differences.values()) / found.n, test.confidence_interval(0.95)
        word = (
            "mixed" if adjusted[key] >= LEVEL else "supported" if mean > bound else "not supported"
        )
        numbers = (mean, float(interval.low), float(interval.high), adjusted[key])
        verdicts[key] = Verdict(found.contrast, word, found.differences, *numbers)
    return list(verdicts.values())


class Paired(NamedTuple):
    """Mean of paired differences, the half width of its 95 % t interval, and the number of pairs."""

    mean: float
    half: float  # infinite for fewer than two pairs
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "–"
        spread = f"\u00a0±\u00a0{self.half:.1f}" if self.n > 1 else " (one pair)"
        return f"{self.mean:+.1f}{spread}".replace("-", "−")

    @property
    def told(self) -> str:
        """How the mean compares with zero: better than, worse than, or not told apart from it by the interval."""
        if not abs(self.mean) > self.half:
            return "not told apart from"
        return "better than" if self.mean > 0 else "worse than"


def paired(a: pd.Series, b: pd.Series | float = 0.0) -> Paired:
    """Compare two series of accuracies that are indexed by seed, over the seeds that both have; uncorrected."""
    from scipy import stats

    differences = (a - b).dropna()
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * differences.std() / math.sqrt(n) if n > 1 else math.inf
    return Paired(float(differences.mean()), float(half), n)


def told_apart(differences: Mapping[str, pd.Series]) -> dict[str, list[str]]:
    """Sort comparisons by paired t tests at 5 %, corrected for their number (Holm, 1979).

    Args:
        differences: name to the differences by seed; one with fewer than two pairs is left out.
    """
    from scipy import stats

    tested = {key: d.dropna() for key, d in differences.items() if d.count() > 1}
    p = stepped_down({key: float(stats.ttest_1samp(d, 0).pvalue) for key, d in tested.items()})
    better = [key for key, d in tested.items() if p[key] < LEVEL and d.mean() > 0]
    worse = [key for key, d in tested.items() if p[key] < LEVEL and d.mean() < 0]
    return {
        "better": better,
        "worse": worse,
        "not told apart": [k for k in tested if k not in better + worse],
    }


def one_protocol(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of the protocol that has the most of them."""
    if frame.empty:
        return frame
    protocol = frame[PROTOCOL].map(str).agg(" ".join, axis=1)  # a list of drops cannot be hashed
    return frame[protocol == protocol.value_counts().idxmax()]


def stepped_down(p: Mapping[str, float]) -> dict[str, float]:
    """P values adjusted for their number (Holm, 1979).

    >>> stepped_down({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, highest = {}, 0.0
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[key]))
        adjusted[key] = highest
    return adjusted


def by_seed(frame: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.Series:
    """Mean accuracy over the wanted criteria of plain runs, for each seed that has them all."""
    rows = frame[
        frame["temperature"].isna() & frame["rounds"].isna() & frame["test_accuracy"].notna()
    ]
    for name, value in {**PLAIN, "warmup": 98, **wanted}.items():
        rows = rows[rows[name].isin(value if isinstance(value, tuple) else (value,))]
    table = rows.pivot_table(index="seed", columns="criterion", values="test_accuracy")
    complete = table.reindex(columns=list(wanted["criterion"]))
    return complete.mean(axis=1, skipna=False).astype(float)
