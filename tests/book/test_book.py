"""The book's machinery, on a miniature project with its own notebooks, settings and table of contents."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from project import (
    BINDER,
    CHECK,
    COLAB,
    FIGURE,
    URL,
    give_address,
    jupyter_book,
    made,
    write_chapters,
    write_notebook,
)

from pai_lib import cli
from pai_lib.book import building as book
from pai_lib.book import chapters, keys, pages

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
        ("chapters: [", "chapters.yaml: while parsing"),
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
    assert re.search(r"seed: int = 1 +random seed ", capsys.readouterr().out)


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
        chapter = chapters.load_chapters(root)["first"]
        return keys.chapter_key(root, chapters.Job(chapter, profile, dict(overrides)))

    different = [key(), key("paper"), key(overrides={"seed": 2})]
    for folder in ("digits/resnet8", "masks/digits/resnet8"):
        (root / "results" / folder).mkdir(parents=True)
    (root / "results" / "digits" / "resnet8" / "1.json").write_text("{}")
    different.append(key())
    (root / "results" / "masks" / "digits" / "resnet8" / "1.json").write_text("{}")
    assert key() == different[-1]  # a chapter that shows masks says so
    write_notebook(root / "notebooks" / "tiny.ipynb", last="1 + 1")
    different.append(key())
    assert len(set(different)) == len(different)
    assert key(overrides={"seed": 1}) == key()  # what chapters.yaml says anyway


def test_a_chapter_that_shows_no_records_does_not_depend_on_them(root):
    write_chapters(root, "chapters: {first: {notebook: tiny, records: []}}")
    job = chapters.Job(chapters.load_chapters(root)["first"], "smoke", {})
    before = keys.chapter_key(root, job)
    (root / "results").mkdir()
    (root / "results" / "1.json").write_text("{}")
    assert keys.chapter_key(root, job) == before


# --- execution -----------------------------------------------------------------------------------------


def test_only_stale_chapters_run_and_a_failure_keeps_the_page(root, capsys):
    book.build_book(root, html=False)
    assert "executed first" in capsys.readouterr().out
    first = (root / "book" / "first.ipynb").read_bytes()
    book.build_book(root, html=False)
    assert capsys.readouterr().out == ""
    sound = (root / "notebooks" / "chapters.yaml").read_text()
    write_chapters(root, "chapters: {first: {notebook: tiny, parameters: {fail: true}}}")
    with pytest.raises(book.ChapterError, match=r"first failed in cell 7 \('if fail:'\): RuntimeError: as asked"):
        book.build_book(root, html=False)
    assert (root / "book" / "first.ipynb").read_bytes() == first
    assert "as asked" in (root / "_build" / "failed" / "first.ipynb").read_text()
    (root / "notebooks" / "chapters.yaml").write_text(sound)
    write_notebook(root / "notebooks" / "tiny.ipynb", last="print('other')")
    book.build_book(root, html=False)
    assert (root / "book" / "first.ipynb").read_bytes() != first
    text = json.dumps(made(root))
    assert str(root) not in text
    assert not {"papermill", "execution"} & set(made(root)["metadata"])
    assert sorted(path.name for path in (root / "book").iterdir() if path.is_file()) == [
        "end.md",
        "first.ipynb",
        "intro.md",
        "references.bib",
    ]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("-p", ["sede", "1"], "no parameter is named 'sede'; did you mean 'seed'?"),
        ("-p", ["seed", "half"], "seed must be int, not 'half' (str)"),
    ],
)
def test_plain_papermill_checks_too(root, tmp_path, option, value, sentence):
    write_notebook(root / "notebooks" / "tiny.ipynb", check=CHECK)
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


def test_what_a_cell_shows_beside_a_figure_has_a_cell_of_its_own(root):
    write_notebook(root / "notebooks" / "tiny.ipynb", last=FIGURE + "\n1 + 1")
    book.build_book(root, html=False)
    page = nbformat.read(root / "book" / "first.ipynb", 4)
    place = next(i for i, cell in enumerate(page.cells) if "1 + 1" in cell.source)
    code, *shown, _ = page.cells[place:]  # the last one tells how the page was made
    assert [out.metadata.scrapbook.name for out in code.outputs] == ["beside"]  # what is glued stays
    assert all(cell.source for cell in shown), "MyST-NB leaves out cells without a source"
    assert [[*out.data] for cell in shown for out in cell.outputs if "image/png" in out.data] == [["image/png"]]
    assert all(cell.metadata.tags == ["remove-input"] and len(cell.outputs) == 1 for cell in shown)
    for cell in shown:
        captioned = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
        assert captioned == ("A *pixel*." if "image/png" in cell.outputs[0].data else None)
    assert shown[-1].outputs[0].data["text/plain"] == "2"


def test_cells_that_show_nothing_leave_no_bar_and_no_heading():
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    folded, compared = {"tags": ["hide-input"]}, {"tags": ["hide-input", book.STORED_TAG]}
    shown = [nbformat.v4.new_output("stream", text="1")]
    cells = [
        text("# A chapter"), code("import os", metadata=folded), code("first", metadata=compared),
        text("## Kept"), code("x = 1", metadata=folded), code("silent", metadata=compared),
        code("1", outputs=shown),
        text("## Dropped"), text("Of it."), code("y = 2", metadata=folded), code("z = 3"),
        text("## Words alone"),
    ]  # fmt: skip
    pages.leave_out_silent(nbformat.v4.new_notebook(cells=cells))
    gone = [cell.source for cell in cells if "remove-cell" in cell.metadata.get("tags", [])]
    assert gone == ["first", "silent", "## Dropped", "Of it.", "y = 2", "z = 3"]


# --- pages ---------------------------------------------------------------------------------------------


@pytest.mark.book
def test_pages(root):
    """A fresh clone with an address, then a failing chapter, each by plain jupyter-book."""
    give_address(root)
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
    assert "Show the parameters" in page
    assert "tag_injected-parameters" not in page
    assert "_downloads" in page
    assert "pai book --profile smoke --chapter first" in re.sub(r"<[^>]*>", "", page)
    assert str(Path.home()) not in page.replace("file://", "")
    assert f'href="{COLAB}"' in page
    assert f'href="{BINDER}"' in page
    assert f'href="{URL}"' in page  # the theme's own buttons
    assert f'href="{URL}/issues/new' in page
    assert "colab" in "".join(made(root)["cells"][-1]["source"])
    assert "1.125" in (root / "_build" / "html" / "book" / "intro.html").read_text()

    write_chapters(root, "chapters: {first: {notebook: tiny, parameters: {fail: true}}, second: {notebook: tiny}}")
    (root / "book" / "first.ipynb").unlink()
    code, log = jupyter_book(root)
    assert code != 0
    assert "first failed in cell 7" in log
