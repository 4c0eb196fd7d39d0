"""The rule that turns records into verdicts: the textbook t test, and where it must not judge."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pai_lib.analysis.protocols import one_protocol
from pai_lib.analysis.verdicts import (
    CONTRASTS,
    EQUIVALENCE,
    HEADLINE,
    HEADLINE_SEEDS,
    MARGIN,
    SEEDS,
    judge,
)
from pai_lib.experiments.records import records_frame
from pai_lib.experiments.spec import RunSpec


def frame_of(accuracy, seeds=range(SEEDS)):
    """Rows of every run that a contrast needs, with ``accuracy(contrast, treated, seed)``."""
    rows = {}
    for contrast in CONTRASTS:
        for treated, wanted in ((True, contrast.treated), (False, contrast.baseline)):
            for criterion in wanted["criterion"]:
                for seed in seeds:
                    spec = RunSpec(**{**wanted, "criterion": criterion, "seed": seed})
                    row = {**spec.to_dict(), "lr_drops": spec.lr_drops}
                    rows[spec] = row | {"test_accuracy": accuracy(contrast, treated, seed)}
    return pd.DataFrame(list(rows.values()), columns=list(records_frame([]).columns))


def only(key):
    """The frame's rows of one contrast alone."""
    (contrast,) = (each for each in CONTRASTS if each.key == key)
    return contrast


def single(key, differences, base=0.5):
    """Verdict on one claim whose paired differences, in points, are these; no other claim is tested."""
    contrast, rows = only(key), []
    for treated, wanted in ((True, contrast.treated), (False, contrast.baseline)):
        for criterion in wanted["criterion"]:
            for seed, difference in enumerate(differences):
                spec = RunSpec(**{**wanted, "criterion": criterion, "seed": seed})
                value = base + 0.03 * seed + treated * difference / 100
                rows.append({**spec.to_dict(), "lr_drops": spec.lr_drops, "test_accuracy": value})
    verdicts = judge(pd.DataFrame(rows, columns=list(records_frame([]).columns)))
    assert all(each.verdict == "not tested yet" for each in verdicts if each.contrast.key != key)
    return next(each for each in verdicts if each.contrast.key == key)


@given(st.lists(st.integers(-300, 300), min_size=SEEDS, max_size=9).filter(lambda v: len(set(v)) > 1))
@pytest.mark.parametrize("key", ["identify", "hutchinson", "after-training", "fts"])
def test_a_verdict_is_the_t_test_of_paired_differences(key, values):
    d = np.array(values) / 100
    found, bound = single(key, d), -MARGIN if only(key).match else 0.0
    error = d.std(ddof=1) / math.sqrt(len(d))
    t, half = (d.mean() - bound) / error, stats.t.ppf(0.975, len(d) - 1) * error
    assert found.n == len(d)
    expected = (d.mean(), d.mean() - half, d.mean() + half, 2 * stats.t.sf(abs(t), len(d) - 1))
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    if found.p < 0.05:
        assert found.verdict == ("supported" if d.mean() > bound else "not supported")
    else:
        assert found.verdict == "mixed"


def test_a_match_may_be_a_little_worse_and_a_claim_of_more_may_not():
    differences = [-0.2, -0.25, -0.15, -0.2, -0.22]
    assert single("hutchinson", differences).verdict == "supported"
    assert single("identify", differences).verdict == "not supported"
    assert single("hutchinson", [d - 1 for d in differences]).verdict == "not supported"


def test_four_seeds_are_not_judged():
    found = single("identify", [5.0, 5.1, 4.9, 5.0])
    assert (found.verdict, found.n) == ("not tested yet", 4)
    assert math.isnan(found.mean)


def test_a_seed_counts_only_with_all_of_its_runs():
    frame = frame_of(lambda contrast, treated, seed: 0.5 + 0.01 * seed**2 * treated, range(6))
    lost = (frame["criterion"] == "fisher_diag") & (frame["seed"] == 3) & (frame["warmup"] == 98)
    frame.loc[lost, "test_accuracy"] = None  # a failed run
    verdicts = {each.contrast.key: each for each in judge(frame)}
    assert 3 not in verdicts["identify"].differences
    assert verdicts["after-training"].n == 6


def test_other_runs_do_not_count():
    frame = frame_of(lambda contrast, treated, seed: 0.6 + 0.01 * treated * (1 + seed % 3))
    others = [
        {"control": "shuffle"},
        {"variant": "released"},
        {"scope": "layer"},
        {"temperature": 1.0},
        {"rounds": 2},
    ]
    more = [frame.assign(test_accuracy=0.0, **other) for other in others]
    pd.testing.assert_frame_equal(
        pd.DataFrame(judge(frame)), pd.DataFrame(judge(pd.concat([frame, *more], ignore_index=True)))
    )


def test_two_protocols_are_not_mixed():
    frame = frame_of(lambda contrast, treated, seed: 0.5)
    frame.loc[0, "epochs"] = 3
    with pytest.raises(ValueError, match="differ in epochs"):
        judge(frame)


def test_the_protocol_with_the_most_records():
    frame = frame_of(lambda contrast, treated, seed: 0.5)
    few = frame.iloc[:3].assign(epochs=3)
    assert one_protocol(pd.concat([few, frame], ignore_index=True))["epochs"].unique().tolist() == [160]
    assert one_protocol(frame.iloc[:0]).empty


def test_the_contrasts_of_the_headline_are_those_that_were_registered():
    """Written down before the first run of campaigns/width32.yaml; never to be edited."""
    hp = {"criterion": ("hutchinson_pruning",), "sparsity": 0.98}
    snip = {"criterion": ("snip",), "sparsity": 0.98}
    noise, shuffled = {"criterion": ("scaled_noise",), "sparsity": 0.98}, {**hp, "control": "shuffle"}
    erk = {"criterion": ("random",), "sparsity": 0.98, "scope": "erk"}
    registered = [
        ("hp-noise", hp, noise),
        ("hp-shuffled", hp, shuffled),
        ("shuffled-erk", shuffled, erk),
        ("hp-snip", hp, snip),
    ]
    assert [(each.key, each.treated, each.baseline) for each in HEADLINE] == registered
    assert not any(each.match for each in HEADLINE)
    assert EQUIVALENCE == {"hp-noise": 1.0, "hp-shuffled": 1.0}
    assert HEADLINE_SEEDS == 8
