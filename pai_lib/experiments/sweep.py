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
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from filelock import Timeout

from ..curvature.calls import exhausted
from ..data.dataset import Dataset
from ..data.loading import load_data
from ..pruning.own import OwnFile, known
from ..training.device import keep_freed_memory, resolve_device
from ..training.loop import TrainingStoppedError
from .campaign import Estimate, announce, differing, lasting, named, outcome
from .cluster import connected
from .mask_run import MaskWork
from .mask_spec import AnySpec, MaskSpec
from .provenance import now, run_provenance
from .records import AnyRecord, Store, failed
from .run import Work, needs_exact, perform
from .shared import Shared

Loaded = dict[AnySpec, Dataset]
say = partial(print, flush=True)


class SweepOptions(TypedDict, total=False):
    """Options of ``sweep``, which says what they are."""

    device: str | None
    budget: float | None
    retry_failed: bool
    workers: int | None
    scheduler: str | None
    quiet: bool


def sweep(
    specs: Sequence[AnySpec],
    store: Store,
    *,
    device: str | None = None,
    budget: float | None = None,
    retry_failed: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    basis: Sequence[AnyRecord] = (),
) -> Counter[str]:
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
        basis: records from elsewhere of runs like these, for the estimate.

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
    end = time.monotonic() + (float("inf") if budget is None else budget)
    at = resolve_device(device) if scheduler is None else None  # else the workers know theirs
    store.check_writable()
    load = cache(load_data)  # each is read once
    data = {spec: load(spec.dataset, image_size=spec.image_size) for spec in specs}
    work = _Sweep(specs, data, store, retry_failed, quiet)
    asked = threading.Event()
    engine: Any = connected(_on_worker, device, asked, workers, scheduler)
    if at is not None and workers is None:
        engine = contextlib.nullcontext(_Here(at, asked, data))
    with _signals(asked), engine as work.engine:
        work.go(Estimate(store, at, basis), end)
    return work.counts + Counter(interrupted=asked.is_set())


class _Sweep:
    """What is left, what is under way, and what has been counted."""

    engine: Any  # where runs are done

    def __init__(
        self, specs: Sequence[AnySpec], data: Loaded, store: Store, retry: bool, quiet: bool
    ):
        self.data, self.store, self.quiet = data, store, quiet
        self.names, self.total, self.counts = differing(specs), len(specs), Counter[str]()
        self.left: list[AnySpec] = []
        self.failed: dict[AnySpec, AnyRecord] = {}  # to be repeated
        # With the locks that they hold.
        self.running: dict[Future[Any], tuple[AnySpec, contextlib.ExitStack]] = {}
        self.closed = False  # nothing more is started
        for spec in specs:
            spec = spec.with_data(data[spec].fingerprint)
            record = self.find(spec)
            if record is None or (record.failure and retry):
                self.left.append(spec)
                self.failed |= {spec: record} if record else {}
                continue
            self.count(record, "reused")
            if not record.failure:  # a worker may have outlived the sweep that it worked for
                store.checkpoint(spec).unlink(missing_ok=True)
        self.check()

    def check(self) -> None:
        """Refuse a run that its data do not allow, before the first one begins."""
        kinds = {_checked_once(spec): spec for spec in self.left}
        for spec in kinds.values():
            work: Any = MaskWork if isinstance(spec, MaskSpec) else Work
            try:
                work(spec, self.data[spec], torch.device("cpu"))
            except ValueError as error:
                raise ValueError(f"{named(spec, self.names)}: {error}") from error

    def find(self, spec: AnySpec) -> AnyRecord | None:
        return self.store.find(spec, self.data[spec].fingerprint)

    def count(self, record: AnyRecord, otherwise: str) -> None:
        self.counts["failed" if record.failure else otherwise] += 1

    def go(self, estimate: Estimate, end: float) -> None:
        self.estimate, self.end = estimate, end
        if not self.quiet:
            announce(self.left, estimate)
        try:
            while self.running or (self.left and not self.closed):
                self.fill()
                if not self.running:
                    time.sleep(0.2)  # other processes are at work on what is left
                    continue
                for future in self.engine.wait(list(self.running)):
                    self.finish(future)
        finally:
            for _, lock in self.running.values():
                lock.close()
            self.counts["left"] = self.total - self.counts.total()
            names = ("done", "reused", "failed", "left")
            counts = ", ".join(f"{self.counts[name]} {name}" for name in names)
            say(f"{self.total} runs: {counts}.")

    def fill(self) -> None:
        """Start what is left, in its order, while there are places and time."""
        for spec in list(self.left):
            self.closed = self.closed or self.engine.asked.is_set()
            if self.closed or len(self.running) >= self.engine.slots():
                return
            seconds = self.estimate.seconds(spec)
            if time.monotonic() + (seconds or 0) >= self.end:
                self.closed = True
            elif seconds is None and self.running and self.end < float("inf"):
                return  # the first of its kind tells how long the others take
            else:
                self.start(spec)

    def start(self, spec: AnySpec) -> None:
        """Start a run, unless another process is at it or has done it since."""
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(self.store.lock(spec).acquire(blocking=False))
            except Timeout:
                return
            self.left.remove(spec)
            record = self.find(spec)
            if record is not None and record != self.failed.get(spec):
                self.count(record, "reused")
                return
            self.store.tidy(spec)
            checkpoint, seconds = self.store.checkpoint(spec), self.end - time.monotonic()
            future = self.engine.submit(spec, checkpoint, seconds)
            self.running[future] = spec, lock.pop_all()

    def finish(self, future: Future[Any]) -> None:
        spec, lock = self.running.pop(future)
        with lock:
            record = self.engine.result(future, spec, self.data[spec].fingerprint)
            if record is not None:
                self.keep(record)
        if record is None:  # it was stopped
            self.left.insert(0, spec)
            self.closed = True
        elif not self.quiet:
            self.tell(record)

    def keep(self, record: AnyRecord) -> None:
        spec = record.spec
        if record.data["fingerprint"] != self.data[spec].fingerprint:
            raise ValueError(f"A worker's data set {spec.dataset!r} is not the one that is here.")
        if before := self.failed.get(spec):  # what failed stays visible
            failure = {**(before.failure or {}), "finished": before.provenance.get("finished")}
            record.provenance["retried"] = [*before.provenance.get("retried", []), failure]
        self.store.save(record)
        self.store.checkpoint(spec).unlink(missing_ok=True)
        self.store.tidy(spec)  # a worker may have been killed while it wrote
        self.estimate.add(record)
        self.count(record, "done")

    def tell(self, record: AnyRecord) -> None:
        number = f"[{self.counts.total()}/{self.total}]"
        line = f"{number} {named(record.spec, self.names)}  {outcome(record)}"
        seconds = [self.estimate.seconds(spec) for spec in self.left]
        if seconds and None not in seconds:
            left = sum(second or 0 for second in seconds) / max(1, self.engine.slots())
            line += f", about {lasting(left)} left"
        say(line)


