"""Every criterion of the registry: what holds for all of them, and what each formula claims."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, batch_of, flat, loss_function, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pai_lib as pai
from pai_lib.pruning import criteria, scoring

WITHOUT_FORWARD = (("noise",), ("weight",), ("weight", "normal"))
STOCHASTIC = {"noise", "normal", "hutchinson", "row_norm"}
DETERMINISTIC = [key for key, rule in pai.CRITERIA.items() if not STOCHASTIC & set(rule.needs)]
every_criterion = pytest.mark.parametrize("key", pai.CRITERIA)
BATCH = batch_of(8, 2, 6, 6, dtype=torch.float32)
BATCH64 = pai.Batch(BATCH.inputs.double(), BATCH.labels)


def network(seed=0):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(24, 5), nn.LeakyReLU(), nn.Linear(5, 3),
    ]  # fmt: skip
    return randomize(nn.Sequential(*layers), seed)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def close(a, b, relative):
    a, b = flat(a), flat(b)
    return bool((a - b).abs().max() <= relative * b.abs().max())


# ---------------------------------------------------------------------------------------------------------
# All of them


@every_criterion
def test_scores_are_finite_one_a_prunable_weight_and_the_same_for_a_seed(key):
    model = network()
    found = pai.score(model, BATCH, key, generator=seeded(1))
    assert {n: v.shape for n, v in found.items()} == {n: model.get_parameter(n).shape for n in pai.prunable(model)}
    assert flat(found).isfinite().all()
    assert flat(found).unique().numel() > 1
    assert torch.equal(flat(pai.score(model, BATCH, key, generator=seeded(1))), flat(found))
    again = flat(pai.score(model, BATCH, key, generator=seeded(2)))
    assert torch.equal(again, flat(found)) == (key in DETERMINISTIC)


class Broken(Exception):
    pass


def snapshot(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    asked = [p.requires_grad for p in model.parameters()]
    return state, grads, asked, [module.training for module in model.modules()], list(map(id, model.parameters()))


def assert_untouched(before, after):
    assert before[2:] == after[2:]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert old.keys() == new.keys()
        for name, value in old.items():
            assert value is new[name] is None or torch.equal(value, new[name]), name


@every_criterion
@pytest.mark.parametrize("breaks_at", [None, 1, 2, 3])
def test_the_model_is_left_as_it_was_also_when_its_forward_raises(key, breaks_at):
    """Weights, statistics, gradients, requires_grad and the mode of every module; global random state too."""
    calls = []

    def forward(net, x):
        calls.append(1)
        net.seen += 1
        if len(calls) == breaks_at:
            raise Broken
        return net.inner(x)

    model = Net(forward, inner=network().train())
    model.register_buffer("seen", torch.zeros(1))
    model.inner[1].eval()
    model.inner[0].weight.requires_grad_(False)
    model.inner[6].weight.grad = torch.ones(5, 24)
    before, random_state = snapshot(model), torch.get_rng_state()
    if breaks_at is None or pai.CRITERIA[key].needs in WITHOUT_FORWARD:
        pai.prune(model, BATCH, key, 0.5, rounds=3, chunk=4)
    else:
        with pytest.raises(Broken):
            pai.prune(model, BATCH, key, 0.5, rounds=3, chunk=4)
    assert_untouched(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("key", DETERMINISTIC)
@given(order=st.permutations(range(8)), chunk=st.sampled_from([None, 1, 3, 8]))
@settings(max_examples=6)
def test_order_and_chunks_of_the_samples_do_not_matter_at_group_one(key, order, chunk):
    model = network().double()
    shuffled = pai.Batch(BATCH64.inputs[order], BATCH64.labels[order])
    found = pai.score(model, shuffled, key, chunk=chunk)
    assert close(found, pai.score(model, BATCH64, key), 1e-9)


@every_criterion
@pytest.mark.parametrize("group", [1, 3, 8])
def test_chunks_do_not_change_scores_or_ranking(key, group):
    model = network().double()
    options = {"group": group, "probes": 2}
    whole = pai.score(model, BATCH64, key, generator=seeded(0), **options)
    for chunk in (1, 3, 5):
        parts = pai.score(model, BATCH64, key, generator=seeded(0), chunk=chunk, **options)
        assert close(parts, whole, 1e-9)
        for name, kept in pai.make_mask(whole, 0.7).items():
            assert torch.equal(pai.make_mask(parts, 0.7)[name], kept)


def test_scoring_by_many_at_once_is_scoring_one_by_one():
    model = network()
    together = pai.score_many(model, BATCH, DETERMINISTIC, group=3)
    assert list(together) == DETERMINISTIC
    for key, scores in together.items():
        assert torch.equal(flat(scores), flat(pai.score(model, BATCH, key, group=3))), key


@every_criterion
def test_the_source_of_a_criterion_is_in_the_bibliography(key):
    text = (Path(__file__).parents[2] / "book" / "references.bib").read_text(encoding="utf-8")
    assert pai.CRITERIA[key].source in re.findall(r"^@\w+\{([^,]+),", text, flags=re.M)


def test_what_a_criterion_may_ask_for_is_told_and_computed():
    """The page of criteria lists the names, own files are checked by them, and each has its computation."""
    told = re.findall(r"^    (\w+) ", criteria.__doc__, re.MULTILINE)
    tree = ast.parse(inspect.getsource(scoring))
    computed = [node.value.value for node in ast.walk(tree) if isinstance(node, ast.MatchValue)]
    assert sorted(told) == sorted(computed) == sorted({*criteria.NEEDS, "variant"})


@every_criterion
def test_only_some_criteria_have_a_released_variant(key):
    if "released" in pai.CRITERIA[key].variants:
        assert pai.prune(network(), BATCH, key, 0.5, variant="released", rounds=1)
    else:
        with pytest.raises(ValueError, match=r"no variant 'released'\. Only these have it: grasp, synflow"):
            pai.score(network(), BATCH, key, variant="released")
    with pytest.raises(ValueError, match=f"'{key}' has no variant 'own'"):
        pai.score(network(), BATCH, key, variant="own")


def test_an_unknown_criterion_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="Unknown criterion 'snipp': did you mean 'snip'"):
        pai.score(network(), BATCH, "snipp")


@pytest.mark.parametrize("key", [k for k, rule in pai.CRITERIA.items() if rule.uses_data])
def test_criteria_that_see_data_need_labels_and_a_positive_temperature(key):
    with pytest.raises(ValueError, match="needs labels"):
        pai.score(network(), pai.Batch(BATCH.inputs, None), key)
    with pytest.raises(ValueError, match=r"temperature=0"):
        pai.score(network(), BATCH, key, temperature=0)


@pytest.mark.parametrize("key", [k for k, rule in pai.CRITERIA.items() if not rule.uses_data])
def test_data_free_criteria_see_no_data(key):
    other = pai.Batch(torch.full_like(BATCH.inputs, torch.nan), None)
    assert torch.equal(flat(pai.score(network(), other, key)), flat(pai.score(network(), BATCH, key)))


# ---------------------------------------------------------------------------------------------------------
# Each formula


def quantities(model, batch, group, temperature):
    options = {"temperature": temperature}
    g, noise, alone = pai.gradient(model, batch, **options), seeded(5), seeded(5)
    return {
        "θ": flat({name: model.get_parameter(name) for name in g}),
        "g": flat(g),
        "F": flat(pai.fisher_diag(model, batch, group, **options)),
        "h": flat(pai.hutchinson_diag(model, batch, 3, group, generator=seeded(5), **options)),
        "H": flat(pai.exact_diag(model, batch, **options)),
        "Hg": flat(pai.hessian_vector_product(model, batch, g, **options)),
        "R": flat(pai.hessian_row_norm(model, batch, 3, group, generator=noise, **options)),
        "ξ": flat({name: torch.randn(value.shape, generator=noise) for name, value in g.items()}),
        "ξ alone": flat({name: torch.randn(value.shape, generator=alone) for name, value in g.items()}),
    }


FORMULAS = {
    "magnitude": lambda q, B: q["θ"].abs(),
    "grad_norm": lambda q, B: q["g"].abs(),
    "snip": lambda q, B: (q["θ"] * q["g"]).abs(),
    "grasp": lambda q, B: q["θ"] * q["Hg"],
    "fisher_diag": lambda q, B: q["F"],
    "fisher_pruning": lambda q, B: 0.5 * q["θ"] ** 2 * q["F"],
    "fts": lambda q, B: (q["θ"] * q["g"] + 0.5 * q["θ"] ** 2 * q["F"]).abs(),
    "hutchinson_diag": lambda q, B: q["h"],
    "hutchinson_pruning": lambda q, B: 0.5 * q["θ"] ** 2 * q["h"],
    "hts": lambda q, B: (q["θ"] * q["g"] + 0.5 * q["θ"] ** 2 * q["h"]).abs(),
    "exact_diag": lambda q, B: q["H"],
    "exact_pruning": lambda q, B: 0.5 * q["θ"] ** 2 * q["H"],
    "exact_taylor": lambda q, B: (q["θ"] * q["g"] + 0.5 * q["θ"] ** 2 * q["H"]).abs(),
    "row_norm": lambda q, B: 0.5 * q["θ"] ** 2 * q["R"],
    "scaled_noise": lambda q, B: 0.5 * q["θ"] ** 2 * q["R"] * q["ξ"],
    "weight_noise": lambda q, B: 0.5 * q["θ"] ** 2 * q["ξ alone"],
    "fbss": lambda q, B: torch.where(q["F"] > 0, B * q["F"] / 2 * (q["θ"] - q["g"] / (B * q["F"])) ** 2, 0),
}


@pytest.mark.parametrize("group", [1, 3, None])
@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize("key", FORMULAS)
def test_the_formula_and_the_default_temperature_of_each_criterion(key, group, temperature):
    at_200 = {"grasp", "hutchinson_diag", "hutchinson_pruning", "hts", "row_norm", "scaled_noise"}
    own = 200.0 if key in at_200 else 1.0
    model = network().double()
    expected = FORMULAS[key](quantities(model, BATCH64, group, temperature or own), group or 8)
    options = {"group": group, "temperature": temperature, "probes": 3, "generator": seeded(5)}
    found = flat(pai.score(model, BATCH64, key, **options))
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())


def test_every_criterion_but_noise_and_flow_has_its_formula_above():
    assert set(pai.CRITERIA) - set(FORMULAS) == {"random", "synflow"}


def squared_gradient_norm(model, names, temperature):
    loss, at = loss_function(model, BATCH64, names, temperature)
    return (lambda theta: torch.func.grad(loss)(theta).square().sum()), at


@pytest.mark.parametrize(("variant", "temperature", "sign"), [("cited", 200.0, 1), ("released", 1.0, -1)])
def test_grasp_is_the_derivative_of_the_squared_gradient_norm(variant, temperature, sign):
    """Scaling weight i by 1 − ε changes ‖g‖² by −2ε θᵢ(Hg)ᵢ: the cited score keeps what would lose most."""
    model = network().double()
    found = sign * flat(pai.score(model, BATCH64, "grasp", variant=variant))
    norm, at = squared_gradient_norm(model, pai.prunable(model), temperature)
    for i in found.abs().argsort(descending=True)[::20]:
        changes = []
        for epsilon in (1e-5, -1e-5):
            scaled = at.clone()
            scaled[i] *= 1 - epsilon
            changes.append(norm(scaled))
        change = (changes[0] - changes[1]).item() / 4e-5
        assert change == pytest.approx(-found[i].item(), rel=1e-4, abs=1e-4 * found.abs().max().item())


def test_synflow_is_the_gradient_of_the_absolute_network():
    model = network()
    for parameter in [*model.parameters(), model[1].running_mean]:
        parameter.data -= 0.2  # some of every tensor negative
    copy = network().double().eval()
    copy.load_state_dict({name: tensor.abs() for name, tensor in model.state_dict().items()})
    copy(torch.ones(1, 2, 6, 6).double()).sum().backward()
    weights = {name: copy.get_parameter(name) for name in pai.prunable(copy)}
    expected = {name: weight * weight.grad for name, weight in weights.items()}
    found = pai.score(model, BATCH, "synflow")
    assert all(value.dtype == torch.float64 for value in found.values())
    assert close(found, expected, 1e-12)
    assert flat(found).min() >= 0


def test_synaptic_flow_is_conserved():
    """Without shifts, the flow through every layer is the same: all of it (Tanaka et al., 2020)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    totals = [value.sum().item() for value in pai.synaptic_flow(model, BATCH, parameters="all").values()]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-12)


