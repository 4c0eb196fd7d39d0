"""Parameters of notebooks: declared, read from a command line, and checked in name, type and value."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import REPO, write_notebook

import pai_lib as pai
from pai_lib import check_parameters
from pai_lib.book import chapters, choices
from pai_lib.book.parameters import Parameter, notebook_parameters, parse_overrides, text_of


def test_parameters_are_read_from_the_first_code_cell(root):
    declared = notebook_parameters(root / "notebooks" / "tiny.ipynb")
    assert declared["sparsity"] == Parameter("sparsity", "float", 0.98, "fraction removed")
    assert declared["seeds"].default == [0, 42]
    assert declared["seeds"].help == ""
    assert declared["name"] == Parameter("name", "str | None", None, "a | b")


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("seed = 0", "write name: type = default"),
        ("seed: int = 0.5", "seed must be int, not 0.5 (float)"),
        ("seed: int = len('x')", "the default of seed must be a literal"),
        ("seed: dict = {}", "annotation 'dict'"),
        ("seed: int =", "parameters cell, line 1"),
    ],
)
def test_wrong_parameter_cells_are_refused(tmp_path, cell, sentence):
    write_notebook(tmp_path / "x.ipynb", cell)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        notebook_parameters(tmp_path / "x.ipynb")


def declare(annotation):
    return {"x": Parameter("x", annotation, None, "")}


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("float", "1e-3", 0.001),
        ("float", "2", 2.0),
        ("int", "010", 10),
        ("int", "0x10", 16),
        ("float", "+.inf", math.inf),
        ("str", "007", "007"),
        ("str", "null", "null"),
        ("bool", "True", True),
        ("int | None", "null", None),
        ("str | None", "12", "12"),
        ("list[float]", "[0.9,1e-3, 1]", [0.9, 0.001, 1.0]),
        ("list[str]", "[on, 1]", ["on", "1"]),
        ("list[int] | None", "[]", []),
    ],
)
def test_command_line_values_become_the_declared_type(annotation, text, value):
    result = parse_overrides([f"x={text}"], declare(annotation))["x"]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("int", "1.5"),
        ("int", "true"),
        ("int", "1_0"),
        ("int", "٣"),
        ("bool", "1"),
        ("bool", "tRue"),
        ("float", "a"),
        ("float", "1_0.5"),
        ("float", " 1"),
        ("list[float]", "0.9"),
        ("list[int]", "[1,"),
        ("list[int]", "[1_0]"),
    ],
)
def test_command_line_values_of_another_type_are_refused(annotation, text):
    with pytest.raises(ValueError, match=re.escape(f"x must be {annotation}")):
        parse_overrides([f"x={text}"], declare(annotation))


words = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
typed = st.one_of(
    st.tuples(st.just("int"), st.integers()),
    st.tuples(st.just("float"), finite),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("str"), words),
    st.tuples(st.just("float | None"), st.none() | finite),
    st.tuples(st.just("list[float]"), st.lists(finite)),
    st.tuples(st.just("list[str]"), st.lists(words)),
)


@given(typed)
def test_a_written_value_is_read_back(pair):
    annotation, value = pair
    assert parse_overrides([f"x={text_of(value)}"], declare(annotation)) == {"x": value}


@given(typed, st.sampled_from(["int", "float", "bool", "str", "list[float]"]))
def test_a_value_passes_only_as_its_type(pair, annotation):
    actual, value = pair
    fits = actual == annotation or (actual, annotation) == ("int", "float") or value is None
    fits = fits or (isinstance(value, float) and annotation == "float") or (value == [] and "list" in annotation)
    history = ["", f"x: {annotation} = 0"]
    if fits and value is not None:
        check_parameters({"In": history, "x": value})
    else:
        with pytest.raises(ValueError, match="x must be"):
            check_parameters({"In": history, "x": value})


def test_check_parameters_in_a_long_session():
    history = ["", "seed: int = 0", "# Parameters\nsede = 3\n", "other = [1]", "%matplotlib inline"]
    names = {"In": history, "seed": 0, "sede": 3, "other": [1]}
    with pytest.raises(ValueError, match="no parameter is named 'sede'; did you mean 'seed'"):
        check_parameters(names)
    history.append("# Parameters\nseed = 3\n")  # corrected, and run again beside other globals
    check_parameters(names)
    check_parameters({"seed": "not in a notebook"})


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "field"),
    [
        ("criteria", "criterion"), ("sparsities", "sparsity"), ("seeds", "seed"), ("lr_drops", "lr_drops"),
        ("records_dataset", "dataset"), ("collapse_sparsity", "sparsity"), ("train_fraction", "train_fraction"),
        ("lr_warmup", "lr_warmup"), ("widths", "width"), ("hidden", None), ("training_steps", None), ("x", None),
        ("samples_per_class", "samples_per_class"), ("reference_per_class", None),
    ],
)  # fmt: skip
def test_parameters_are_fields_of_a_run_by_their_names(parameter, field):
    assert choices.field_of(parameter) == field


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("model", "resnet81", "Unknown model 'resnet81': did you mean 'resnet8'"),
        ("records_model", "vgg91", "records_model=vgg91: Unknown model 'vgg91': did you mean 'vgg19'"),
        ("dataset", "cifar01", "Unknown dataset 'cifar01': did you mean 'cifar10'"),
        ("dataset", "", "Unknown dataset ''"),
        ("criteria", ["snip", "snipp"], "criteria=[snip, snipp]: Unknown criterion 'snipp': did you mean 'snip'"),
        ("sparsities", [0.9, 1.5], "sparsities=[0.9, 1.5]: sparsity=1.5: it must be at least 0 and below 1"),
        ("schedule", "cosin", "Unknown schedule 'cosin': did you mean 'cosine'"),
        ("lr_drops", [0.5, 2.0], "lr_drops=(0.5, 2.0): it must be above 0 and below 1"),
        ("width", 0, "width=0: it must be at least 1"),
        ("device", "gpu", 'device="gpu": it must be "cpu" or "cuda"'),
    ],
)
def test_wrong_values_are_refused_with_the_nearest_right_one(name, value, sentence):
    with pytest.raises(ValueError, match=f"^here: {re.escape(sentence)}"):
        choices.check_values({"epochs": 3, name: value}, "here")
    history = ["", f"{name}: {'list' if isinstance(value, list) else type(value).__name__} = 0"]
    with pytest.raises(ValueError, match=f"^parameters: {re.escape(sentence)}"):
        check_parameters({"In": history, name: value})


def test_values_are_checked_together():
    with pytest.raises(ValueError, match="here: lr_warmup=3 with epochs=3: it must be shorter"):
        choices.check_values({"epochs": 3, "lr_warmup": 3}, "here")
    choices.check_values({"epochs": 3, "lr_warmup": 2, "sparsity": 0.0, "width": None, "hidden": -1}, "here")


@pytest.mark.parametrize("profile", chapters.PROFILES)
@pytest.mark.parametrize("chapter", chapters.load_chapters(REPO).values(), ids=lambda chapter: chapter.name)
def test_the_books_own_values_are_allowed(chapter, profile):
    declared = notebook_parameters(chapter.notebook)
    values = {name: p.default for name, p in declared.items()} | chapter.values(profile, {})
    choices.check_values({name: value for name, value in values.items() if name != "device"}, chapter.name)
    assert all(parameter.help for parameter in declared.values())


def test_what_is_allowed_is_read_from_the_registries():
    assert choices.allowed("models") == ", ".join(pai.model_names())
    assert choices.allowed("criteria") == ", ".join(pai.CRITERIA)
    assert choices.allowed("dataset").startswith("digits, digits32, cifar10")
    assert choices.allowed("precision") == "float32, bf16"
    assert choices.allowed("epochs") == "at least 1"
    assert choices.allowed("seed") == "at least 0"
    assert choices.allowed("lr_drops") == "above 0 and below 1, each a fraction of the run"
    assert choices.allowed("hidden") == ""


def test_the_papers_profile_trains_what_a_page_leaves_out():
    for chapter in chapters.load_chapters(REPO).values():
        if chapter.paper and "live_run" in notebook_parameters(chapter.notebook):
            assert chapter.values("paper", {}).get("live_run", True), chapter.name
