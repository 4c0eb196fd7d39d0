"""Outputs that tests compare: the same text each time, on every machine; of a figure its alternative text."""

import json
import re

import pandas as pd
import pytest
from project import PIXEL, REPO, nbformat

from pai_lib.analysis import figures
from pai_lib.book import building as book

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


def displayed(function, *args, monkeypatch):
    """Return what a function displays, as ``{type: text}`` once for each call of ``display``."""
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    function(*args)
    return shown


def test_a_table_is_the_same_text_each_time(monkeypatch):
    def styled(value):
        return pd.DataFrame({"a": [value, 2.0]}, index=["x", "y"]).style.format("{:.1f} %")

    one, again, other = (displayed(figures.table, styled(v), monkeypatch=monkeypatch) for v in (1.0, 1.0, 3.0))
    assert one == again
    assert one[0]["text/plain"].split() == ["a", "x", "1.0", "%", "y", "2.0", "%"]
    assert "1.0 %" in one[0]["text/html"]
    names = [re.search(r'<table id="(\w+)"', shown[0]["text/html"])[1] for shown in (one, other)]
    assert names[0] != names[1]  # two tables on a page


@pytest.mark.parametrize(
    ("value", "kept"),
    [(1 / 3, 0.333333), (123456.789, 123457.0), (-0.00012345678, -0.000123457), (12, 12), ("fewer", "fewer")],
)
def test_a_number_for_the_sentences_has_six_digits(value, kept, monkeypatch):
    import myst_nb

    calls = []
    monkeypatch.setattr(myst_nb, "glue", lambda *args, **options: calls.append((args, options)))
    figures.glue("name", value)
    assert calls == [(("name", kept), {"display": False})]
    assert type(calls[0][0][1]) is type(value)


def test_of_a_figure_the_alternative_text_is_kept_and_compared(root):
    path = root / "notebooks" / "tiny.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[4].metadata["tags"] = [book.STORED_TAG]
    data = f'{{"image/png": "{PIXEL}", "text/plain": "One pixel."}}'
    nb.cells[4].source = f"from IPython.display import display\ndisplay({data}, raw=True)"
    nbformat.write(nb, path)
    book.update_notebooks(root)
    (out,) = nbformat.read(path, 4).cells[4].outputs
    assert out.data == {"text/plain": "One pixel."}
    assert "image/png" not in out.metadata


def compared_cells(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return [cell for cell in cells if book.STORED_TAG in cell.metadata.get("tags", [])]


def test_most_outputs_are_compared():
    assert sum(len(compared_cells(path)) for path in NOTEBOOKS) >= 100


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_the_same_on_every_machine(path):
    for cell in compared_cells(path):
        assert cell.outputs, cell.id
        assert cell.execution_count
        text = json.dumps(cell.outputs, ensure_ascii=False)
        for varying in (" at 0x", "image/png", "<pandas.io.formats.style", "/home/", "/tmp/", "site-packages"):
            assert varying not in text, (cell.id, varying)
    assert "from myst_nb import glue" not in path.read_text("utf-8")  # it keeps digits that machines differ in


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_compared_cell_shows_no_bar(path):
    """A bar goes to stderr wherever `pai book` does not watch, and is then an output that nothing expects."""
    for cell in compared_cells(path):
        assert "with_progress(" not in cell.source, cell.id
