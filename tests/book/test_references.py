"""References in notebooks, plain links that lead somewhere; and docstrings as Sphinx reads them."""

import inspect
import json
import re
from pathlib import Path

import pytest

import pai_lib
from pai_lib.book.chapters import load_chapters
from pai_lib.book.pages import CHAPTER, REFERENCE

REPO = Path(__file__).parents[2]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
BIBLIOGRAPHY = (REPO / "book" / "references.bib").read_text("utf-8")


def prose(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_role(path):
    assert not [role for text in prose(path) for role in re.findall(r"\{[a-z]+(?::[a-z]+)*\}`", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_references_lead_somewhere(path):
    text = "\n".join(prose(path))
    keys = {key for _, role, keys in REFERENCE.findall(text) if role.startswith("cite") for key in keys.split(",")}
    assert all(f"{{{key}," in BIBLIOGRAPHY for key in keys), keys
    pages = {page for _, page in CHAPTER.findall(text)}
    written = {page.stem for page in (REPO / "book").glob("*.md")}
    assert pages <= set(load_chapters(REPO)) | written


@pytest.mark.parametrize("name", pai_lib.__all__)
def test_no_sentence_of_what_is_returned_is_taken_for_its_type(name):
    """Napoleon splits the first line of "Returns" at its colon."""
    napoleon = pytest.importorskip("sphinx.ext.napoleon")
    offered = getattr(pai_lib, name)
    members = vars(offered).values() if inspect.isclass(offered) else ()
    docs = (inspect.getdoc(each) for each in (offered, *members) if callable(each))
    texts = [str(napoleon.GoogleDocstring(text)) for text in docs if text]
    assert not [line for text in texts for line in text.splitlines() if line.startswith(":rtype:")]
