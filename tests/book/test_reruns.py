"""Runs of chapters with values of one's own: their names, their pages beside the chapters, when they are stale."""

import json
import os
import re

import pytest
import yaml
from project import jupyter_book, made, nbformat, write_chapters, write_notebook

from pai_lib import cli
from pai_lib.book import building as book
from pai_lib.book import chapters, keys

PROSE = """\
See {numref}`fig-pixel`, {numref}`picture %s <fig-pixel>`, [it](#fig-pixel), {eq}`law`, {ref}`here <place>`,
{doc}`end`, {doc}`the end <end>` and `law`.

(place)=
## A place

$$ x = 1 $$ (law)"""
LAST = """\
from IPython.display import Markdown
from myst_nb import glue
glue("value", seed + 0.125, display=False)
Markdown("By {eq}`law`, as {doc}`end` says.")"""


def run(*words):
    return cli.main(["book", "--no-build", "--chapter", *words])


def names(root):
    return sorted(path.stem for path in (root / "book" / "runs").glob("*"))


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


@pytest.fixture
def quickly(monkeypatch):
    """Put notebooks in their places as if they had been executed."""

    def read(root, source, values, label, watch):
        return nbformat.read(source, 4), 0.25

    monkeypatch.setattr(book, "run_notebook", read)


# --- names


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"sparsity": 0.5, "seed": 3}, "first--seed-3--sparsity-0.5"),  # in the notebook's order
        ({"seeds": [0, 42]}, "first--seeds-0+42"),
        ({"seeds": []}, "first--seeds-"),
        ({"name": None}, "first--name-null"),
        ({"fail": True}, "first--fail-true"),
        ({"name": "/data/my birds"}, r"first--name-my-birds-[0-9a-f]{6}"),
        ({"name": "../up"}, r"first--name-up-[0-9a-f]{6}"),
        ({"seed": -1}, r"first--seed-1-[0-9a-f]{6}"),
        ({"name": "x" * 300}, r"first--name-x{78}-[0-9a-f]{6}"),
    ],
)
def test_a_run_is_named_after_its_values(root, overrides, name):
    chapter = chapters.load_chapters(root)["first"]
    found = chapters.run_name(chapter, "smoke", overrides)
    assert re.fullmatch(name.replace("+", r"\+"), found)
    (job,) = chapters.asked_jobs(root, "smoke", ["first"], [], found)
    assert job.run == found  # it may be given as a name
    assert chapters.run_name(chapter, "paper", overrides).startswith("first--paper--")


def test_the_title_of_a_run_has_no_path_of_its_machine(root):
    chapter = chapters.load_chapters(root)["first"]
    job = chapters.Job(chapter, "smoke", {"name": "/data/my birds", "seed": 3}, "mine")
    assert job.title.endswith(": `seed=3`, `name=my birds`")
    assert job.parameters["name"] == "/data/my birds"