def _checked_once(spec: AnySpec) -> Hashable:
    """What is the same for specs that their data and network allow, or not, together."""
    if isinstance(spec, MaskSpec):
        return replace(spec, seed=0, warmup=0)
    samples = spec.criterion == "dense" or spec.samples_per_class
    data = spec.dataset, spec.image_size, spec.train_fraction, samples
    return *data, spec.model, spec.width, spec.batch_size == 1, needs_exact(spec)


# One run, and where it is done


class _Stop:
    """Whether to stop before the next epoch: on request, or if one more would end too late."""

    def __init__(self, asked: Callable[[], bool], seconds: float):
        self.asked, self.end, self.last = asked, time.monotonic() + seconds, float("inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        lap, self.last = max(0.0, now - self.last), now
        return self.asked() or now + lap > self.end


def _attempt(
    spec: AnySpec,
    whole: Dataset,
    device: torch.device,
    checkpoint: Path | None,
    stop: Callable[[], bool],
    shared: Shared,
) -> AnyRecord | None:
    """Run a spec; ``None`` if it was stopped, and a failure if memory is exhausted."""
    started = now()
    try:
        if isinstance(spec, MaskSpec):
            return MaskWork(spec, whole, device, stop=stop, shared=shared).record()
        return perform(spec, whole, device, checkpoint=checkpoint, stop=stop, shared=shared)
    except TrainingStoppedError:
        return None
    except Exception as error:
        if not exhausted(error):
            run = f"the run {spec.id}, of which nothing is recorded"
            error.add_note(f"This was raised by {run}: {spec}")
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        failure = {"reason": reason, "where": getattr(error, "where", "preparation")}
    shared.parts.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    made = run_provenance(device, spec.precision, started, [])
    return failed(spec, failure, whole.fingerprint, made)


class _Here:
    """One run after the other, in this process."""

    def __init__(self, device: torch.device, asked: threading.Event, data: Loaded):
        self.device, self.asked, self.data, self.shared = device, asked, data, Shared()

    def slots(self) -> int:
        return 1

    def submit(self, spec: AnySpec, checkpoint: Path, seconds: float) -> Future[Any]:
        stop, done = _Stop(self.asked.is_set, seconds), Future[AnyRecord | None]()
        whole = self.data[spec]
        done.set_result(_attempt(spec, whole, self.device, checkpoint, stop, self.shared))
        return done

    def wait(self, futures: list[Future[Any]]) -> list[Future[Any]]:
        return futures

    def result(self, future: Future[Any], spec: AnySpec, fingerprint: str) -> AnyRecord | None:
        return future.result()


_BUSY, _SHARED = threading.Lock(), Shared()  # of a worker


def _on_worker(
    spec: AnySpec,
    device: str | None,
    checkpoint: Path,
    seconds: float,
    event: str,
    own: Sequence[OwnFile],
    data: str,
) -> AnyRecord | None:
    from distributed import Event

    keep_freed_memory()
    seen = checkpoint.with_suffix(".lock").exists()  # else the results folder is on another machine
    with contextlib.ExitStack() as stack:
        # A run has the process to itself, however many threads the worker has.
        stack.enter_context(_BUSY)
        for file in own:
            stack.enter_context(known(file))
        stop = _Stop(Event(event).is_set, seconds)
        name = data if Path(data).is_absolute() and Path(data).exists() else spec.dataset
        whole = load_data(name, image_size=spec.image_size)
        path = checkpoint if seen else None
        return _attempt(spec, whole, resolve_device(device), path, stop, _SHARED)


@contextlib.contextmanager
def _signals(asked: threading.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM ask for an end, and the second one make it."""
    process = os.getpid()

    def ask(number: int, frame: object) -> None:
        if os.getpid() != process:  # one that loads pictures, which ends with this one
            return
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        sentence = b"pai: stops after the current epoch; a second Ctrl-C stops at once\n"
        os.write(2, sentence)  # print may be at work

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
