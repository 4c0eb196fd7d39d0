"""Notebooks outside the book: what they say where the library is missing, and links to Colab and Binder."""

import builtins
import re

import pytest
from project import BINDER, COLAB, REPO, URL, give_address, nbformat

from pai_lib.book import building as book
from pai_lib.book import chapters, keys
from pai_lib.book.pages import how_to_get, notebook_links, repository

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
DOWNLOAD = "{download}`notebooks/tiny.ipynb </notebooks/tiny.ipynb>`"


def second_cell(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return cells[1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_how_to_get_the_library(path, monkeypatch):
    head = second_cell(path).partition("pai.check_parameters")[0]
    assert how_to_get(REPO) in head, "run `pai notebooks`: it writes the address of _config.yml into them"
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "pai_lib":
            raise ModuleNotFoundError("No module named 'pai_lib'", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"^{re.escape(how_to_get(REPO))}$"):
        exec(head, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_with_the_library_goes_on(path):
    namespace = {}
    exec(second_cell(path).partition("pai.check_parameters")[0], namespace)
    assert namespace["pai"].__name__ == "pai_lib"


def test_without_an_address_there_is_only_the_download(root):
    give_address(root, "")
    assert repository(root) == ("", "dev/2")
    assert notebook_links(root, "notebooks/tiny.ipynb") == DOWNLOAD
    assert how_to_get(root).startswith("pai_lib is missing: clone the repository, run  pip install -e '.[book]'")
    (root / "_config.yml").unlink()
    assert repository(root) == ("", "main")


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}.git"])
def test_with_an_address_there_are_links(root, url):
    give_address(root, url)
    links = notebook_links(root, "notebooks/tiny.ipynb")
    assert f"({COLAB})" in links
    assert f"({BINDER})" in links
    assert DOWNLOAD in links
    assert f"git clone --depth 1 {URL} pai && pip install './pai[book]'" in how_to_get(root)


def test_another_host_has_no_links_but_an_address(root):
    give_address(root, "https://example.org/someone/something")
    assert "olab" not in notebook_links(root, "notebooks/tiny.ipynb")
    assert "example.org/someone/something" in how_to_get(root)


def test_an_address_reaches_notebooks_and_pages(root):
    """All that a maintainer does: fill in the address, then `pai notebooks` and `pai book`."""
    path = root / "notebooks" / "tiny.ipynb"
    check = 'missing = "pai_lib is missing: somehow."'
    nb = nbformat.read(path, 4)
    nb.cells[2].source = check
    nbformat.write(nb, path)
    job = chapters.Job(chapters.load_chapters(root)["first"], "smoke", {})
    before = keys.chapter_key(root, job)
    give_address(root)
    assert keys.chapter_key(root, job) != before
    book.update_notebooks(root)
    assert nbformat.read(path, 4).cells[2].source == check.replace(
        "pai_lib is missing: somehow.", how_to_get(root)
    )


def test_binder_installs_the_pinned_versions():
    script = (REPO / ".binder" / "postBuild").read_text("utf-8")
    assert (REPO / ".binder" / "postBuild").stat().st_mode & 0o111
    assert "constraints.txt" in script
    assert ".[book]" in script
    pinned = (REPO / "constraints.txt").read_text("utf-8")
    assert re.search(r"^torch==", pinned, re.MULTILINE)
    assert re.search(r"^torchvision==", pinned, re.MULTILINE)
    python = (REPO / ".binder" / "runtime.txt").read_text("utf-8").strip()
    assert re.fullmatch(r"python-3\.(1[1-9])", python)