def test_cited_synflow_keeps_every_layer_alive_where_the_released_schedule_empties_most():
    model = pai.build_model("vgg11", 10, width=8)
    batch = batch_of(1, 3, 32, 32, dtype=torch.float32)
    cited = pai.prune(model, batch, "synflow", 0.99)
    assert pai.collapsed_layers(cited) == []
    assert pai.sparsity_of(cited) == pytest.approx(0.99, abs=1e-4)
    assert pai.effective_sparsity(model, cited, batch) < 0.995
    released = pai.prune(model, batch, "synflow", 0.99, variant="released")
    assert len(pai.collapsed_layers(released)) > len(released) / 2


# ---------------------------------------------------------------------------------------------------------
# Masks that they make


@pytest.mark.filterwarnings("ignore::pai_lib.TiedScoresWarning")  # at some sparsity a threshold meets a tie
@every_criterion
@given(sparsity=st.floats(0, 0.99))
@settings(max_examples=6)
def test_exactly_the_asked_number_is_kept(key, sparsity):
    model = network()
    for scope in ("global", "layer"):
        mask = pai.prune(model, BATCH, key, sparsity, scope=scope, rounds=2)
        sizes = [sum(kept.numel() for kept in mask.values())]
        counts = [sum(int(kept.sum()) for kept in mask.values())]
        if scope == "layer":
            sizes, counts = zip(*((kept.numel(), int(kept.sum())) for kept in mask.values()), strict=True)
        assert list(counts) == [max(1, int((1 - sparsity) * size)) for size in sizes]


