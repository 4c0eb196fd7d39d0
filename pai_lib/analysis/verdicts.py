"""What the records say about each claim of the paper: one contrast a claim, one rule for all.

The contrasts, the margin and the rule were fixed before the campaign that they are applied to was
complete. Registered contrasts are never edited; what came later stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from .protocols import PROTOCOL, plain_runs
from .statistics import LEVEL, Paired, equivalence_p_value, holm, p_value, paired, points

REGISTERED = "2026-11-23"  # the day on which CONTRASTS, the margin and the rule were committed
MARGIN = 0.5  # percentage points that count as a match
SEEDS = 5  # the fewest that are judged
FISHER, HUTCHINSON = ("fisher_diag", "fisher_pruning"), ("hutchinson_diag", "hutchinson_pruning")
SEE_DATA = ("grad_norm", "snip", "grasp", "fts", *FISHER, *HUTCHINSON, "hts")

Settings = Mapping[str, object]  # fields of runs; "criterion" is a tuple


@dataclass(frozen=True)
class Contrast:
    """A claim, and the difference of mean accuracies over seeds that it is judged by.

    A side is the settings of its runs, or several where its criteria differ in more; criteria are
    averaged within a seed.
    """

    key: str
    claim: str
    treated: Settings
    baseline: Settings | tuple[Settings, ...]
    match: bool = False  # the claim is to be no worse than the baseline, by the margin

    @property
    def bound(self) -> float:
        """What the difference must be above, in percentage points."""
        return -MARGIN if self.match else 0.0

    @property
    def sides(self) -> tuple[tuple[Settings, ...], tuple[Settings, ...]]:
        """Both sides, as tuples of settings."""
        baseline = (self.baseline,) if isinstance(self.baseline, Mapping) else self.baseline
        return (self.treated,), baseline

    def without(self, criterion: str) -> Contrast | None:
        """This contrast less a criterion; ``None`` if a side would be empty, or nothing changes."""
        treated, baseline = (_without(criterion, side) for side in self.sides)
        if not treated or not baseline or (treated, baseline) == self.sides:
            return None
        return replace(self, treated=treated[0], baseline=baseline)


def _without(criterion: str, side: tuple[Settings, ...]) -> tuple[Settings, ...]:
    kept = (tuple(key for key in criteria(settings) if key != criterion) for settings in side)
    return tuple({**old, "criterion": keys} for old, keys in zip(side, kept, strict=True) if keys)


def criteria(*sides: Settings) -> tuple[str, ...]:
    """The criteria of a side of a contrast."""
    return tuple(key for settings in sides for key in settings["criterion"])  # type: ignore[attr-defined]


# Where each claim was made, and in which words.
V2, V1 = "https://arxiv.org/abs/2502.11450v2", "https://arxiv.org/abs/2502.11450v1"
SOURCES = {
    "identify": (
        "improve the identification of critical parameters compared to first-order baselines, "
        "while maintaining linear complexity",
        f"[abstract, arXiv version 2 (CPAL 2026)]({V2})",
    ),
    "warm-up": (
        "updating batch normalization statistics as a warmup phase improves the performance of "
        "data-dependent criteria and mitigates the issue of layer collapse",
        f"[abstract, arXiv version 2 (CPAL 2026)]({V2})",
    ),
    "hutchinson": (
        "consistently outperformed or matched existing PaI algorithms across various models … and "
        "datasets",
        f"[abstract, arXiv version 2 (CPAL 2026)]({V2})",
    ),
    "after-training": (
        "surpass magnitude pruning after training (PaT)",
        "[abstract of the submission](https://openreview.net/forum?id=koovkKgftz), of the "
        "Hutchinson diagonal after the warm-up at high sparsities; not in version 2",
    ),
    "fts": (
        "competitive performance against state-of-the-art techniques … even under extreme sparsity",
        f"[abstract, arXiv version 1]({V1})",
    ),
}

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
HEADLINE_SEEDS = 8  # 0 to 7
LOOKED_AT = (5, 7)  # of them: trial runs, not kept, had shown what most of the arms reach
EQUIVALENCE = {"hp-noise": 1.0, "hp-shuffled": 1.0}  # percentage points
_HP: Settings = {"criterion": ("hutchinson_pruning",), "sparsity": 0.98}
_SHUFFLED: Settings = {**_HP, "control": "shuffle"}
_NOISE: Settings = {**_HP, "criterion": ("scaled_noise",)}
_SNIP: Settings = {**_HP, "criterion": ("snip",)}
_ERK: Settings = {**_HP, "criterion": ("random",), "scope": "erk"}
HEADLINE = (
    Contrast(
        "hp-noise", "HP does better than fresh noise of the scale of its estimate.", _HP, _NOISE
    ),
    Contrast(
        "hp-shuffled", "HP does better than its own mask shuffled within layers.", _HP, _SHUFFLED
    ),
    Contrast(
        "shuffled-erk",
        "HP's densities, with random weights in each layer, do better than those of a "
        "formula (ERK).",
        _SHUFFLED,
        _ERK,
    ),
    Contrast("hp-snip", "HP does better than SNIP.", _HP, _SNIP),
)

# Registered for campaigns/profile-test.yaml before its first run, after the profile was chosen on
# seeds 5 to 9 of width 16, which are not tested. At each width its seeds are judged by the rule of
# HEADLINE: differences corrected over the five, equivalence over the two.
PROFILE_SEEDS = {16: (0, 1, 2, 3, 4, 10, 11, 12), 32: (0, 1, 2, 3, 4, 5, 6, 7)}
PROFILE_EQUIVALENCE = {"profile-shuffled": 1.0, "profile-noise": 1.0}  # percentage points
PROFILE = tuple(
    Contrast(
        f"profile-{key}",
        f"Random weights at densities of equal worth do better than {rival}.",
        {**_ERK, "scope": "equal_worth"},
        baseline,
    )
    for key, rival, baseline in (
        ("hp", "HP", _HP),
        ("shuffled", "random weights at HP's densities", _SHUFFLED),
        ("noise", "fresh noise of the scale of HP's estimate", _NOISE),
        ("erk", "random weights at densities of ERK", _ERK),
        ("snip", "SNIP", _SNIP),
    )
)

# Registered for campaigns/baselines.yaml before its first run, after the verdicts above were known:
# claims judged a second time, against baselines in settings of their own.
SECOND = (
    Contrast(
        "hutchinson",
        "with SynFlow as its authors use it, without warm-up",
        {"criterion": (*HUTCHINSON, "hts"), "sparsity": 0.98, "epochs": 12},
        (
            {"criterion": ("snip", "grasp"), "sparsity": 0.98, "epochs": 12},
            {"criterion": ("synflow",), "sparsity": 0.98, "warmup": 0, "epochs": 12},
        ),
        match=True,
    ),
    Contrast(
        "after-training",
        "with as many epochs in all",
        {"criterion": ("hutchinson_diag",), "sparsity": 0.98, "epochs": 24},
        {"criterion": ("magnitude",), "sparsity": 0.98, "when": "trained", "epochs": 12},
    ),
    Contrast(
        "fts",
        "with SynFlow as its authors use it, without warm-up",
        {"criterion": ("fts",), "sparsity": 0.99, "epochs": 12},
        (
            {"criterion": ("snip",), "sparsity": 0.99, "epochs": 12},
            {"criterion": ("synflow",), "sparsity": 0.99, "warmup": 0, "epochs": 12},
        ),
        match=True,
    ),
)

# A curvature score beside the first-order one with the weight in it, or without, likewise: |θ g| of
# SNIP ranks as θ² g² does.
MATCHED = (
    ("fisher_diag", "grad_norm"),
    ("hutchinson_diag", "grad_norm"),
    ("fisher_pruning", "snip"),
    ("hutchinson_pruning", "snip"),
)


@dataclass(frozen=True)
class Verdict:
    """A claim as judged; differences in percentage points of test accuracy."""

    contrast: Contrast
    verdict: str  # "supported", "undecided", "not supported" or "not tested yet"
    differences: Mapping[int, float]  # by seed
    seeds: int = SEEDS  # the fewest that are judged
    mean: float = math.nan
    low: float = math.nan  # of the 95 % t interval
    high: float = math.nan
    p: float = math.nan  # two-sided, that the mean is the bound (0, or the margin below it); Holm's
    equivalence: float = math.nan  # that the mean is outside ±``within``; Holm's
    within: float = math.nan

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.differences)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return f"{self.n} of the {self.seeds} seeds that a verdict needs are recorded"
        match = {"supported": "No worse than", "not supported": "Worse than"}.get(self.verdict)
        meaning = f"{match} {MARGIN:g} points below: " if self.contrast.match and match else ""
        interval = f"95 % interval {points(self.low)} to {points(self.high)}"
        test = f"n = {self.n} seeds, p = {self.p:.2g} after correction"
        equal = ""
        if self.within > 0:
            word = "equal" if self.equivalence < LEVEL else "not shown to be equal"
            equal = f"; {word} within ±{self.within:g} point (p = {self.equivalence:.2g})"
        return f"{meaning}{points(self.mean)} points of accuracy ({interval}, {test}){equal}"


def badge(word: str, kind: str | None = None) -> str:
    """A verdict's word as the pages show it, in HTML."""
    kind = kind or word.replace(" ", "-")
    return f"<span class='verdict-badge verdict-{kind}'>{word}</span>"


