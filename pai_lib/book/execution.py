"""Executing notebooks: papermill injects values, nbclient runs cells, a watch tells how far it is.

The kernel is this interpreter, whatever kernels the user or the system installed. Jupyter packages
are imported where they are used: ``import pai_lib`` works without them.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..experiments.campaign import lasting
from ..experiments.provenance import LIBRARY
from ..progress import PROGRESS_FILE

INTERVAL = 10.0  # seconds at least between two lines about one notebook
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


class ChapterError(RuntimeError):
    """A chapter that did not execute, or a book that did not build."""


@dataclass
class Progress:
    """How far one notebook is: its cell and, where that does runs, the run and the time left."""

    label: str
    notebook: Any
    file: Path  # its kernel counts there
    kernel: Any
    cell: int = 0
    told: str = ""  # the last line about it, and when that was
    told_at: float = field(default_factory=time.monotonic)

    def begin_cell(self, cell: Any, cell_index: int) -> None:
        """Count a cell; nbclient calls this."""
        self.cell = cell_index + 1

    def text(self) -> str:
        """Return how far the notebook is."""
        text = f"{self.label} · cell {self.cell} of {len(self.notebook.cells)}"
        with contextlib.suppress(OSError, ValueError, KeyError):  # while nothing is counted
            count = json.loads(self.file.read_text("utf-8"))
            text += f" · {count['unit']} {count['number']} of {count['of']}"
            if count["left"] is not None:
                text += f", about {lasting(count['left'])} left"
        return text

    def place(self) -> str:
        """Return the cell that is executed, and how it begins."""
        if not self.cell:
            return "its kernel's start"
        lines = self.notebook.cells[self.cell - 1].source.strip().splitlines()
        return f"cell {self.cell} ({lines[0]!r})"


class Watch:
    """Tells of all notebooks under way: in a bar, or in lines where no terminal shows one."""

    def __init__(self, total: int):
        self.bar = tqdm(total=total, unit="notebook", disable=None)
        self.under_way: list[Progress] = []
        self.stopped = False

    @contextlib.contextmanager
    def over(self, progress: Progress) -> Iterator[None]:
        """Watch one notebook while it is executed; ChapterError if all have been stopped."""
        self.under_way.append(progress)
        try:
            if self.stopped:
                raise ChapterError(f"{progress.label}: interrupted")
            yield
        finally:
            self.under_way.remove(progress)
            progress.file.unlink(missing_ok=True)

    def tell(self) -> None:
        """Say how far the notebooks are, where that has changed."""
        begun = [progress for progress in self.under_way if progress.cell]
        if not self.bar.disable:
            self.bar.set_postfix_str(" | ".join(progress.text() for progress in begun))
            return
        for progress in begun:
            text, now = progress.text(), time.monotonic()
            if text != progress.told and now - progress.told_at >= INTERVAL:
                progress.told, progress.told_at = text, now
                print(text, flush=True)

    def stop(self) -> None:
        """End all kernels, those that are about to start too; return when they have ended."""
        self.stopped = True
        while self.under_way:
            for progress in list(self.under_way):
                if progress.kernel.has_kernel:
                    progress.kernel.provisioner.process.kill()
            time.sleep(0.1)


def execute_together(tasks: Sequence[Callable[[Watch], None]], workers: int) -> None:
    """Do tasks that execute notebooks, so many at a time; ChapterError at the end if any failed."""
    failures = []
    with ThreadPoolExecutor(workers) as pool:
        watch = Watch(len(tasks))
        pending: set[Future[Any]] = {pool.submit(task, watch) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, 1.0, FIRST_COMPLETED)
                watch.tell()
                watch.bar.update(len(done))
                for future in done:
                    try:
                        future.result()
                    except ChapterError as error:
                        failures.append(str(error))
        except KeyboardInterrupt:
            text = "ending the notebooks under way; their pages stay as they were"
            print(f"pai: interrupted: {text}", file=sys.stderr, flush=True)
            watch.stop()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            watch.bar.close()
    if failures:
        raise ChapterError("; ".join(failures))


def kernel_environment() -> dict[str, str]:
    """Return the environment of a kernel, which runs in the notebook's folder.

    It imports the library that runs this, and finds data where this does. It computes on one thread
    unless OMP_NUM_THREADS says otherwise: small networks gain nothing from threads, and where the
    cores are busy threads that wait for each other are tens of times slower.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if (LIBRARY.parent / "pyproject.toml").is_file():  # a checkout, not the folder of all packages
        paths = [str(LIBRARY.parent), os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if os.environ.get("PAI_DATA"):
        environment["PAI_DATA"] = str(Path(os.environ["PAI_DATA"]).expanduser().resolve())
    return environment


def run_notebook(
    root: Path, source: Path, values: Mapping[str, Any], label: str, watch: Watch
) -> tuple[Any, float]:
    """Execute a notebook with values of its parameters; return it and its seconds.

    Raises:
        ChapterError: naming the cell that failed; the notebook is then in ``_build/failed``.
    """
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    notebook = injected(nbformat.read(source, 4), values)
    attempt = root / "_build" / "failed" / f"{label}.ipynb"
    attempt.parent.mkdir(parents=True, exist_ok=True)
    this_interpreter = KernelSpecManager(kernel_dirs=[])
    kernel = AsyncKernelManager(kernel_name=KERNEL["name"], kernel_spec_manager=this_interpreter)
    progress = Progress(label, notebook, attempt.with_suffix(".progress"), kernel)
    client = NotebookClient(
        notebook,
        km=kernel,
        startup_timeout=120,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_start=progress.begin_cell,
    )
    start = time.perf_counter()
    with watch.over(progress):
        try:
            environment = kernel_environment() | {PROGRESS_FILE: str(progress.file)}
            asyncio.run(client.async_execute(env=environment, cleanup_kc=True))
        except Exception as error:  # of a cell; or a kernel was killed, say
            nbformat.write(notebook, attempt)
            name = getattr(error, "ename", type(error).__name__)
            reason = f"{name}: {getattr(error, 'evalue', error)}"
            where = f"{progress.place()}: {reason} (see {attempt.relative_to(root)})"
            raise ChapterError(f"{label} failed in {where}") from None
    return notebook, time.perf_counter() - start


def injected(notebook: Any, values: Mapping[str, Any]) -> Any:
    """Return a notebook with papermill's cell of values behind its own parameters."""
    from papermill.parameterize import parameterize_notebook

    notebook.metadata.kernelspec = dict(KERNEL)
    if values:
        for cell in notebook.cells:  # papermill needs these
            cell.metadata.setdefault("tags", [])
        notebook.metadata.papermill = {}
        notebook = parameterize_notebook(notebook, dict(values))
        del notebook.metadata["papermill"]
    return notebook