@every_criterion
def test_more_rounds_only_ever_remove(key):
    """What a round has removed stays removed, and round k of n leaves the density d^(k/n)."""
    model, seen = network(), []
    weights = {name: model.get_parameter(name) for name in pai.prunable(model)}
    handle = model.register_forward_pre_hook(lambda *_: seen.append({n: w != 0 for n, w in weights.items()}))
    original = {n: w.detach().clone() for n, w in weights.items()}
    mask = pai.prune(model, BATCH, key, 0.9, rounds=4)
    handle.remove()
    for earlier, later in zip(seen, [*seen[1:], mask], strict=False):
        assert all(bool((later[name] <= earlier[name]).all()) for name in mask)
    if pai.CRITERIA[key].needs not in WITHOUT_FORWARD and key != "synflow":
        alive = sorted({sum(int(k.sum()) for k in at.values()) for at in seen}, reverse=True)
        total = sum(w.numel() for w in original.values())
        assert alive == [max(1, int(0.1 ** (k / 4) * total)) for k in range(4)]
    assert all(torch.equal(original[n], w) for n, w in weights.items())


def test_prune_names_what_is_wrong_and_leaves_the_weights():
    model = network()
    before = snapshot(model)
    for options, message in [
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": 1}, "sparsity=1"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"sparsity": 0.5, "scope": "globel"}, "Unknown scope 'globel': did you mean 'global'"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds=0"),
        ({"sparsity": 0.5, "rounds": 2, "group": 0, "key": "fts"}, "group=0"),
        ({"sparsity": 0.5, "rounds": 2, "probes": 0, "key": "hts"}, "probes=0"),
        ({"sparsity": 0.5, "chunk": 0}, "chunk=0"),
        ({"sparsity": 0.5, "parameters": ["no"]}, "no parameter 'no'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pai.prune(model, BATCH, **{"key": "snip", **options})
    assert_untouched(before, snapshot(model))


def test_weights_that_are_nan_give_an_error_and_no_mask():
    model = network()
    model[0].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="hold NaN"):
        pai.prune(model, BATCH, "snip", 0.5, rounds=2)
    assert model[0].weight.isnan().any()


def test_a_model_without_anything_to_prune_is_an_error():
    with pytest.raises(ValueError, match="Linear has no prunable weight"):
        pai.score(nn.Linear(2, 3), batch_of(2, 2), "magnitude")
    with pytest.raises(ValueError, match="Sequential has no prunable weight"):
        pai.prunable(nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)))


def test_a_criterion_may_be_used_on_any_network_that_curves_but_the_exact_ones():
    parts = {"conv": nn.Conv2d(2, 3, 3), "head": nn.Linear(3, 3)}
    model = Net(lambda net, x: net.head(F.gelu(net.conv(x)).mean((2, 3))), **parts)
    for key, rule in pai.CRITERIA.items():
        if "exact" in rule.needs:
            with pytest.raises(ValueError, match="Gelu"):
                pai.score(model, BATCH, key)
        else:
            assert flat(pai.score(model, BATCH, key)).isfinite().all()
