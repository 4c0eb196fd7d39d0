"""Sweeps whose processes are really killed, here and on a Dask cluster: pytest -m slow.

Nothing here waits for a time: a process is killed once it has written down that it has come to the place where it
is to be killed, however slow the machine is. A run that must be killed within hangs there until it is.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import SPECS, TINY, assert_complete, files, quick, settled

from pai_lib.experiments.campaign import read_campaign
from pai_lib.experiments.records import Store
from pai_lib.experiments.sweep import sweep
from pai_lib.training.checkpoint import epochs_done

pytestmark = pytest.mark.slow
PATIENCE = 1800  # seconds after which something hangs that should not
LONG = replace(TINY, epochs=200, lr=0.01, seed=9)
FOUR = {"seed": [0, 1], "sparsity": [0.5, 0.9]}  # SPECS
HUNDRED = {
    "seed": [0, 1, 2],
    "criterion": ["random", "magnitude", "snip", "fisher_diag", "exact_taylor"],
    "sparsity": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
}
# On a busy machine processes need long to answer each other.
LENIENT = dict.fromkeys((f"DASK_DISTRIBUTED__COMM__TIMEOUTS__{name}" for name in ("CONNECT", "TCP")), "300s")
DRIVER = """
import os, sys, time
from pai_lib import cli
from pai_lib.experiments import provenance, records, sweep
from pai_lib.experiments import run as runs
from pai_lib.training import checkpoint as checkpoints

# once a process: Dask loads what it preloads a second time
own = vars(sweep).setdefault("own", (os.fsync, records.Store.save, sweep.perform, runs.evaluate))
(plain, save, perform, evaluate), current = own, []

def slow(descriptor):
    if "digits" in os.readlink(f"/proc/self/fd/{descriptor}"):  # a record
        time.sleep(float(os.environ["SLOW"]))
    plain(descriptor)

def noted(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + chr(10))

def noted_save(self, record):
    path = save(self, record)
    noted("saved " + record.spec.id)
    return path

def noted_perform(spec, *args, **options):
    noted("began " + spec.id)
    current[:] = [spec.id]
    return perform(spec, *args, **options)

def noted_evaluate(*args, **options):  # all is computed and nothing is recorded
    if current == [os.environ.get("DEADLY")]:
        os._exit(9)
    if current == [os.environ.get("HANG")] and "hangs" not in open(os.environ["NOTES"]).read():
        noted(f"hangs {os.getpid()}")
        time.sleep(3600)
    return evaluate(*args, **options)

