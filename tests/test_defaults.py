"""Defaults that must not change in silence: callers who leave an argument out rely on them. New ones may come."""

import inspect

import pytest
import torch
from conftest import batch_of, flat

import pai_lib as pai
from pai_lib.experiments.run import Work, perform

SCORED = {"temperature": 1.0, "parameters": "prunable", "chunk": None}
DEFAULTS = {
    "build_model": {"in_channels": 3, "width": None, "seed": 0},
    "gradient": SCORED,
    "hessian_vector_product": {"temperature": 1.0, "chunk": None},
    "fisher_diag": {"group": 1, **SCORED},
    "exact_diag": SCORED,
    "ggn_diag": {"mode": "exact", "generator": None, **SCORED},
    "hutchinson_diag": {
        "probes": 10, "group": None, "distribution": "rademacher", "generator": None, "standard_error": False,
        **SCORED,
    },
    "hessian_row_norm": {"probes": 10, "group": None},
    "synaptic_flow": {"parameters": "prunable", "state": None},
    "score_many": {
        "group": 1, "probes": 10, "temperature": None, "variant": "cited", "generator": None,
        "parameters": "prunable", "chunk": None,
    },
    "make_mask": {"scope": "global"},
    "prune": {"scope": "global", "rounds": None, "variant": "cited"},
    "shuffle_within_layers": {"generator": None},
    "warm_up": {"updates": 98, "batch_size": 512, "seed": 0},
    "train": {
        "mask": None, "epochs": 160, "batch_size": 512, "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4,
        "lr_drops": (0.5, 0.75), "lr_drop_factor": 0.2, "optimizer": "sgd", "schedule": "steps", "lr_warmup": 0,
        "label_smoothing": 0.0, "precision": "float32", "seed": 0, "compile": False, "progress": True,
    },
    "run": {"store": None, "device": None, "data": None, "progress": True, "shared": None},
    "load_data": {"root": None, "image_size": None},
    "Shared": {"networks": 2},
    "Store": {"root": "results"},
}  # fmt: skip

# Temperature, rounds and variants of each criterion, as cited.
CRITERIA = {
    **dict.fromkeys("random magnitude grad_norm snip fisher_diag fisher_pruning fts".split(), (1, 1, 1)),
    **dict.fromkeys("exact_diag exact_pruning exact_taylor fbss weight_noise".split(), (1, 1, 1)),
    **dict.fromkeys("hutchinson_diag hutchinson_pruning hts row_norm scaled_noise".split(), (200, 1, 1)),
    "grasp": (200, 1, 2),
    "synflow": (1, 100, 2),
}


def test_what_takes_long_shows_a_bar_unless_told_not_to():
    functions = [value for value in map(pai.__dict__.get, pai.__all__) if inspect.isfunction(value)]
    found = [inspect.signature(function).parameters.get("progress") for function in functions]
    shown = [parameter.default for parameter in found if parameter is not None]
    assert len(shown) > 5
    assert set(shown) == {True}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_frozen(name):
    parameters = inspect.signature(getattr(pai, name)).parameters
    found = {key: parameters[key].default for key in DEFAULTS[name]}
    assert found == DEFAULTS[name]
    assert [type(value) for value in found.values()] == [type(value) for value in DEFAULTS[name].values()]


def test_criteria_are_as_cited():
    rules = pai.CRITERIA.values()
    found = {rule.key: (rule.temperature, rule.rounds, len(rule.variants)) for rule in rules}
    assert {key: found[key] for key in CRITERIA} == CRITERIA
    assert {rule.default_temperature("released") for rule in rules} == {1.0}


GENERATORS = {
    "ggn_diag": lambda model, batch, **options: flat(pai.ggn_diag(model, batch, "mc", **options)),
    "hutchinson_diag": lambda model, batch, **options: flat(pai.hutchinson_diag(model, batch, 1, **options)),
    "random scores": lambda model, batch, **options: flat(pai.score(model, batch, "random", **options)),
    "normal scores": lambda model, batch, **options: flat(pai.score(model, batch, "weight_noise", **options)),
    "shuffle": lambda model, batch, **options: flat(
        pai.shuffle_within_layers(pai.make_mask(pai.score(model, batch, "magnitude"), 0.5), **options)
    ),
}


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
def test_no_generator_is_a_new_one_with_seed_0(draw):
    model, batch = pai.build_model("resnet8", 3, width=2), batch_of(4, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(draw(model, batch), draw(model, batch, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(draw(model, batch), draw(model, batch, generator=torch.Generator().manual_seed(1)))


def test_nothing_is_saved_at_first():
    assert pai.Shared().seconds == 0.0


def test_a_run_of_a_sweep_shows_no_bar_of_its_own():
    assert "progress" not in inspect.signature(perform).parameters
    assert inspect.signature(Work).parameters["progress"].default is False
