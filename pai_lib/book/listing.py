"""What ``pai book --list`` prints: notebooks, their chapters and parameters, and your runs; 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from ..experiments.spec import choices
from .chapters import (
    RUNS,
    heading,
    is_fresh,
    load_chapters,
    pick,
    run_files,
    run_job,
    with_notebooks,
)
from .choices import allowed, bounds_of, field_of
from .parameters import Parameter, notebook_parameters, text_of

WIDTH, COLUMN = 100, 38
INLINE = 5  # so many names stand beside a parameter; more of them below all


def _wrapped(text: str, indent: int, first: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first or " " * indent, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def list_parameter(parameter: Parameter, value: object) -> str:
    """Return the lines about one parameter: type, value, meaning, and the values that are allowed."""
    start = f"  {parameter.name}: {parameter.annotation} = {text_of(value)}"
    names, rule = choices(field_of(parameter.name) or ""), allowed(parameter.name)
    rule = f"a {field_of(parameter.name)}, see below" if len(names) > INLINE else rule
    rule = "" if bounds_of(parameter.help) else rule
    about = parameter.help + (f" [{rule}]" if rule else "")
    if len(start) < COLUMN:
        return _wrapped(about, COLUMN, start.ljust(COLUMN)) if about else start
    return _wrapped(start.strip(), 6, "  ") + ("\n" + _wrapped(about, COLUMN) if about else "")


def list_chapters(root: Path, names: Iterable[str] = ()) -> None:
    """Print what there is to execute, with which parameters, and what has been executed as your runs."""
    chapters, names = load_chapters(root), list(names)
    known = with_notebooks(root, chapters)
    chosen = pick(known, names, "chapter") if names else list(chapters.values())
    shown: set[str] = set()
    for notebook in dict.fromkeys(chapter.notebook for chapter in chosen):
        print(f"notebooks/{notebook.name}: {heading(notebook)}")
        made = [chapter for chapter in chosen if chapter.notebook == notebook]
        for chapter in made:
            own = chapter.values("smoke", {}) if len(made) > 1 else {}
            values = " ".join(f"{name}={text_of(value)}" for name, value in own.items())
            print(_wrapped(f"chapter {chapter.name}{f' with {values}' if values else ''}", 6, "  "))
        given = made[0].values("smoke", {}) if len(made) == 1 else {}
        for name, parameter in notebook_parameters(notebook).items():
            print(list_parameter(parameter, given.get(name, parameter.default)))
            if field := field_of(name):
                shown.add(field)
        print()
    for field in sorted(field for field in shown if len(choices(field)) > INLINE):
        print(_wrapped(f"{field}: {allowed(field)}", 2, " ").lstrip())
    _list_runs(root, known, {chapter.name for chapter in chosen} if names else set(known))


def _list_runs(root: Path, known: dict, names: set[str]) -> None:
    lines = []
    for path in run_files(root):
        try:
            job = run_job(root, known, path.stem)
            state = "" if is_fresh(root, job) else " (out of date)"
        except ValueError as error:
            lines.append(_wrapped(str(error), 4, "  "))
            continue
        if job.chapter.name in names:
            lines.append(
                _wrapped(f"{path.stem}{state}: {(job.title or '').replace('`', '')}", 4, "  ")
            )
    if lines:
        print("\nYour runs, pages of the book until you delete their files in " + f"book/{RUNS}/:")
        print("\n".join(lines))