os.fsync, records.Store.save, sweep.perform, runs.evaluate = slow, noted_save, noted_perform, noted_evaluate
checkpoints.Checkpoint.__init__.__defaults__ = (0.0,)  # one before each epoch
if "DEADLY" in os.environ:
    provenance.device_name = lambda device: f"CPU of the process {os.getpid()}"
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Sweeper:
    """Starts ``pai sweep`` in processes of their own and notes what they do."""

    def __init__(self, folder, base, grid):
        self.folder, self.store, self.running = folder, Store(folder / "results"), []
        self.campaign, self.driver = folder / "campaign.yaml", folder / "driver.py"
        self.driver.write_text(DRIVER)
        plain = {name: value for name, value in base.to_dict().items() if name not in grid}
        self.campaign.write_text(yaml.safe_dump({"base": plain, "grid": grid} if grid else {"base": plain}))
        self.specs = read_campaign(self.campaign)

    def environment(self, slow=0.0, hang=None):
        own = {"NOTES": str(self.folder / "notes"), "SLOW": str(slow), "OMP_NUM_THREADS": "1"}
        return LENIENT | os.environ | own | ({"HANG": hang.id} if hang else {})

    def start(self, *words, **options):
        command = [sys.executable, self.driver, "sweep", self.campaign]
        self.store.root.mkdir(exist_ok=True)
        command += ["--results", self.store.root, "--device", "cpu", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        self.running.append(subprocess.Popen(command, env=self.environment(**options), **pipes))
        return self.running[-1]

    def notes(self, what):
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]

    def wait_for(self, condition, process):
        def met():
            assert process.poll() is None, process.communicate()
            return condition()

        until(met)

    def wait_for_saved(self, more, process):
        """Wait until so many further records are written, by whichever process."""
        count = len(self.notes("saved")) + more
        self.wait_for(lambda: len(self.notes("saved")) >= count, process)

    def wait_for_epochs(self, process, more=3):
        """Wait until every run has so many further epochs behind it."""
        paths = [self.store.checkpoint(spec) for spec in self.specs]
        counts = [epochs_done(path) + more for path in paths]
        self.wait_for(lambda: all(map(lambda path, n: epochs_done(path) >= n, paths, counts)), process)

    def wait_for_hanging(self, process):
        """Wait for the run that hangs; return the id of the process that does it."""
        self.wait_for(lambda: self.notes("hangs"), process)
        return int(self.notes("hangs")[0])

    def temporary(self):
        return list((self.store.root / "digits").rglob("*.tmp"))

    def finish(self, *words):
        """Let one sweep end; its exit code, its last line and what it said on stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out.splitlines()[-1], err


@pytest.fixture
def campaign(tmp_path):
    """Return ``campaign(base, name=values, …)``, which makes a Sweeper whose processes do not outlive the test."""
    made = []

    def make(base=TINY, **grid):
        made.append(Sweeper(tmp_path, base, grid))
        return made[-1]

    yield make
    for process in (process for sweeper in made for process in sweeper.running):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def sweeper(campaign):
    four = campaign(**FOUR)
    assert four.specs == SPECS
    return four


def killed(process):
    process.kill()
    process.communicate()


# --- in one process


def test_killed_within_a_run_and_while_it_writes_a_record(sweeper, records):
    store = sweeper.store
    process = sweeper.start(hang=SPECS[1])
    assert sweeper.wait_for_hanging(process) == process.pid
    killed(process)
    assert len(store.records()) == 1
    process = sweeper.start(slow=3600.0)
    sweeper.wait_for(sweeper.temporary, process)
    killed(process)
    assert len(sweeper.temporary()) == 1  # really half way
    assert len(store.records()) == 1
    assert sweeper.finish() == (0, "4 runs: 3 done, 1 reused, 0 failed, 0 left.", "")
    assert_complete(store, records)
    assert sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)  # none twice


def test_two_sweeps_on_one_folder(sweeper, records):
    first, second = sweeper.start(slow=0.1), sweeper.start(slow=0.1)
    told = [process.communicate(timeout=PATIENCE) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), told
    lines = [out.splitlines()[-1] for out, _ in told]
    done = [int(line.split()[2]) for line in lines]
    assert sum(done) == len(SPECS)
    assert all(line.endswith(" 0 failed, 0 left.") for line in lines)
    assert sorted(sweeper.notes("began")) == sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)
    assert_complete(sweeper.store, records)


def test_one_of_two_sweeps_is_killed(sweeper, records):
    first = sweeper.start(slow=3600.0)
    sweeper.wait_for(sweeper.temporary, first)  # it holds the lock of its first run, whose record is half written
    second = sweeper.start()
    sweeper.wait_for_saved(3, second)  # all but the one that is locked
    killed(first)
    out, _ = second.communicate(timeout=PATIENCE)
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert_complete(sweeper.store, records)


def test_a_long_run_is_interrupted_and_killed_and_goes_on_bit_for_bit(campaign):
    sweeper = campaign(LONG)
    epochs = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = sweeper.start()
        sweeper.wait_for_epochs(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert out.splitlines()[-1] == "1 runs: 0 done, 0 reused, 0 failed, 1 left."
            assert err == "pai: stops after the current epoch; a second Ctrl-C stops at once\n"
        epochs.append(epochs_done(sweeper.store.checkpoint(LONG)))
    assert sweeper.finish()[:2] == (0, "1 runs: 1 done, 0 reused, 0 failed, 0 left.")
    record = sweeper.store.load(LONG)
    assert [piece["epoch"] for piece in record.provenance["resumed"]] == epochs
    assert 0 < epochs[0] < epochs[1] < epochs[2] < LONG.epochs
    assert settled(record) == settled(quick(LONG))


# --- on a Dask cluster of this machine


def workers_of(process):
    """Return the ids of the worker processes that a sweep has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            command = path.joinpath("cmdline").read_text()
        except OSError:
            continue
        if parent == process.pid and "spawn_main" in command:
            found.append(int(path.name))
    return sorted(found)


