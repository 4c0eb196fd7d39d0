"""Statistics of accuracies by seed: spread, paired differences, and many tests at once."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from ..pruning.criteria import CRITERIA, criterion_label

LEVEL = 0.05  # of tests; intervals are of 95 %


class Paired(NamedTuple):
    """Mean of paired differences, half the width of its 95 % t interval, number of pairs."""

    mean: float
    half: float  # infinite for fewer than two pairs
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "–"
        spread = f"\u00a0±\u00a0{self.half:.1f}" if self.n > 1 else " (one pair)"
        return f"{points(self.mean)}{spread}"

    @property
    def told(self) -> str:
        """How the mean compares with zero by the interval: in words that go before "it"."""
        if not abs(self.mean) > self.half:
            return "not told apart from"
        return "better than" if self.mean > 0 else "worse than"


def paired(a: pd.Series, b: pd.Series | float = 0.0) -> Paired:
    """Compare two series that are indexed by seed, over the seeds that both have; uncorrected."""
    differences = (a - b).dropna()
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Paired(mean, math.inf, n)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(1 - LEVEL)
    return Paired(mean, float(interval.high - interval.low) / 2, n)


def p_value(differences: pd.Series, bound: float = 0.0) -> float:
    """P value of the two-sided t test that the mean difference is the bound; 1 if all are it."""
    if differences.eq(bound).all():  # as of two criteria whose masks are all cut
        return 1.0
    return float(stats.ttest_1samp(differences, bound).pvalue)


def equivalence_p_value(differences: pd.Series, within: float) -> float:
    """P value of two one-sided t tests that the mean difference is outside ±``within``.

    It is 1 if all differences are one of the bounds.
    """
    if differences.eq(within).all() or differences.eq(-within).all():
        return 1.0
    above = stats.ttest_1samp(differences, -within, alternative="greater")
    below = stats.ttest_1samp(differences, within, alternative="less")
    return float(max(above.pvalue, below.pvalue))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """P values adjusted for their number (Holm, 1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, highest = {}, 0.0
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[key]))
        adjusted[key] = highest
    return adjusted


def told_apart(differences: Mapping[str, pd.Series]) -> dict[str, list[str]]:
    """Sort comparisons by paired t tests at 5 %, corrected for their number (Holm, 1979).

    Args:
        differences: name to the differences by seed; one with fewer than two pairs is left out.
    """
    tested = {key: d.dropna() for key, d in differences.items() if d.count() > 1}
    p = holm({key: p_value(d) for key, d in tested.items()})
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for key, d in tested.items():
        word = "not told apart" if p[key] >= LEVEL else "better" if d.mean() > 0 else "worse"
        groups[word].append(key)
    return groups


def in_a_list(names: Sequence[str]) -> str:
    """Names as a clause has them.

    >>> in_a_list(["HP", "SNIP", "FP"])
    'HP, SNIP and FP'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def told_apart_in_words(differences: Mapping[str, pd.Series]) -> str:
    """``told_apart`` of criteria as a clause, with the number of seeds and of comparisons."""
    groups = told_apart(differences)
    tested = [key for keys in groups.values() for key in keys]
    if not tested:
        return "there is one seed each, which tells nothing apart"
    names = {word: ", ".join(map(criterion_label, keys)) for word, keys in groups.items()}
    n = span(pd.Series([differences[key].count() for key in tested]))
    return (
        f"paired by seed (n = {n}), tested at 5 % and corrected for {len(tested)} comparisons, "
        + "; ".join(f"{word}: {listed or 'none'}" for word, listed in names.items())
    )


def differences_by_sparsity(
    rows: pd.DataFrame, reference: pd.DataFrame
) -> dict[float, dict[str, pd.Series]]:
    """Accuracy of each criterion minus that of one reference, paired by seed, in percentage points.

    Args:
        rows: runs of one protocol, one a criterion, sparsity and seed.
        reference: runs of one criterion; those among ``rows`` are left out.

    Returns:
        Sparsity to criterion to differences by seed; only where there are any.
    """
    rows, pair = rows[~rows["id"].isin(reference["id"])], ["sparsity", "seed"]
    accuracy = 100 * rows.pivot(index=pair, columns="criterion", values="test_accuracy")
    accuracy = accuracy.sub(100 * reference.set_index(pair)["test_accuracy"], axis=0)
    pairs: dict[float, dict[str, pd.Series]] = {}
    for sparsity, table in accuracy.groupby("sparsity"):
        known = table.droplevel("sparsity").dropna(how="all", axis="columns")
        if not known.empty:
            pairs[sparsity] = {key: known[key].dropna() for key in CRITERIA if key in known}
    return pairs


def most_pairs(pairs: Mapping[float, Mapping[str, pd.Series]]) -> float | None:
    """The sparsity of ``differences_by_sparsity`` with the most pairs, the highest of several."""
    counts = {sparsity: sum(map(len, found.values())) for sparsity, found in pairs.items()}
    return max(counts, key=lambda sparsity: (counts[sparsity], sparsity), default=None)


def mean_sd(values: pd.Series, digits: int = 1) -> str:
    """Mean ± standard deviation and n of what is known; the mean alone of one value.

    >>> mean_sd(pd.Series([1.0, 2.0, 3.0])).replace("\u00a0", " ")
    '2.0 ± 1.0 (n = 3)'
    """
    n = values.count()
    if not n:
        return "–"
    spread = f"\u00a0±\u00a0{values.std():.{digits}f}" if n > 1 else ""
    mean = f"{values.mean():.{digits}f}".replace("-", "−")
    return f"{mean}{spread} (n = {n})"


def span(values: pd.Series) -> str:
    """The one whole number that all values round to, or from which to which.

    >>> span(pd.Series([3, 5, 4]))
    '3 to 5'
    """
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low} to {high}"


def points(value: float) -> str:
    """A difference with its sign and one decimal, as it is printed: with a minus, not a hyphen."""
    return f"{value:+.1f}".replace("-", "−")
