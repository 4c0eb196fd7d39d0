"""The book: execute chapters with papermill, say how each was made, build the pages with Jupyter Book.

A chapter is a notebook plus parameters (``notebooks/chapters.yaml``). Executed chapters are written to
``book/<chapter>.ipynb`` with a key over everything that made them, so that only stale ones run again.
Jupyter packages are imported where they are used: ``import pai_lib`` works without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from pai_lib.execution import ChapterError, own_kernel, run_notebook
from pai_lib.parameters import checked, nearest, notebook_parameters, parse_overrides, text_of
from pai_lib.provenance import page_section, version

PROFILES = ("smoke", "paper")
CHAPTERS_READY = "PAI_CHAPTERS_READY"  # set by build_book: the Sphinx extension need not look again
STORED_TAG = "nbval-check-output"  # only cells with this tag keep their output in the committed notebooks


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number, as everywhere else."""


_FLOAT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


# --- chapters and their keys


@dataclass(frozen=True)
class Chapter:
    """One page of the book: a notebook and the parameters it runs with."""

    name: str
    notebook: Path
    parameters: Mapping[str, Any]
    paper: Mapping[str, Any]
    records: tuple[str, ...]
    title: str | None = None  # heads the page; None is the notebook's own title

    def values(self, profile: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that replace the notebook's defaults, checked against its declarations."""
        given = {**self.parameters, **(self.paper if profile == "paper" else {}), **overrides}
        declared = notebook_parameters(self.notebook)
        return checked(given, {name: p.annotation for name, p in declared.items()}, f"chapter {self.name}")


@dataclass(frozen=True)
class Job:
    """One execution of a chapter: with which profile and which values from the command line, checked at once."""

    chapter: Chapter
    profile: str
    overrides: Mapping[str, Any]

    values: Mapping[str, Any] = field(init=False)  # what replaces the notebook's defaults

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.chapter.values(self.profile, self.overrides))


def find_root(start: Path | None = None) -> Path:
    """Return the folder at or above `start` (by default the current one) that holds the book."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks" / "chapters.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no notebooks/chapters.yaml in {start} or above: run this inside the repository")


def load_chapters(root: Path) -> dict[str, Chapter]:
    """Return the chapters of ``notebooks/chapters.yaml`` in their order."""
    text = (root / "notebooks" / "chapters.yaml").read_text("utf-8")
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"chapters.yaml is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("chapters"), dict):
        raise ValueError("chapters.yaml: it must hold a mapping 'chapters:'")
    return {name: _chapter(root, str(name), entry or {}) for name, entry in content["chapters"].items()}


def _chapter(root: Path, name: str, entry: Mapping[str, Any]) -> Chapter:
    """Return one checked entry of chapters.yaml."""
    known = {"notebook": str, "title": str, "parameters": dict, "paper": dict, "records": list}
    if not isinstance(entry, dict):
        raise ValueError(f"chapters.yaml: {name} must be a mapping with 'notebook:', not {entry!r}")
    for key in sorted(set(entry) - set(known)):
        raise ValueError(f"chapters.yaml: {name} has an unknown key {key!r}; {nearest(key, known)}")
    for key, kind in known.items():
        if entry.get(key) is not None and not isinstance(entry[key], kind):
            raise ValueError(f"chapters.yaml: {name}: {key} must be a {kind.__name__}, not {entry[key]!r}")
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"chapters.yaml: chapter name {name!r} must be letters, digits, '_' and '-'")
    notebook = root / "notebooks" / f"{entry.get('notebook', name)}.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(f"chapters.yaml: {name} needs notebooks/{notebook.name}, which is missing")
    records = tuple(entry.get("records", ["**/*.json"]))
    parameters, paper = entry.get("parameters") or {}, entry.get("paper") or {}
    return Chapter(name, notebook, parameters, paper, records, entry.get("title"))


def _pick(things: Mapping[str, Any], names: Iterable[str], what: str) -> list[Any]:
    """Return the named things in their own order; without names, all of them."""
    names = set(names) or set(things)
    for name in sorted(names - set(things)):
        raise ValueError(f"no {what} is named {name!r}; {nearest(name, things)}")
    return [thing for name, thing in things.items() if name in names]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_digest(chapter: Chapter) -> str:
    """Return a digest of what is executed: the notebook's cells, the library, and what they run on."""
    cells = _load(chapter.notebook)["cells"]
    sources = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags")) for c in cells]
    package = Path(__file__).parent
    library = {str(p.relative_to(package)): p.read_text("utf-8") for p in sorted(package.rglob("*.py"))}
    return _digest(sources, library, sys.version_info[:2], version("torch"))


