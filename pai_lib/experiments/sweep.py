"""Doing many runs, in this process or on a Dask cluster.

Kill a sweep at any moment and start it again, on as many machines as there are: a run whose record
exists is not repeated, one that another process works on is left to it, one that was interrupted
goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from ..data.loading import Dataset, load_data
from ..training.device import keep_freed_memory, resolve_device
from ..training.loop import TrainingStoppedError
from .campaign import Estimate, differing, lasting, named
from .cluster import connected
from .provenance import now, run_provenance
from .records import Record, Store
from .run import Shared, check, perform
from .spec import RunSpec

say = partial(print, flush=True)


def sweep(
    specs: list[RunSpec],
    store: Store,
    *,
    device: str | None = None,
    budget: float | None = None,
    retry_failed: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
) -> Counter:
    """Do every run that has no record yet, in the order of the specs, and say so.

    Args:
        specs: what to run.
        store: where records are kept.
        device: ``None`` is CUDA where there is one, else the CPU; with Dask, on each worker.
        budget: seconds. No run is started that would end later by the estimate, and one that takes
            longer than that stops after an epoch.
        retry_failed: repeat the runs whose record is a failure.
        workers: number of processes of a Dask cluster on this machine; ``None`` runs here.
        scheduler: address of a Dask scheduler in a trusted network.
        quiet: say no more than the counts at the end.

    Returns:
        How many runs were ``done``, ``reused`` and ``failed`` and are ``left``; and whether SIGINT
        or SIGTERM, the first of which lets each epoch end, ``interrupted`` it.

    Raises:
        ValueError: for data that cannot be had or do not fit a run, or a budget or number of
            workers that is not positive.
        OSError: for a results folder that cannot be written; unfinished runs keep their
            checkpoints.
        RuntimeError: for a scheduler that does not answer or is lost, or without Dask where it is
            needed.
        Exception: whatever a run raises, with a note that names the run, unless its loss diverged
            or the memory is exhausted. Nothing is recorded of that run, and no other is begun: what
            broke it may break them all.
    """
    for name, value in (("budget", budget), ("workers", workers)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: it must be above 0.")
    store.check_writable()
    _data.cache_clear()
    asked = threading.Event()
    here = workers is None and scheduler is None
    with contextlib.ExitStack() as stack:
        with _signals(asked):  # a cluster that is interrupted while it starts would be left behind
            cluster = None if here else connected(_on_worker, device, asked, workers, scheduler)
            engine = stack.enter_context(cluster) if cluster else _Here(device, asked)
        work = _Sweep(specs, store, engine, budget, retry_failed, quiet)
        with _signals(asked):
            work.go(asked)
    return work.counts + Counter(interrupted=asked.is_set())


class _Sweep:
    """What is left, what is under way, and what has been counted."""

    def __init__(
        self,
        specs: list[RunSpec],
        store: Store,
        engine: Any,
        budget: float | None,
        retry: bool,
        quiet: bool,
    ) -> None:
        self.store, self.engine, self.quiet = store, engine, quiet
        self.end = time.monotonic() + (float("inf") if budget is None else budget)
        self.prints = {
            (s.dataset, s.image_size): _data(s.dataset, s.image_size).fingerprint for s in specs
        }
        specs = [s.with_data(self.prints[s.dataset, s.image_size]) for s in specs]
        self.estimate = Estimate(store, engine.device)
        self.names, self.total, self.counts = differing(specs), len(specs), Counter[str]()
        self.left: deque[RunSpec] = deque()
        self.failed: dict[RunSpec, Record] = {}  # to be repeated
        self.running: dict[
            Future, tuple[RunSpec, contextlib.ExitStack]
        ] = {}  # which holds the lock
        self.closed = False  # nothing more is started
        self.busy = 0  # so many in a row of those left are locked by other processes
        for spec in specs:
            known = self.find(spec)
            if known is None or (known.failure and retry):
                self.left.append(spec)
                self.failed |= {spec: known} if known else {}
            else:
                self.count(known, "reused")
                if not known.failure:  # a worker may have outlived the sweep that it worked for
                    store.checkpoint(spec).unlink(missing_ok=True)
        self.check()

    def check(self) -> None:
        """Refuse a run that its data do not allow, before the first one begins."""
        kinds = {}
        for spec in self.left:
            scored = spec.criterion == "dense" or spec.samples_per_class
            kinds[
                spec.dataset, spec.image_size, spec.train_fraction, spec.model, spec.width, scored
            ] = spec
        for spec in kinds.values():
            try:
                check(spec, _data(spec.dataset, spec.image_size))
            except ValueError as error:
                raise ValueError(f"{named(spec, self.names)}: {error}") from error

    def find(self, spec: RunSpec) -> Record | None:
        return self.store.find(spec, self.prints[spec.dataset, spec.image_size])

    def count(self, record: Record, otherwise: str) -> None:
        self.counts["failed" if record.failure else otherwise] += 1

    def go(self, asked: threading.Event) -> None:
        try:
            while self.running or (self.left and not self.closed):
                self.closed = self.closed or asked.is_set()
                while (
                    not self.closed
                    and self.busy < len(self.left)
                    and len(self.running) < self.engine.slots()
                ):
                    if not self.start():
                        break
                self.busy = 0
                for future in self.engine.wait(list(self.running)):
                    self.finish(future)
        finally:
            for _, held in self.running.values():
                held.close()
            self.counts["left"] = self.total - self.counts.total()
            told = ", ".join(
                f"{self.counts[name]} {name}" for name in ("done", "reused", "failed", "left")
            )
            say(f"{self.total} runs: {told}.")

    def start(self) -> bool:
        """Start the first run that is left, if no other process does it; False if it has to wait."""
        spec = self.left[0]
        seconds = self.estimate.seconds(spec)
        if time.monotonic() + (seconds or 0) >= self.end:
            self.closed = True
            return False
        if seconds is None and self.running and self.end < float("inf"):
            return False  # the first of its kind tells how long the others take
        lock = self.store.lock(spec)
        with contextlib.ExitStack() as held:
            held.callback(lock.release)  # whatever happens while the run is done here
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self.left.rotate(-1)
                self.busy += 1
                return True
            self.left.popleft()
            known = self.find(spec)
            if known is None or known == self.failed.get(spec):
                self.store.tidy(spec)
                future = self.engine.submit(
                    spec, self.store.checkpoint(spec), self.end - time.monotonic()
                )
                self.running[future] = spec, held.pop_all()
            else:  # another process has done it since
                self.count(known, "reused")
        return True

    def finish(self, future: Future) -> None:
        """Keep what a run gave."""
        spec, held = self.running[future]
        fingerprint = self.prints[spec.dataset, spec.image_size]
        record = self.engine.result(future, spec, fingerprint)
        if record is None:  # it was stopped
            self.left.appendleft(spec)
            self.closed = True
        else:
            if record.data["fingerprint"] != fingerprint:
                raise ValueError(
                    f"A worker's data set {spec.dataset!r} is not the one that is here."
                )
            if before := self.failed.get(spec):  # what failed stays visible
                failure = {**(before.failure or {}), "finished": before.provenance.get("finished")}
                record.provenance["retried"] = [*before.provenance.get("retried", []), failure]
            self.store.save(record)
            self.store.checkpoint(spec).unlink(missing_ok=True)
            self.store.tidy(spec)  # a worker may have been killed while it wrote
            self.estimate.add(record)
            self.count(record, "done")
        del self.running[future]
        held.close()
        if record is not None and not self.quiet:
            self.tell(record)

    def tell(self, record: Record) -> None:
        seconds = [self.estimate.seconds(spec) for spec in self.left]
        known = [each for each in seconds if each is not None]
        left = len(known) == len(seconds) and sum(known) / max(1, self.engine.slots())
        found = (
            f"failed in {record.failure['where']}: {record.failure['reason']}"
            if record.failure
            else f"test accuracy {100 * record.result['test_accuracy']:.2f} %"
        )
        spent = sum(record.result.get(name, 0) for name in ("scoring_seconds", "training_seconds"))
        line = f"[{self.counts.total()}/{self.total}] {named(record.spec, self.names)}  {found}  {spent:.1f} s"
        say(line + (f", about {lasting(left)} left" if left else ""))


# ---------------------------------------------------------------------------------------------------------
# One run, and where it is done


class _Stop:
    """Whether to stop before the next epoch: on request, or if one as long as the last would end too late."""

    def __init__(self, asked: Callable[[], bool], seconds: float):
        self.asked, self.end, self.last = asked, time.monotonic() + seconds, float("inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        lap, self.last = max(0.0, now - self.last), now
        return self.asked() or now + lap > self.end


@lru_cache(maxsize=4)  # data are read once a process; a sweep in the same process begins afresh
def _data(name: str, image_size: int | None) -> Dataset:
    return load_data(name, image_size=image_size)


def _attempt(
    spec: RunSpec,
    device: torch.device,
    checkpoint: Path | None,
    stop: Callable[[], bool],
    shared: Shared,
) -> Record | None:
    """Run a spec; ``None`` if it was stopped. Exhausted memory is its failure; else what goes wrong is raised."""
    whole, started = _data(spec.dataset, spec.image_size), now()
    try:
        return perform(spec, whole, device, checkpoint=checkpoint, stop=stop, shared=shared)
    except TrainingStoppedError:
        return None
    except Exception as error:
        if not _exhausted(error):
            error.add_note(
                f"This was raised by the run {spec.id}, of which nothing is recorded: {spec}"
            )
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        failure = {"reason": reason, "where": getattr(error, "where", "preparation")}
    shared.known.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    made = run_provenance(device, spec.precision, started, [])
    return Record(spec, {}, failure, {"fingerprint": whole.fingerprint}, made)


def _exhausted(error: Exception) -> bool:
    """Whether memory is exhausted, which PyTorch's CPU allocator and the system tell in words alone."""
    words = (
        "not enough memory",
        "can't allocate memory",
        "Cannot allocate memory",
        "CUDA error: out of memory",
    )
    said = isinstance(error, RuntimeError | OSError) and any(each in str(error) for each in words)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


