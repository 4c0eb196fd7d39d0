"""The engine for Dask, with a stand-in that does its work at once, here: what fails leaves nothing behind."""

import functools
import sys
import threading
import types
from concurrent.futures import CancelledError, Future

import pytest
from conftest import SPECS, TINY, assert_complete, files, quick

from pai_lib.data.loading import load_data
from pai_lib.experiments import cluster
from pai_lib.experiments import sweep as engine
from pai_lib.experiments.records import Store
from pai_lib.experiments.spec import RunSpec
from pai_lib.experiments.sweep import sweep

WORKERS = ("tcp://10.0.0.7:4000", "tcp://10.0.0.7:4001", "tcp://10.0.0.9:4000")


class Killed(Exception):
    def __init__(self, address):
        super().__init__(f"the last one was {address}")
        self.last_worker = types.SimpleNamespace(address=address)


class Dask(types.ModuleType):
    """Stands for the package: ``broken`` names the call that raises ``error``; ``calls`` tells what was called."""

    def __init__(self, broken=None, error=None):
        super().__init__("distributed")
        dask, self.calls, self.broken, self.error, self.comm = self, [], broken, error, types.ModuleType("comm")
        self.comm.CommClosedError = type("CommClosedError", (OSError,), {})
        self.KilledWorker, self.set = Killed, threading.Event()

        class Part:
            def __init__(self, *args, **options):
                dask.called(type(self).__name__)

            def close(self):
                dask.called(f"{type(self).__name__}.close")

        class LocalCluster(Part):
            pass

        class Client(Part):
            def nthreads(self):
                dask.called("nthreads")
                return dict.fromkeys(WORKERS, 1)

            def run(self, function, *args, workers, on_error):
                assert on_error == "return"
                dask.called("run")
                return {
                    address: {**function(*args), "device": f"processor of {address[6:14]}"} for address in workers
                }

            def submit(self, function, *args, pure):
                dask.called("submit")
                future = Future()
                try:
                    if dask.broken == "work":
                        raise dask.error
                    future.set_result(function(*args))
                except Exception as error:
                    future.set_exception(error)
                return future

        class Event(Part):
            def __init__(self, name, client=None):
                self.name = name
                if client is not None:
                    super().__init__()

            set, is_set = self.set.set, self.set.is_set

        self.LocalCluster, self.Client, self.Event = LocalCluster, Client, Event

    def wait(self, futures, timeout, return_when):
        self.called("wait")

    def called(self, name):
        self.calls.append(name)
        if name == self.broken:
            raise self.error


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def once(monkeypatch):
    """Each run is done once for all tests that ask only what becomes of it."""
    monkeypatch.setattr(engine, "perform", lambda spec, *args, **options: done_once(spec))


@functools.cache
def done_once(spec):
    return quick(spec)


def swept(monkeypatch, store, dask, specs=SPECS):
    monkeypatch.setitem(sys.modules, "distributed", dask)
    return sweep(specs, store, device="cpu", workers=2)


def test_runs_are_done_and_everything_is_closed(store, records, monkeypatch):
    dask = Dask()
    assert swept(monkeypatch, store, dask)["done"] == 4
    assert dask.calls[-2:] == ["Client.close", "LocalCluster.close"]
    assert dask.calls.count("run") == 1  # each machine is asked once
    assert not dask.set.is_set()
    assert_complete(store, records)


STEPS = ["Client", "Event", "nthreads", "run", "submit", "wait", "work", "Client.close"]
ERRORS = [OSError("timed out"), RuntimeError("a bug"), KeyboardInterrupt()]
# An interrupt is for the process that was started, not for its workers.
BROKEN = [(s, e) for s in STEPS for e in ERRORS if (s, type(e)) != ("work", KeyboardInterrupt)]


@pytest.mark.parametrize(("broken", "error"), BROKEN, ids=repr)
def test_a_failing_client_leaves_no_cluster_and_no_lock(store, records, once, monkeypatch, broken, error):
    dask = Dask(broken, error)
    with pytest.raises(type(error)) as raised:
        swept(monkeypatch, store, dask)
    assert raised.value is error
    assert "LocalCluster.close" in dask.calls
    assert ("Client.close" in dask.calls) == (broken != "Client")
    assert dask.set.is_set() == (broken not in ("Client", "Event", "Client.close"))  # workers need not go on
    assert all(record.failure is None for record in store.records())
    counts = swept(monkeypatch, store, Dask())
    assert counts["done"] + counts["reused"] == 4
    assert_complete(store, records)


@pytest.mark.parametrize("broken", ["submit", "wait", "work"])
def test_a_scheduler_that_is_lost_is_told_in_a_sentence(store, monkeypatch, broken):
    dask = Dask(broken, CancelledError())
    with pytest.raises(RuntimeError, match="The connection to the Dask scheduler is lost; start the sweep again"):
        swept(monkeypatch, store, dask)
    assert dask.calls[-2:] == ["Client.close", "LocalCluster.close"]
    assert files(store.root) == []


def test_what_a_run_raises_on_a_worker_names_the_run(store, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(engine, "perform", fail)
    with pytest.raises(RuntimeError, match="device-side assert") as raised:
        swept(monkeypatch, store, Dask())
    assert SPECS[0].id in raised.value.__notes__[-1]
    assert files(store.root) == []


@pytest.mark.parametrize(("address", "device"), [
    ("tcp://10.0.0.9:4000", "processor of 10.0.0.9"),
    ("tcp://10.0.0.7:5555", "processor of 10.0.0.7"),  # a process that came in the place of a killed one
    ("tcp://10.0.0.1:4000", "unknown, of the worker tcp://10.0.0.1:4000"),
])  # fmt: skip
def test_a_killed_worker_is_recorded_with_its_own_machine(store, monkeypatch, address, device):
    monkeypatch.setattr(cluster, "run_provenance", lambda *args: {"torch": "its own", "precision": args[1]})
    assert swept(monkeypatch, store, Dask("work", Killed(address)), [TINY])["failed"] == 1
    record = store.load(TINY)
    assert record.failure == {"reason": f"the last one was {address}", "where": "a worker"}
    assert record.provenance["device"] == device
    assert record.provenance["precision"] == "float32"
    assert record.provenance.get("torch") == (None if device.startswith("unknown") else "its own")
    assert record.data == {"fingerprint": load_data("digits").fingerprint}


def test_a_folder_of_a_data_set_s_name_takes_no_data_set_s_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "pets").mkdir()
    sent = []
    client = types.SimpleNamespace(submit=lambda work, *arguments, pure: sent.append(arguments[-1]))
    dask = types.SimpleNamespace(Event=lambda *_, **__: types.SimpleNamespace(name="e"))
    one = cluster.Cluster(dask, client, None, None, None)
    for name in ("digits", "pets"):
        one.submit(RunSpec(dataset=name), tmp_path / "c", 1.0)
    assert sent == ["digits", str(tmp_path / "pets")]
