"""A miniature project with its own notebook, settings and table of contents: for the tests of the book."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pai_lib.book import building as book

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
CHECK = "import pai_lib as pai\n\npai.check_parameters(globals())"
UNCHECKED = "pass  # PyTorch is most of what a kernel loads: CHECK is here where a test is about the library"
FIGURE = f"""\
from IPython.display import display
info = {{"alt": "One pixel.", "caption": "A *pixel*.", "name": "fig-pixel"}}
display({{"image/png": "{PIXEL}"}}, raw=True, metadata={{"image/png": info}})
from myst_nb import glue
glue("beside", 1.0, display=False)"""
GLUE = 'from myst_nb import glue\n\nglue("value", seed + 0.125, display=False)\nprint("compared", seed)'


def write_notebook(path, parameters=PARAMETERS, last=GLUE, prose="See {numref}`fig-pixel`.", check=UNCHECKED):
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [
        text("# A chapter"),
        code(parameters, metadata={"tags": ["parameters"]}),
        code(check),
        text(prose),
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


def make_project(tmp_path):
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


URL = "https://github.com/someone/something"
COLAB = "https://colab.research.google.com/github/someone/something/blob/dev/2/notebooks/tiny.ipynb"
BINDER = "https://mybinder.org/v2/gh/someone/something/dev%2F2?urlpath=lab/tree/notebooks/tiny.ipynb"


def give_address(root, url=URL, branch="dev/2"):
    path = root / "_config.yml"
    settings = yaml.safe_load(path.read_text("utf-8"))
    settings["repository"] = {"url": url, "branch": branch}
    path.write_text(yaml.safe_dump(settings), "utf-8")


def jupyter_book(root):
    """Run plain ``jupyter-book build .`` with a PATH that does not hold the environment."""
    program = Path(sys.executable).with_name("jupyter-book")
    environ = {**os.environ, "PATH": "/usr/bin:/bin"}
    command = [program, "build", ".", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def made(root, name="first"):
    return json.loads((root / "book" / f"{name}.ipynb").read_text())
