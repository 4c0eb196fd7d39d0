"""Does the warm-up mitigate layer collapse? Masks with and without it, paired, by exact sign tests.

Registered for campaigns/masks.yaml before its first run: the networks at their full size, the
sparsity of the other contrasts, the criteria that see data. A pair is one network on one data set
with one seed; its two outcomes are the number of empty layers and whether the mask is cut, each
averaged over the criteria. The claim is *supported* of an outcome if it is lower after the warm-up
by a two-sided exact sign test at 5 %, corrected for the two (Holm, 1979), *not supported* if it is
higher, *undecided* if neither: as it has to be with fewer than seven pairs that differ.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from ..experiments.mask_spec import SHARED
from .statistics import LEVEL, holm
from .verdicts import SEE_DATA

SPARSITY = 0.98
WARMUP = 98  # updates, against none
PAIR = ("dataset", "fingerprint", "model", "width", "image_size", "seed")
OUTCOMES = {"empty": "empty layers", "cut": "cut masks"}


class Signs(NamedTuple):
    """How many pairs have less after the warm-up, as much, and more; p of the exact sign test."""

    less: int
    equal: int
    more: int
    p: float  # two-sided; pairs with as much say nothing

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.less + self.equal + self.more


def signs(differences: pd.Series) -> Signs:
    """Count signs, and test that less and more are as likely.

    >>> signs(pd.Series([-1, -2, -1, 0, -3, -1, -1]))
    Signs(less=6, equal=1, more=0, p=0.03125)
    """
    less, more = int((differences < 0).sum()), int((differences > 0).sum())
    p = float(stats.binomtest(less, less + more).pvalue) if less + more else 1.0
    return Signs(less, len(differences) - less - more, more, p)


def after_minus_before(frame: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """The change of an outcome with the warm-up: a row a pair that has both, a column a criterion.

    Args:
        frame: rows of ``masks_frame``, of one sparsity.
        outcome: ``"empty"`` or ``"cut"``.
    """
    known = frame.fillna({"width": 0, "image_size": 0}).astype({"cut": float, "empty": float})
    pair = known.columns.intersection([*PAIR, "criterion"]).tolist()
    scored = known.columns.intersection([*SHARED, "reference"]).difference([*pair, "warmup"])
    table = known.pivot_table(outcome, [*pair, *scored], "warmup").reindex(columns=[0, WARMUP])
    change = (table[WARMUP] - table[0]).dropna()  # of masks that were scored alike
    return change.groupby(pair).mean().unstack("criterion")


def by_criterion(frame: pd.DataFrame, outcome: str) -> dict[str, tuple[Signs, float]]:
    """Sign test of each criterion alone, with its p value corrected for their number (Holm)."""
    change = after_minus_before(frame, outcome)
    tests = {str(key): signs(change[key].dropna()) for key in change}
    adjusted = holm({key: test.p for key, test in tests.items()})
    return {key: (test, adjusted[key]) for key, test in tests.items()}


def judged_pairs(
    frame: pd.DataFrame, outcome: str, criteria: Sequence[str] = SEE_DATA
) -> pd.Series:
    """The change of an outcome with the warm-up, mean over the criteria, by pair that has them all.

    Args:
        frame: rows of ``masks_frame``, all sparsities and criteria.
        outcome: ``"empty"`` or ``"cut"``.
        criteria: those averaged.
    """
    full = frame[frame["width"].isna() & (frame["sparsity"] == SPARSITY)]
    change = after_minus_before(full, outcome).reindex(columns=list(criteria))
    return change.mean(axis=1, skipna=False).dropna()


def judge_collapse(
    frame: pd.DataFrame, criteria: Sequence[str] = SEE_DATA
) -> Mapping[str, tuple[str, Signs, float]]:
    """Judge the claim by rows of ``masks_frame``, all sparsities and criteria.

    Returns:
        Outcome to its word, its signs over the pairs that have every criterion, and the corrected
        p value; without such a pair ``"not tested yet"``.
    """
    tests = {outcome: signs(judged_pairs(frame, outcome, criteria)) for outcome in OUTCOMES}
    adjusted = holm({outcome: test.p for outcome, test in tests.items() if test.n})
    return {
        outcome: (_word(test, adjusted.get(outcome, 1.0)), test, adjusted.get(outcome, 1.0))
        for outcome, test in tests.items()
    }


def decided_by(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Outcome to the criteria without any one of which the word would be another, and that word."""
    word = {outcome: judged[0] for outcome, judged in judge_collapse(frame).items()}
    others = {key: judge_collapse(frame, [c for c in SEE_DATA if c != key]) for key in SEE_DATA}
    return {
        outcome: {key: o[outcome][0] for key, o in others.items() if o[outcome][0] != word[outcome]}
        for outcome in OUTCOMES
    }


def _word(test: Signs, p: float) -> str:
    if not test.n:
        return "not tested yet"
    if p >= LEVEL:
        return "undecided"
    return "supported" if test.less > test.more else "not supported"