def alive(pid):
    """Whether a process runs: one that ended and that nobody asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "tcp://silent"])
def test_a_scheduler_that_does_not_answer(tmp_path, address):
    pytest.importorskip("distributed")
    store = Store(tmp_path / "results")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = address.replace("silent", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RuntimeError, match=f"The scheduler {address} does not answer"):
            sweep(SPECS, store, device="cpu", scheduler=address)
    assert files(store.root) == []


def test_a_local_cluster_of_which_a_worker_is_killed(sweeper, records):
    pytest.importorskip("distributed")
    process = sweeper.start("--workers", "2", hang=SPECS[1])
    worker = sweeper.wait_for_hanging(process)
    assert worker in workers_of(process)
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)  # none twice
    assert_complete(sweeper.store, records)


def test_a_local_cluster_is_interrupted_and_killed(campaign):
    pytest.importorskip("distributed")
    sweeper = campaign(LONG, seed=[9, 10])
    process = sweeper.start("--workers", "2")
    sweeper.wait_for_epochs(process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert out.splitlines()[-1] == "2 runs: 0 done, 0 reused, 0 failed, 2 left."
    process = sweeper.start("--workers", "2")
    sweeper.wait_for_epochs(process)
    workers += workers_of(process)
    assert len(workers) == 4
    killed(process)
    until(lambda: not any(map(alive, workers)))
    assert sweeper.finish()[:2] == (0, "2 runs: 2 done, 0 reused, 0 failed, 0 left.")
    for spec in sweeper.specs:
        record = sweeper.store.load(spec)
        assert len(record.provenance["resumed"]) == 2
        assert settled(record) == settled(quick(spec))


def test_a_run_that_kills_its_workers_is_a_failure(sweeper, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("DEADLY", SPECS[1].id)  # the processes of a local cluster run the driver's own lines, too
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    code, line, _ = sweeper.finish("--workers", "2")
    assert (code, line) == (1, "4 runs: 3 done, 0 reused, 1 failed, 0 left.")
    failure = sweeper.store.load(SPECS[1]).failure
    assert failure["where"] == "a worker"
    made = sweeper.store.load(SPECS[1]).provenance
    assert made["device"].startswith("CPU of the process ")
    assert made["device"] != f"CPU of the process {sweeper.running[-1].pid}"  # where the worker was, not who asked
    assert made["torch"] == torch.__version__
    monkeypatch.delenv("DEADLY")
    assert sweeper.finish("--retry-failed")[:2] == (0, "4 runs: 1 done, 3 reused, 0 failed, 0 left.")
    assert sweeper.store.load(SPECS[1]).provenance["retried"][0]["reason"] == failure["reason"]


def test_a_client_that_fails_leaves_no_cluster(sweeper, monkeypatch):
    distributed = pytest.importorskip("distributed")
    me = SimpleNamespace(pid=os.getpid())
    before = workers_of(me)

    def fail(*args, **options):
        until(lambda: len(workers_of(me)) == len(before) + 1)
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", fail)
    with socket.socket() as other:
        with contextlib.suppress(OSError):
            other.bind(("", 8787))  # as another cluster of this machine does, if none is there
            other.listen()
        with pytest.raises(OSError, match="Timed out trying to connect"):
            sweep(SPECS, sweeper.store, device="cpu", workers=1)
    until(lambda: workers_of(me) == before)
    assert files(sweeper.store.root) == []


# --- with a scheduler and workers elsewhere


class Cluster:
    """A scheduler and workers, each a process of its own, without nannies that would start them again."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.at = free.getsockname()
        self.address = f"tcp://127.0.0.1:{self.at[1]}"
        self.folder, self.processes, self.workers = folder, [], []
        self.scheduler = self.start(LENIENT | os.environ, "scheduler", "--host", self.address)
        until(self.answers)

    def answers(self):
        assert self.scheduler.poll() is None
        with socket.socket() as caller:
            return caller.connect_ex(self.at) == 0

    def start(self, environment, *words):
        command = [Path(sys.executable).with_name("dask"), *words, "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen(command, cwd=self.folder, env=environment, **quiet))
        return self.processes[-1]

    def add_worker(self, sweeper, **options):
        """Start a worker that notes what it does as the sweeper's own processes do."""
        words = "--no-nanny --nthreads 1 --memory-limit 0 --host 127.0.0.1 --local-directory".split()
        words += [self.folder, "--preload", sweeper.driver]
        self.workers.append(self.start(sweeper.environment(**options), "worker", self.address, *words))


@pytest.fixture
def cluster(tmp_path):
    pytest.importorskip("distributed")
    made = Cluster(tmp_path)
    yield made
    for process in made.processes:
        killed(process)


def test_a_scheduler_and_a_worker_that_is_killed(sweeper, cluster, records):
    for _ in range(2):
        cluster.add_worker(sweeper, hang=SPECS[1])
    process = sweeper.start("--scheduler", cluster.address)
    os.kill(sweeper.wait_for_hanging(process), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)  # none twice
    assert_complete(sweeper.store, records)


def test_a_worker_goes_on_where_a_killed_one_was(campaign, cluster):
    sweeper = campaign(LONG)
    cluster.add_worker(sweeper)
    process = sweeper.start("--scheduler", cluster.address)
    sweeper.wait_for_epochs(process)
    killed(cluster.workers[0])
    epochs = epochs_done(sweeper.store.checkpoint(LONG))
    cluster.add_worker(sweeper)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "1 runs: 1 done, 0 reused, 0 failed, 0 left."
    record = sweeper.store.load(LONG)
    assert [piece["epoch"] for piece in record.provenance["resumed"]] == [epochs]
    assert settled(record) == settled(quick(LONG))


def test_a_scheduler_that_is_lost(sweeper, cluster, records, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "10s")  # so long it hopes for another one
    for _ in range(2):
        cluster.add_worker(sweeper, hang=SPECS[1])
    process = sweeper.start("--scheduler", cluster.address)
    sweeper.wait_for_hanging(process)
    cluster.scheduler.kill()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "pai: error: The connection to the Dask scheduler is lost; start the sweep again." in err
    assert " 0 failed, " in out.splitlines()[-1]
    assert sweeper.finish()[0] == 0
    assert_complete(sweeper.store, records)


# --- a hundred runs


def assert_a_hundred(sweeper):
    """Each run of the campaign is recorded, was saved once, and is what it would be undisturbed."""
    assert len(sweeper.specs) >= 100
    saved = sweeper.notes("saved")  # one may be missing, if the kill came between the saving and the note
    assert len(set(saved)) == len(saved)
    found = {spec: settled(sweeper.store.load(spec)) for spec in sweeper.specs}
    assert_complete(sweeper.store, found, sweeper.specs)
    for spec in sweeper.specs[::4]:
        assert found[spec] == settled(quick(spec))


@pytest.fixture
def hundred(campaign):
    return campaign(replace(TINY, epochs=3), **HUNDRED)


def test_a_hundred_runs_killed_several_ways(hundred):
    for more in (7, 12):  # within a run, or between two
        process = hundred.start()
        hundred.wait_for_saved(more, process)
        killed(process)
    for _ in range(2):  # while it writes a record
        process = hundred.start(slow=3600.0)
        hundred.wait_for(hundred.temporary, process)
        killed(process)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = hundred.start()
        hundred.wait_for_saved(10, process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert out.splitlines()[-1].startswith("105 runs: ")
    process, other = hundred.start(), hundred.start()  # two at once, of which one is killed
    hundred.wait_for_saved(20, process)
    killed(other)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.splitlines()[-1].endswith(" 0 failed, 0 left.")
    assert_a_hundred(hundred)


def test_a_hundred_runs_on_a_cluster_killed_several_ways(hundred, cluster):
    words = ("--scheduler", cluster.address)
    for _ in range(2):
        cluster.add_worker(hundred)
    process = hundred.start(*words)
    hundred.wait_for_saved(10, process)
    cluster.workers.pop(0).kill()  # a worker within a run
    cluster.add_worker(hundred)
    hundred.wait_for_saved(10, process)
    killed(process)  # the one that writes records
    process = hundred.start(*words, slow=3600.0)
    hundred.wait_for(hundred.temporary, process)
    killed(process)  # while it writes one
    process = hundred.start(*words)
    hundred.wait_for_saved(10, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    process = hundred.start(*words)
    hundred.wait_for_saved(10, process)
    for worker in cluster.workers:  # all of them, and others come
        worker.kill()
    for _ in range(2):
        cluster.add_worker(hundred)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].endswith(" 0 failed, 0 left.")
    # a worker that lost its sweep ends its run, and may leave a checkpoint: the next sweep removes it
    assert hundred.finish()[:2] == (0, "105 runs: 0 done, 105 reused, 0 failed, 0 left.")
    assert_a_hundred(hundred)
