"""The book: execute the notebooks that need it, then build the pages with Jupyter Book."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..files import write_whole
from .chapters import RUNS, Job, asked_jobs, check_library, load_chapters, pick
from .execution import ChapterError, Watch, execute_together, run_notebook
from .keys import chapter_key, code_digest, data_digest, is_fresh, run_files, stale_jobs
from .pages import STORED_TAG, import_lines, make_page

CHAPTERS_READY = "PAI_CHAPTERS_READY"  # set by build_book: the Sphinx extension need not look again
IMPORT = re.compile(r"try:\n    import pai_lib as pai\nexcept ImportError .*\n(    .*\n)+")


# --- execution


def execute(root: Path, job: Job, watch: Watch) -> None:
    """Execute a chapter and, if every cell succeeded, put it in its place in ``book/``."""
    code, data = code_digest(job.chapter), data_digest(job)  # as they are before the run
    notebook, seconds = run_notebook(root, job.chapter.notebook, job.values, job.page, watch)
    make_page(notebook, root, job, seconds)
    notebook.metadata.pai = {
        "key": chapter_key(root, job, code, data),  # with the records that it may have written
        "data": data,
        "chapter": job.chapter.name,
        "profile": job.profile,
        "overrides": job.overrides,
        "seconds": round(seconds, 1),
    }
    _write(root / "book" / f"{job.page}.ipynb", notebook)
    tqdm.write(f"executed {job.page} in {seconds:.1f} s")


def _write(path: Path, notebook: Any) -> None:
    import nbformat

    write_whole(path, (nbformat.writes(notebook) + "\n").encode())


def execute_all(root: Path, jobs: list[Job]) -> None:
    """Execute chapters, two at a time where there are two cores; ChapterError if any failed.

    At the paper's size they take turns: each then wants the whole GPU.
    """
    in_turn = any(job.profile == "paper" for job in jobs)
    workers = 1 if in_turn else min(2, os.cpu_count() or 1)
    execute_together([partial(execute, root, job) for job in jobs], workers)


# --- commands


def build_book(
    root: Path,
    profile: str = "smoke",
    names: Iterable[str] = (),
    pairs: Iterable[str] = (),
    html: bool = True,
    run: str | None = None,
    file: Path | None = None,
) -> Path:
    """Execute the stale chapters and build the pages; return the page that was asked for.

    With `names`, these chapters get `profile`; with overrides, by `pairs` or a YAML `file`, or with
    a name of their `run`, they are left alone, and a run of theirs is made beside them. Of the
    others, those that are missing or stale are executed before the pages are built. Where several
    pages were asked for, the front page is returned.
    """
    names = list(names)
    if html:
        check_contents(root, root / "_toc.yml")
    asked = asked_jobs(root, profile, names, pairs, run, file)
    jobs = [job for job in asked if not is_fresh(root, job)]
    if html or not names:
        jobs += stale_jobs(root, load_chapters(root), but=[job.page for job in asked])
    execute_all(root, jobs)
    if html:
        run_jupyter_book(root, clean=bool(jobs))
    page = asked[0].page if len(asked) == 1 else "../index"
    return (root / "_build" / "html" / "book" / f"{page}.html").resolve()


def run_jupyter_book(root: Path, clean: bool) -> None:
    """Build the pages, warnings being errors, with the interpreter that runs this."""
    if clean:
        shutil.rmtree(root / "_build" / "html", ignore_errors=True)
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(root), "-W", "-n", "--keep-going", "-q"]
    if subprocess.run(command, env={**os.environ, CHAPTERS_READY: "1"}).returncode:
        raise ChapterError("the book did not build: its warnings are above")


def update_notebooks(root: Path, names: Iterable[str] = ()) -> None:
    """Execute notebook sources in place and keep only the outputs that tests compare."""
    check_library(root)
    paths = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    chosen = pick(paths, names, "notebook")
    execute_together([partial(_update_notebook, root, path) for path in chosen], workers=1)


def _update_notebook(root: Path, path: Path, watch: Watch) -> None:
    """Execute one notebook source in place."""
    notebook, seconds = run_notebook(root, path, {}, path.stem, watch)
    notebook.metadata.language_info = {"name": "python"}  # the kernel adds its version
    for cell in notebook.cells:
        cell.source = IMPORT.sub(lambda _: import_lines(root), cell.source)
        if cell.cell_type == "code" and STORED_TAG in cell.metadata.get("tags", []):
            cell.outputs = _compared(cell.outputs)
        elif cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    _write(path, notebook)
    tqdm.write(f"updated {path.relative_to(root)} in {seconds:.1f} s")


def _compared(outputs: list[Any]) -> list[Any]:
    """Return outputs without stderr and pixels: of a figure its alternative text is compared."""
    for out in outputs:
        for part in ("data", "metadata"):
            out.get(part, {}).pop("image/png", None)
    return [out for out in outputs if out.get("name") != "stderr"]


# --- the table of contents


def check_contents(root: Path, toc: Path) -> None:
    """Raise ValueError for a chapter that is not in the table of contents: no list leads to it."""
    entries = list(_entries(yaml.safe_load(toc.read_text("utf-8")) or {}))
    for name in load_chapters(root):
        if not any(fnmatch.fnmatchcase(f"book/{name}", entry) for entry in entries):
            missing = f"{toc.name} holds no page of the chapter {name}"
            raise ValueError(f"{missing}: add '- file: book/{name}' to a part")


def _entries(node: Any) -> Iterator[str]:
    """Give the files and patterns in a table of contents, or in a part of it."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from _entries(value)
        elif key in ("root", "file", "glob"):
            yield str(value).removesuffix(".ipynb")


def contents(root: Path, toc: Path, built: Path) -> Path:
    """Return the contents to build with: `toc`, or a file in `built` that has your runs too."""
    runs = [{"file": f"book/{RUNS}/{path.stem}"} for path in run_files(root)]
    if not runs:
        return toc
    content = yaml.safe_load(toc.read_text("utf-8"))
    if "chapters" in content:  # a book without parts
        content["parts"] = [{"chapters": content.pop("chapters")}]
    content["parts"] = [*content.get("parts", []), {"caption": "Your runs", "chapters": runs}]
    path = built / "toc_with_your_runs.yml"
    write_whole(path, yaml.safe_dump(content, sort_keys=False).encode())
    return path
