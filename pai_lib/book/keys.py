"""Keys of executed notebooks: what each was made from, and whether it would be made so again.

A key covers the notebook, its values, the records and data that it shows, and those files of the
library that it can import. Only what has another key now runs again.
"""

import ast
import contextlib
import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from ..data.folders import stamp
from ..data.loading import dataset_names, find_own
from ..experiments.provenance import LIBRARY, version
from .chapters import RUNS, Chapter, Job, digest, load_notebook, pick, with_notebooks
from .choices import PLACES, field_of
from .pages import repository

PAGE_MAKERS = "import pai_lib.book.execution, pai_lib.book.pages"  # beside the notebook


# --- the library


class _Mute(ast.NodeTransformer):
    """Drops docstrings: expressions that are a constant."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node


@cache
def _tree(source: str) -> ast.AST:
    """Return a source's syntax without docstrings; a cell with magics is read as IPython does."""
    with contextlib.suppress(SyntaxError):
        return _Mute().visit(ast.parse(source))
    from IPython.core.inputtransformer2 import TransformerManager

    with contextlib.suppress(SyntaxError):
        return _Mute().visit(ast.parse(TransformerManager().transform_cell(source)))
    return ast.Module([], [])  # its execution will say what is wrong


@cache
def program(source: str) -> str:
    r"""Return a digest of what a source does: without comments and docstrings.

    >>> program("x = 1  # one") == program('"A number."\nx = 1')
    True
    """
    return digest(ast.dump(_tree(source)))


@cache
def library_imports(source: str, package: str) -> set[str]:
    """Return what a source imports of the library, wherever it does, as ``pai_lib.draws.draw``."""
    names: set[str] = set()
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == LIBRARY.name}


def imported_files(sources: Iterable[str]) -> dict[Path, str]:
    """Return the library's files that sources import, and those that these import, and so on.

    Each comes with its text.
    """
    files: dict[Path, str] = {}
    waiting = [(source, "notebooks") for source in sources]
    while waiting:
        for name in library_imports(*waiting.pop()):
            for path in _files_of(name):
                if path not in files:
                    files[path] = path.read_text("utf-8")
                    folder = path.relative_to(LIBRARY.parent).parent
                    waiting.append((files[path], ".".join(folder.parts)))
    return files


@cache
def _files_of(name: str) -> list[Path]:
    """Return the library's files that importing a name executes: of ``pai_lib.a.b`` up to three."""
    parts = name.split(".")[1:]
    places = [LIBRARY.joinpath(*parts[:end]) for end in range(len(parts) + 1)]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if file.is_file()]


# --- keys


def code_digest(chapter: Chapter) -> str:
    """Return a digest of what is executed: cells, what they import of the library, and torch."""
    cells = load_notebook(chapter.notebook)["cells"]
    sources = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags")) for c in cells]
    code = [text for kind, text, _ in sources if kind == "code"]
    files = imported_files([*code, PAGE_MAKERS])
    texts = {str(path.relative_to(LIBRARY)): text for path, text in files.items()}
    if not any("getsource" in text for text in code):  # comments count where the page shows them
        texts = {name: program(text) for name, text in texts.items()}
    return digest(sources, texts, sys.version_info[:2], version("torch"))


def data_digest(job: Job) -> str | None:
    """Return a digest of names, times and sizes of files of the user's own, None without."""
    names: set[str] = set()
    given = [Path(job.parameters[name]) for name in PLACES if job.parameters.get(name)]
    for name, value in job.parameters.items():
        if field_of(name) == "dataset":
            names.update(value if isinstance(value, list) else [value])
    own = [find_own(name) for name in sorted(filter(None, names - {*dataset_names()}))]
    stamps = [stamp(path) for path in [*given, *own] if path and path.exists()]
    return digest(stamps) if stamps else None


def chapter_key(root: Path, job: Job, code: str | None = None, data: str | None = None) -> str:
    """Return the digest of everything that an executed chapter depends on.

    Args:
        root: folder of the project.
        job: the execution.
        code: its `code_digest`, by default that of now.
        data: its `data_digest`, by default that of now.
    """
    files = job.record_files(root)
    records = [(str(path.relative_to(root)), path.read_text("utf-8")) for path in files]
    made_from = [code or code_digest(job.chapter), data or data_digest(job), records]
    links = repository(root)
    return digest(job.page, job.title, job.profile, job.values, made_from, links)


def chapters_digest(root: Path) -> str:
    """Return a digest of all that was executed: pages quote its numbers and list its titles."""
    paths = sorted((root / "book").glob("*.ipynb")) + run_files(root)
    return digest([(str(path.relative_to(root)), path.read_text("utf-8")) for path in paths])


# --- what was executed


def stored(root: Path, page: str) -> dict[str, Any]:
    """Return what an executed notebook says about how it was made; empty if there is none."""
    try:
        return dict(load_notebook(root / "book" / f"{page}.ipynb")["metadata"]["pai"])
    except (OSError, ValueError, KeyError):
        return {}


def is_fresh(root: Path, job: Job) -> bool:
    """Tell whether the executed notebook is what this job would make again.

    Data of one's own that are gone count as they were.
    """
    made = stored(root, job.page)
    data = data_digest(job) or made.get("data")
    return made.get("key") == chapter_key(root, job, data=data)


def stale_jobs(root: Path, chapters: Mapping[str, Chapter], but: Iterable[str] = ()) -> list[Job]:
    """Return jobs for what is missing, or stale by the settings it was made with.

    A chapter is made again as smoke, a run of yours as it was. Pages in `but` are left out.
    """

    def fresh(chapter: Chapter) -> bool:
        try:
            return is_fresh(root, Job(chapter, stored(root, chapter.name)["profile"], {}))
        except (KeyError, ValueError):  # there is none, or a parameter it was made with is gone
            return False

    asked = [chapter for chapter in chapters.values() if chapter.name not in but]
    jobs = [Job(chapter, "smoke", {}) for chapter in asked if not fresh(chapter)]
    sources = with_notebooks(root, chapters)
    names = [path.stem for path in run_files(root) if f"{RUNS}/{path.stem}" not in but]
    runs = [run_job(root, sources, name) for name in names]
    return jobs + [job for job in runs if not is_fresh(root, job)]


def run_files(root: Path) -> list[Path]:
    """Return the executed notebooks of your runs; other notebooks there are named in a warning."""
    files = []
    for path in sorted((root / "book" / RUNS).glob("[!.]*.ipynb")):
        if stored(root, f"{RUNS}/{path.stem}"):
            files.append(path)
        else:
            origin = "is no page of the book: `pai book` did not make it"
            warnings.warn(f"book/{RUNS}/{path.name} {origin}", stacklevel=2)
    return files


def run_job(root: Path, sources: Mapping[str, Chapter], name: str) -> Job:
    """Return the job that made a run, or raise ValueError if nothing can make it any more."""
    made = stored(root, f"{RUNS}/{name}")
    try:
        (chapter,) = pick(sources, [made["chapter"]], "chapter")
        return Job(chapter, made["profile"], made["overrides"], name)
    except ValueError as error:
        gone = "cannot be made again, delete it"
        raise ValueError(f"book/{RUNS}/{name}.ipynb {gone}: {error}") from None
