"""References in notebooks: plain links that any reader of notebooks shows, and that lead somewhere."""

import json
import re
from pathlib import Path

import pytest

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
