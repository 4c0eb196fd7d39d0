"""Executing one notebook with papermill, in a kernel that is this interpreter."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class ChapterError(RuntimeError):
    """A chapter that did not execute, or a book that did not build."""


@contextlib.contextmanager
def own_kernel() -> Iterator[None]:
    """Make the kernel ``python3`` this interpreter, whatever kernels the user or the system installed.

    It computes on one thread unless OMP_NUM_THREADS says otherwise: small networks gain nothing from threads,
    and on a machine whose cores are busy threads that wait for each other are tens of times slower.
    """
    from ipykernel.kernelspec import get_kernel_dict  # it names sys.executable

    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({**get_kernel_dict(["--log-level=CRITICAL"]), "env": threads}))
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, *filter(None, [before])])
        try:
            yield
        finally:
            del os.environ["JUPYTER_PATH"]
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def run_notebook(root: Path, source: Path, values: Mapping[str, Any], label: str) -> tuple[Any, float]:
    """Execute a notebook within ``own_kernel``; return it and its seconds. A failed one is in _build/failed."""
    import papermill

    attempt = root / "_build" / "failed" / f"{label}.ipynb"
    attempt.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it takes `x: str | None` for unknown: we checked
    options = {"kernel_name": "python3", "language": "python", "cwd": str(source.parent)}
    bar = {"desc": label, "leave": False, "disable": None}  # None: silent where no terminal shows it
    start = time.perf_counter()
    try:
        nb = papermill.execute_notebook(source, attempt, dict(values), progress_bar=bar, **options)
    except papermill.PapermillExecutionError as error:
        line = next((text for text in error.source.splitlines() if text.strip()), "")
        what = f"cell {error.cell_index + 1} ({line!r}): {error.ename}: {error.evalue}"
        raise ChapterError(f"{label} failed in {what} (see {attempt.relative_to(root)})") from None
    except Exception as error:  # for example a kernel that was killed
        raise ChapterError(f"{label} failed: {type(error).__name__}: {error}") from error
    attempt.unlink()
    for part in (nb, *nb.cells):
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nb, time.perf_counter() - start
