"""The rule that turns records into verdicts: the textbook t test, and where it must not judge."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pai_lib.analysis.protocols import one_protocol
from pai_lib.analysis.verdicts import (
    CONTRASTS,
    EQUIVALENCE,
    HEADLINE,
    HEADLINE_SEEDS,
    MARGIN,
    MATCHED,
    PROFILE,
    PROFILE_EQUIVALENCE,
    PROFILE_SEEDS,
    SECOND,
    SEEDS,
    SOURCES,
    Verdict,
    badge,
    best_competitor,
    decided_by,
    judge,
    leave_one_out,
    listed,
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


@settings(max_examples=8)  # of each claim
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
        assert found.verdict == "undecided"


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


def rows_of(sides, accuracy, seeds=range(SEEDS)):
    """Rows of the runs of a list of settings, with ``accuracy(criterion, seed)``."""
    rows = []
    for side in sides:
        for criterion in side["criterion"]:
            for seed in seeds:
                spec = RunSpec(**{**side, "criterion": criterion, "seed": seed})
                row = {**spec.to_dict(), "lr_drops": spec.lr_drops}
                rows.append(row | {"test_accuracy": accuracy(criterion, seed)})
    return pd.DataFrame(rows, columns=list(records_frame([]).columns))


def test_what_a_verdict_would_be_without_one_of_its_criteria():
    """Of four against two, one that fails turns a clear lead into a clear defeat."""
    contrast = only("identify")
    lead = {"fisher_diag": -0.4, "grad_norm": 0.0, "snip": 0.0}

    def accuracy(criterion, seed):
        return 0.5 + lead.get(criterion, 0.05) + 0.001 * (seed % 2)

    frame = rows_of([contrast.treated, contrast.baseline], accuracy)
    frame.loc[frame["seed"] == 0, "test_accuracy"] += 0.01 * (frame["criterion"] == "snip")
    frame.loc[frame["seed"] == 1, "test_accuracy"] += 0.01 * (frame["criterion"] == "grad_norm")
    (verdict,) = (v for v in judge(frame) if v.contrast.key == "identify")
    others = leave_one_out(frame, contrast)
    assert list(others) == [*contrast.treated["criterion"], *contrast.baseline["criterion"]]
    assert verdict.verdict == "not supported"
    assert others["fisher_diag"].verdict == "supported"
    assert others["fisher_diag"].mean == pytest.approx(5 - 0.2)
    assert others["snip"].mean == pytest.approx(0.25 * (5 + 5 + 5 - 40) - 0.2)
    assert decided_by(verdict, others) == ["fisher_diag"]


def test_a_criterion_on_both_sides_is_left_out_of_both():
    left = only("warm-up").without("snip")
    assert "snip" not in left.treated["criterion"]
    assert left.baseline == ({**only("warm-up").baseline, "criterion": left.treated["criterion"]},)


def test_a_side_of_one_criterion_cannot_lose_it():
    assert only("after-training").without("hutchinson_diag") is None
    assert only("after-training").without("magnitude") is None
    assert only("fts").without("hutchinson_diag") is None  # has no part in it
    assert only("fts").without("snip").baseline == ({"criterion": ("synflow",), "sparsity": 0.99},)


def test_the_best_competitor_is_that_with_the_highest_mean():
    contrast = only("fts")
    mean = {"fts": 0.5, "snip": 0.52, "synflow": 0.4}
    wobble = {"fts": 0.011, "snip": 0.01, "synflow": 0.01}  # equal differences have no spread to speak of
    frame = rows_of([contrast.treated, contrast.baseline], lambda key, seed: mean[key] + wobble[key] * (seed - 2))
    best, difference = best_competitor(frame, contrast)
    assert best == "snip"
    assert difference.mean == pytest.approx(-2)
    assert best_competitor(frame[frame["criterion"] != "fts"], contrast) is None


@settings(max_examples=8)
@given(st.lists(st.integers(-300, 300), min_size=8, max_size=12).filter(lambda v: len(set(v)) > 1))
def test_equivalence_is_two_one_sided_t_tests(values):
    d = np.array(values) / 100
    contrast = HEADLINE[0]
    sides = [contrast.treated, contrast.baseline]
    frame = rows_of(
        sides,
        lambda key, seed: 0.5 + 0.01 * seed + (d[seed] / 100 if key == "hutchinson_pruning" else 0),
        range(len(d)),
    )
    found = judge(frame, HEADLINE, HEADLINE_SEEDS, EQUIVALENCE)[0]
    error = d.std(ddof=1) / math.sqrt(len(d))
    furthest = max(stats.t.sf((d.mean() + 1) / error, len(d) - 1), stats.t.cdf((d.mean() - 1) / error, len(d) - 1))
    assert found.equivalence == pytest.approx(furthest, rel=1e-6, abs=1e-9)
    inside = stats.t.ppf(0.95, len(d) - 1) * error + abs(d.mean()) < 1  # the 90 % interval within the bounds
    assert (found.equivalence < 0.05) == inside


def test_equivalence_is_corrected_for_the_number_of_tests_and_asked_for():
    d = {
        "hutchinson_pruning": [0.3, 0.5, 0.1, 0.9, 0.4, 0.6, 0.2, 0.8],
        "scaled_noise": [0.1, 0, 0.3, 0.2, 0, 0, 0.1, 0],
    }
    sides = [HEADLINE[0].treated, HEADLINE[0].baseline, HEADLINE[1].baseline]
    frame = rows_of(sides, lambda key, seed: 0.5 + d[key][seed] / 100, range(8))
    shuffled = frame["control"] == "shuffle"
    frame.loc[shuffled, "test_accuracy"] = 0.5 + 0.001 * frame.loc[shuffled, "seed"] / 10
    both = judge(frame, HEADLINE, HEADLINE_SEEDS, EQUIVALENCE)
    alone = [judge(frame, HEADLINE, HEADLINE_SEEDS, {key: 1.0})[i] for i, key in enumerate(EQUIVALENCE)]
    first, second = sorted(v.equivalence for v in alone)
    assert sorted(v.equivalence for v in both[:2]) == pytest.approx([2 * first, max(2 * first, second)])
    assert all(math.isnan(v.equivalence) for v in judge(frame, HEADLINE, HEADLINE_SEEDS))
    assert judge(frame[frame["seed"] < 7], HEADLINE, HEADLINE_SEEDS)[0].verdict == "not tested yet"


def test_records_may_differ_in_what_every_side_names():
    """Twelve epochs twice against 24 at once."""
    sides = [settings for contrast in SECOND for side in contrast.sides for settings in side]
    frame = rows_of(sides, lambda key, seed: 0.5 + 0.01 * seed * (key == "magnitude"))
    assert set(frame["epochs"]) == {12, 24}
    assert [verdict.n for verdict in judge(frame, SECOND)] == [SEEDS] * 3
    with pytest.raises(ValueError, match="differ in epochs"):
        judge(frame, [*SECOND, *CONTRASTS])
    assert one_protocol(frame, "epochs").equals(frame)


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


def test_the_contrasts_of_the_profile_are_those_that_were_registered():
    """Written down before the first run of campaigns/profile-test.yaml; never to be edited."""
    profile = {"criterion": ("random",), "sparsity": 0.98, "scope": "equal_worth"}
    hp = {"criterion": ("hutchinson_pruning",), "sparsity": 0.98}
    registered = [
        ("profile-hp", hp),
        ("profile-shuffled", {**hp, "control": "shuffle"}),
        ("profile-noise", {"criterion": ("scaled_noise",), "sparsity": 0.98}),
        ("profile-erk", {"criterion": ("random",), "sparsity": 0.98, "scope": "erk"}),
        ("profile-snip", {"criterion": ("snip",), "sparsity": 0.98}),
    ]
    assert [(each.key, each.baseline) for each in PROFILE] == registered
    assert all(each.treated == profile and not each.match for each in PROFILE)
    assert PROFILE_EQUIVALENCE == {"profile-shuffled": 1.0, "profile-noise": 1.0}
    assert {16: (0, 1, 2, 3, 4, 10, 11, 12), 32: tuple(range(8))} == PROFILE_SEEDS
    chosen_on = set(range(5, 10))  # of width 16
    assert not chosen_on & {*PROFILE_SEEDS[16]}
    assert all(len(seeds) == HEADLINE_SEEDS for seeds in PROFILE_SEEDS.values())


def test_the_contrasts_of_the_claims_are_those_that_were_registered():
    """Never to be edited or removed."""
    diagonals = ("fisher_diag", "fisher_pruning", "hutchinson_diag", "hutchinson_pruning")
    see_data = ("grad_norm", "snip", "grasp", "fts", *diagonals, "hts")
    at, extreme = {"sparsity": 0.98}, {"sparsity": 0.99}
    registered = [
        ("identify", {"criterion": diagonals, **at}, {"criterion": ("grad_norm", "snip"), **at}, False),
        ("warm-up", {"criterion": see_data, **at}, {"criterion": see_data, **at, "warmup": 0}, False),
        (
            "hutchinson",
            {"criterion": ("hutchinson_diag", "hutchinson_pruning", "hts"), **at},
            {"criterion": ("snip", "grasp", "synflow"), **at},
            True,
        ),
        (
            "after-training",
            {"criterion": ("hutchinson_diag",), **at},
            {"criterion": ("magnitude",), **at, "when": "trained"},
            False,
        ),
        ("fts", {"criterion": ("fts",), **extreme}, {"criterion": ("snip", "synflow"), **extreme}, True),
    ]
    assert [(each.key, each.treated, each.baseline, each.match) for each in CONTRASTS] == registered
    assert (MARGIN, SEEDS) == (0.5, 5)
    assert list(SOURCES) == [each.key for each in CONTRASTS]


def test_the_second_contrasts_are_those_that_were_registered():
    """Written down before the first run of campaigns/baselines.yaml; never to be edited."""
    at, extreme = {"sparsity": 0.98, "epochs": 12}, {"sparsity": 0.99, "epochs": 12}
    registered = [
        (
            "hutchinson",
            {"criterion": ("hutchinson_diag", "hutchinson_pruning", "hts"), **at},
            ({"criterion": ("snip", "grasp"), **at}, {"criterion": ("synflow",), **at, "warmup": 0}),
            True,
        ),
        (
            "after-training",
            {"criterion": ("hutchinson_diag",), "sparsity": 0.98, "epochs": 24},
            {"criterion": ("magnitude",), "sparsity": 0.98, "when": "trained", "epochs": 12},
            False,
        ),
        (
            "fts",
            {"criterion": ("fts",), **extreme},
            ({"criterion": ("snip",), **extreme}, {"criterion": ("synflow",), **extreme, "warmup": 0}),
            True,
        ),
    ]
    assert [(each.key, each.treated, each.baseline, each.match) for each in SECOND] == registered


def test_matched_pairs_have_the_weight_to_the_same_power():
    """A score of a diagonal and one of the gradient, both without θ or both with it."""
    from pai_lib.pruning.criteria import CRITERIA

    for second, first in MATCHED:
        assert ("weight" in CRITERIA[second].needs) == ("weight" in CRITERIA[first].needs)


def test_only_a_match_says_by_how_much_it_is_no_worse():
    for contrast in CONTRASTS:
        for word, meaning in (("supported", "No worse than"), ("not supported", "Worse than"), ("undecided", "")):
            verdict = Verdict(contrast, word, {0: 1.0}, 1, mean=1.0, low=0.5, high=1.5, p=0.01)
            said = f"{meaning} {MARGIN:g} points below: " if contrast.match and meaning else ""
            assert (said in str(verdict), "points below" in str(verdict)) == (True, bool(said))


def test_a_list_of_verdicts_has_badge_claim_and_numbers():
    verdicts = [Verdict(each, "not supported", {}) for each in CONTRASTS]
    assert badge("not supported") == "<span class='verdict-badge verdict-not-supported'>not supported</span>"
    assert badge("one criterion decides", "fragile") == badge("fragile").replace(
        ">fragile<", ">one criterion decides<"
    )
    wanted = [f"- {badge('not supported')} **{each.claim}** 0 of the {SEEDS} seeds" for each in CONTRASTS]
    assert [line.partition(" that a verdict")[0] for line in listed(verdicts).splitlines()] == wanted


@pytest.mark.parametrize("value", [CONTRASTS[0], Verdict(CONTRASTS[0], "undecided", {})])
def test_what_was_registered_and_judged_cannot_be_changed(value):
    with pytest.raises(AttributeError):
        value.claim = "another"
