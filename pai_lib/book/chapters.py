"""Chapters and your runs of them: what each is made from, and whether it is still that.

A chapter is a notebook plus parameters (``notebooks/chapters.yaml``), executed to
``book/<chapter>.ipynb``. A run is a chapter with other values, or a notebook alone, executed to
``book/runs/<name>.ipynb`` beside the chapters. Each executed notebook holds a key over everything
that made it, so that only stale ones run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.folders import stamp
from ..data.loading import dataset_names, find_own
from ..experiments.provenance import LIBRARY, version
from ..files import load_yaml
from ..names import nearest
from .choices import field_of
from .pages import repository
from .parameters import checked, notebook_parameters, text_of

PROFILES = ("smoke", "paper")
RUNS = "runs"  # folder below book/


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
    alone: bool = (
        False  # a notebook that is executed by its own name, not an entry of chapters.yaml
    )

    def values(self, profile: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that replace the notebook's defaults, checked against its declarations."""
        given = {**self.parameters, **(self.paper if profile == "paper" else {}), **overrides}
        declared = notebook_parameters(self.notebook)
        return checked(
            given, {name: p.annotation for name, p in declared.items()}, f"chapter {self.name}"
        )

    def record_files(self, root: Path, values: Mapping[str, Any]) -> list[Path]:
        """Return the files below ``results/`` that it shows with these values."""
        every = {name: p.default for name, p in notebook_parameters(self.notebook).items()} | dict(
            values
        )
        try:
            globs = [glob.format(**every) for glob in self.records]
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"chapters.yaml: {self.name}: records name a parameter {error}; {nearest(error, every)}"
            ) from None
        return sorted(
            {path for glob in globs for path in (root / "results").glob(glob) if path.is_file()}
        )


@dataclass(frozen=True)
class Job:
    """One execution of a chapter: with which profile and which values from the command line, checked at once.

    Without a `run` it makes the chapter's own page, with one it makes ``book/runs/<run>.ipynb``.
    """

    chapter: Chapter
    profile: str
    overrides: Mapping[str, Any]
    run: str | None = None

    values: Mapping[str, Any] = field(init=False)  # what replaces the notebook's defaults

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.chapter.values(self.profile, self.overrides))
        order = [
            name for name in notebook_parameters(self.chapter.notebook) if name in self.overrides
        ]
        object.__setattr__(self, "overrides", {name: self.overrides[name] for name in order})

    @property
    def page(self) -> str:
        """Where it goes, below ``book/`` and without ``.ipynb``."""
        return self.chapter.name if self.run is None else f"{RUNS}/{self.run}"

    @property
    def title(self) -> str | None:
        """Heading of the page; that of a run says in what it differs. None is the notebook's own."""
        if self.run is None:
            return self.chapter.title
        differing = [f"{name}={text_of(value)}" for name, value in self.overrides.items()]
        differing = ["the paper's size"] * (self.profile == "paper") + [
            f"`{d.replace('`', '')}`" for d in differing
        ]
        title = self.chapter.title or heading(self.chapter.notebook)
        return f"{title}: {', '.join(differing)}" if differing else title


