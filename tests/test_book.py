"""The book's machinery, on a miniature project with its own notebooks, settings and table of contents."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pai_lib import book, cli
from pai_lib.parameters import Parameter, check_parameters, notebook_parameters, parse_overrides, text_of

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
pytest.importorskip("jupyter_book")

REPO = Path(__file__).parents[1]
PIXEL = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
).decode()
PARAMETERS = """\
seed: int = 0  # random seed
sparsity: float = 0.98  # fraction removed
seeds: list[int] = [0, 42]
name: str | None = None  # a | b
fail: bool = False  # raise in the middle"""
CHECK = "from pai_lib.parameters import check_parameters\n\ncheck_parameters(globals())"
FIGURE = f"""\
from IPython.display import display
info = {{"alt": "One pixel.", "caption": "A *pixel*.", "name": "fig-pixel"}}
display({{"image/png": "{PIXEL}"}}, raw=True, metadata={{"image/png": info}})
from myst_nb import glue
glue("beside", 1.0, display=False)"""
GLUE = 'from myst_nb import glue\n\nglue("value", seed + 0.125, display=False)\nprint("compared", seed)'


def write_notebook(path, parameters=PARAMETERS, last=GLUE):
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [
        text("# A chapter"),
        code(parameters, metadata={"tags": ["parameters"]}),
        code(CHECK),
        text("See {numref}`fig-pixel`."),
        code(FIGURE),
        code('if fail:\n    raise RuntimeError("as asked")'),
        code(last, metadata={"tags": [book.STORED_TAG]}),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"c{number}"
    kernel = {"name": "nowhere-installed", "display_name": "x", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def write_chapters(root, text):
    (root / "notebooks" / "chapters.yaml").write_text(text)


@pytest.fixture
def root(tmp_path):
    """Return a project with one notebook and one chapter made from it."""
    shutil.copytree(REPO / "book" / "_ext", tmp_path / "book" / "_ext")
    shutil.copytree(REPO / "book" / "_static", tmp_path / "book" / "_static")
    shutil.copy(REPO / "_config.yml", tmp_path)
    (tmp_path / "book" / "references.bib").write_text("@misc{key, title = {A title}, author = {A. Name}}\n")
    (tmp_path / "book" / "intro.md").write_text(
        "# Front\n\nIt is {glue:text}`first.ipynb::value:.3f` {cite}`key`.\n"
    )
    (tmp_path / "book" / "end.md").write_text("# End\n\n```{bibliography}\n:all:\n```\n")
    toc = "format: jb-book\nroot: book/intro\nchapters:\n- file: book/first\n- file: book/end\n"
    (tmp_path / "_toc.yml").write_text(toc)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / ".pytest_cache").mkdir()  # a trap: it holds a page that no table of contents names
    (tmp_path / ".pytest_cache" / "README.md").write_text("# Cache\n")
    write_notebook(tmp_path / "notebooks" / "tiny.ipynb")
    write_chapters(
        tmp_path, "chapters:\n  first: {notebook: tiny, parameters: {seed: 1}, paper: {sparsity: 1e-3}}\n"
    )
    return tmp_path


def jupyter_book(root):
    """Run plain ``jupyter-book build .`` with a PATH that does not hold the environment."""
    program = Path(sys.executable).with_name("jupyter-book")
    environ = {**os.environ, "PATH": "/usr/bin:/bin"}
    command = [program, "build", ".", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


# --- parameters ----------------------------------------------------------------------------------------


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
        ("bool", "1"),
        ("float", "a"),
        ("list[float]", "0.9"),
        ("list[int]", "[1,"),
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


# --- chapters.yaml and the command line ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "chapters: {a: {notebook: tiny, parametres: {}}}",
            "unknown key 'parametres'; did you mean 'parameters'",
        ),
        ("chapters: {a: {notebook: tinny}}", "a needs notebooks/tinny.ipynb"),
        ("chapters: {a: {notebook: tiny, parameters: {sed: 1}}}", "chapter a: no parameter is named 'sed'"),
        ("chapters: {a: {notebook: tiny, parameters: {seed: true}}}", "seed must be int, not True (bool)"),
        ("chapters: {'../a': {notebook: tiny}}", "chapter name '../a'"),
        ("book: 1", "mapping 'chapters:'"),
        ("chapters: [", "chapters.yaml is not YAML"),
        ("chapters: {a: tiny}", "a must be a mapping with 'notebook:', not 'tiny'"),
        ("chapters: {a: {notebook: tiny, records: '*.json'}}", "records must be a list, not '*.json'"),
    ],
)
def test_wrong_chapters_are_one_line_and_exit_code_two(root, monkeypatch, capsys, text, sentence):
    write_chapters(root, text)
    monkeypatch.chdir(root / "book")
    assert cli.main(["book", "--no-build"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pai: error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (root / "_build").exists()


def test_list_names_every_parameter(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    assert cli.main(["book", "--list"]) == 0
    assert re.search(r"seed: int = 1 +random seed\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "words", [["-p", "seed=2"], ["--chapter", "frist"], ["--chapter", "first", "-p", "sedd=2"]]
)
def test_wrong_commands_do_no_work(root, monkeypatch, capsys, words):
    monkeypatch.chdir(root)
    assert cli.main(["book", *words]) == 2
    assert capsys.readouterr().err.startswith("pai: error: ")
    assert not (root / "_build").exists()


def test_outside_a_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["book"]) == 2
    assert "no notebooks/chapters.yaml" in capsys.readouterr().err


# --- keys ----------------------------------------------------------------------------------------------


def test_the_key_covers_what_a_chapter_depends_on(root):
    def key(profile="smoke", overrides=()):
        chapter = book.load_chapters(root)["first"]
        return book.chapter_key(root, book.Job(chapter, profile, dict(overrides)))

    keys = [key(), key("paper"), key(overrides={"seed": 2})]
    (root / "results" / "digits").mkdir(parents=True)
    (root / "results" / "digits" / "1.json").write_text("{}")
    keys.append(key())
    write_notebook(root / "notebooks" / "tiny.ipynb", last="1 + 1")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(overrides={"seed": 1}) == key()  # what chapters.yaml says anyway


def test_a_chapter_that_shows_no_records_does_not_depend_on_them(root):
    write_chapters(root, "chapters: {first: {notebook: tiny, records: []}}")
    job = book.Job(book.load_chapters(root)["first"], "smoke", {})
    before = book.chapter_key(root, job)
    (root / "results").mkdir()
    (root / "results" / "1.json").write_text("{}")
    assert book.chapter_key(root, job) == before


# --- execution -----------------------------------------------------------------------------------------


def made(root, name="first"):
    return json.loads((root / "book" / f"{name}.ipynb").read_text())


def test_only_stale_chapters_run_and_a_failure_keeps_the_page(root, capsys):
    book.build_book(root, html=False)
    assert "executed first" in capsys.readouterr().out
    first = (root / "book" / "first.ipynb").read_bytes()
    book.build_book(root, html=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(book.ChapterError, match=r"first failed in cell 7 \('if fail:'\): RuntimeError: as asked"):
        book.build_book(root, names=["first"], pairs=["fail=true"], html=False)
    assert (root / "book" / "first.ipynb").read_bytes() == first
    assert "as asked" in (root / "_build" / "failed" / "first.ipynb").read_text()
    write_notebook(root / "notebooks" / "tiny.ipynb", last="print('other')")
    book.build_book(root, html=False)
    assert (root / "book" / "first.ipynb").read_bytes() != first
    text = json.dumps(made(root))
    assert str(root) not in text
    assert not {"papermill", "execution"} & set(made(root)["metadata"])
    assert sorted(path.name for path in (root / "book").iterdir() if path.is_file()) == [
        "end.md", "first.ipynb", "intro.md", "references.bib"]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("-p", ["sede", "1"], "no parameter is named 'sede'; did you mean 'seed'?"),
        ("-p", ["seed", "half"], "seed must be int, not 'half' (str)"),
    ],
)
def test_plain_papermill_checks_too(root, tmp_path, option, value, sentence):
    command = [sys.executable, "-m", "papermill", "-k", "python3", root / "notebooks" / "tiny.ipynb"]
    command += [tmp_path / "out.ipynb", option, *value]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    assert sentence in done.stderr


def test_updated_notebooks_keep_only_compared_outputs(root):
    path = root / "notebooks" / "tiny.ipynb"
    book.update_notebooks(root, ["tiny"])
    text = path.read_text()
    nb = json.loads(text)
    assert [cell["id"] for cell in nb["cells"]] == [f"c{number}" for number in range(7)]
    outputs = [cell["outputs"] for cell in nb["cells"] if cell["cell_type"] == "code"]
    assert [bool(found) for found in outputs] == [False] * 4 + [True]
    assert outputs[-1][-1]["text"] == ["compared 0\n"]
    assert text.endswith("}\n")
    assert sorted(nb["metadata"]) == ["kernelspec", "language_info"]
    book.update_notebooks(root)
    assert path.read_text() == text
    with pytest.raises(ValueError, match="no notebook is named 'tony'; did you mean 'tiny'"):
        book.update_notebooks(root, ["tony"])


def test_a_figure_with_alt_text_is_alone_in_its_cell(root):
    write_notebook(root / "notebooks" / "tiny.ipynb", last=FIGURE + "\n1 + 1")
    with pytest.raises(book.ChapterError, match="cell 8: a figure with alt text must be alone"):
        book.build_book(root, html=False)


# --- pages ---------------------------------------------------------------------------------------------


@pytest.mark.book
def test_pages(root):
    """A fresh clone, then a chapter of other values, then a failing one, each by plain jupyter-book."""
    write_chapters(root, "chapters: {first: {notebook: tiny, parameters: {seed: 1}}, second: {notebook: tiny}}")
    with (root / "_toc.yml").open("a") as toc:
        toc.write("- file: book/second\n")  # the same notebook twice: labels must not clash
    code, log = jupyter_book(root)
    assert code == 0, log
    assert "executed first" in log
    assert "executed second" in log
    page = (root / "_build" / "html" / "book" / "first.html").read_text()
    assert 'alt="One pixel."' in page
    assert re.search(r"<figcaption>.*A <em>pixel</em>", page, re.DOTALL)
    assert page.count("<figure") == 1  # a number glued beside a figure is no second one
    assert '<span class="std std-numref">Fig. 1</span>' in page
    assert "How this page was made" in page
    assert "Show the parameters and their defaults" in page
    assert "tag_injected-parameters" not in page
    assert "_downloads" in page
    assert "pai book --profile smoke --chapter first" in re.sub(r"<[^>]*>", "", page)
    assert str(Path.home()) not in page.replace("file://", "")
    front = root / "_build" / "html" / "book" / "intro.html"
    assert "1.125" in front.read_text()

    book.build_book(root, names=["first"], pairs=["seed=5", "sparsity=1e-3"], html=False)
    code, log = jupyter_book(root)
    assert code == 0, log
    assert "executed" not in log  # it is fresh for the values it was made with
    assert made(root)["metadata"]["pai"]["overrides"] == {"seed": 5, "sparsity": 0.001}
    assert "5.125" in front.read_text()  # a page that only quotes the number

    write_chapters(root, "chapters: {first: {notebook: tiny, parameters: {fail: true}}, second: {notebook: tiny}}")
    (root / "book" / "first.ipynb").unlink()
    code, log = jupyter_book(root)
    assert code != 0
    assert "first failed in cell 7" in log
