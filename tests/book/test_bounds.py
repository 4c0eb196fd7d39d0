"""Each parameter of each notebook has bounds, and a value outside of them is refused before anything runs."""

import math
import re

import pytest
from project import REPO, write_notebook

from pai_lib import cli
from pai_lib.book import building as book
from pai_lib.book.chapters import load_chapters, with_notebooks
from pai_lib.book.choices import FIELDS, bounds_of, check_parameters, check_values, field_of
from pai_lib.book.parameters import notebook_parameters, parse_overrides, text_of

NOTEBOOKS = {
    name: notebook_parameters(chapter.notebook)
    for name, chapter in with_notebooks(REPO, load_chapters(REPO)).items()
    if chapter.alone or name == chapter.notebook.stem
}
EVERY = [pytest.param(n, p, id=f"{n}-{p.name}") for n, declared in NOTEBOOKS.items() for p in declared.values()]


def refuses(name, text):
    """Tell whether the command line refuses a value of a chapter, as a sentence that names the parameter."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        book.asked_jobs(REPO, "smoke", [name], [text])
    assert str(error.value).startswith((f"chapter {name}: ", f"-p {text}: "))
    return field_of(text.partition("=")[0]) or text.partition("=")[0] in str(error.value)


def outside(parameter):
    """Give values of the right type that no parameter of its kind may have."""
    kind = parameter.annotation.removesuffix(" | None")
    inner = kind.removeprefix("list[").removesuffix("]")
    wrong = {"int": [-1], "float": [-1.0, math.inf, math.nan], "str": ["nosuch thing"], "bool": []}[inner]
    for value in wrong:
        yield [value] if kind.startswith("list") else value
    if kind.startswith("list"):
        first = parameter.default[0]
        yield [first, wrong[0]]
        if not FIELDS[field_of(parameter.name) or "seed"].type.startswith("tuple"):  # no drops are a schedule too
            yield []
            yield [first, first]


@pytest.mark.parametrize(("notebook", "parameter"), EVERY)
def test_every_parameter_refuses_what_is_out_of_range(notebook, parameter):
    for value in outside(parameter):
        assert refuses(notebook, f"{parameter.name}={text_of(value)}"), value


@pytest.mark.parametrize(("notebook", "parameter"), EVERY)
def test_every_bound_is_declared_once_and_in_words_that_are_read(notebook, parameter):
    numeric = re.search(r"\b(int|float)\b", parameter.annotation)
    assert bool(numeric) <= bool(field_of(parameter.name) or bounds_of(parameter.help))
    assert ("[" in parameter.help) == bool(bounds_of(parameter.help))
    check_values({parameter.name: parameter.default}, "x", {parameter.name: parameter.help})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("obd_saliency -p hidden=0", "chapter obd_saliency: hidden=0: it must be at least 1."),
        ("pat -p seeds=[]", "chapter pat: seeds=[]: it must hold at least one value."),
        ("pat -p seeds=[3,1,3]", "chapter pat: seeds=[3, 1, 3]: 3 stands there twice."),
        (f"obd_saliency -p hidden={10**400}", "it must be below 2**63."),
        (f"ablations -p draws=[{2**63}]", f"draws=[{2**63}]: it must be below 2**63."),
        ("empirical_fisher -p label_noise=7", "label_noise=7.0: it must be at least 0 and at most 1."),
        ("empirical_fisher -p label_noise=.nan", "label_noise=.nan: it must be at least 0 and at most 1."),
        ("accuracy_resnet18_cifar10 -p batch_size=0", "batch_size=0: it must be at least 1."),
        ("accuracy_resnet18_cifar10 -p sparsities=[0.9,0]", "it must be above 0 and below 1."),
        ("accuracy_resnet18_cifar10 -p train_fraction=0", "train_fraction=0.0: it must be above 0"),
        ("signal_or_noise -p probes=1", "probes=1: it must be at least 2."),
        ("ablations -p temperatures_tried=[1,0]", "temperatures_tried=[1.0, 0.0]: it must be above 0."),
        ("cost -p widths=[4]", "widths=[4]: it must hold two values or more."),
        ("cost -p samples=[4,0]", "samples=[4, 0]: it must be two or more, at least 1."),
        ("criteria -p probes=1", "probes=1: it must be at least 2."),
        ("cost -p classes=1", "classes=1: it must be at least 2."),
        ("pat -p epochs=2 -p lr=0.1 -p epochs=3", "-p epochs=3: epochs is given twice, first as 2"),
        ("pat -p epochs=2 -p epochs=2", "-p epochs=2: epochs is given twice, first as 2"),
    ],
)
def test_the_sentences(capsys, monkeypatch, words, sentence):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(book, "execute_all", lambda *args: pytest.fail("something runs"))
    assert cli.main(["book", "--no-build", "--chapter", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pai: error: ")
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ("at least 1", [1, 2], [0]),
        ("above 0", [0.1], [0, -1, math.inf, math.nan]),
        ("at most 0.5", [0.5, -9], [0.51]),
        ("at least 0 and below 1", [0, 0.99], [1, -0.1]),
        ("above -2 and at most 2", [-1.9, 2], [-2, 2.1]),
    ],
)
def test_bounds_in_words(rule, right, wrong):
    comments = {"hidden": f"units (of [two] layers) [{rule}]"}
    for value in [*right, right, None]:
        check_values({"hidden": value}, "x", comments)
    for value in [*wrong, [right[0], wrong[0]]]:
        with pytest.raises(ValueError, match=rf"^x: hidden=.*: it must be {rule}\.$"):
            check_values({"hidden": value}, "x", comments)


@pytest.mark.parametrize("comment", ["", "units", "units [about 3]", "[at least 1] units", "units [at least one]"])
def test_what_is_no_bound(comment):
    assert bounds_of(comment) == ""


def test_a_notebook_checks_its_bounds_itself():
    history = ["", "# Ünits\nhidden: int = 3  # units [at least 1]\nseeds: list[int] = [\n    0,\n]  # each a run"]
    check_parameters({"In": history, "hidden": 1, "seeds": [0]})
    with pytest.raises(ValueError, match=r"^parameters: hidden=0: it must be at least 1\.$"):
        check_parameters({"In": [*history, "# Parameters\nhidden = 0"], "hidden": 0, "seeds": [0]})
    with pytest.raises(ValueError, match=r"^parameters: seeds=\[\]: it must hold at least one value\.$"):
        check_parameters({"In": history, "hidden": 1, "seeds": []})


def test_a_comment_may_stand_within_a_statement_of_several_lines():
    history = ["", "hidden: int = (\n    3  # units [at least 1]\n)"]
    with pytest.raises(ValueError, match=r"^parameters: hidden=0: it must be at least 1\.$"):
        check_parameters({"In": history, "hidden": 0})


def test_the_list_shows_a_bound_once(root, capsys, monkeypatch):
    write_notebook(root / "notebooks" / "tiny.ipynb", "seed: int = 1  # of all [at least 1]\nprobes: int = 1  # m")
    chapter = "chapters: {first: {notebook: tiny}}"
    (root / "notebooks" / "chapters.yaml").write_text(chapter)
    monkeypatch.chdir(root)
    assert cli.main(["book", "--list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"seed: int = 1 +of all \[at least 1\]\n", out)
    assert re.search(r"probes: int = 1 +m \[at least 1\]\n", out)


def test_parameters_are_given_once():
    declared = NOTEBOOKS["pat"]
    assert parse_overrides(["epochs=2", "lr=0.1"], declared) == {"epochs": 2, "lr": 0.1}
    with pytest.raises(ValueError, match="epochs is given twice"):
        parse_overrides(["epochs=2", "epochs=3"], declared)
