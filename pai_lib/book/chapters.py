"""Chapters and jobs: what can be executed, with which values, and the page that it makes.

A chapter is a notebook plus parameters (``notebooks/chapters.yaml``), executed to
``book/<chapter>.ipynb``. A run is a chapter with other values, or a notebook alone, executed to
``book/runs/<name>.ipynb`` beside the chapters.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..experiments.provenance import LIBRARY
from ..files import load_yaml
from ..names import nearest
from .choices import check_values, located
from .parameters import checked, notebook_parameters, parse_overrides, text_of

PROFILES = ("smoke", "paper")
RUNS = "runs"  # folder below book/
ENTRY = {"notebook": str, "title": str, "parameters": dict, "paper": dict, "records": list}


@dataclass(frozen=True)
class Chapter:
    """One page of the book: a notebook and the parameters it runs with."""

    name: str
    notebook: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[str] = ("*/*/*.json",)  # of all runs
    title: str | None = None  # heads the page; None is the notebook's own title
    alone: bool = False  # a notebook by its own name, not an entry of chapters.yaml

    def values(self, profile: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that replace the notebook's defaults, checked by its declarations."""
        paper = self.paper if profile == "paper" else {}
        declared = notebook_parameters(self.notebook)
        types = {name: parameter.annotation for name, parameter in declared.items()}
        return checked({**self.parameters, **paper, **overrides}, types, f"chapter {self.name}")


@dataclass
class Job:
    """One execution of a chapter, with a profile and values from the command line, checked at once.

    Without a `run` it makes the chapter's own page, with one it makes ``book/runs/<run>.ipynb``.
    """

    chapter: Chapter
    profile: str
    overrides: Mapping[str, Any]
    run: str | None = None

    values: dict[str, Any] = field(init=False)  # what replaces the notebook's defaults
    parameters: dict[str, Any] = field(init=False)  # all of the notebook's, with these values

    def __post_init__(self) -> None:
        self.values = self.chapter.values(self.profile, self.overrides)
        declared = notebook_parameters(self.chapter.notebook)
        self.parameters = {name: p.default for name, p in declared.items()} | self.values
        self.overrides = {name: self.values[name] for name in declared if name in self.overrides}

    @property
    def page(self) -> str:
        """Where it goes, below ``book/`` and without ``.ipynb``."""
        return self.chapter.name if self.run is None else f"{RUNS}/{self.run}"

    @property
    def title(self) -> str | None:
        """Heading of the page; that of a run says how it differs. None is the notebook's own."""
        if self.run is None:
            return self.chapter.title
        differences = ["the paper's size"] if self.profile == "paper" else []
        for name, value in self.overrides.items():
            own = isinstance(value, str) and Path(value).is_absolute()  # this machine's
            assignment = f"{name}={text_of(Path(value).name if own else value)}".replace("`", "")
            differences.append(f"`{assignment}`")
        title = self.chapter.title or heading(self.chapter.notebook)
        return f"{title}: {', '.join(differences)}" if differences else title

    def record_files(self, root: Path) -> list[Path]:
        """Return the files below ``results/`` that the page shows."""
        name, parameters = self.chapter.name, self.parameters
        try:
            globs = [glob.format(**parameters) for glob in self.chapter.records]
        except (KeyError, IndexError) as error:
            unknown = f"records name a parameter {error}; {nearest(error, parameters)}"
            raise ValueError(f"chapters.yaml: {name}: {unknown}") from None
        paths = {path for glob in globs for path in (root / "results").glob(glob)}
        return sorted(path for path in paths if path.is_file())


