"""A misspelt keyword is answered with the nearest, and signatures tell the keywords that there are."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pai_lib as pai
from pai_lib.names import checked_keywords
from pai_lib.pruning.scoring import ScoreOptions

MISSPELT = {
    "prune": ("proges", "progress"),
    "score": ("parameter", "parameters"),
    "score_many": ("probe", "probes"),
    "train": ("epoch", "epochs"),
    "warm_up": ("update", "updates"),
    "evaluate": ("batch", "batches"),
    "run": ("devise", "device"),
    "run_masks": ("proges", "progress"),
    "build_model": ("widht", "width"),
    "make_mask": ("scop", "scope"),
    "gradient": ("temprature", "temperature"),
    "hessian_vector_product": ("vector", "vectors"),
    "synaptic_flow": ("states", "state"),
    "fisher_diag": ("groups", "group"),
    "ggn_diag": ("modes", "mode"),
    "exact_diag": ("chunks", "chunk"),
    "hutchinson_diag": ("distributon", "distribution"),
    "hessian_row_norm": ("probs", "probes"),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_the_nearest_keyword_is_named_before_anything_else_is_looked_at(name):
    wrong, right = MISSPELT[name]
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no keyword '{wrong}': did you mean '{right}'\?"):
        getattr(pai, name)(None, **{wrong: 1})


@pytest.mark.parametrize("name", MISSPELT)
def test_the_signature_is_the_functions_own(name):
    function = getattr(pai, name)
    assert inspect.signature(function) == inspect.signature(function.__wrapped__)
    assert function.__doc__ == function.__wrapped__.__doc__
    assert function.__module__.startswith("pai_lib.")


def test_the_options_of_a_score_are_those_of_many():
    parameters = inspect.signature(pai.score_many).parameters
    hints = {name: p.annotation for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert hints.pop("variant") == "str"
    options = {name: getattr(hint, "__forward_arg__", hint) for name, hint in ScoreOptions.__annotations__.items()}
    assert options == hints


def test_no_public_function_takes_any_option_whatever():
    """It would hide a misspelt keyword from people and editors; but a mask's file may be told anything."""
    for name in pai.__all__:
        function = getattr(pai, name)
        if inspect.isfunction(function) and name not in ("save_mask", "criterion"):
            parameters = inspect.signature(function).parameters.values()
            assert all("Unpack" in p.annotation for p in parameters if p.kind is p.VAR_KEYWORD), name


@given(st.text(st.characters(categories=["Ll"]), min_size=1))
def test_any_other_keyword_is_an_error_and_the_known_ones_pass(name):
    @checked_keywords
    def function(first, /, second=0, *rest, third=1):
        return first, second, rest, third

    if name in ("second", "third"):
        assert function(1, **{name: 5}) in ((1, 5, (), 1), (1, 0, (), 5))
    else:
        with pytest.raises(TypeError, match=f"has no keyword {name!r}"):
            function(1, **{name: 5})
    with pytest.raises(TypeError, match="has no keyword 'first'"):
        function(first=1)
    assert function(1, 2, 3, third=4) == (1, 2, (3,), 4)


def test_other_errors_stay_pythons():
    with pytest.raises(TypeError, match="missing"):
        pai.prune(torch.nn.Linear(1, 1))
