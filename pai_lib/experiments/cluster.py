"""The runs of a sweep on a Dask cluster, of this machine or of others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

from ..data.loading import dataset_names, find_own
from ..pruning.own import KNOWN
from ..training.device import resolve_device
from .mask_spec import AnySpec
from .provenance import now, run_provenance
from .records import AnyRecord, failed


class Cluster:
    """One run at a time on each worker; the sweep's own process alone writes records."""

    def __init__(
        self, dask: Any, client: Any, work: Callable[..., Any], device: str | None, asked: Event
    ):
        self.dask, self.client, self.work, self.device = dask, client, work, device
        self.asked = asked
        self.event = dask.Event(f"pai-{uuid.uuid4().hex}", client=client)  # ends all runs
        self.machines: dict[str, Any] = {}  # by host: a worker that was killed cannot be asked

    def slots(self) -> int:
        """Count the workers, and ask those on a new machine what it is."""
        workers = self.client.nthreads()
        new = [address for address in workers if _host(address) not in self.machines]
        if new:
            told = self.client.run(_machine, self.device, workers=new, on_error="return")
            self.machines |= {_host(address): machine for address, machine in told.items()}
        return len(workers)

    def submit(self, spec: AnySpec, checkpoint: Path, seconds: float) -> Any:
        """Have a worker do a run."""
        event, own = self.event.name, tuple(KNOWN)  # by text: a worker may come at any time
        registered = spec.dataset in dataset_names()
        data = str((not registered and find_own(spec.dataset)) or spec.dataset)  # by its path
        arguments = (spec, self.device, checkpoint.resolve(), seconds, event, own, data)
        return self.client.submit(self.work, *arguments, pure=False)

    def wait(self, futures: list[Any]) -> list[Any]:
        """Wait a moment; return those that are done."""
        if self.asked.is_set():
            self.event.set()
        with contextlib.suppress(TimeoutError):
            self.dask.wait(futures, timeout=0.5, return_when="FIRST_COMPLETED")
        self.slots()  # workers may have come
        return [future for future in futures if future.done()]

    def result(self, future: Any, spec: AnySpec, fingerprint: str) -> AnyRecord | None:
        """Return what a run gave, or the failure of one that kills its workers."""
        try:
            return future.result()
        except ImportError as error:
            raise RuntimeError(f"A worker has not what it needs: {error}") from error
        except ValueError as error:
            if getattr(error, "__notes__", ()):  # a run raised it
                raise
            raise ValueError(f"A worker: {error}") from error
        except self.dask.KilledWorker as error:
            address = error.last_worker.address
            machine = self.machines.get(_host(address))
            if not isinstance(machine, dict):
                machine = {"device": f"unknown, of the worker {address}"}
            failure = {"reason": str(error), "where": "a worker"}
            made = {**machine, "precision": spec.precision, "started": now(), "finished": now()}
            return failed(spec, failure, fingerprint, made)


def _machine(device: str | None) -> dict[str, Any]:
    return run_provenance(resolve_device(device), "", now(), [])


def _host(address: str) -> str:
    return address.rpartition(":")[0]


@contextlib.contextmanager
def connected(
    work: Callable[..., Any],
    device: str | None,
    asked: Event,
    workers: int | None,
    scheduler: str | None,
) -> Iterator[Cluster]:
    """Start a cluster on this machine, and leave nothing of it, or connect to a scheduler.

    Args:
        work: what a worker does with a spec, device, checkpoint, seconds, and the name of the event
            that ends it.
        device: of the runs; ``None`` leaves it to each worker.
        asked: whether the sweep is to end.
        workers: number of processes on this machine.
        scheduler: address, instead of these.

    Raises:
        RuntimeError: for a scheduler that does not answer or is lost, or without Dask.
    """
    try:
        import distributed as dask
    except ImportError as error:
        need = "--workers and --scheduler need Dask: pip install 'distributed>=2024.8'"
        raise RuntimeError(need) from error
    with contextlib.ExitStack() as stack:
        address: Any = scheduler
        if scheduler is None:
            address = stack.enter_context(contextlib.closing(_local(dask, workers)))
        else:
            _check_answer(dask, scheduler)
        client = stack.enter_context(contextlib.closing(dask.Client(address)))
        engine = Cluster(dask, client, work, device, asked)
        try:
            yield engine
        except (dask.comm.CommClosedError, CancelledError) as error:
            lost = "The connection to the Dask scheduler is lost; start the sweep again."
            raise RuntimeError(lost) from error
        except BaseException:
            with contextlib.suppress(Exception):
                engine.event.set()  # the other workers end with their epoch
            raise


def _local(dask: Any, workers: int | None) -> Any:
    preload = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C is for us
    options: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "preload": [preload]}
    options |= {"host": "127.0.0.1", "dashboard_address": None, "silence_logs": logging.ERROR}
    # Without a dashboard its server starts all the same: on a free port, for another sweep may run.
    options["scheduler_kwargs"] = {"dashboard_address": "127.0.0.1:0"}
    return dask.LocalCluster(n_workers=workers, **options)


def _check_answer(dask: Any, address: str) -> None:
    async def reach() -> None:
        async with asyncio.timeout(10):  # a client would wait for ever for a greeting
            await (await dask.comm.connect(address, timeout=10)).close()

    try:
        asyncio.run(reach())
    except (OSError, ValueError) as error:
        reason = str(error) or "it is silent"
        raise RuntimeError(f"The scheduler {address} does not answer: {reason}") from error