def find_root(start: Path | None = None) -> Path:
    """Return the folder at or above `start` (by default the current one) that holds the book."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks" / "chapters.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no notebooks/chapters.yaml in {start} or above: run this inside the repository"
    )


def check_library(root: Path) -> None:
    """Raise ValueError if this library is that of another checkout, whose code chapters of this one would run."""
    own = root / "pai_lib"
    if own.is_dir() and own.resolve() != LIBRARY:
        how = f"install this one, pip install -e {root}, or use the environment that has it"
        raise ValueError(
            f"the chapters in {root} need its own pai_lib, not that in {LIBRARY.parent}: {how}"
        )


def load_chapters(root: Path) -> dict[str, Chapter]:
    """Return the chapters of ``notebooks/chapters.yaml`` in their order."""
    check_library(root)
    try:
        content = load_yaml(root / "notebooks" / "chapters.yaml")
    except ValueError as error:
        raise ValueError(f"chapters.yaml is not YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("chapters"), dict):
        raise ValueError("chapters.yaml: it must hold a mapping 'chapters:'")
    return {
        name: _chapter(root, str(name), entry or {}) for name, entry in content["chapters"].items()
    }


def _chapter(root: Path, name: str, entry: Mapping[str, Any]) -> Chapter:
    """Return one checked entry of chapters.yaml."""
    known = {"notebook": str, "title": str, "parameters": dict, "paper": dict, "records": list}
    if not isinstance(entry, dict):
        raise ValueError(f"chapters.yaml: {name} must be a mapping with 'notebook:', not {entry!r}")
    for key in sorted(set(entry) - set(known), key=str):
        raise ValueError(f"chapters.yaml: {name} has an unknown key {key!r}; {nearest(key, known)}")
    for key, kind in known.items():
        if entry.get(key) is not None and not isinstance(entry[key], kind):
            raise ValueError(
                f"chapters.yaml: {name}: {key} must be a {kind.__name__}, not {entry[key]!r}"
            )
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(
            f"chapters.yaml: chapter name {name!r} must be letters, digits, '_' and '-'"
        )
    notebook = root / "notebooks" / f"{entry.get('notebook', name)}.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(
            f"chapters.yaml: {name} needs notebooks/{notebook.name}, which is missing"
        )
    records = tuple(entry.get("records", ["**/*.json"]))
    parameters, paper = entry.get("parameters") or {}, entry.get("paper") or {}
    return Chapter(name, notebook, parameters, paper, records, entry.get("title"))


def pick(things: Mapping[str, Any], names: Iterable[str], what: str) -> list[Any]:
    """Return the named things in their own order; without names, all of them."""
    names = set(names) or set(things)
    for name in sorted(names - set(things)):
        raise ValueError(f"no {what} is named {name!r}; {nearest(name, things)}")
    return [thing for name, thing in things.items() if name in names]


def with_notebooks(root: Path, chapters: Mapping[str, Chapter]) -> dict[str, Chapter]:
    """Return the chapters, and each notebook by its own name if no chapter has it, with its own defaults."""
    found = dict(chapters)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        records = next((c.records for c in chapters.values() if c.notebook == path), ("**/*.json",))
        found.setdefault(path.stem, Chapter(path.stem, path, {}, {}, records, alone=True))
    return found


def heading(notebook: Path) -> str:
    """Return the title of a notebook: the first line of its first cell."""
    return "".join(_load(notebook)["cells"][0]["source"]).partition("\n")[0].lstrip("# ")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_digest(chapter: Chapter) -> str:
    """Return a digest of what is executed: the notebook's cells, the library, and what they run on."""
    cells = _load(chapter.notebook)["cells"]
    sources = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags")) for c in cells]
    package = LIBRARY
    library = {
        str(p.relative_to(package)): p.read_text("utf-8") for p in sorted(package.rglob("*.py"))
    }
    return _digest(sources, library, sys.version_info[:2], version("torch"))


def data_digest(job: Job) -> str | None:
    """Return a digest of names, times and sizes of the files of your own data that a job reads, None without."""
    every = {
        name: p.default for name, p in notebook_parameters(job.chapter.notebook).items()
    } | dict(job.values)
    given = [
        value if isinstance(value, list) else [value]
        for name, value in every.items()
        if field_of(name) == "dataset"
    ]
    own = [
        find_own(name)
        for name in sorted({name for names in given for name in names if name} - {*dataset_names()})
    ]
    stamps = [stamp(path) for path in own if path]
    return _digest(stamps) if stamps else None


def chapter_key(root: Path, job: Job, code: str | None = None, data: str | None = None) -> str:
    """Return the digest of everything that an executed chapter depends on, records and your own data included."""
    files = job.chapter.record_files(root, job.values)
    records = [(str(path.relative_to(root)), path.read_text("utf-8")) for path in files]
    where = repository(root)  # the page links to it
    code, own = (
        code or code_digest(job.chapter),
        [found] if (found := data or data_digest(job)) else [],
    )
    return _digest(job.page, job.title, job.profile, job.values, code, records, where, *own)