def listed(verdicts: Iterable[Verdict]) -> str:
    """Verdicts as a list in Markdown: badge, claim, numbers."""
    return "\n".join(f"- {badge(v.verdict)} **{v.contrast.claim}** {v}." for v in verdicts)


def judge(
    frame: pd.DataFrame,
    contrasts: Iterable[Contrast] = CONTRASTS,
    seeds: int = SEEDS,
    equivalence: Mapping[str, float] | None = None,
) -> list[Verdict]:
    """Judge claims by records of one protocol, as ``records_frame`` gives them.

    A seed counts if all of a contrast's runs have ended with it; its difference is paired, for
    these runs have initialization, data order and scoring samples in common. A claim is *supported*
    if the mean difference is significantly above the bound (0; for a match, minus the margin), *not
    supported* if significantly below it, *undecided* if neither, and *not tested yet* with too few
    seeds. Significance is at 5 % by two-sided t tests, corrected for the number of claims tested
    (Holm, 1979).

    Args:
        frame: the records; they may differ in a field that every side of the contrasts names.
        contrasts: what is tested, and corrected, together.
        seeds: the fewest that are judged.
        equivalence: key to the percentage points within which the mean difference may be equal to
            none, by two one-sided t tests, corrected for their number likewise.

    Raises:
        ValueError: if the records are of more than one protocol.
    """
    contrasts = list(contrasts)
    named = [set(settings) for c in contrasts for side in c.sides for settings in side]
    fixed = [name for name in PROTOCOL if not all(name in names for names in named)]
    mixed = [name for name in fixed if frame[name].map(str).nunique() > 1]
    if mixed:
        raise ValueError(f"The records differ in {', '.join(mixed)}: judge one protocol at a time.")
    pairs = [(contrast, differences_of(frame, contrast)) for contrast in contrasts]
    return decide(pairs, seeds, equivalence)


