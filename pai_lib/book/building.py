"""The book: execute chapters with papermill, say how each was made, build the pages with Jupyter Book.

Jupyter packages are imported where they are used: ``import pai_lib`` works without them.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from .chapters import (
    RUNS,
    Job,
    chapter_key,
    check_library,
    check_run_name,
    code_digest,
    data_digest,
    is_fresh,
    load_chapters,
    pick,
    run_files,
    run_name,
    stale_jobs,
    with_notebooks,
)
from .choices import check_values, located
from .execution import ChapterError, Watch, own_kernel, run_notebook
from .pages import how_to_get, page_section
from .parameters import notebook_parameters, parse_overrides, text_of

CHAPTERS_READY = "PAI_CHAPTERS_READY"  # set by build_book: the Sphinx extension need not look again
STORED_TAG = (
    "nbval-check-output"  # only cells with this tag keep their output in the committed notebooks
)


# --- execution


def _replace(path: Path, nb: Any) -> None:
    """Write a notebook so that `path` holds the whole of it or what it held before."""
    import nbformat

    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    nbformat.write(nb, part)
    os.replace(part, path)


def execute(root: Path, job: Job, watch: Watch) -> None:
    """Execute a chapter and, if every cell succeeded, put it in its place in ``book/``."""
    import nbformat

    code, data = code_digest(job.chapter), data_digest(job)
    nb, seconds = run_notebook(root, job.chapter.notebook, job.values, job.page, watch)
    dress(nb, job.page, job.title)
    nb.cells.append(nbformat.v4.new_markdown_cell(provenance(root, job, seconds)))
    # code and data as they were before the run; the records as they are after it, since it may have
    # written some
    nb.metadata.pai = {"key": chapter_key(root, job, code, data), "profile": job.profile}
    if data:
        nb.metadata.pai.data = data
    nb.metadata.pai.update(overrides=dict(job.overrides), seconds=round(seconds, 1))
    if job.run is not None:
        nb.metadata.pai.chapter = job.chapter.name
    _replace(root / "book" / f"{job.page}.ipynb", nb)
    tqdm.write(f"executed {job.page} in {seconds:.1f} s")


def execute_all(root: Path, jobs: list[Job]) -> None:
    """Execute chapters, two at a time where there are two cores; raise ChapterError at the end if any failed.

    At the paper's size they take turns: each then wants the whole GPU.
    """
    failures, paper = [], any(job.profile == "paper" for job in jobs)
    workers = 1 if paper else min(2, os.cpu_count() or 1)
    with own_kernel(), Watch(len(jobs)) as watch, ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(execute, root, job, watch) for job in jobs]
        try:
            for done in as_completed(running):
                watch.bar.update()
                if isinstance(done.exception(), ChapterError):
                    failures.append(str(done.exception()))
                else:
                    done.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            text = "ending the notebooks under way; their pages stay as they were, others are done or wait"
            print(f"pai: interrupted: {text}", file=sys.stderr, flush=True)
            watch.stop()
            raise
        finally:  # failed, say: begin no other
            pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise ChapterError("; ".join(failures))


# --- pages

_REFERENCE = r"(\{{(?:numref|eq|ref)\}}`(?:[^`<>]*<)?|\]\(#)({})(?=>?`|\))"  # to a label, in MyST
_DEFINITION = re.compile(
    r"(?<=\$\$ \()[\w-]+(?=\))|(?<=:name: )[\w-]+$|(?<=:label: )[\w-]+$|(?<=^\()[\w-]+(?=\)=$)",
    re.MULTILINE,
)


def dress(nb: Any, page: str, title: str | None = None) -> None:
    """Prepare an executed notebook for MyST-NB: title, folded parameters, figures with alt text and captions.

    Labels are global, and several pages may come from one notebook. So each page has figures of its
    own name; a run of yours all labels, and its links to chapters begin at the project's root.
    """
    name, run = page.replace("/", "-"), page.startswith(f"{RUNS}/")
    if title is not None:
        nb.cells[0].source = re.sub(r"\A# .*", lambda _: f"# {title}", nb.cells[0].source)
    labels = set()
    for number, cell in enumerate(nb.cells, 1):
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            tags.append("hide-input")
            cell.metadata.mystnb = {"code_prompt_show": "Show the parameters and their defaults"}
        if "injected-parameters" in tags:
            tags.append("remove-cell")
        shown = [
            out
            for out in cell.get("outputs", [])
            if any("papermill.record" not in d for d in out.get("data", []))
        ]
        figures = [info for out in shown for info in out.metadata.values() if "alt" in dict(info)]
        if (
            figures and len(shown) > 1
        ):  # MyST-NB takes alt text and caption from the cell, for all it shows
            raise ChapterError(
                f"{page}, cell {number}: a figure with alt text must be alone in its cell"
            )
        for info in figures:
            figure = {key: info[key] for key in ("caption", "name") if key in info}
            if "name" in figure:
                labels.add(info["name"])
                figure["name"] = f"{name}-{info['name']}"
            cell.metadata.setdefault("mystnb", {}).update(image={"alt": info["alt"]}, figure=figure)
    texts = [(cell, "source") for cell in nb.cells if cell.cell_type == "markdown"]
    outputs = [out.data for cell in nb.cells for out in cell.get("outputs", []) if "data" in out]
    texts += [(data, key) for data in outputs for key in data if key.endswith("text/markdown")]
    drawn = [cell.metadata.get("mystnb", {}).get("figure", {}) for cell in nb.cells]
    texts += [(figure, "caption") for figure in drawn if "caption" in figure]
    if run:
        labels.update(label for holder, key in texts for label in _DEFINITION.findall(holder[key]))
    reference = re.compile(_REFERENCE.format("|".join(map(re.escape, sorted(labels))) or "(?!)"))
    for holder, key in texts:
        holder[key] = reference.sub(rf"\g<1>{name}-\2", holder[key])
        if run:
            holder[key] = _DEFINITION.sub(lambda label: f"{name}-{label[0]}", holder[key])
            holder[key] = re.sub(r"(\{doc\}`(?:[^`<>]*<)?)(?=\w)", r"\1/book/", holder[key])


def provenance(root: Path, job: Job, seconds: float) -> str:
    """Return the section that says how a page was made and how to make it again."""
    again = f"pai book --profile {job.profile} --chapter {job.chapter.name}"
    again += "".join(
        f" -p {shlex.quote(f'{name}={text_of(v)}')}" for name, v in job.overrides.items()
    )
    if job.run not in (None, run_name(job.chapter, job.profile, job.overrides)):
        again += f" --name {job.run}"
    title = f"Profile {job.profile}, {seconds:.1f} s"
    return page_section(root, job.chapter.notebook, job.values, again, title)


# --- commands


def asked_jobs(
    root: Path,
    profile: str,
    names: Iterable[str],
    pairs: Iterable[str] = (),
    run: str | None = None,
) -> list[Job]:
    """Return what a command asks for, checked in all its names, types and values.

    Values of the command line, a `run` name, and notebooks that no chapter is named after make runs
    beside the chapters; everything else makes chapters.
    """
    chapters, names = load_chapters(root), list(names)
    chosen = (
        pick(with_notebooks(root, chapters), names, "chapter") if names else list(chapters.values())
    )
    if run is not None and len(chosen) > 1:
        raise ValueError(
            f"--name {check_run_name(run)} needs one --chapter NAME: it names one page"
        )
    jobs = []
    for chapter in chosen:
        declared = notebook_parameters(chapter.notebook)
        overrides = located(parse_overrides(pairs, declared))
        beside = overrides or run or chapter.alone
        name = (
            (check_run_name(run) if run else run_name(chapter, profile, overrides))
            if beside
            else None
        )
        job = Job(chapter, profile, overrides, name)
        every = {name: p.default for name, p in declared.items()} | dict(job.values)
        check_values(
            every, f"chapter {chapter.name}", {name: p.help for name, p in declared.items()}
        )
        jobs.append(job)
    return jobs


def build_book(
    root: Path,
    profile: str = "smoke",
    names: Iterable[str] = (),
    pairs: Iterable[str] = (),
    html: bool = True,
    run: str | None = None,
) -> Path:
    """Execute the stale chapters and build the pages; return the page that was asked for, or the front page.

    With `names`, these chapters get `profile`; with overrides `pairs` or a name of their `run` they
    are left alone, and a run of theirs is made beside them. Of the others, those that are missing
    or stale are executed before the pages are built.
    """
    names = list(names)
    if html:
        check_contents(root, root / "_toc.yml")
    asked = asked_jobs(root, profile, names, pairs, run)
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


def check_contents(root: Path, toc: Path) -> None:
    """Raise ValueError for a chapter that the table of contents does not hold: no list would lead to its page."""

    def files(node: Any) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                yield from files(value)
            elif key in ("root", "file", "glob"):
                yield str(value).removesuffix(".ipynb")

    listed = list(files(yaml.safe_load(toc.read_text("utf-8")) or {}))
    for name in load_chapters(root):
        if not any(fnmatch.fnmatchcase(f"book/{name}", entry) for entry in listed):
            raise ValueError(
                f"{toc.name} holds no page of the chapter {name}: add '- file: book/{name}' to a part"
            )


def contents(root: Path, toc: Path, built: Path) -> Path:
    """Return the table of contents to build with: `toc`, or one in `built` that has your runs besides."""
    runs = [{"file": f"book/{RUNS}/{path.stem}"} for path in run_files(root)]
    if not runs:
        return toc
    content = yaml.safe_load(toc.read_text("utf-8"))
    if "chapters" in content:  # a book without parts
        content["parts"] = [{"chapters": content.pop("chapters")}]
    content["parts"] = [*content.get("parts", []), {"caption": "Your runs", "chapters": runs}]
    built.mkdir(parents=True, exist_ok=True)
    path = built / "toc_with_your_runs.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return path


def _compared(outputs: list[Any]) -> list[Any]:
    """Return outputs without stderr and pixels, printed text in one piece: a kernel may send it in several.

    Of a figure its alternative text is compared.
    """
    import nbformat

    for out in outputs:
        for holder in (out.get("data", {}), out.get("metadata", {})):
            holder.pop("image/png", None)
    printed = "".join(out.text for out in outputs if out.get("name") == "stdout")
    others = [out for out in outputs if out.output_type != "stream"]
    return others + (
        [nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []
    )


def update_notebooks(root: Path, names: Iterable[str] = ()) -> None:
    """Execute notebook sources in place and keep only the outputs that tests compare."""
    check_library(root)
    paths = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    for path in tqdm(pick(paths, names, "notebook"), unit="notebook", disable=None):
        before = json.loads(path.read_text("utf-8"))["cells"]
        with own_kernel(), Watch(0) as watch:
            nb, seconds = run_notebook(root, path, {}, path.stem, watch)
        nb.metadata.language_info = {"name": "python"}  # the kernel adds its version, which differs
        for number, (cell, old) in enumerate(zip(nb.cells, before, strict=True)):
            cell.id = old.get("id", f"cell-{number}")
            cell.source = re.sub(
                r'(?<=missing = ")pai_lib is missing: .*(?=")',
                lambda _: how_to_get(root),
                cell.source,
            )
            compared = STORED_TAG in cell.metadata.get("tags", [])
            if not cell.metadata.get("tags"):
                cell.metadata.pop("tags", None)  # papermill adds an empty list
            if cell.cell_type == "code" and not compared:
                cell.outputs, cell.execution_count = [], None
            elif (
                cell.cell_type == "code"
            ):  # the count stays: nbval takes a cell without one for not run
                cell.outputs = _compared(cell.outputs)
        _replace(path, nb)
        tqdm.write(f"updated {path.relative_to(root)} in {seconds:.1f} s")
