"""Paired t intervals and Holm's correction are those of the textbook; words say what the numbers say."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pai_lib.analysis import statistics
from pai_lib.analysis.statistics import holm, paired, told_apart


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6))
def test_the_correction_is_monotone_and_never_lowers(p):
    adjusted = holm(p)
    assert adjusted.keys() == p.keys()
    assert all(p[key] <= adjusted[key] <= 1 for key in p)
    ranked = sorted(p, key=p.get)
    assert [adjusted[key] for key in ranked] == sorted(adjusted.values())
    assert not p or adjusted[ranked[0]] == min(1, len(p) * p[ranked[0]])


def test_pairs_are_compared_by_the_t_interval_over_common_seeds():
    a, b = pd.Series([60.0, 61.5, 62.0, 70.0], [0, 1, 2, 5]), pd.Series([58.0, 58.5, 61.0, 50.0], [0, 1, 2, 7])
    interval = stats.ttest_1samp([2.0, 3.0, 1.0], 0).confidence_interval(0.95)
    found = paired(a, b)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(interval))
    assert (found.n, found.told, str(found)) == (3, "not told apart from", "+2.0\u00a0±\u00a02.5")
    assert paired(a - 0.1 * b, 0.0).told == "better than"
    assert paired(b, 1.1 * b).told == "worse than"


def test_one_pair_or_none_tells_nothing():
    one, none = paired(pd.Series([3.0]), pd.Series([1.0])), paired(pd.Series([3.0], [0]), pd.Series([1.0], [1]))
    assert (one.told, str(one)) == ("not told apart from", "+2.0 (one pair)")
    assert (none.told, none.n, str(none)) == ("not told apart from", 0, "–")


def test_many_comparisons_are_corrected_for_their_number():
    clear, barely = pd.Series([1.0, 1.1, 0.9, 1.0]), pd.Series([1.0, 2.0, 0.5, 2.0])  # the second: p = 0.03 alone
    groups = told_apart({"clear": clear, "barely": barely, "worse": -clear, "one": clear[:1]})
    assert groups == {"better": ["clear", "barely"], "worse": ["worse"], "not told apart": []}
    noise = {str(i): pd.Series([1.0, -1.0, 0.5]) for i in range(3)}
    assert told_apart({"barely": barely, **noise})["not told apart"] == ["barely", *noise]


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")
def test_equal_accuracies_are_no_difference_and_hide_no_other():
    clear, none = pd.Series([1.0, 1.1, 0.9, 1.0]), pd.Series([0.0] * 4)  # of two criteria whose masks are all cut
    assert statistics.p_value(none) == statistics.p_value(none + 2, 2) == 1
    assert statistics.p_value(none + 2) == 0
    groups = told_apart({"cut": none, "clear": clear, "cut, too": none, "worse": -clear})
    assert groups == {"better": ["clear"], "worse": ["worse"], "not told apart": ["cut", "cut, too"]}


def test_comparisons_are_told_in_words():
    clear, noise = pd.Series([1.0, 1.1, 0.9, 1.0]), pd.Series([1.0, -1.0, 0.5])
    words = statistics.told_apart_in_words({"snip": clear, "fts": -clear, "hts": noise})
    told = "better: SNIP; worse: FTS; not told apart: HTS"
    assert words == f"paired by seed (n = 3 to 4), tested at 5 % and corrected for 3 comparisons, {told}"
    assert statistics.told_apart_in_words({"snip": clear[:1]}).startswith("there is one seed")


def test_differences_are_paired_by_sparsity_and_seed():
    rows = [("snip", 0.9, 0, 0.6), ("snip", 0.9, 1, 0.7), ("fts", 0.9, 0, 0.5), ("fts", 0.9, 1, None)]
    rows += [("snip", 0.98, 0, 0.4), ("random", 0.98, 0, 0.3), ("random", 0.99, 0, 0.2), ("dense", 0.0, 0, 0.9)]
    frame = pd.DataFrame(rows, columns=["criterion", "sparsity", "seed", "test_accuracy"])
    frame["id"] = range(len(frame))
    pairs = statistics.differences_by_sparsity(frame, frame[frame["criterion"] == "snip"])
    assert {s: list(found) for s, found in pairs.items()} == {0.9: ["fts"], 0.98: ["random"]}
    assert pairs[0.9]["fts"].to_dict() == pytest.approx({0: -10.0})
    assert statistics.most_pairs(pairs) == 0.98  # as many as 0.9, and higher
    assert statistics.most_pairs({}) is None


def test_a_spread_is_given_only_where_there_is_one():
    assert statistics.mean_sd(pd.Series([1.0, None])) == "1.0 (n = 1)"
    assert statistics.mean_sd(pd.Series([1.0, 2.0]), digits=2) == "1.50\u00a0±\u00a00.71 (n = 2)"
    assert statistics.mean_sd(pd.Series(dtype=float)) == "–"


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_what_is_the_bound_itself_is_not_shown_to_be_within_it(value):
    assert statistics.equivalence_p_value(pd.Series([value] * 5), 1.0) == 1