def chapter_key(root: Path, job: Job, code: str | None = None) -> str:
    """Return the digest of everything that an executed chapter depends on, the records it shows included."""
    found = sorted({path for glob in job.chapter.records for path in (root / "results").glob(glob)})
    records = [(str(path.relative_to(root)), path.read_text("utf-8")) for path in found]
    return _digest(
        job.chapter.name, job.chapter.title, job.profile, job.values, code or code_digest(job.chapter), records
    )


def stored(root: Path, chapter: Chapter) -> dict[str, Any]:
    """Return what an executed chapter says about how it was made; empty if there is none."""
    try:
        return dict(_load(root / "book" / f"{chapter.name}.ipynb")["metadata"]["pai"])
    except (OSError, ValueError, KeyError):
        return {}


def is_fresh(root: Path, job: Job) -> bool:
    """Tell whether the executed chapter is what this job would make again."""
    return stored(root, job.chapter).get("key") == chapter_key(root, job)


def stale_jobs(root: Path, chapters: Iterable[Chapter]) -> list[Job]:
    """Return jobs, of profile smoke, for chapters missing or stale by the settings they were made with."""
    jobs = []
    for chapter in chapters:
        made, fresh = stored(root, chapter), False
        with contextlib.suppress(ValueError, KeyError):  # a parameter it was made with may be gone
            fresh = is_fresh(root, Job(chapter, made["profile"], made["overrides"]))
        if not fresh:
            jobs.append(Job(chapter, "smoke", {}))
    return jobs


# --- execution


def _replace(path: Path, nb: Any) -> None:
    """Write a notebook so that `path` holds the whole of it or what it held before."""
    import nbformat

    part = path.with_name(f".{path.name}.part")
    nbformat.write(nb, part)
    os.replace(part, path)


def execute(root: Path, job: Job) -> None:
    """Execute a chapter and, if every cell succeeded, put it in its place in ``book/``."""
    import nbformat

    code, name = code_digest(job.chapter), job.chapter.name
    nb, seconds = run_notebook(root, job.chapter.notebook, job.values, name)
    dress(nb, name, job.chapter.title)
    nb.cells.append(nbformat.v4.new_markdown_cell(provenance(root, job, seconds)))
    # the code as it was before the run; the records as they are after it, since it may have written some
    nb.metadata.pai = {"key": chapter_key(root, job, code), "profile": job.profile}
    nb.metadata.pai.update(overrides=dict(job.overrides), seconds=round(seconds, 1))
    _replace(root / "book" / f"{name}.ipynb", nb)
    tqdm.write(f"executed {name} in {seconds:.1f} s")


def execute_all(root: Path, jobs: list[Job]) -> None:
    """Execute chapters, two at a time where there are two cores; raise ChapterError at the end if any failed.

    At the paper's size they take turns: each then wants the whole GPU.
    """
    failures, paper = [], any(job.profile == "paper" for job in jobs)
    with own_kernel(), ThreadPoolExecutor(1 if paper else min(2, os.cpu_count() or 1)) as pool:
        running = [pool.submit(execute, root, job) for job in jobs]
        try:
            hidden = None if jobs else True
            for done in tqdm(as_completed(running), total=len(jobs), unit="chapter", disable=hidden):
                if isinstance(done.exception(), ChapterError):
                    failures.append(str(done.exception()))
                else:
                    done.result()
        finally:  # interrupted, say: begin no other
            pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise ChapterError("; ".join(failures))


