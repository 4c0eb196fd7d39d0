"""Executing one notebook with papermill, in a kernel that is this interpreter, and telling how far it is."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..experiments.campaign import lasting
from ..experiments.provenance import LIBRARY
from ..progress import PROGRESS_FILE


class ChapterError(RuntimeError):
    """A chapter that did not execute, or a book that did not build."""


@contextlib.contextmanager
def own_kernel() -> Iterator[None]:
    """Make the kernel ``python3`` this interpreter, whatever kernels the user or the system installed.

    It imports the library that runs this, and finds data where this does, though it runs in another
    folder.

    It computes on one thread unless OMP_NUM_THREADS says otherwise: small networks gain nothing
        from threads,
    and on a machine whose cores are busy threads that wait for each other are tens of times slower.
    """
    from ipykernel.kernelspec import get_kernel_dict  # it names sys.executable

    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if (LIBRARY.parent / "pyproject.toml").is_file():  # a checkout, not the folder of all packages
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(LIBRARY.parent), os.environ.get("PYTHONPATH")])
        )
    if os.environ.get("PAI_DATA"):
        environment["PAI_DATA"] = str(Path(os.environ["PAI_DATA"]).expanduser().resolve())
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(
            json.dumps({**get_kernel_dict(["--log-level=CRITICAL"]), "env": environment})
        )
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, *filter(None, [before])])
        try:
            yield
        finally:
            del os.environ["JUPYTER_PATH"]
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


class Watch:
    """Tells of each notebook under way its cell and, where that does runs, the run and the time left.

    It is a bar over all notebooks, or lines where no terminal shows a bar, at least `interval`
    seconds apart.
    """

    def __init__(self, total: int, interval: float = 10.0):
        self.bar = tqdm(total=total, unit="chapter", disable=None if total else True)
        self.interval = interval
        self.cells: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.said: dict[str, tuple[str, float]] = {}  # of each notebook the last line, and when
        self.clients: list[Any] = []  # of the kernels under way
        self.stopped = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.bar.close()

    @contextlib.contextmanager
    def of(self, label: str, file: Path) -> Iterator[Callable[[int, int], None]]:
        """Watch one notebook, whose kernel writes `file`; yields what to call with its cell and their number."""
        self.said[label], self.files[label] = ("", time.monotonic()), file
        try:
            yield lambda cell, of: self.cells.update({label: (cell, of)})
        finally:
            for known in (self.files, self.cells, self.said):
                known.pop(label, None)
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def running(self, client: Any) -> Iterator[None]:
        """Know the client of a kernel while it runs, for `stop`."""
        self.clients.append(client)
        try:
            yield
        finally:
            self.clients.remove(client)

    def stop(self) -> None:
        """End all kernels, those that are about to start too; return when they have ended."""
        self.stopped = True
        while self.clients:
            for client in list(self.clients):
                if process := getattr(getattr(client.km, "provisioner", None), "process", None):
                    process.kill()
            time.sleep(0.1)

    def text(self, label: str) -> str:
        """Return how far a notebook is."""
        text = label + " · cell {} of {}".format(*self.cells.get(label, (0, 0)))
        with contextlib.suppress(
            OSError, ValueError, KeyError
        ):  # there is no file while nothing is counted
            run = json.loads(self.files[label].read_text("utf-8"))
            text += f" · {run['unit']} {run['number']} of {run['of']}"
            text += f", about {lasting(run['left'])} left" if run["left"] is not None else ""
        return text

    def _look(self) -> None:
        while not self._ended.wait(min(1.0, self.interval)):
            texts = {label: self.text(label) for label in list(self.cells)}
            if not self.bar.disable:
                self.bar.set_postfix_str(" | ".join(texts.values()))
                continue
            for label, text in texts.items():
                before, when = self.said.get(label, (text, 0.0))
                if text != before and time.monotonic() - when >= self.interval:
                    self.said[label] = text, time.monotonic()
                    print(text, flush=True)


# Told by a kernel, which imports nothing for it.
_WHERE = "__import__('importlib.util').util.find_spec('pai_lib').origin"


def _engine() -> str:
    """Teach papermill to say which cell it begins, and to check its kernel; return the engine's name."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class Client(PapermillNotebookClient):
        def papermill_execute_cells(self) -> None:
            asked = self.kc.execute("", silent=True, user_expressions={"where": _WHERE})
            answer = self.wait_for_reply(asked)["content"]["user_expressions"]["where"]
            found = (
                ast.literal_eval(answer["data"]["text/plain"])
                if answer["status"] == "ok"
                else "nowhere"
            )
            if Path(found).resolve().parent != LIBRARY:
                raise ChapterError(
                    f"the kernel would import pai_lib from {found}, not from {LIBRARY}"
                )
            super().papermill_execute_cells()

    class Telling(Engine):
        @classmethod
        def execute_managed_notebook(  # type: ignore[no-untyped-def]
            cls, nb_man, kernel_name, watch, tell, environment, **_
        ) -> None:
            begin = nb_man.cell_start

            def cell_start(cell: Any, cell_index: int, **options: Any) -> None:
                if watch.stopped:
                    raise ChapterError("interrupted")
                tell(cell_index + 1, len(nb_man.nb.cells))
                begin(cell, cell_index, **options)

            nb_man.cell_start = cell_start
            client = Client(nb_man, kernel_name=kernel_name, timeout=None, startup_timeout=120)
            with watch.running(client):
                client.execute(env={**os.environ, **environment})

    papermill_engines.register("pai", Telling)
    return "pai"


def run_notebook(
    root: Path, source: Path, values: Mapping[str, Any], label: str, watch: Watch
) -> tuple[Any, float]:
    """Execute a notebook within ``own_kernel``; return it and its seconds. A failed one is in _build/failed."""
    import papermill

    attempt = root / "_build" / "failed" / f"{label}.ipynb"
    attempt.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(
        logging.ERROR
    )  # it takes `x: str | None` for unknown: we checked
    options = {
        "kernel_name": "python3",
        "language": "python",
        "cwd": str(source.parent),
        "progress_bar": False,
    }
    file = attempt.with_suffix(".progress")
    start = time.perf_counter()
    try:
        with watch.of(label, file) as tell:
            options |= {"engine_name": _engine(), "watch": watch, "tell": tell}
            options |= {"environment": {PROGRESS_FILE: str(file)}}
            nb = papermill.execute_notebook(source, attempt, dict(values), **options)
    except papermill.PapermillExecutionError as error:
        line = next((text for text in error.source.splitlines() if text.strip()), "")
        what = f"cell {error.cell_index + 1} ({line!r}): {error.ename}: {error.evalue}"
        raise ChapterError(f"{label} failed in {what} (see {attempt.relative_to(root)})") from None
    except ChapterError as error:
        raise ChapterError(f"{label}: {error}") from None
    except Exception as error:  # for example a kernel that was killed
        raise ChapterError(f"{label} failed: {type(error).__name__}: {error}") from error
    attempt.unlink()
    for part in (nb, *nb.cells):
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nb, time.perf_counter() - start
