"""The rule of a trial on synthetic records: true effects found, none where there is none, and each word."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pai_lib import RunSpec
from pai_lib.analysis import trials
from pai_lib.analysis.statistics import LEVEL
from pai_lib.analysis.verdicts import decide
from pai_lib.experiments.records import Record, records_frame
from pai_lib.pruning.own import OwnFile, known

BASE = RunSpec(width=16, epochs=12, criterion="random", sparsity=0.98)
TEXT = """import pai_lib as pai
@pai.criterion("mine", "Mine", "Mine", "", "")
def mine(weight):
    return weight
@pai.profile("flat")
def flat(shapes, density):
    return dict.fromkeys(shapes, density)
"""
FILE = OwnFile("mine.py", TEXT)
SEEDS, DRAWS = 10, 200


@pytest.fixture
def contrasts():
    with known(FILE):
        yield trials.contrasts_of(BASE, "mine")


def judged(contrasts, effects, stream, seeds=SEEDS, spread=1.0):
    """One draw: the criterion is better than a rival by its effect, on average; accuracies spread by seed."""
    own = stream.normal(0, spread, seeds)
    pairs = [(c, pd.Series(effects[c.key] + own - stream.normal(0, spread, seeds))) for c in contrasts]
    verdicts = {v.contrast.key: v for v in decide(pairs, equivalence={trials.PROFILE: trials.WITHIN})}
    return trials.Judgement("Mine", verdicts, 0, seeds)


def test_none_is_found_where_there_is_none(contrasts):
    """In 5 % of the trials at most is any of the nine told apart, though all share the criterion's runs."""
    stream, none = np.random.default_rng(0), dict.fromkeys((c.key for c in contrasts), 0.0)
    drawn = [judged(contrasts, none, stream) for _ in range(DRAWS)]
    wrong = sum(bool(j.told("supported") + j.told("not supported")) for j in drawn)
    assert 0 < wrong <= stats.binom.ppf(0.999, DRAWS, LEVEL)
    assert {j.word for j in drawn} <= {"not shown to beat random weights", "not shown to beat a placebo"}


def test_equality_is_claimed_where_it_is_not_in_five_per_cent_at_most(contrasts):
    """The hardest case: truly as far from the profile as the bound."""
    stream = np.random.default_rng(1)
    profile = [c for c in contrasts if c.key == trials.PROFILE]  # alone in the correction of this test
    drawn = [judged(profile, {trials.PROFILE: trials.WITHIN}, stream, spread=0.3) for _ in range(2 * DRAWS)]
    wrong = sum(j.verdicts[trials.PROFILE].equivalence < LEVEL for j in drawn)
    assert 0 < wrong <= stats.binom.ppf(0.999, 2 * DRAWS, LEVEL)


def test_two_points_are_found_as_often_as_the_noncentral_t_says(contrasts):
    stream, spread = np.random.default_rng(2), 0.8
    effects = dict.fromkeys((c.key for c in contrasts), 2.0)
    power = trials.power_of(2 / (spread * 2**0.5), SEEDS, LEVEL / len(contrasts))
    assert 0.8 < power < 0.99
    drawn = [judged(contrasts, effects, stream, spread=spread) for _ in range(DRAWS)]
    for contrast in contrasts:  # at least so: Holm's later steps are less strict
        found = sum(contrast.key in j.told("supported") for j in drawn)
        assert found >= stats.binom.ppf(0.001, DRAWS, power)
    assert sum(j.word == trials.WORKS for j in drawn) > DRAWS / 2


def test_the_seeds_that_would_tell_have_the_power(contrasts):
    """In draws of so many seeds the strictest test alone finds the effect four times in five."""
    seen = judged(contrasts, dict.fromkeys((c.key for c in contrasts), 1.0), np.random.default_rng(4))
    verdict = seen.verdicts["ERK"]
    n = trials.seeds_to_tell(verdict, len(contrasts))
    differences = pd.Series(verdict.differences)
    stream = np.random.default_rng(5)
    draws = stream.normal(verdict.mean, differences.std(), (2000, n))
    found = int((stats.ttest_1samp(draws, 0, axis=1).pvalue < LEVEL / len(contrasts)).sum())
    assert stats.binom.ppf(0.001, 2000, 0.8) <= found <= 2000 * 0.9
    assert n > 2