class _Here:
    """One run after the other, in this process."""

    def __init__(self, device: str | None, asked: threading.Event):
        self.device, self.asked, self.shared = resolve_device(device), asked, Shared()

    def slots(self) -> int:
        return 1

    def submit(self, spec: RunSpec, checkpoint: Path, seconds: float) -> Future:
        done: Future = Future()
        done.set_result(
            _attempt(spec, self.device, checkpoint, _Stop(self.asked.is_set, seconds), self.shared)
        )
        return done

    def wait(self, futures: list[Future]) -> list[Future]:
        if not futures:
            time.sleep(0.2)  # other processes are at work on what is left
        return futures

    def result(self, future: Future, spec: RunSpec, fingerprint: str) -> Record | None:
        return future.result()


_BUSY, _SHARED = threading.Lock(), Shared()  # of a worker


def _on_worker(
    spec: RunSpec, device: str | None, checkpoint: Path, seconds: float, event: str
) -> Record | None:
    from distributed import Event

    keep_freed_memory()
    seen = checkpoint.with_suffix(".lock").exists()  # else the results folder is on another machine
    with _BUSY:  # a run has the process to itself, however many threads the worker has
        stop = _Stop(Event(event).is_set, seconds)
        return _attempt(spec, resolve_device(device), checkpoint if seen else None, stop, _SHARED)


@contextlib.contextmanager
def _signals(asked: threading.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM ask for an end, and the second one make it."""

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        os.write(
            2, b"pai: stops after the current epoch; a second Ctrl-C stops at once\n"
        )  # print may be at work

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
