"""The runs of a sweep on a Dask cluster, of this machine or of others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from ..training.device import resolve_device
from .provenance import now, run_provenance
from .records import Record
from .spec import RunSpec


class Cluster:
    """One run at a time on each worker; the sweep's own process alone writes records."""

    device = None  # that of the workers is not known here

    def __init__(
        self, dask: Any, client: Any, work: Callable, device: str | None, asked: threading.Event
    ):
        self.dask, self.client, self.work, self.on, self.asked = dask, client, work, device, asked
        self.event = dask.Event(f"pai-{uuid.uuid4().hex}", client=client)
        self.machines: dict[str, Any] = {}  # by host: a worker that was killed cannot be asked

    def slots(self) -> int:
        """Count the workers, and ask those on a new machine what it is."""
        workers = self.client.nthreads()
        if new := [address for address in workers if _host(address) not in self.machines]:
            told = self.client.run(_machine, self.on, workers=new, on_error="return")
            self.machines |= {_host(address): machine for address, machine in told.items()}
        return len(workers)

    def submit(self, spec: RunSpec, checkpoint: Path, seconds: float) -> Any:
        """Have a worker do a run."""
        arguments = (spec, self.on, checkpoint.resolve(), seconds, self.event.name)
        return self.client.submit(self.work, *arguments, pure=False)

    def wait(self, futures: list) -> list:
        """Wait a moment; return those that are done."""
        if self.asked.is_set() and not self.event.is_set():
            self.event.set()
        if not futures:
            time.sleep(0.2)
            return []
        with contextlib.suppress(TimeoutError):
            self.dask.wait(futures, timeout=0.5, return_when="FIRST_COMPLETED")
        self.slots()  # workers may have come
        return [future for future in futures if future.done()]

    def result(self, future: Any, spec: RunSpec, fingerprint: str) -> Record | None:
        """Return what a run gave; a run that kills its workers is a failure on the machine of the last of them."""
        try:
            return future.result()
        except self.dask.KilledWorker as error:
            failure, address = (
                {"reason": str(error), "where": "a worker"},
                error.last_worker.address,
            )
            told = self.machines.get(_host(address))
            machine = (
                told if isinstance(told, dict) else {"device": f"unknown, of the worker {address}"}
            )
            made = {**machine, "precision": spec.precision, "started": now(), "finished": now()}
            return Record(spec, {}, failure, {"fingerprint": fingerprint}, made)
        except ImportError as error:
            raise RuntimeError(f"A worker has not what it needs: {error}") from error


def _machine(device: str | None) -> dict:
    return run_provenance(resolve_device(device), "", now(), [])


def _host(address: str) -> str:
    return address.rpartition(":")[0]


@contextlib.contextmanager
def connected(
    work: Callable,
    device: str | None,
    asked: threading.Event,
    workers: int | None,
    scheduler: str | None,
) -> Iterator[Cluster]:
    """Start a cluster on this machine, of which nothing is left whatever happens, or connect to a scheduler.

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
        import distributed
    except ImportError as error:
        raise RuntimeError(
            "--workers and --scheduler need Dask: pip install 'distributed>=2024.8'"
        ) from error
    with contextlib.ExitStack() as stack:
        cluster = None
        if scheduler is None:
            cluster = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, memory_limit=0,
                silence_logs=logging.ERROR,
                preload=["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],  # Ctrl-C is for this one
            )  # fmt: skip
            stack.callback(cluster.close)
        else:
            try:
                asyncio.run(_reach(distributed, scheduler))
            except (OSError, ValueError) as error:
                reason = str(error) or "it is silent"
                raise RuntimeError(
                    f"The scheduler {scheduler} does not answer: {reason}"
                ) from error
        client = distributed.Client(cluster or scheduler)
        stack.callback(client.close)
        engine = Cluster(distributed, client, work, device, asked)
        try:
            yield engine
        except (distributed.comm.CommClosedError, CancelledError) as error:
            raise RuntimeError(
                "The connection to the Dask scheduler is lost; start the sweep again."
            ) from error
        except BaseException:
            with contextlib.suppress(Exception):
                engine.event.set()  # the other workers end with their epoch
            raise


async def _reach(dask: Any, address: str) -> None:
    async with asyncio.timeout(10):  # a client would wait for ever for a greeting
        comm = await dask.comm.connect(address, timeout=10)
        await comm.close()