def frame_of(levels, seeds=SEEDS, cut=(), spread=0.3):
    """Rows of synthetic records: arms by (criterion, scope, control) at mean accuracies in percent."""
    stream, records = np.random.default_rng(3), []
    arms = {("mine", "global", "none"): 60.0, ("mine", "global", "shuffle"): 50.0, ("random", "erk", "none"): 50.0}
    arms[("random", "equal_worth", "none")] = 50.0
    keys = ("random", "magnitude", "snip", "hutchinson_pruning", "scaled_noise", "weight_noise")
    arms |= {(key, "global", "none"): 50.0 for key in keys} | {("random", "flat", "none"): 50.0} | levels
    made = {"device": "CPU"}
    for (criterion, scope, control), level in arms.items():
        for seed in range(seeds):
            spec = replace(BASE, criterion=criterion, scope=scope, control=control, seed=seed)
            result = {"test_accuracy": (level + stream.normal(0, spread)) / 100, "effective_sparsity": 0.981}
            result["effective_sparsity"] = 1.0 if (criterion, seed) in cut else 0.981
            records.append(Record(spec, result, None, {"fingerprint": "8e" * 32, "train": 10_000}, made))
    return records_frame(records)


PLAIN, SHUFFLED = ("mine", "global", "none"), ("mine", "global", "shuffle")
HALF, MOST = [("mine", seed) for seed in range(5)], [("mine", seed) for seed in range(6)]
CASES = {
    "works": ({}, {}),
    "cut": ({PLAIN: 10.0}, {"cut": MOST}),
    "not shown to beat random weights": ({("random", "erk", "none"): 60.0}, {"cut": HALF}),
    "not shown to beat a placebo": ({("weight_noise", "global", "none"): 60.0}, {}),
    "not shown to beat its own profile": ({SHUFFLED: 60.0}, {}),
    "not judged": ({}, {"seeds": 4}),
}


@pytest.mark.parametrize("word", CASES)
def test_each_word_is_given_where_it_is_deserved(word):
    levels, options = CASES[word]
    with known(FILE):
        judgement = trials.judge_trial(frame_of(levels, **options), BASE, "mine")
    assert judgement.word == word
    assert str(judgement).startswith(f"Mine: {word}. ")
    assert judgement.cut == len(options.get("cut", ()))


def test_the_sentence_names_every_rival():
    with known(FILE):
        frame = frame_of({SHUFFLED: 60.0, ("snip", "global", "none"): 70.0})
        judgement = trials.judge_trial(frame, BASE, "mine")
        profile = trials.judge_trial(frame, BASE, "flat")
        table = trials.comparison(judgement)
        worth = trials.parts(frame, BASE, "mine")
    better = "Better than random, erk, equal worth, magnitude, hp, scaled noise and weight noise"
    assert (
        str(judgement)
        .lower()
        .endswith(
            f"{better.lower()}; no difference found from its own profile; worse than snip; "
            "equal to its own profile within 1 point."
        )
    )
    assert "Better than Random, ERK" in str(judgement)
    assert set(profile.verdicts) == set(trials.RIVALS)  # filled by lot, it has no order to take away
    assert profile.word == "not shown to beat random weights"
    assert table.loc["SNIP", "verdict"] == "worse"
    assert table.loc["ERK", ["n", "verdict"]].tolist() == [SEEDS, "better"]
    assert worth["profile"].mean == pytest.approx(10, abs=0.5)
    assert worth["order within layers"].mean == pytest.approx(0, abs=0.5)
    assert worth["the very weights"].n == 0


def test_missing_lots_are_no_verdict():
    with known(FILE):
        frame = frame_of({})
        judgement = trials.judge_trial(frame[frame["scope"] != "erk"], BASE, "mine")
    assert judgement.word == "not judged"
    assert "ERK" in judgement.told(trials.UNTESTED)


@pytest.mark.parametrize("missing", [("weight_noise", "none"), ("mine", "shuffle")])
def test_without_a_placebo_or_its_own_profile_nothing_works(missing):
    with known(FILE):
        frame = frame_of({})
        lacks = (frame["criterion"] == missing[0]) & (frame["control"] == missing[1])
        judgement = trials.judge_trial(frame[~lacks], BASE, "mine")
    assert judgement.word == "not judged"


def test_prices_are_those_of_the_chapter_on_cost():
    assert trials.gradients(("weight", "gradient", "fisher"), 10, 10) == 2
    assert trials.gradients(("weight", "row_norm"), 10, 10) == 21
    assert trials.gradients(("exact",), 10, 10) == pytest.approx(19 / 3)
    assert trials.gradients(("flow", "noise"), 10, 10) == 0
