"""The library's shape: which file may import which, and how much code there is."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
import yaml

import pai_lib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pai_lib"
# In the order in which data flow: a file imports only from files before it.
ORDER = (
    "parameters progress draws batch pictures data datasets streams models graph operations adjoints calls "
    "problem derivatives squares curvature hutchinson criteria scoring ranking masks exports tape flow inspection "
    "checkpoints settings training spec provenance records runs campaigns cluster sweep verdicts figures choices "
    "chapters listing execution book cli"
).split()
CORE = "curvature hutchinson criteria scoring ranking masks training".split()  # what a reader holds in the head
DERIVATIVES = "graph operations adjoints calls problem derivatives squares".split()  # what it rests on
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imported(source):
    """Return the names of the library's own modules that a source imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pai_lib.")}
            if any(alias.name == "pai_lib" for alias in node.names):
                found.add("__init__")
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"pai_lib.{module}".rstrip(".")
            if module == "pai_lib":
                found |= {alias.name for alias in node.names}
            elif module.startswith("pai_lib."):
                found.add(module.split(".")[1])
    return found


def code_lines(source):
    """Count lines that hold code: no docstring, comment or blank line."""
    lines = set()
    skipped = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for statement in body:  # a string alone is documentation, of a module, a function or a constant
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    lines -= set(range(statement.lineno, statement.end_lineno + 1))
    return len(lines)


def test_the_counting():
    source = '"""One.\n\nTwo."""\n\n# three\nx = 1  # four\n\n\n'
    source += 'def f():\n    """Five."""\n    return (\n        x\n    )\n'
    assert code_lines(source) == 5
    source = "from . import book\nfrom .data import x\nimport pai_lib.spec\nfrom pai_lib import runs\n"
    assert imported(source) == {"book", "data", "spec", "runs"}


def test_every_file_has_its_place():
    assert {path.stem for path in FILES} <= set(ORDER)
    assert all(path.parent == PACKAGE for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_files_before_it(path):
    before = set(ORDER[: ORDER.index(path.stem)])
    assert imported(path.read_text("utf-8")) <= before


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_is_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= 380


def test_the_library_is_small():
    counts = {path.stem: code_lines(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    assert sum(counts[name] for name in CORE) <= 980, counts
    assert sum(counts[name] for name in DERIVATIVES) <= 1000, counts
    assert sum(counts.values()) <= 6560, counts


def test_what_is_offered_exists():
    assert sorted(pai_lib.__all__) == sorted(set(pai_lib.__all__))
    assert all(hasattr(pai_lib, name) for name in pai_lib.__all__)


def test_there_is_one_version():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["version"] == pai_lib.__version__
    citation = ROOT / "CITATION.cff"
    if citation.is_file():
        assert str(yaml.safe_load(citation.read_text("utf-8"))["version"]) == pai_lib.__version__
