"""The page on one's own model and data: every block runs, in order, and prints what the page shows."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import pai_lib as pai

PAGE = Path(__file__).parents[2] / "book" / "own_model.md"


def blocks(text):
    """Return the code blocks of a page, each with the line it begins at and what is said to be printed."""
    found = []
    for match in re.finditer(r"^```(python|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if match[1] == "python":
            found.append([text[: match.start()].count("\n") + 2, match[2], ""])
        else:
            found[-1][2] += match[2]
    return found


def run_page(text, path=PAGE):
    namespace = {"__name__": "page"}
    for line, code, shown in blocks(text):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
        assert out.getvalue() == shown, f"{path.name}, block at line {line}"


def test_the_page_does_what_it_shows(monkeypatch):
    monkeypatch.setenv("PAI_DATA", "set by the page itself")
    run_page(PAGE.read_text("utf-8"))


def test_a_page_that_shows_something_else_fails():
    run_page("```python\nprint(1)\n```\n\n```text\n1\n```\n")
    with pytest.raises(AssertionError, match="block at line 6"):
        run_page("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="block at line 2"):
        run_page("```python\nprint(1)\n```\n")
    with pytest.raises(ZeroDivisionError):
        run_page("```python\n1 / 0\n```\n")


def test_every_part_is_there():
    text = PAGE.read_text("utf-8")
    assert len(blocks(text)) >= 12
    for name in ("Batch", "warm_up", "prune", "train", "evaluate", "save_mask", "load_mask", "to_torch_prune"):
        assert f"pai.{name}(" in text
        assert hasattr(pai, name)
