"""Profiles: budgets for any shapes, and the lottery against draws and against numerical integrals."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr

import pai_lib as pai
from pai_lib.pruning.profiles import PROFILES, equal, equal_worth, equal_worth_unsigned, lottery_share

shape_maps = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    min_size=1,
    max_size=8,
)
densities = st.floats(1e-4, 1)
# Of a narrow ResNet: layers of 432 to 147,456 weights.
NETWORK = {
    "stem": (16, 3, 3, 3),
    "early": (16, 16, 3, 3),
    "middle": (32, 32, 3, 3),
    "shortcut": (128, 64, 1, 1),
    "late": (128, 128, 3, 3),
}


def sizes(shapes):
    return {name: math.prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("key", PROFILES)
@given(shapes=shape_maps, density=densities)
def test_every_profile_meets_the_budget_of_any_network(key, shapes, density):
    shares, size = PROFILES[key](shapes, density), sizes(shapes)
    assert list(shares) == list(shapes)
    assert all(0 <= share <= 1 + 1e-12 for share in shares.values())
    kept = sum(shares[name] * size[name] for name in shapes)
    budget = density * sum(size.values())
    # A layer of the lottery that expects less than one weight is rounded.
    rounded = (
        sum(share * size[name] < 1 + 1e-9 for name, share in shares.items()) / 2 * key.startswith("equal_worth")
    )
    assert abs(kept - budget) <= rounded + 1e-9 * budget


@pytest.mark.parametrize("level", [-3.0, -0.2, 0.0, 1e-6, 0.01, 0.3, 1.0, 2.5, 6.0])
def test_the_tail_is_its_integral(level):
    def integrand(u):
        return float(ndtr(-level / u**2)) if u else float(ndtr(-math.copysign(math.inf, level))) if level else 0.5

    expected, error = quad(integrand, 0, 1, epsabs=1e-12, epsrel=1e-12, limit=400)
    assert lottery_share(level) == pytest.approx(expected, abs=1e-10 + 10 * error)


def test_a_tail_far_out_is_none():
    assert 0 <= lottery_share(40.0) < 1e-12


@pytest.mark.parametrize(("rule", "signed"), [(equal_worth, True), (equal_worth_unsigned, False)])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.6])
def test_the_lottery_is_won_as_often_as_draws_win_it(rule, signed, density):
    generator = np.random.default_rng(0)
    size = sizes(NETWORK)
    noise = {name: generator.standard_normal(count) for name, count in size.items()}
    draws = {
        name: generator.uniform(size=count) ** 2 * (noise[name] if signed else abs(noise[name])) / count
        for name, count in size.items()
    }
    threshold = np.quantile(np.concatenate(list(draws.values())), 1 - density)
    shares = rule(NETWORK, density)
    for name, count in size.items():
        won = np.mean(draws[name] > threshold)
        error = math.sqrt(max(won, 1 / count) / count)
        # The threshold is drawn as well: of 170,000 draws it is off by less than 2 %.
        assert shares[name] == pytest.approx(won, abs=5 * error, rel=0.05), name


def test_a_score_without_a_sign_keeps_twice_as_much_of_half_the_budget():
    half, whole = equal_worth(NETWORK, 0.01), equal_worth_unsigned(NETWORK, 0.02)
    assert whole == pytest.approx({name: 2 * share for name, share in half.items()})
    assert max(equal_worth(NETWORK, 0.02).values()) < 0.5


def test_equal_shares_are_the_same_number_in_each_layer_that_has_as_many():
    size = sizes(NETWORK)
    counts = {name: share * size[name] for name, share in equal(NETWORK, 0.02).items()}
    assert counts["stem"] == 432
    rest = [count for name, count in counts.items() if name != "stem"]
    assert rest == pytest.approx([(0.02 * sum(size.values()) - 432) / 4] * 4)


def test_a_layer_that_expects_less_than_half_a_weight_gets_none_without_a_warning():
    assert equal_worth(NETWORK, 0.004)["late"] == 0
    scores = {name: torch.rand(shape) for name, shape in NETWORK.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = pai.make_mask(scores, 0.996, "equal_worth")
    assert pai.collapsed_layers(mask) == ["late"]
    assert mask["late"].shape == NETWORK["late"]
    assert pai.sparsity_of(mask) == pytest.approx(0.996, abs=5 / 160_000)


def test_a_layer_of_a_single_weight_keeps_it_when_most_are_kept():
    assert equal_worth_unsigned({"one": (1,), "many": (26_775,)}, 0.99999)["one"] == 1


@pytest.mark.parametrize("count", [n for n in range(1000, 4000) if int(1 / n * n) == 0][:20])
def test_one_weight_is_one_in_doubles(count):
    several = [
        equal_worth({"small": (50,), "large": (count,)}, kept / (50 + count)) for kept in np.arange(5, 25, 0.25)
    ]
    ones = [share["large"] * count for share in several if 0 < share["large"] * count < 1.5]
    assert ones
    assert all(int(one) == 1 for one in ones)


def test_where_no_layer_expects_half_a_weight_each_keeps_one_and_it_is_said():
    scores = {"a": torch.rand(100), "b": torch.rand(100)}
    with pytest.warns(pai.SparsityWarning, match="one is kept"):
        mask = pai.make_mask(scores, 0.996, "equal_worth")
    assert [int(kept.sum()) for kept in mask.values()] == [1, 1]
