"""Notebooks that the book offers to download: one with a page's values, and all of them in an archive."""

import importlib.util
import io
import os
import time
import zipfile

import pytest
from project import CHECK, REPO, jupyter_book, nbformat, write_chapters, write_notebook
from test_elsewhere import URL, give_address

from pai_lib.book import chapters

SPEC = importlib.util.spec_from_file_location("downloads", REPO / "book" / "_ext" / "notebook_downloads.py")
downloads = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(downloads)


@pytest.fixture
def offered(root):
    write_notebook(root / "notebooks" / "tiny.ipynb", prose="See [the figure](numref:fig-pixel).", check=CHECK)
    stored = nbformat.read(root / "notebooks" / "tiny.ipynb", 4)
    stored.cells[-1].outputs = [nbformat.v4.new_output("stream", text="compared 0")]
    stored.cells[-1].execution_count = 4
    nbformat.write(stored, root / "notebooks" / "tiny.ipynb")
    (job,) = chapters.asked_jobs(root, "smoke", ["first"], ["sparsity=0.5", "seeds=[7]"])
    return downloads.runnable(job)


def test_a_pages_notebook_has_its_title_and_values_and_no_outputs(offered):
    notebook = nbformat.reads(offered, 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source == "# A chapter: `sparsity=0.5`, `seeds=[7]`"
    parameters, values = (cell for cell in notebook.cells[1:3])
    assert parameters.metadata.tags == ["parameters"]
    assert values.source == "# Parameters\nseed = 1\nsparsity = 0.5\nseeds = [7]\n"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_runs_as_it_is(offered, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.reads(offered, 4)
    nbclient.execute(notebook, cwd=tmp_path)
    (last,) = (out.text for out in notebook.cells[-1].outputs if out.output_type == "stream")
    assert last == "compared 1\n"


def test_the_same_page_offers_the_same_bytes(root):
    (job,) = chapters.asked_jobs(root, "smoke", ["first"], [])
    assert downloads.runnable(job) == downloads.runnable(job)


def test_the_archive_holds_all_notebooks_and_how_to_open_them(root):
    write_notebook(root / "notebooks" / "another.ipynb")
    content = downloads.archive(root, "A book")
    for path in (root / "notebooks").iterdir():
        os.utime(path, (time.time() + 1e4,) * 2)
    assert downloads.archive(root, "A book") == content
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        assert packed.testzip() is None
        names = packed.namelist()
        assert names == [f"notebooks/{name}" for name in ("README.md", "another.ipynb", "tiny.ipynb")]
        assert packed.read(names[2]) == (root / "notebooks" / "tiny.ipynb").read_bytes()
        assert {entry.external_attr >> 16 for entry in packed.infolist()} == {0o644}
        readme = packed.read(names[0]).decode()
    assert "# The notebooks of *A book*" in readme
    assert "pip install -e '.[book,lab]'" in readme
    give_address(root)
    with zipfile.ZipFile(io.BytesIO(downloads.archive(root, "A book"))) as packed:
        assert f"pip install 'pai-lib[book,lab] @ git+{URL}@dev/2'" in packed.read(names[0]).decode()


@pytest.mark.book
def test_a_page_links_to_the_archive(root):
    """Beside it a page whose chapter is gone: it has nothing to run, and is built all the same."""
    link = "{download}`all </_build/notebooks.zip>`"
    assert link.split("<")[1] in (REPO / "book" / "rerun.md").read_text("utf-8")
    (root / "book" / "end.md").write_text(f"# End\n\n{link}\n")
    (root / "book" / "intro.md").write_text("# Front\n")
    code, log = jupyter_book(root)
    assert code == 0, log
    archive = root / "_build" / "notebooks.zip"
    (copy,) = (root / "_build" / "html" / "_downloads").glob("*/notebooks.zip")
    assert copy.read_bytes() == archive.read_bytes()
    assert f"{copy.parent.name}/notebooks.zip" in (root / "_build" / "html" / "book" / "end.html").read_text()

    written = archive.stat().st_mtime_ns
    with (root / "_toc.yml").open("a") as toc:
        toc.write("- file: book/second\n")
    write_chapters(root, "chapters: {second: {notebook: tiny}}")
    code, log = jupyter_book(root)
    assert code == 0, log
    assert archive.stat().st_mtime_ns == written
