"""The library's shape: which file may import which, and how much code there is."""

import ast
import graphlib
import importlib.util
import io
import re
import tokenize
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

import pai_lib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pai_lib"
# In the order in which data flow: a room imports only from those before it.
ROOMS = ("names files draws progress data models curvature pruning training experiments analysis book cli").split()
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def room(path):
    """Return the folder, or the file beside the folders, that a path is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path, source):
    """Return the library's own files that a source imports, wherever it does: as ``data.batch``."""
    found = set()
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = [*above, *(node.module or "").split(".")] if node.module else above
            names = [module]
            if PACKAGE.joinpath(*module[1:]).is_dir():
                names = [[*module, alias.name] for alias in node.names]
        else:
            continue
        found |= {".".join(name[1:]) for name in names if name[0] == PACKAGE.name}
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
    source = "from . import graph\nfrom ..data.batch import x\nimport pai_lib.models\nfrom .. import draws\n"
    source += "def f():\n    from pai_lib.names import nearest\n"
    seen = imported(PACKAGE / "curvature" / "squares.py", source)
    assert seen == {"curvature.graph", "data.batch", "models", "draws", "names"}


def test_every_file_has_its_place():
    assert {room(path) for path in FILES} == set(ROOMS)
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_from_rooms_before_it(path):
    before = ROOMS[: ROOMS.index(room(path)) + 1]
    rooms = {name.split(".")[0] for name in imported(path, path.read_text("utf-8"))}
    assert rooms <= set(before)


@pytest.mark.parametrize("folder", sorted({room(path) for path in FILES if path.parent != PACKAGE}))
def test_no_files_of_a_room_import_in_a_circle(folder):
    paths = {f"{folder}.{path.stem}": path for path in FILES if room(path) == folder}
    sources = {name: path.read_text("utf-8") for name, path in paths.items()}
    graph = {name: imported(paths[name], source) & set(paths) for name, source in sources.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_function_is_long_and_the_formatter_lays_out_every_line(path):
    source = path.read_text("utf-8")
    assert "fmt: skip" not in source
    assert "fmt: off" not in source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            said = len(text.splitlines()) if text else 0
            assert node.end_lineno - node.lineno + 1 - said <= 60, node.name


def test_the_library_is_small():
    counts = Counter()
    for path in PACKAGE.rglob("*.py"):
        counts[room(path)] += code_lines(path.read_text("utf-8"))
    assert counts.total() <= 9110, counts


def test_the_picture_of_the_architecture_page_has_no_arrow_against_the_order():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "book/_ext/architecture.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.ORDER == ROOMS
    pairs = {
        (room(path), name.split(".")[0]) for path in FILES for name in imported(path, path.read_text("utf-8"))
    }
    assert page.arrows() == {(user, used) for user, used in pairs if user != used}
    assert 'class="against"' not in page.picture()
    assert 'class="against"' in page.arc("names", "cli")


def test_what_is_offered_exists():
    assert sorted(pai_lib.__all__) == sorted(set(pai_lib.__all__))
    assert all(hasattr(pai_lib, name) for name in pai_lib.__all__)


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "pai_lib/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", pai_lib.__version__)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == pai_lib.__version__