def decide(
    pairs: Iterable[tuple[Contrast, pd.Series]],
    seeds: int = SEEDS,
    equivalence: Mapping[str, float] | None = None,
) -> list[Verdict]:
    """The rule of ``judge``, applied to each contrast's differences by seed."""
    verdicts, p, outside = {}, {}, {}
    for contrast, differences in pairs:
        verdict = Verdict(contrast, "not tested yet", differences.to_dict(), seeds)
        if verdict.n >= seeds:
            mean, half, _ = paired(differences)
            verdict = replace(verdict, mean=mean, low=mean - half, high=mean + half)
            p[contrast.key] = p_value(differences, contrast.bound)
            if within := (equivalence or {}).get(contrast.key):
                outside[contrast.key] = equivalence_p_value(differences, within)
                verdict = replace(verdict, within=within)
        verdicts[contrast.key] = verdict
    for key, adjusted in holm(p).items():
        above = verdicts[key].mean > verdicts[key].contrast.bound
        word = "undecided" if adjusted >= LEVEL else "supported" if above else "not supported"
        verdicts[key] = replace(verdicts[key], verdict=word, p=adjusted)
    for key, adjusted in holm(outside).items():
        verdicts[key] = replace(verdicts[key], equivalence=adjusted)
    return list(verdicts.values())


def leave_one_out(frame: pd.DataFrame, contrast: Contrast) -> dict[str, Verdict]:
    """What the verdict on a claim would be without one of its criteria, by criterion.

    The other claims stay as they are, so that the correction is the same.
    """
    verdicts = {}
    for key in dict.fromkeys(key for side in contrast.sides for key in criteria(*side)):
        if reduced := contrast.without(key):
            claims = [reduced if claim == contrast else claim for claim in CONTRASTS]
            (verdicts[key],) = (v for v in judge(frame, claims) if v.contrast.key == contrast.key)
    return verdicts


def decided_by(verdict: Verdict, others: Mapping[str, Verdict]) -> list[str]:
    """The criteria without which the verdict would be another, by ``leave_one_out``."""
    if verdict.verdict == "not tested yet":
        return []
    tested = {key: other for key, other in others.items() if other.verdict != "not tested yet"}
    return [key for key, other in tested.items() if other.verdict != verdict.verdict]


def best_competitor(frame: pd.DataFrame, contrast: Contrast) -> tuple[str, Paired] | None:
    """The criterion of the baseline with the highest mean, and the treated side minus it.

    It is chosen after the fact, over the seeds that all have: a description, not a test.
    """
    treated, baseline = contrast.sides
    single = {
        key: by_seed(frame, {**settings, "criterion": (key,)})
        for settings in baseline
        for key in criteria(settings)
    }
    table = pd.DataFrame({**single, "": by_seed(frame, *treated)}).dropna()
    if table.empty:
        return None
    best = table.drop(columns="").mean().idxmax()
    return str(best), paired(100 * table[""], 100 * table[best])


def differences_of(frame: pd.DataFrame, contrast: Contrast) -> pd.Series:
    """Differences of a contrast in percentage points, by seed that has all of its runs."""
    treated, baseline = contrast.sides
    return (100 * (by_seed(frame, *treated) - by_seed(frame, *baseline))).dropna()


def by_seed(frame: pd.DataFrame, *side: Settings) -> pd.Series:
    """Mean accuracy over the criteria of plain runs with these settings, by seed that has all."""
    tables = []
    for settings in side:
        rows = plain_runs(frame, **{"warmup": 98, **settings})
        table = rows.pivot_table(index="seed", columns="criterion", values="test_accuracy")
        tables.append(table.reindex(columns=list(criteria(settings))))
    return pd.concat(tables, axis=1).mean(axis=1, skipna=False).astype(float)
