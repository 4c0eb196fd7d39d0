"""Masks: how many weights are kept and which, controls, exports and statistics."""

import contextlib
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import Net, batch_of, flat, linear
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

import pai_lib as pai
from pai_lib.pruning.ranking import EarlierTies, Ties, scopes

sparsities = st.floats(0, 1, exclude_max=True)
# Few distinct values: ties are common.
values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
quiet = pytest.mark.filterwarnings("ignore::pai_lib.SparsityWarning", "ignore::pai_lib.TiedScoresWarning")


@st.composite
def score_maps(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    tensors = [torch.tensor(draw(st.lists(values, min_size=n, max_size=n))) for n in sizes]
    return {f"layer{i}": t.view(-1, 2) if len(t) % 2 == 0 else t for i, t in enumerate(tensors)}


def kept_by_sorting(scores, count):
    """The first of a stable sort, from high to low."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[torch.sort(scores.flatten(), descending=True, stable=True).indices[:count]] = True
    return kept


def informative(scores):
    """Not all equal; one weight alone has nothing to be equal to."""
    return len(flat(scores)) == 1 or len(flat(scores).unique()) > 1


def count(density, size):
    return max(1, int(density * size))


@quiet
@given(score_maps(), sparsities)
def test_a_mask_keeps_the_first_of_a_stable_sort(scores, sparsity):
    """Exactly max(1, int((1 − s)·n)) of all weights, or of each tensor; of equal scores, the earlier."""
    assume(informative(scores))
    mask = pai.make_mask(scores, sparsity)
    assert {n: m.shape for n, m in mask.items()} == {n: s.shape for n, s in scores.items()}
    everything = flat(scores)
    assert torch.equal(flat(mask), kept_by_sorting(everything, count(1 - sparsity, len(everything))))
    for name, kept in pai.make_mask(scores, sparsity, "layer").items():
        expected = kept_by_sorting(scores[name], count(1 - sparsity, scores[name].numel()))
        assert torch.equal(kept.flatten(), expected)


@quiet
@given(score_maps(), sparsities, sparsities, st.sampled_from(scopes()))
def test_masks_nest_as_sparsity_grows(scores, one, other, scope):
    assume(informative(scores))
    denser, sparser = (flat(pai.make_mask(scores, s, scope)) for s in sorted((one, other)))
    assert (sparser <= denser).all()


@quiet
@given(score_maps(), sparsities, st.sampled_from(scopes()))
def test_only_the_order_of_scores_matters(scores, sparsity, scope):
    assume(informative(scores))
    ranks = torch.unique(flat(scores), return_inverse=True)[1].split([v.numel() for v in scores.values()])
    changed = {name: r.view_as(v).double() for (name, v), r in zip(scores.items(), ranks, strict=True)}
    assert torch.equal(flat(pai.make_mask(changed, sparsity, scope)), flat(pai.make_mask(scores, sparsity, scope)))


def test_a_mask_of_a_resnet18_is_that_of_a_stable_sort():
    """11.2 million scores with thousands of ties at the threshold, in one tensor and in many."""
    scores = torch.randn(11_170_000, generator=torch.Generator().manual_seed(0)).mul_(1000).round_()
    expected = kept_by_sorting(scores, int((1 - 0.98) * len(scores)))
    assert torch.equal(pai.make_mask({"w": scores}, 0.98)["w"], expected)
    parts = dict(zip("abc", scores.split(4_000_000), strict=True))
    assert torch.equal(flat(pai.make_mask(parts, 0.98)), expected)


def resnet():
    model = pai.build_model("resnet20", 10, width=8)
    return model, {n: torch.rand_like(model.get_parameter(n)) for n in pai.prunable(model)}


def kernel_factors(scores):
    """Erdős–Rényi-kernel: sum of the dimensions over their product (Evci et al., 2020)."""
    return {name: sum(value.shape) / value.numel() for name, value in scores.items()}


def smart_factors(scores):
    """At place l of L, the head being the last: (L − l + 1)² + (L − l + 1) (Su et al., 2020)."""
    layers = len(scores) + 1
    return {name: (layers - place + 1) * (layers - place + 2) for place, name in enumerate(scores, 1)}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.9, 0.98])
@pytest.mark.parametrize(("scope", "rule"), [("erk", kernel_factors), ("smart_ratio", smart_factors)])
def test_densities_follow_the_formula_and_meet_the_total(scope, rule, sparsity):
    _, scores = resnet()
    mask = pai.make_mask(scores, sparsity, scope)
    assert abs(pai.sparsity_of(mask) - sparsity) <= len(mask) / len(flat(mask))  # each layer rounds down
    density, raw = pai.layer_density(mask), rule(scores)
    thinned = [name for name in mask if density[name] < 1]
    # Each layer's count is rounded down, so the formula's ε lies between these two.
    low = max((density[name] / raw[name] for name in thinned), default=0)
    high = min(((density[name] + 1 / scores[name].numel()) / raw[name] for name in thinned), default=math.inf)
    assert low <= high
    assert all(raw[name] * high >= 1 for name in mask if density[name] == 1)


def test_random_scores_and_erk_are_erk_random_pruning():
    model, _ = resnet()
    batch = batch_of(1, 3, 8, 8)
    mask = pai.prune(model, batch, "random", 0.9, scope="erk")
    assert pai.sparsity_of(mask) == pytest.approx(0.9, abs=1e-3)
    assert pai.layer_density(mask)["stem.0.weight"] > 3 * pai.layer_density(mask)["blocks.8.convs.1.weight"]


def test_a_sparsity_that_leaves_no_weight_keeps_one_and_warns():
    scores = {"a": torch.rand(5), "b": torch.rand(200)}
    with pytest.warns(pai.SparsityWarning, match=r"0.1 keeps no weight of a \(5 weights\): one is kept"):
        mask = pai.make_mask(scores, 0.9, "layer")
    assert int(mask["a"].sum()) == 1
    with pytest.warns(pai.SparsityWarning, match="all prunable weights together"):
        mask = pai.make_mask(scores, 0.999)
    assert int(flat(mask).sum()) == 1


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.0, 2.5, float("nan"), float("inf")])
def test_a_sparsity_outside_zero_to_one_is_named(sparsity):
    with pytest.raises(ValueError, match=f"sparsity={sparsity}: it must be (a finite number )?at least 0"):
        pai.make_mask({"a": torch.rand(3)}, sparsity)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_numbers_are_an_error_that_names_the_tensor(bad):
    with pytest.raises(ValueError, match="The scores of 'b' hold NaN or infinite"):
        pai.make_mask({"a": torch.rand(3), "b": torch.tensor([1.0, bad])}, 0.5)


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (torch.rand(3), TypeError, "scores is a Tensor: it must be {parameter name"),
        (
            {"a": [0.1, 0.2]},
            TypeError,
            "The scores of 'a' are a list: they must be a dense tensor or a NumPy array",
        ),
        ({"a": torch.rand(3, 3).to_sparse()}, TypeError, "are a torch.sparse_coo tensor"),
        ({"a": torch.tensor([True, False])}, ValueError, "The scores of 'a' are torch.bool: they must be real"),
        ({"a": torch.ones(3) * 1j}, ValueError, "are torch.complex64"),
        ({"b": torch.rand(3), "a": torch.ones(0, 3)}, ValueError, "The scores of 'a' are empty"),
    ],
)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_is_no_score_is_an_error(scores, error, message, scope):
    with pytest.raises(error, match=message):
        pai.make_mask(scores, 0.5, scope)


@pytest.mark.parametrize("bad", ["0.5", None, torch.tensor(0.5), 0.5j, False])
def test_a_sparsity_that_is_no_number_is_an_error(bad):
    with pytest.raises(ValueError, match=r"sparsity=.*: it must be a finite number at least 0 and below 1"):
        pai.make_mask({"a": torch.rand(3)}, bad)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8"])
def test_arrays_and_other_types_rank_alike(dtype):
    values = np.random.default_rng(0).permutation(60).reshape(6, 10)
    expected = torch.from_numpy(values >= 45)
    for scores in (
        values.astype(dtype),
        torch.from_numpy(values).to(getattr(torch, dtype)),
        values.T.astype(dtype).T,
    ):
        for scope in ("global", "layer"):
            assert torch.equal(pai.make_mask({"a": scores}, 0.75, scope)["a"], expected)


# ---------------------------------------------------------------------------------------------------------
# Ties


def test_arrays_rank_as_they_lie_in_files():
    scores = np.arange(6.0)[::-1]
    scores.setflags(write=False)
    for array in (scores, scores.astype(">f4"), scores.reshape(2, 3).T):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mask = pai.make_mask({"a": array}, 0.5)["a"]
        assert np.array_equal(mask.numpy(), array > 2)


def test_a_warning_that_a_test_does_not_expect_fails_it():
    with pytest.raises(pai.TiedScoresWarning):
        pai.make_mask({"layer": torch.tensor([0.0, 1.0, 1.0, 1.0])}, 0.5)


def test_a_warning_names_the_line_of_the_caller():
    with pytest.warns(pai.TiedScoresWarning) as seen:
        pai.make_mask({"a": torch.tensor([1.0, 1, 0])}, 0.5)
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize("dtype", ["uint16", "uint64", "float8_e4m3fn", "bool", "complex64"])
@pytest.mark.parametrize("function", [lambda scores: pai.make_mask(scores, 0.5), pai.invert_scores])
def test_types_that_cannot_be_ranked_are_refused(dtype, function):
    with pytest.raises(ValueError, match=f"The scores of 'a' are torch.{dtype}: they must be real numbers"):
        function({"a": torch.ones(3).to(getattr(torch, dtype))})


def test_unsigned_scores_are_inverted_as_numbers():
    assert pai.invert_scores({"a": torch.tensor([0, 1, 255], dtype=torch.uint8)})["a"].tolist() == [0, -1, -255]


STATISTICS = [pai.sparsity_of, pai.layer_density, pai.collapsed_layers, pai.shuffle_within_layers]


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"a": torch.full((4,), 2.0)}, ValueError, "'a' must be a bool tensor, not torch.float32"),
        ({"a": np.ones(4, bool)}, ValueError, "'a' must be a bool tensor, not ndarray"),
        ({}, ValueError, "there is no tensor in it"),
        ([torch.ones(4).bool()], TypeError, "The mask is a list: it must be {parameter name"),
    ],
)
@pytest.mark.parametrize("function", [*STATISTICS, lambda mask: pai.jaccard(mask, mask)])
def test_statistics_of_what_is_no_mask_are_refused(function, mask, error, message):
    with pytest.raises(error, match=message):
        function(mask)


def test_equal_scores_at_the_threshold_are_told_with_numbers():
    """Of 200 weights 60 score above zero: at sparsity 0.5 forty of the zeros are kept since they come first."""
    scores = {"a": torch.zeros(100), "b": torch.cat([torch.zeros(40), torch.rand(60) + 1])}
    said = r"Of 140 weights .* threshold 40 are kept by .* alone \(100 .*\): a \(40 of 100\), b \(0 of 40\)\."
    with pytest.warns(pai.TiedScoresWarning, match=said):
        mask = pai.make_mask(scores, 0.5)
    assert torch.equal(flat(mask), kept_by_sorting(flat(scores), 100))
    with pytest.warns(
        pai.TiedScoresWarning, match=r"Of 100 .* 50 are kept .* \(50 are kept in all\): a \(50 of 100\)\."
    ):
        pai.make_mask(scores, 0.5, "layer")
    pai.make_mask(scores, 0.7)  # the threshold is the lowest of the sixty
    pai.make_mask(scores, 0.0)  # nothing goes


@pytest.mark.parametrize(("tied", "warned"), [(100, False), (101, True)])
@pytest.mark.parametrize("sign", [1, -1])  # few of the tied are kept; few are not
def test_ties_matter_from_a_tenth_of_the_kept_weights_on(tied, warned, sign):
    ranks = torch.arange(2000.0)
    edge = torch.arange(1000 - 500, 1000 + tied) if sign == 1 else torch.arange(1000 - tied, 1000 + 500)
    with contextlib.ExitStack() as stack:
        if warned:
            stack.enter_context(pytest.warns(pai.TiedScoresWarning))
        pai.make_mask({"a": ranks.index_fill(0, edge, 1000.5)}, 0.5)


@pytest.mark.parametrize("scope", scopes())
def test_scores_that_are_all_equal_are_refused_if_some_must_go(scope):
    scores = {"a": torch.full((40,), 0.5), "b": torch.full((4, 10), 0.5)}
    with pytest.raises(ValueError, match="All scores are equal, so they cannot tell which weights to remove"):
        pai.make_mask(scores, 0.5, scope)
    assert flat(pai.make_mask(scores, 0.0, scope)).all()


@pytest.mark.parametrize("key", ["snip", "synflow", "grad_norm", "exact_pruning", "hts"])
def test_a_head_of_zeros_gives_no_mask(key):
    """No gradient passes it, so all scores of the body are zero."""
    model = mlp(8, 8, 8, 3)
    nn.init.zeros_(model[4].weight)
    before = flat(model.state_dict()).clone()
    with pytest.raises(ValueError, match="All scores are equal"):
        pai.prune(model, batch_of(6, 8), key, 0.75)
    assert torch.equal(flat(model.state_dict()), before)


@pytest.mark.parametrize("key", ["synflow", "snip"])
def test_ties_of_earlier_rounds_are_told(key):
    """Of equal weights position decides in the first rounds; it then makes the scores of the last differ."""
    model = mlp(8, 16, 20, 16, 3)
    batch = batch_of(6, 8, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pai.prune(model.float(), batch, key, 0.5, rounds=100)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    with pytest.warns(pai.TiedScoresWarning, match="In rounds before the last equal scores") as seen:
        mask = pai.prune(model, batch._replace(inputs=batch.inputs.abs()), key, 0.5, rounds=100)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert pai.sparsity_of(mask) == 0.5


def test_the_released_schedule_of_synflow_fills_up_with_ties_unasked():
    model = mlp(8, 20, 20, 3)
    mask = pai.prune(model, batch_of(6, 8), "synflow", 0.75, variant="released")
    assert pai.sparsity_of(mask) == pytest.approx(0.75)


@pytest.mark.parametrize("tied", [5, 6])
def test_ties_of_earlier_rounds_are_told_from_a_tenth_of_the_kept_weights_on(tied):
    place = torch.arange(100)
    around = (place >= 50 - tied) & (place < 50 + tied)
    earlier, mask = EarlierTies(), {"a": place < 50}
    earlier.note(mask, {"a": Ties(around, 1.0)})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        earlier.warn(mask)
    told = [str(warning.message) for warning in seen]
    assert [f"removed {tied} weights" in text for text in told] == [True] * (tied > 5)


def test_names_that_can_be_read_once_serve_every_round():
    model, batch = mlp(8, 20, 20, 3), batch_of(6, 8)
    names = pai.prunable(model)
    wanted = pai.prune(model, batch, "snip", 0.5, rounds=3, parameters=names)
    mask = pai.prune(model, batch, "snip", 0.5, rounds=3, parameters=iter(names))
    assert torch.equal(flat(mask), flat(wanted))


def test_no_scores_and_an_unknown_scope_are_errors():
    with pytest.raises(ValueError, match="no scores"):
        pai.make_mask({}, 0.5)
    with pytest.raises(ValueError, match="Unknown scope 'layers': did you mean 'layer'"):
        pai.make_mask({"a": torch.rand(3)}, 0.5, "layers")


# ---------------------------------------------------------------------------------------------------------
# On a model


def mlp(*widths, dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def random_mask(model, density=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.rand(model.get_parameter(n).shape, generator=g) < density for n in pai.prunable(model)}


def test_applying_a_mask_zeroes_what_is_removed_and_nothing_else():
    model = mlp(4, 5, 5, 3)
    mask, before = random_mask(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    pai.apply_mask(model, mask)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * mask.get(name, True))
        assert parameter.is_leaf


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"0.weights": torch.ones(5, 4).bool()}, "'0.weights', which the model has not: did you mean '0.weight'"),
        ({"0.weight": torch.ones(4, 5).bool()}, r"bool tensor of shape \(5, 4\), not torch.bool \(4, 5\)"),
        ({"0.weight": torch.ones(5, 4)}, r"bool tensor of shape \(5, 4\), not torch.float32 \(5, 4\)"),
        ({"0.weight": [True]}, r"bool tensor of shape \(5, 4\), not list"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [pai.apply_mask, pai.to_torch_prune, lambda model, mask: pai.effective_sparsity(model, mask, batch_of(1, 4))],
)
def test_a_mask_that_does_not_fit_is_an_error_and_leaves_all_weights(use, bad, message):
    model = mlp(4, 5, 5, 3)
    before = model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    good = {"2.weight": torch.zeros(5, 5).bool()}
    with pytest.raises(ValueError, match=message):
        use(model, {**good, **bad})
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "resnet8", "attention"])
def test_torchs_own_pruning_computes_what_the_masked_weights_do(name):
    def build():
        torch.manual_seed(0)
        if name == "attention":
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dtype=torch.float64)
            return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3, dtype=torch.float64)).eval()
        return (mlp(4, 5, 5, 3) if name == "mlp" else pai.build_model("resnet8", 3, width=4).double()).eval()

    x = {"mlp": batch_of(6, 4), "resnet8": batch_of(6, 3, 8, 8), "attention": batch_of(6, 3, 4)}[name].inputs
    exported, zeroed = build(), build()
    mask = random_mask(zeroed)
    assert pai.to_torch_prune(exported, mask) is exported
    pai.apply_mask(zeroed, mask)
    assert torch.equal(exported(x), zeroed(x))
    assert not torch.allclose(zeroed(x), build()(x))
    buffers = dict(exported.named_buffers())
    assert all(torch.equal(buffers[f"{n}_mask"].bool(), kept) for n, kept in mask.items())
    assert torch_prune.is_pruned(exported)
    with pytest.raises(ValueError, match="computed from other parameters"):
        pai.prunable(exported)


def test_what_is_prunable_goes_by_type_and_sharing_and_never_by_name():
    model = nn.ModuleDict({"fc_bn": nn.Conv1d(2, 2, 1), "embed": nn.Embedding(3, 2)})
    model["up"] = nn.ConvTranspose1d(2, 2, 1)
    model["attention"] = nn.MultiheadAttention(4, 2)
    model["cross"] = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    model["bias"], model["head"], model["norm"] = nn.Linear(4, 4), nn.Linear(4, 2), nn.LayerNorm(2)
    kinds = ["in_proj_weight", "out_proj.weight"]
    separate = [f"cross.{part}" for part in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")]
    expected = ["fc_bn.weight", *[f"attention.{kind}" for kind in kinds], *separate, "bias.weight"]
    assert pai.prunable(model) == expected
    autoencoder = mlp(4, 5, 4)
    autoencoder.insert(0, nn.Linear(4, 4))
    autoencoder[3].weight = autoencoder[0].weight  # the head's weight is the head's wherever it is used
    assert pai.prunable(autoencoder) == ["1.weight"]
    with pytest.raises(ValueError, match=r"'0\.weight' is computed from other parameters"):
        pai.prunable(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2)))


# ---------------------------------------------------------------------------------------------------------
# Controls


def test_shuffling_keeps_the_count_of_each_layer_and_moves_positions():
    _, scores = resnet()
    mask = pai.make_mask(scores, 0.9)
    shuffled = pai.shuffle_within_layers(mask, torch.Generator().manual_seed(0))
    for name, kept in mask.items():
        assert shuffled[name].shape == kept.shape
        assert int(shuffled[name].sum()) == int(kept.sum())
        assert not torch.equal(shuffled[name], kept)
    assert pai.shared_fraction(mask, shuffled) < 0.3  # by chance: the densities
    again = pai.shuffle_within_layers(mask, torch.Generator().manual_seed(0))
    assert torch.equal(flat(again), flat(shuffled))
    other = pai.shuffle_within_layers(mask, torch.Generator().manual_seed(1))
    assert not torch.equal(flat(other), flat(shuffled))


def test_inversion_keeps_what_would_go_first():
    scores = {"a": torch.tensor([4.0, 1.0, 3.0]), "b": torch.tensor([2.0])}
    mask = pai.make_mask(pai.invert_scores(scores), 0.5)
    assert {name: kept.tolist() for name, kept in mask.items()} == {"a": [False, True, False], "b": [True]}


# ---------------------------------------------------------------------------------------------------------
# Statistics


def test_densities_and_collapse_are_counts():
    mask = {"a": bits("1001"), "b": torch.zeros(2, 2).bool(), "c": bits("11")}
    assert pai.layer_density(mask) == {"a": 0.5, "b": 0.0, "c": 1.0}
    assert pai.collapsed_layers(mask) == ["b"]
    assert pai.sparsity_of(mask) == pytest.approx(0.6)


def bits(text):
    return torch.tensor([c == "1" for c in text])


def test_overlaps_are_set_counts():
    first, second = {"a": bits("1100"), "b": bits("11")}, {"a": bits("1010"), "b": bits("01")}
    assert pai.jaccard(first, second) == 2 / 5
    assert pai.shared_fraction(first, second) == 2 / 4
    assert pai.shared_fraction(second, first) == 2 / 3
    assert pai.jaccard(first, first) == pai.shared_fraction(first, first) == 1


def test_rank_correlation_is_spearmans_over_all_weights():
    _, scores = resnet()
    noisy = {name: value + torch.rand_like(value) for name, value in reversed(scores.items())}
    expected = spearmanr(flat(scores), flat({name: noisy[name] for name in scores})).statistic
    assert pai.rank_correlation(scores, noisy) == pytest.approx(expected, rel=1e-12)
    assert pai.rank_correlation(scores, {n: v**3 for n, v in scores.items()}) == pytest.approx(1)
    assert pai.rank_correlation(scores, pai.invert_scores(scores)) == pytest.approx(-1)


def test_what_has_no_overlap_and_no_ranks_is_an_error():
    none, some = {"a": bits("00")}, {"a": bits("01")}
    with pytest.raises(ValueError, match="Neither mask keeps a weight"):
        pai.jaccard(none, none)
    with pytest.raises(ValueError, match="The first mask keeps no weight"):
        pai.shared_fraction(none, some)
    assert pai.jaccard(none, some) == pai.shared_fraction(some, none) == 0
    for compare in (pai.jaccard, pai.shared_fraction):
        with pytest.raises(ValueError, match=r"The mask is no mask: 'a' must be a bool tensor, not torch.float32"):
            compare(some, {"a": torch.ones(2)})
    with pytest.raises(ValueError, match="All scores of one of the two are equal"):
        pai.rank_correlation({"a": torch.ones(3)}, {"a": torch.rand(3)})


@pytest.mark.parametrize("compare", [pai.jaccard, pai.shared_fraction, pai.rank_correlation])
def test_only_masks_of_the_same_parameters_are_compared(compare):
    for other in ({"a": bits("10"), "b": bits("1")}, {"b": bits("10")}, {"a": bits("100")}):
        with pytest.raises(ValueError, match="names and shapes must agree"):
            compare({"a": bits("10")}, other)


def used_by_search(layers):
    """Weights on some path, by walking every path. ``layers``: (mask out×in, has a shortcut around it)."""
    used = [torch.zeros_like(mask) for mask, _ in layers]

    def walk(depth, node):  # whether the output is reached; marks what is on the way
        if depth == len(layers):
            return True
        mask, shortcut = layers[depth]
        reached = shortcut and walk(depth + 1, node)
        for out in range(len(mask)):
            if mask[out, node] and walk(depth + 1, out):
                used[depth][out, node] = reached = True
        return reached

    for node in range(layers[0][0].shape[1]):
        walk(0, node)
    return used


@given(st.integers(0, 10**6), st.floats(0.05, 1))
def test_effective_sparsity_counts_the_weights_on_no_path(seed, density):
    """On a network with a residual connection, whatever its biases and the signs of its weights."""
    parts = {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 3), "head": nn.Linear(3, 2)}

    def forward(net, x):
        x = net.a(x).relu()
        return net.head(net.c(x + net.b(x)).relu())

    model = Net(forward, **parts)
    mask = random_mask(model, density, seed)
    before = flat(model.state_dict())
    full = torch.ones(2, 3).bool()
    masks = [mask["a.weight"], mask["b.weight"], mask["c.weight"], full]
    used = used_by_search(list(zip(masks, [False, True, False, False], strict=True)))[:3]
    expected = 1 - sum(int(u.sum()) for u in used) / sum(kept.numel() for kept in mask.values())
    found = pai.effective_sparsity(model, mask, batch_of(1, 3))
    assert found == pytest.approx(expected, abs=1e-12)
    assert found >= pai.sparsity_of(mask) - 1e-12
    assert torch.equal(flat(model.state_dict()), before)


@given(st.integers(0, 10**6))
def test_effective_sparsity_of_convolutions_with_batch_norm(seed):
    """Kernels of one tap and one pixel, strided and grouped; statistics and scales of any sign do not matter."""
    conv = nn.Conv2d(4, 4, 1, groups=2)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), conv, nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data.fill_(-1)
    model[1].running_mean.fill_(5)
    mask = random_mask(model, 0.5, seed)
    grouped = torch.block_diag(*mask["3.weight"][:, :, 0, 0].float().view(2, 2, 2)).bool()
    layers = [(mask["0.weight"][:, :, 0, 0], False), (grouped, False), (torch.ones(2, 4).bool(), False)]
    used = sum(int(u.sum()) for u in used_by_search(layers)[:2])
    assert pai.effective_sparsity(model, mask, batch_of(1, 2, 1, 1)) == pytest.approx(1 - used / 16)


def test_a_collapsed_layer_makes_the_effective_sparsity_one():
    model = mlp(4, 5, 5, 3)
    mask = {name: torch.ones_like(model.get_parameter(name)).bool() for name in pai.prunable(model)}
    assert pai.effective_sparsity(model, mask, batch_of(1, 4)) == 0
    mask["2.weight"][:] = False
    assert pai.effective_sparsity(model, mask, batch_of(1, 4)) == 1


@given(st.integers(0, 10**6))
def test_a_layer_norm_passes_flow_unit_by_unit(seed):
    normed = nn.Sequential(
        nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    plain = nn.Sequential(normed[0], nn.Identity(), nn.ReLU(), *normed[3:])
    mask = random_mask(normed, 0.4, seed)
    found, expected = (pai.effective_sparsity(model, mask, batch_of(1, 3)) for model in (normed, plain))
    assert found == expected


@pytest.mark.parametrize("weights", [False, True])  # attention's two ways to compute itself
def test_paths_through_attention(weights):
    """Four features, two heads: rows 0-3 of the projection are queries, 4-7 keys, 8-11 values."""
    parts = {"attention": nn.MultiheadAttention(4, 2, batch_first=True), "head": nn.Linear(4, 3)}
    model = Net(lambda net, x: net.head(net.attention(x, x, x, need_weights=weights)[0].mean(1)), **parts)
    full = {name: torch.ones_like(model.get_parameter(name)).bool() for name in pai.prunable(model)}

    def off_path(**removed):
        mask = {name: kept.clone() for name, kept in full.items()}
        for name, rows in removed.items():
            mask[f"attention.{name}"][rows] = False
        return round(pai.effective_sparsity(model, mask, batch_of(1, 3, 4)) * 64)

    assert off_path() == 0
    assert off_path(in_proj_weight=slice(4, 6)) == 16  # without its keys a head's queries tell nothing
    assert off_path(in_proj_weight=slice(2, 4)) == 16  # nor its keys without queries; the values still count
    assert off_path(in_proj_weight=slice(8, 10)) == 24 + 8  # without values neither, nor what would use the head
    assert off_path(**{"out_proj.weight": slice(None)}) == 64


def test_paths_through_a_vision_transformer():
    model = pai.build_model("vit_cifar", 10, width=24)
    mask = {n: torch.ones_like(model.get_parameter(n)).bool() for n in pai.prunable(model)}
    batch = batch_of(1, 3, 32, 32)
    assert pai.effective_sparsity(model, mask, batch) == 0
    for name, kept in mask.items():
        kept.fill_("out_proj" not in name)
    assert pai.effective_sparsity(model, mask, batch) == 1  # the class token never sees a patch


@pytest.mark.parametrize("name", ["resnet50", "vgg19"])
def test_every_weight_of_a_whole_network_is_on_a_path(name):
    """Nothing overflows in fifty layers, and a max-pool is a path for each of its inputs."""
    model = pai.build_model(name, 10, width=16)
    mask = {n: torch.ones_like(model.get_parameter(n)).bool() for n in pai.prunable(model)}
    assert pai.effective_sparsity(model, mask, batch_of(1, 3, 32, 32)) == 0


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveMaxPool2d((2, 2))],
)
def test_a_tap_that_any_pixel_of_a_pool_uses_is_on_a_path(pool):
    """Of a padded kernel, different taps see the largest input at different pixels."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), pool, nn.Flatten(), nn.LazyLinear(2))
    batch = batch_of(1, 1, 4, 4)
    model(batch.inputs.float())
    everything = {"0.weight": torch.ones(1, 1, 3, 3).bool()}
    assert pai.effective_sparsity(model, everything, batch) == 0


@pytest.mark.parametrize("name", ["resnet8", "vgg11"])
def test_flops_left(name):
    model = pai.build_model(name, 10, width=4).eval()
    batch = batch_of(3, 3, 32, 32, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch.inputs[:1])
    flops = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
    full = {key: torch.ones_like(model.get_parameter(key), dtype=torch.bool) for key in pai.prunable(model)}
    assert pai.flops_left(model, full, batch) == 1
    cost = {key: flops[f"{type(model).__name__}.{key.removesuffix('.weight')}"] for key in full}
    for key in full:  # one layer emptied, and half of it
        for kept in (0, 1):
            part = full[key].clone()
            part[kept * part.shape[0] // 2 :] = False
            left = 1 - cost[key] * (1 - kept / 2) / sum(cost.values())
            assert pai.flops_left(model, {**full, key: part}, batch) == pytest.approx(left, rel=1e-12)


def test_flops_left_of_tokens():
    net = Net(lambda net, x: net.head(net.body(x).mean(1)), body=linear(4, 6), head=linear(6, 3))
    kept = {"body.weight": torch.arange(24).view(6, 4) < 6}
    assert pai.flops_left(net, kept, batch_of(2, 5, 4)) == 0.25


def test_scores_of_different_types_are_compared_by_value():
    scores = {
        "a": torch.tensor([100_000, 70_000, 80_000, 90_000]),
        "b": torch.tensor([1.0, 2.0], dtype=torch.float16),
    }
    assert pai.make_mask(scores, 0.5)["a"].tolist() == [True, False, True, True]


def test_densities_are_exact_and_masks_without_numbers_are_none():
    assert pai.layer_density({"a": torch.tensor([True, False, False])})["a"] == 1 / 3
    for kept in (torch.ones(0, dtype=torch.bool), torch.ones(2, dtype=torch.bool, device="meta")):
        with pytest.raises(ValueError, match="must be a bool tensor"):
            pai.sparsity_of({"a": kept})