def test_values_that_look_alike_have_names_of_their_own(root):
    chapter = chapters.load_chapters(root)["first"]
    texts = ["a b", "a-b", "/x/a-b", "/y/a-b", "a_b", "a+b"]
    assert len({chapters.run_name(chapter, "smoke", {"name": text}) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["first", "--name", "a/b"], "--name a/b: it must be up to 100 letters"),
        (["first", "--name", ".."], "--name ..: it must be"),
        (["first", "--name", "a.ipynb"], "'+' and '.', without .ipynb"),
        (
            ["first", "--list", "-p", "seed=2"],
            "-p seed=2 needs --chapter NAME, no --list: ",
        ),
        (["first", "--chapter", "second", "--name", "a"], "--name a needs one --chapter"),
        (["tinny"], "no chapter is named 'tinny'; did you mean 'tiny'?"),
        (["first", "-p", "sede=2"], "no parameter is named 'sede'; did you mean 'seed'?"),
        (["first", "-p", "seed=x"], "seed must be int, for example seed=0"),
        (["first", "-p", "sparsity=1.5"], "chapter first: sparsity=1.5: it must be at least 0 and below 1"),
        (["tiny", "-p", "seeds=[1, -2]"], "chapter tiny: seeds=[1, -2]: seed=-2: it must be at least 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(root, capsys, words, sentence):
    write_chapters(root, "chapters: {first: {notebook: tiny}, second: {notebook: tiny}}")
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("pai: error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (root / "_build").exists()


# --- what is run, and what is stale


def test_a_run_stands_beside_its_chapter(quickly, root, capsys):
    book.build_book(root, html=False)
    before = (root / "book" / "first.ipynb").read_bytes()
    assert run("first", "-p", "seed=5", "-p", "name=a|b") == 0
    assert run("tiny", "-p", "seed=6", "--name", "mine") == 0  # the notebook, not a chapter
    assert (root / "book" / "first.ipynb").read_bytes() == before
    marked, mine = names(root)
    assert mine == "mine"
    assert marked.startswith("first--seed-5--name-a-b-")
    nb = made(root, f"runs/{marked}")
    pai = nb["metadata"]["pai"]
    assert pai["chapter"] == "first"
    assert pai["overrides"] == {"seed": 5, "name": "a|b"}
    assert nb["cells"][0]["source"] == ["# A chapter: `seed=5`, `name=a|b`"]
    assert "pai book --profile smoke --chapter first -p seed=5 -p 'name=a|b'" in "".join(nb["cells"][-1]["source"])
    again = "".join(made(root, "runs/mine")["cells"][-1]["source"])
    assert "pai book --profile smoke --chapter tiny -p seed=6 --name mine" in again
    assert made(root, "runs/mine")["metadata"]["pai"]["chapter"] == "tiny"
    capsys.readouterr()
    book.build_book(root, html=False)
    assert run("first", "-p", "name=a|b", "-p", "seed=5") == 0  # the same in another order
    assert run("first", "-p", "name=a|b", "-p", "seed=5", "--name", marked) == 0
    assert capsys.readouterr().out == ""


def test_the_papers_size_makes_the_chapter_itself(quickly, root):
    write_chapters(root, "chapters: {first: {notebook: tiny, title: Nice · so, paper: {seed: 7}}}")
    assert run("first", "--profile", "paper") == 0
    assert made(root)["metadata"]["pai"]["profile"] == "paper"
    assert run("first", "--profile", "paper", "-p", "sparsity=0.5") == 0
    assert names(root) == ["first--paper--sparsity-0.5"]
    title = made(root, "runs/first--paper--sparsity-0.5")["cells"][0]["source"]
    assert title == ["# Nice\u00a0· so: the paper's size, `sparsity=0.5`"]


def test_the_papers_size_is_refused_where_it_changes_nothing_or_there_is_no_gpu(root, capsys, monkeypatch):
    cell = "seed: int = 0  # random seed\ndevice: str | None = None  # where"
    write_notebook(root / "notebooks" / "tiny.ipynb", cell)
    write_chapters(root, "chapters: {first: {notebook: tiny}, second: {notebook: tiny, paper: {device: cuda}}}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words, sentence in (
        (["--chapter", "first"], "chapter first has no values of its own there; leave --profile out"),
        (["--chapter", "second"], "chapter second takes hours or days on a GPU, and PyTorch finds none here"),
        ([], "chapter second takes hours or days on a GPU"),  # first, which it would not change, is left alone
    ):
        assert cli.main(["book", "--no-build", "--profile", "paper", *words]) == 2
        assert f"pai: error: --profile paper: {sentence}" in capsys.readouterr().err
    assert not (root / "_build").exists()
    (job,) = chapters.asked_jobs(root, "paper", ["second"], ["device=cpu"])
    assert job.parameters["device"] == "cpu"  # who insists may


def test_values_from_a_file_are_checked_and_a_pair_counts_more(quickly, root, capsys):
    file = root / "mine.yaml"
    file.write_text("seed: 5\nname: a\n")
    assert run("first", "--parameters", str(file), "-p", "seed=6", "--name", "mine") == 0
    assert made(root, "runs/mine")["metadata"]["pai"]["overrides"] == {"seed": 6, "name": "a"}
    capsys.readouterr()
    for text, sentence in (
        ("sede: 5", "--parameters: no parameter is named 'sede'; did you mean 'seed'?"),
        ("seed: five", "--parameters: seed must be int, not 'five' (str)"),
        ("- 5", f"--parameters {file}: it must hold lines of name: value"),
        ("seed: 1\nseed: 2", f"{file}: line 1: 'seed' stands there twice"),
    ):
        file.write_text(text)
        assert run("first", "--parameters", str(file)) == 2
        assert sentence in capsys.readouterr().err
    assert cli.main(["book", "--parameters", str(file)]) == 2
    assert "needs --chapter NAME" in capsys.readouterr().err


def test_runs_are_made_again_as_they_were_when_they_are_stale(quickly, root, monkeypatch, capsys):
    write_chapters(root, "chapters: {first: {notebook: tiny, records: ['{name}/*.json']}}")
    for folder in ("digits", "other"):
        (root / "results" / folder).mkdir(parents=True)
    assert run("first", "-p", "name=digits", "-p", "seed=5") == 0
    book.build_book(root, html=False)

    def stale():
        return [job.page for job in keys.stale_jobs(root, chapters.load_chapters(root))]

    page = "runs/first--seed-5--name-digits"
    assert stale() == []
    (root / "results" / "other" / "1.json").write_text("{}")
    assert stale() == []  # not a record that it shows
    (root / "results" / "digits" / "1.json").write_text("{}")
    assert stale() == [page]  # nor does the chapter, whose name is null
    (root / "results" / "digits" / "1.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(keys, "version", lambda package: "another")
        assert stale() == ["first", page]
    write_notebook(root / "notebooks" / "tiny.ipynb", last="1 + 1")
    assert stale() == ["first", page]
    capsys.readouterr()
    book.build_book(root, html=False)
    assert f"executed {page}" in capsys.readouterr().out
    assert made(root, page)["metadata"]["pai"]["overrides"] == {"name": "digits", "seed": 5}
    assert stale() == []


def test_a_failed_run_leaves_the_page_that_was_there(root, capsys):
    assert run("first", "-p", "seed=1", "--name", "mine") == 0
    before = (root / "book" / "runs" / "mine.ipynb").read_bytes()
    assert run("first", "-p", "fail=true", "--name", "mine") == 2
    sentence = (
        "runs/mine failed in cell 7 ('if fail:'): RuntimeError: as asked (see _build/failed/runs/mine.ipynb)"
    )
    assert sentence in capsys.readouterr().err
    assert (root / "book" / "runs" / "mine.ipynb").read_bytes() == before


def test_what_cannot_be_made_again_says_so(quickly, root, capsys):
    assert run("first", "-p", "sparsity=0.5") == 0
    write_notebook(root / "notebooks" / "tiny.ipynb", "seed: int = 0  # random seed\nfail: bool = False")
    write_chapters(root, "chapters: {first: {notebook: tiny}}")
    capsys.readouterr()
    sentence = "book/runs/first--sparsity-0.5.ipynb cannot be made again, delete it: chapter first: no parameter"
    assert cli.main(["book", "--no-build"]) == 2
    assert sentence in capsys.readouterr().err
    assert cli.main(["book", "--list"]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_a_notebook_of_other_origin_is_no_page(root):
    (root / "book" / "runs").mkdir()
    write_notebook(root / "book" / "runs" / "mine.ipynb")
    with pytest.warns(UserWarning, match=r"book/runs/mine.ipynb is no page of the book"):
        assert keys.run_files(root) == []


def test_data_of_ones_own_are_named_by_their_whole_path(root, monkeypatch):
    write_notebook(root / "notebooks" / "tiny.ipynb", 'dataset: str = "digits"\nfail: bool = False', last="1 + 1")
    write_chapters(root, "chapters: {first: {notebook: tiny}}")
    (root / "birds").mkdir()
    (job,) = book.asked_jobs(root, "smoke", ["first"], ["dataset=birds"])
    assert job.overrides == {"dataset": os.path.realpath(root / "birds")}
    assert job.page.startswith("runs/first--dataset-birds-")
    monkeypatch.setenv("PAI_DATA", str(root))
    monkeypatch.chdir(root / "notebooks")
    (job,) = book.asked_jobs(root, "smoke", ["first"], ["dataset=birds"])
    assert job.overrides == {"dataset": "birds"}  # found there from every folder
    with pytest.raises(ValueError, match="chapter first: Unknown dataset 'brids'"):
        book.asked_jobs(root, "smoke", ["first"], ["dataset=brids"])


def test_a_trials_file_and_folder_are_named_by_their_whole_path(root):
    write_notebook(root / "notebooks" / "tiny.ipynb", 'file: str = ""\nrecords: str = ""', last="1 + 1")
    write_chapters(root, "chapters: {first: {notebook: tiny}}")
    (root / "mine.py").write_text("")
    (root / "kept").mkdir()
    (job,) = book.asked_jobs(root, "smoke", ["first"], ["file=mine.py", "records=kept"])
    assert job.overrides == {
        name: os.path.realpath(root / place) for name, place in (("file", "mine.py"), ("records", "kept"))
    }
    for pair, kind in (("file=kept", "file"), ("records=mine.py", "folder"), ("records=nowhere", "folder")):
        with pytest.raises(
            ValueError, match=rf"chapter first: {pair.split('=')[0]}=.*: there is no such {kind}\.$"
        ):
            book.asked_jobs(root, "smoke", ["first"], [pair])


# --- the list


def test_the_list_shows_runs_and_allowed_values(quickly, root, capsys):
    write_chapters(root, "chapters: {first: {notebook: tiny, parameters: {seed: 1}}, second: {notebook: tiny}}")
    cell = 'model: str = "resnet8"  # architecture\nseed: int = 0  # random seed\nfail: bool = False'
    write_notebook(root / "notebooks" / "tiny.ipynb", cell)
    assert run("first", "-p", "seed=5") == 0
    capsys.readouterr()
    assert cli.main(["book", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines())
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "chapter first with seed=1" in lines
    assert "chapter second" in lines
    write_chapters(
        root,
        "chapters: {first: {notebook: tiny, parameters: {seed: 1}}, second: {notebook: tiny, paper: {seed: 9}}}",
    )
    book.build_book(root, html=False, names=["second"])
    capsys.readouterr()
    assert cli.main(["book", "--list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    at = next(n for n, line in enumerate(lines) if re.fullmatch(r"chapter second \(took \d+ s\)", line))
    assert lines[at + 1] == "--profile paper: seed=9"
    assert "model: str = resnet8 architecture [a model, see below]" in lines
    assert any(line.startswith("model: resnet18, ") for line in lines)
    assert "seed: int = 0 random seed [at least 0]" in lines
    assert "first--seed-5: A chapter: seed=5" in lines
    write_notebook(root / "notebooks" / "tiny.ipynb", cell, last="1 + 1")
    cli.main(["book", "--list", "--chapter", "first"])
    out = capsys.readouterr().out
    assert "first--seed-5 (out of date): A chapter: seed=5" in out
    assert re.search(r"seed: int = 1 +random seed", out)
    assert "second" not in out
    cli.main(["book", "--list", "--chapter", "second"])
    assert "first" not in capsys.readouterr().out


# --- pages


@pytest.mark.book
def test_pages_of_runs(root):
    """Two runs by plain jupyter-book, then one of them beside a chapter that has changed; contents stay."""
    notebook = root / "notebooks" / "tiny.ipynb"
    write_notebook(notebook, last=LAST, prose=PROSE)
    committed = (root / "_toc.yml").read_text()
    assert run("first", "-p", "seed=5", "-p", "sparsity=1e-3") == 0
    assert run("tiny", "-p", "seeds=[1, 2]", "-p", "name=a`b") == 0
    paths = sorted((root / "book" / "runs").glob("*.ipynb"))
    assert [path.stem.partition("-a-b")[0] for path in paths] == [
        "first--seed-5--sparsity-0.001",
        "tiny--seeds-1+2--name",
    ]
    code, log = jupyter_book(root)
    assert code == 0, log  # a label that is there twice would be a warning, and so would a page that is missing
    assert "executed runs" not in log
    html = root / "_build" / "html" / "book"
    page = (html / "runs" / f"{paths[0].stem}.html").read_text()
    assert re.search(r"<h1>A chapter: .*seed=5.*sparsity=0.001", page)
    assert 'href="../end.html"' in page
    numbers = set(re.findall(r'class="std std-numref">(?:Fig\.|picture) (\d+)<', page))
    assert len(numbers) == 1  # both references are to the figure of this page
    assert f"Fig. {numbers.pop()} " in re.sub(r"<[^>]*>", "", page)
    assert 'id="runs-first-seed-5-sparsity-0-001-fig-pixel"' in page.lower()
    assert "1.125" in (html / "intro.html").read_text()  # the front page quotes the chapter, which is untouched
    for name, seed in ((f"runs/{paths[0].stem}", 5), ("first", 1)):  # the page's link, and the theme's button
        links = re.findall(r'href="([^"]*\.ipynb)"', (html / f"{name}.html").read_text())
        assert {
            (html / f"{name}.html").parent.joinpath(link).resolve() for link in links if "_sources" in link
        } == {root / "_build" / "html" / "_sources" / "book" / f"{name}.ipynb"}
        offered = (root / "_build" / "html" / "_sources" / "book" / f"{name}.ipynb").read_text()
        assert f"seed = {seed}" in offered
        assert "How this page was made" not in offered
    for other in (html / "first.html", html / "end.html"):
        text = other.read_text()
        assert "Your runs" in text
        assert f'href="runs/{paths[0].stem}.html"' in text
    assert (root / "_toc.yml").read_text() == committed

    paths[1].unlink()
    write_chapters(root, "chapters: {first: {notebook: tiny, parameters: {seed: 5}}}")
    book.build_book(root, html=False)
    code, log = jupyter_book(root)
    assert code == 0, log
    assert "executed" not in log  # all are fresh
    assert "5.125" in (html / "intro.html").read_text()  # a page that only quotes the number
    assert (html / "runs" / f"{paths[0].stem}.html").is_file()
    assert not (html / "runs" / f"{paths[1].stem}.html").exists()
    assert paths[1].stem not in (html / "end.html").read_text()
    assert "runs" not in json.dumps(made(root)["metadata"])


def test_without_runs_the_committed_contents_are_used(quickly, root):
    toc, built = root / "_toc.yml", root / "_build"
    assert book.contents(root, toc, built) == toc
    assert not built.exists()
    assert run("first", "-p", "seed=5") == 0
    parts = yaml.safe_load(book.contents(root, toc, built).read_text())["parts"]
    assert parts == [
        {"chapters": [{"file": "book/first"}, {"file": "book/end"}]},
        {"caption": "Your runs", "chapters": [{"file": "book/runs/first--seed-5"}]},
    ]