def chapters_digest(root: Path) -> str:
    """Return a digest of all that was executed: other pages quote its numbers, and all list its titles."""
    paths = sorted((root / "book").glob("*.ipynb")) + run_files(root)
    return _digest([(str(path.relative_to(root)), path.read_text("utf-8")) for path in paths])


# --- what was executed, and your runs among it


def stored(root: Path, page: str) -> dict[str, Any]:
    """Return what an executed chapter says about how it was made; empty if there is none."""
    try:
        return dict(_load(root / "book" / f"{page}.ipynb")["metadata"]["pai"])
    except (OSError, ValueError, KeyError):
        return {}


def is_fresh(root: Path, job: Job) -> bool:
    """Tell whether the executed chapter is what this job would make again; of data that are gone, what it has."""
    made = stored(root, job.page)
    return made.get("key") == chapter_key(root, job, data=data_digest(job) or made.get("data"))


def stale_jobs(root: Path, chapters: Mapping[str, Chapter], but: Iterable[str] = ()) -> list[Job]:
    """Return jobs for what is missing or stale by the settings it was made with, `but` for these pages.

    A chapter is made again as smoke, a run of yours as it was.
    """
    jobs = []
    for chapter in chapters.values():
        made, fresh = stored(root, chapter.name), chapter.name in but
        with contextlib.suppress(ValueError, KeyError):  # a parameter it was made with may be gone
            fresh = fresh or is_fresh(root, Job(chapter, made["profile"], {}))
        if not fresh:
            jobs.append(Job(chapter, "smoke", {}))
    known = with_notebooks(root, chapters)
    runs = [
        run_job(root, known, path.stem)
        for path in run_files(root)
        if f"{RUNS}/{path.stem}" not in but
    ]
    return jobs + [job for job in runs if not is_fresh(root, job)]


def run_files(root: Path) -> list[Path]:
    """Return the executed notebooks of your runs; other notebooks there are named in a warning."""
    found = []
    for path in sorted((root / "book" / RUNS).glob("[!.]*.ipynb")):
        if "chapter" in stored(root, f"{RUNS}/{path.stem}"):
            found.append(path)
        else:
            warnings.warn(
                f"book/{RUNS}/{path.name} is no page of the book: `pai book` did not make it",
                stacklevel=2,
            )
    return found


def run_job(root: Path, known: Mapping[str, Chapter], name: str) -> Job:
    """Return the job that made a run, or raise ValueError if nothing can make it any more."""
    made = stored(root, f"{RUNS}/{name}")
    try:
        (chapter,) = pick(known, [made["chapter"]], "chapter")
        return Job(chapter, made["profile"], made["overrides"], name)
    except ValueError as error:
        raise ValueError(
            f"book/{RUNS}/{name}.ipynb cannot be made again, delete it: {error}"
        ) from None


def run_name(chapter: Chapter, profile: str, overrides: Mapping[str, Any]) -> str:
    """Return the name of a run: the same for the same values, safe as a file's name, and readable.

    A value that cannot be written so is marked by a digest of all.
    """
    parts, exact = [chapter.name] + ["paper"] * (profile == "paper"), True
    for name in notebook_parameters(chapter.notebook):
        if name in overrides:
            value = overrides[name]
            texts = [text_of(item) for item in (value if isinstance(value, list) else [value])]
            plain = [
                re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(text).name).strip(".-") for text in texts
            ]
            exact = exact and plain == texts
            parts.append(f"{name}-{'+'.join(plain)}")
    text = "--".join(parts)
    return text if exact and len(text) <= 100 else f"{text[:90]}-{_digest(dict(overrides))[:6]}"


def check_run_name(name: str) -> str:
    """Return the name, or raise ValueError if it is none for a file."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", name):
        raise ValueError(
            f"--name {name}: it must be up to 100 letters, digits, '_', '-', '+' and '.'"
        )
    return name
