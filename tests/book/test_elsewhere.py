"""Notebooks outside the book: what they say where the library is missing, and links to Colab and Binder."""

import builtins
import re
import shlex

import pytest
from packaging.requirements import Requirement
from project import BINDER, COLAB, REPO, URL, give_address, nbformat, write_notebook

from pai_lib.book import building as book
from pai_lib.book import chapters, keys
from pai_lib.book.pages import import_lines, notebook_links, repository

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
DOWNLOAD = "{download}`notebooks/tiny.ipynb </notebooks/tiny.ipynb>`"


def second_cell(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return cells[1].source


def as_python(lines):
    """Return the lines of a cell without magics."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(lines)


class Shell:
    """What ``get_ipython`` returns, on Colab or elsewhere: it notes what it installs."""

    def __init__(self, name):
        self.name, self.installed = name, []

    def __str__(self):
        return f"<{self.name} object at 0x7f>"

    def run_line_magic(self, name, line):
        self.installed.append((name, shlex.split(line)))


def run_lines(lines, shell, monkeypatch):
    """Run cells' lines where the library is missing until the shell has installed something."""
    real = builtins.__import__

    def importing(name, *args, **options):
        if name == "pai_lib" and not shell.installed:
            raise ModuleNotFoundError("No module named 'pai_lib'", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    namespace = {"get_ipython": lambda: shell}
    exec(as_python(lines), namespace)
    return namespace


COLAB_SHELL, OTHER_SHELL = "google.colab._shell.Shell", "ipykernel.zmqshell.ZMQInteractiveShell"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_the_library_or_says_how_to_get_it(path):
    message = "run `pai notebooks`: it writes the address of _config.yml into them"
    assert second_cell(path).startswith(import_lines(REPO)), message


@pytest.mark.parametrize(("url", "shell"), [("", COLAB_SHELL), ("", OTHER_SHELL), (URL, OTHER_SHELL)])
def test_without_an_address_or_elsewhere_than_on_colab_nothing_is_installed(root, monkeypatch, url, shell):
    give_address(root, url)
    get = "run  pip install 'pai-lib[book] @ git+https://" if url else "clone the repository, run  pip install"
    shell = Shell(shell)
    with pytest.raises(ImportError, match=rf"^pai_lib is missing: {re.escape(get)}.*, restart the kernel\.$"):
        run_lines(import_lines(root), shell, monkeypatch)
    assert shell.installed == []


def test_on_colab_the_library_is_installed_from_its_address(root, monkeypatch):
    give_address(root)
    shell = Shell(COLAB_SHELL)
    namespace = run_lines(import_lines(root), shell, monkeypatch)
    assert namespace["pai"].__name__ == "pai_lib"
    ((magic, (command, asked)),) = shell.installed
    assert (magic, command) == ("pip", "install")
    wanted = Requirement(asked)
    assert (wanted.name, wanted.extras, wanted.url) == ("pai-lib", {"book"}, f"git+{URL}@dev/2")


@pytest.mark.parametrize("url", ["", URL])
def test_where_the_library_is_there_nothing_is_asked(root, url):
    give_address(root, url)
    namespace = {}
    exec(as_python(import_lines(root)), namespace)
    assert namespace["pai"].__name__ == "pai_lib"


def test_without_an_address_there_is_only_the_download(root):
    give_address(root, "")
    assert repository(root) == ("", "dev/2")
    assert notebook_links(root, "notebooks/tiny.ipynb") == DOWNLOAD
    (root / "_config.yml").unlink()
    assert repository(root) == ("", "main")


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}.git"])
def test_with_an_address_there_are_links(root, url):
    give_address(root, url)
    links = notebook_links(root, "notebooks/tiny.ipynb")
    assert f"({COLAB})" in links
    assert f"({BINDER})" in links
    assert DOWNLOAD in links


def test_another_host_has_no_links_but_an_address(root):
    give_address(root, "https://example.org/someone/something")
    assert "olab" not in notebook_links(root, "notebooks/tiny.ipynb")
    assert "example.org/someone/something" in import_lines(root)


def test_an_address_reaches_notebooks_and_pages(root):
    """All that a maintainer does: fill in the address, then `pai notebooks` and `pai book`."""
    path = root / "notebooks" / "tiny.ipynb"
    give_address(root, "")
    write_notebook(path, check=import_lines(root) + "\n1 + 1\n")
    job = chapters.Job(chapters.load_chapters(root)["first"], "smoke", {})
    before = keys.chapter_key(root, job)
    give_address(root)
    assert keys.chapter_key(root, job) != before
    book.update_notebooks(root)
    assert nbformat.read(path, 4).cells[2].source == import_lines(root) + "\n1 + 1\n"
    assert "colab" in import_lines(root)
    give_address(root, "")
    book.update_notebooks(root)
    assert nbformat.read(path, 4).cells[2].source == import_lines(root) + "\n1 + 1\n"
    assert "colab" not in import_lines(root)


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
