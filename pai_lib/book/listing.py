"""What ``pai book --list`` prints: notebooks, their chapters and parameters, and your runs."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..experiments.campaign import lasting
from ..experiments.spec import choices
from .chapters import RUNS, Chapter, heading, load_chapters, pick, with_notebooks
from .choices import allowed, bounds_of, field_of
from .keys import is_fresh, run_files, run_job, stored
from .parameters import Parameter, notebook_parameters, text_of

WIDTH, COLUMN = 100, 38
INLINE = 5  # so many names stand beside a parameter; more of them below all


def _wrapped(text: str, indent: int, first: str = "") -> str:
    """Return a text as lines of the list, the first of which may begin otherwise."""
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = first or " " * indent, " " * indent
    return wrapper.fill(text)


def list_parameter(parameter: Parameter, value: object) -> str:
    """Return the lines about one parameter: type, value, meaning, and the values it may have."""
    start = f"  {parameter.name}: {parameter.annotation} = {text_of(value)}"
    field = field_of(parameter.name)
    rule = allowed(parameter.name)
    if field and len(choices(field)) > INLINE:
        rule = f"a {field}, see below"
    if bounds_of(parameter.help):  # it says them itself
        rule = ""
    about = f"{parameter.help} [{rule}]" if rule else parameter.help
    if not about:
        return _wrapped(start.strip(), 6, "  ")
    if len(start) < COLUMN:
        return _wrapped(about, COLUMN, start.ljust(COLUMN))
    return _wrapped(start.strip(), 6, "  ") + "\n" + _wrapped(about, COLUMN)


def list_chapters(root: Path, names: Iterable[str] = ()) -> None:
    """Print what there is to execute, with which parameters, and your runs of it."""
    chapters, names = load_chapters(root), list(names)
    sources = with_notebooks(root, chapters)
    chosen = pick(sources, names, "chapter") if names else list(chapters.values())
    fields: set[str] = set()
    for notebook in dict.fromkeys(chapter.notebook for chapter in chosen):
        shown = [chapter for chapter in chosen if chapter.notebook == notebook]
        _list_notebook(root, notebook, shown)
        fields.update(filter(None, map(field_of, notebook_parameters(notebook))))
    for field in sorted(fields):
        if len(choices(field)) > INLINE:
            print(_wrapped(f"{field}: {allowed(field)}", 2, " ").lstrip())
    _list_runs(root, sources, chosen if names else sources.values())


def _list_notebook(root: Path, notebook: Path, chapters: list[Chapter]) -> None:
    """Print a notebook's chapters and its parameters; of a single chapter with its values."""
    print(f"notebooks/{notebook.name}: {heading(notebook)}")
    values = chapters[0].values("smoke", {}) if len(chapters) == 1 else {}
    for chapter in chapters:
        differing = {} if len(chapters) == 1 else chapter.values("smoke", {})
        seconds = stored(root, chapter.name).get("seconds")
        about = f" (took {lasting(seconds)})" if seconds else ""
        about += f" with {_assignments(differing)}" if differing else ""
        print(_wrapped(f"chapter {chapter.name}{about}", 6, "  "))
        if chapter.paper:
            print(_wrapped(f"--profile paper: {_assignments(chapter.paper)}", 6))
    for name, parameter in notebook_parameters(notebook).items():
        print(list_parameter(parameter, values.get(name, parameter.default)))
    print()


def _assignments(values: Mapping[str, object]) -> str:
    return " ".join(f"{name}={text_of(value)}" for name, value in values.items())


def _list_runs(root: Path, sources: dict[str, Chapter], chosen: Iterable[Chapter]) -> None:
    """Print your runs of these chapters."""
    lines = []
    for path in run_files(root):
        try:
            job = run_job(root, sources, path.stem)
            state = "" if is_fresh(root, job) else " (out of date)"
            if job.chapter in chosen:
                lines.append(f"{path.stem}{state}: {job.title}".replace("`", ""))
        except ValueError as error:
            lines.append(str(error))
    if lines:
        print(f"\nYour runs, pages of the book until you delete their files in book/{RUNS}/:")
        print("\n".join(_wrapped(line, 4, "  ") for line in lines))