def dress(nb: Any, name: str, title: str | None = None) -> None:
    """Prepare an executed notebook for MyST-NB: title, folded parameters, figures with alt text and captions."""
    if title is not None:
        nb.cells[0].source = re.sub(r"\A# .*", lambda _: f"# {title}", nb.cells[0].source)
    labels = {}
    for number, cell in enumerate(nb.cells, 1):
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            tags.append("hide-input")
            cell.metadata.mystnb = {"code_prompt_show": "Show the parameters and their defaults"}
        if "injected-parameters" in tags:
            tags.append("remove-cell")
        shown = [
            out for out in cell.get("outputs", []) if any("papermill.record" not in d for d in out.get("data", []))
        ]
        figures = [info for out in shown for info in out.metadata.values() if "alt" in dict(info)]
        if figures and len(shown) > 1:  # MyST-NB takes alt text and caption from the cell, for all it shows
            raise ChapterError(f"{name}, cell {number}: a figure with alt text must be alone in its cell")
        for info in figures:
            figure = {key: info[key] for key in ("caption", "name") if key in info}
            if "name" in figure:  # labels are global, and several chapters may come from one notebook
                labels[info["name"]] = figure["name"] = f"{name}-{info['name']}"
            cell.metadata.setdefault("mystnb", {}).update(image={"alt": info["alt"]}, figure=figure)
    pattern = rf"(?<=[`<#])({'|'.join(map(re.escape, labels)) or '(?!)'})(?=[`>)])"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(pattern, lambda match: labels[match[1]], cell.source)


def provenance(root: Path, job: Job, seconds: float) -> str:
    """Return the section that says how a chapter was made and how to make it again."""
    again = f"pai book --profile {job.profile} --chapter {job.chapter.name}"
    again += "".join(f" -p {shlex.quote(f'{name}={text_of(v)}')}" for name, v in job.overrides.items())
    title = f"Profile {job.profile}, {seconds:.1f} s"
    return page_section(root, job.chapter.notebook, job.values, again, title)


# --- commands


def build_book(
    root: Path,
    profile: str = "smoke",
    names: Iterable[str] = (),
    pairs: Iterable[str] = (),
    html: bool = True,
) -> Path:
    """Execute the stale chapters and build the pages; return the front page.

    With `names`, these chapters get `profile` and the overrides `pairs`; of the others, those that are
    missing or stale are executed as smoke before the pages are built.
    """
    chapters = load_chapters(root)
    chosen = _pick(chapters, names, "chapter")
    jobs = [Job(c, profile, parse_overrides(pairs, notebook_parameters(c.notebook))) for c in chosen]
    jobs = [job for job in jobs if not is_fresh(root, job)]
    if html:
        jobs += stale_jobs(root, [chapter for chapter in chapters.values() if chapter not in chosen])
    execute_all(root, jobs)
    if html:
        run_jupyter_book(root, clean=bool(jobs))
    return root / "_build" / "html" / "index.html"


def run_jupyter_book(root: Path, clean: bool) -> None:
    """Build the pages, warnings being errors, with the interpreter that runs this."""
    if clean:
        shutil.rmtree(root / "_build" / "html", ignore_errors=True)
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(root), "-W", "-n", "--keep-going", "-q"]
    if subprocess.run(command, env={**os.environ, CHAPTERS_READY: "1"}).returncode:
        raise ChapterError("the book did not build: its warnings are above")


def chapters_digest(root: Path) -> str:
    """Return a digest of all executed chapters: other pages quote their numbers."""
    return _digest([path.read_text("utf-8") for path in sorted((root / "book").glob("*.ipynb"))])


def _one_stdout(outputs: list[Any]) -> list[Any]:
    """Return outputs without stderr, printed text in one piece: a kernel may send it in several."""
    import nbformat

    printed = "".join(out.text for out in outputs if out.get("name") == "stdout")
    others = [out for out in outputs if out.output_type != "stream"]
    return others + ([nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else [])


def update_notebooks(root: Path, names: Iterable[str] = ()) -> None:
    """Execute notebook sources in place and keep only the outputs that tests compare."""
    paths = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    for path in tqdm(_pick(paths, names, "notebook"), unit="notebook", disable=None):
        before = _load(path)["cells"]
        with own_kernel():
            nb, seconds = run_notebook(root, path, {}, path.stem)
        nb.metadata.language_info = {"name": "python"}  # the kernel adds its version, which differs
        for number, (cell, old) in enumerate(zip(nb.cells, before, strict=True)):
            cell.id = old.get("id", f"cell-{number}")
            compared = STORED_TAG in cell.metadata.get("tags", [])
            if not cell.metadata.get("tags"):
                cell.metadata.pop("tags", None)  # papermill adds an empty list
            if cell.cell_type == "code" and not compared:
                cell.outputs, cell.execution_count = [], None
            elif cell.cell_type == "code":  # the count stays: nbval takes a cell without one for not run
                cell.outputs = _one_stdout(cell.outputs)
        _replace(path, nb)
        tqdm.write(f"updated {path.relative_to(root)} in {seconds:.1f} s")
