"""The sign tests by which the warm-up's effect on layer collapse is judged."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pai_lib.analysis.collapse import by_criterion, decided_by, judge_collapse, judged_pairs, signs
from pai_lib.analysis.verdicts import SEE_DATA


def masks(empty, seeds=range(8), criteria=SEE_DATA, width=None):
    """Rows of masks, with ``empty(criterion, seed, warmup)`` layers; cut if there is any."""
    rows = []
    for criterion in criteria:
        for seed in seeds:
            for warmup in (0, 98):
                count = empty(criterion, seed, warmup)
                network = {"dataset": "cifar10", "model": "vgg19", "width": width, "seed": seed}
                rows.append(
                    network
                    | {"criterion": criterion, "warmup": warmup, "sparsity": 0.98}
                    | {"empty": count, "cut": count > 0}
                )
    return pd.DataFrame(rows)


@given(st.lists(st.integers(-2, 2), max_size=12))
def test_the_sign_test_counts_the_coins_that_fall_as_far_from_even(values):
    test = signs(pd.Series(values, dtype=float))
    n, less = test.less + test.more, test.less
    at_least = [k for k in range(n + 1) if abs(2 * k - n) >= abs(2 * less - n)]
    assert test.p == pytest.approx(sum(math.comb(n, k) for k in at_least) / 2**n)
    assert test.n == len(values)


def test_the_claim_is_judged_by_the_mean_over_criteria_in_each_pair():
    better = judge_collapse(masks(lambda criterion, seed, warmup: 0 if warmup else 1))
    assert {word for word, _, _ in better.values()} == {"supported"}
    assert better["empty"][1][:3] == (8, 0, 0)
    assert better["empty"][2] == pytest.approx(2 * 2 / 2**8)  # two-sided, and of two outcomes
    worse = judge_collapse(masks(lambda criterion, seed, warmup: 1 if warmup else 0))
    assert {word for word, _, _ in worse.values()} == {"not supported"}
    same = judge_collapse(masks(lambda criterion, seed, warmup: 1))
    assert {word for word, _, _ in same.values()} == {"undecided"}


def test_one_criterion_that_empties_much_outweighs_others_that_empty_little():
    table = masks(
        lambda criterion, seed, warmup: 20 * (warmup > 0) if criterion == "fisher_diag" else 1 - warmup // 98
    )
    word, test, _ = judge_collapse(table)["empty"]
    assert (word, test.more) == ("not supported", 8)
    each = by_criterion(table, "empty")
    assert each["fisher_diag"][0].more == 8
    assert each["snip"][0].less == 8
    assert each["snip"][1] == pytest.approx(min(1, len(SEE_DATA) * 2 / 2**8))


def test_a_pair_counts_with_all_criteria_and_at_full_size():
    table = masks(lambda criterion, seed, warmup: 0 if warmup else 1)
    lost = table[~((table["criterion"] == "snip") & (table["seed"] == 3) & (table["warmup"] == 0))]
    assert judge_collapse(lost)["empty"][1].n == 7
    narrow = masks(lambda criterion, seed, warmup: seed, width=16)
    assert judge_collapse(narrow)["empty"][0] == "not tested yet"
    assert judge_collapse(table.assign(sparsity=0.9))["cut"][0] == "not tested yet"


def test_masks_that_were_scored_differently_are_no_pair():
    table = masks(lambda criterion, seed, warmup: 0 if warmup else 1)
    apart = table.assign(samples_per_class=table["warmup"] + 1)
    assert {word for word, _, _ in judge_collapse(apart).values()} == {"not tested yet"}
    by_key = table.assign(group=table["criterion"].map({key: n for n, key in enumerate(SEE_DATA)}))
    assert judge_collapse(by_key) == judge_collapse(table)


def test_a_criterion_that_alone_makes_the_word_is_named():
    table = masks(lambda criterion, seed, warmup: 1 if criterion == "fisher_diag" and warmup else 0)
    word, _, _ = judge_collapse(table)["cut"]
    assert word == "not supported"
    assert decided_by(table) == {outcome: {"fisher_diag": "undecided"} for outcome in ("empty", "cut")}
    assert decided_by(masks(lambda criterion, seed, warmup: 1 if warmup else 0)) == {"empty": {}, "cut": {}}
    assert list(judged_pairs(table, "cut")) == [pytest.approx(1 / len(SEE_DATA))] * 8