def find_root() -> Path:
    """Return the folder at or above the current one that holds the book."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks" / "chapters.yaml").is_file():
            return folder
    absent = f"no notebooks/chapters.yaml in {Path.cwd()} or above"
    raise FileNotFoundError(f"{absent}: run this inside the repository")


def check_library(root: Path) -> None:
    """Raise ValueError if the project holds another copy of the library than the one that runs."""
    if (root / "pai_lib").is_dir() and (root / "pai_lib").resolve() != LIBRARY:
        wrong = f"the chapters in {root} need its own pai_lib, not that in {LIBRARY.parent}"
        right = f"install this one, pip install -e {root}, or use the environment that has it"
        raise ValueError(f"{wrong}: {right}")


def load_chapters(root: Path) -> dict[str, Chapter]:
    """Return the chapters of ``notebooks/chapters.yaml`` in their order."""
    check_library(root)
    content = load_yaml(root / "notebooks" / "chapters.yaml")
    if not isinstance(content, dict) or not isinstance(content.get("chapters"), dict):
        raise ValueError("chapters.yaml: it must hold a mapping 'chapters:'")
    entries = content["chapters"].items()
    return {name: _chapter(root, str(name), entry or {}) for name, entry in entries}


def _chapter(root: Path, name: str, entry: Mapping[str, Any]) -> Chapter:
    """Return one checked entry of chapters.yaml."""
    where = f"chapters.yaml: {name}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a mapping with 'notebook:', not {entry!r}")
    options = {key: value for key, value in entry.items() if value is not None}
    for key, value in options.items():
        if key not in ENTRY:
            raise ValueError(f"{where} has an unknown key {key!r}; {nearest(key, ENTRY)}")
        if not isinstance(value, ENTRY[key]):
            raise ValueError(f"{where}: {key} must be a {ENTRY[key].__name__}, not {value!r}")
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"chapters.yaml: chapter name {name!r} must be letters, digits, '_', '-'")
    notebook = root / "notebooks" / f"{options.pop('notebook', name)}.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(f"{where} needs notebooks/{notebook.name}, which is missing")
    return Chapter(name, notebook, **options)


def pick(things: Mapping[str, Any], names: Iterable[str], noun: str) -> list[Any]:
    """Return the named things in their own order; without names, all of them."""
    names = set(names) or set(things)
    for name in sorted(names - set(things)):
        raise ValueError(f"no {noun} is named {name!r}; {nearest(name, things)}")
    return [thing for name, thing in things.items() if name in names]


def with_notebooks(root: Path, chapters: Mapping[str, Chapter]) -> dict[str, Chapter]:
    """Return the chapters, and each notebook by its own name if no chapter has it."""
    sources = dict(chapters)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        shown = [chapter.records for chapter in chapters.values() if chapter.notebook == path]
        records = shown[0] if shown else Chapter.records
        sources.setdefault(path.stem, Chapter(path.stem, path, records=records, alone=True))
    return sources


def load_notebook(path: Path) -> dict[str, Any]:
    """Return a notebook as it is stored."""
    return json.loads(path.read_text("utf-8"))


def heading(notebook: Path) -> str:
    """Return the title of a notebook: the first line of its first cell."""
    return "".join(load_notebook(notebook)["cells"][0]["source"]).partition("\n")[0].lstrip("# ")


def digest(*parts: Any) -> str:
    """Return a digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- what a command asks for


def asked_jobs(
    root: Path,
    profile: str,
    names: Iterable[str],
    pairs: Iterable[str],
    run: str | None = None,
    file: Path | None = None,
) -> list[Job]:
    """Return what a command asks for, checked in all its names, types and values.

    Values of the command line or of a YAML `file`, a `run` name, and notebooks that no chapter is
    named after make runs beside the chapters; everything else makes chapters. At the paper's size
    these are the chapters that have one.
    """
    chapters, names = load_chapters(root), list(names)
    if run is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}(?<!\.ipynb)", run):
        rule = "it must be up to 100 letters, digits, '_', '-', '+' and '.', without .ipynb"
        raise ValueError(f"--name {run}: {rule}")
    chosen = pick(with_notebooks(root, chapters) if names else chapters, names, "chapter")
    if run is not None and len(chosen) > 1:
        raise ValueError(f"--name {run} needs one --chapter NAME: it names one page")
    if profile == "paper" and not names:
        chosen = [chapter for chapter in chosen if chapter.paper]
    values = load_yaml(file) if file else {}
    if file and (not isinstance(values, dict) or not values):
        raise ValueError(f"--parameters {file}: it must hold lines of name: value")
    return [_asked_job(chapter, profile, values, pairs, run) for chapter in chosen]


def _asked_job(
    chapter: Chapter,
    profile: str,
    values: Mapping[str, Any],
    pairs: Iterable[str],
    run: str | None,
) -> Job:
    """Return the checked job of one chapter; a pair counts more than a value of the file."""
    if profile == "paper" and not chapter.paper:
        alike = f"chapter {chapter.name} has no values of its own there"
        raise ValueError(f"--profile paper: {alike}; leave --profile out")
    declared = notebook_parameters(chapter.notebook)
    types = {name: parameter.annotation for name, parameter in declared.items()}
    overrides = located(checked(values, types, "--parameters") | parse_overrides(pairs, declared))
    if run is None and (overrides or chapter.alone):
        run = run_name(chapter, profile, overrides)
    job = Job(chapter, profile, overrides, run)
    on_gpu = profile == "paper" and job.parameters.get("device") == "cuda"
    if on_gpu and not torch.cuda.is_available():
        size = f"chapter {chapter.name} takes hours or days on a GPU"
        raise ValueError(f"--profile paper: {size}, and PyTorch finds none here")
    comments = {name: parameter.help for name, parameter in declared.items()}
    check_values(job.parameters, f"chapter {chapter.name}", comments)
    return job


def run_name(chapter: Chapter, profile: str, overrides: Mapping[str, Any]) -> str:
    """Return the name of a run: the same for the same values, safe as a file's name, and readable.

    A value that cannot be written so is marked by a digest of all.
    """
    parts = [chapter.name, "paper"] if profile == "paper" else [chapter.name]
    exact = True
    for name in notebook_parameters(chapter.notebook):
        if name not in overrides:
            continue
        items = overrides[name] if isinstance(overrides[name], list) else [overrides[name]]
        texts = [text_of(item) for item in items]
        safe = [re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(text).name).strip(".-") for text in texts]
        exact = exact and safe == texts
        parts.append(f"{name}-{'+'.join(safe)}")
    text = "--".join(parts)
    return text if exact and len(text) <= 100 else f"{text[:90]}-{digest(dict(overrides))[:6]}"
