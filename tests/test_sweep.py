"""Sweeps: each run once, whatever fails, stops or kills them, here and on a Dask cluster."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SPEC, files, quick, untimed

from pai_lib import runs
from pai_lib import sweep as engine
from pai_lib.campaigns import read_campaign
from pai_lib.checkpoints import epochs_done
from pai_lib.records import RecordWarning, Store
from pai_lib.sweep import sweep

TINY = replace(SPEC, width=2, train_fraction=0.1, warmup=1)
SPECS = [replace(TINY, seed=seed, sparsity=sparsity) for seed in range(2) for sparsity in (0.5, 0.9)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def settled(record):
    """Return what is the same in a record however often its run was interrupted, and whoever commits meanwhile."""
    values = untimed(record)
    dropped = ("resumed", "git", "dirty")
    values["provenance"] = {name: value for name, value in values["provenance"].items() if name not in dropped}
    return values


@pytest.fixture(scope="module")
def records():
    return {spec: settled(quick(spec)) for spec in SPECS}


def run(store, specs=SPECS, **options):
    """Sweep; return the counts."""
    counts = sweep(specs, store, device="cpu", **options)
    assert len(files(store.root)) >= counts["done"]
    return tuple(counts[name] for name in ("done", "reused", "failed", "left"))


def assert_complete(store, records, specs=SPECS):
    """The store holds each run once, as if nothing had happened, and nothing else."""
    assert [store.path(spec).is_file() for spec in specs] == [True] * len(specs)
    assert len(store.records()) == len(specs)
    assert all(settled(store.load(spec)) == records[spec] for spec in specs)
    rest = [path for path in store.root.rglob("*") if path.suffix in (".tmp", ".safetensors")]
    assert rest == []


def test_a_sweep_does_each_run_once(store, records, capsys, monkeypatch):
    assert run(store, SPECS[1:3]) == (2, 0, 0, 0)
    capsys.readouterr()
    assert run(store) == (2, 2, 0, 0)
    first, second, last = capsys.readouterr().out.splitlines()
    accuracy = store.load(SPECS[0]).result["test_accuracy"]
    assert first.startswith(f"[3/4] {SPECS[0].id}  sparsity=0.5  seed=0  test accuracy {100 * accuracy:.2f} %  ")
    assert ", about " in first  # from the records of the other two
    assert second.startswith(f"[4/4] {SPECS[3].id}")
    assert last == "4 runs: 2 done, 2 reused, 0 failed, 0 left."
    assert_complete(store, records)
    monkeypatch.setattr(engine, "perform", lambda *args, **options: pytest.fail("it ran again"))
    assert run(store, quiet=True) == (0, 4, 0, 0)
    assert capsys.readouterr().out == "4 runs: 0 done, 4 reused, 0 failed, 0 left.\n"


def test_data_are_read_once(store, monkeypatch):
    calls = []
    plain = engine.load_data
    monkeypatch.setattr(
        engine, "load_data", lambda *args, **options: calls.append(args) or plain(*args, **options)
    )
    run(store)
    assert calls == [("digits",)]


# --- failures


def test_a_run_that_fails_is_recorded_and_repeated_on_request(store, monkeypatch, capsys):
    diverging = replace(TINY, lr=1e12, epochs=4, seed=7)
    too_many = replace(TINY, samples_per_class=200)
    specs = [diverging, too_many, TINY]
    assert run(store, specs) == (1, 0, 2, 0)
    lines = capsys.readouterr().out.splitlines()
    assert "  failed in epoch " in lines[0]
    assert "  failed in preparation: ValueError: samples_per_class=200 must be 1 to " in lines[1]
    failures = {spec: store.load(spec).failure for spec in specs}
    assert failures[diverging]["reason"].startswith("The training loss became ")
    assert failures[TINY] is None
    record = store.load(too_many)
    assert record.result == {}
    assert record.data == {"fingerprint": store.load(TINY).data["fingerprint"]}
    assert store.frame()["failure"].notna().sum() == 2
    assert run(store, specs) == (0, 1, 2, 0)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "perform", lambda spec, *args, **options: replace(quick(TINY), spec=spec))
        assert run(store, specs, retry_failed=True) == (2, 1, 0, 0)
    (before,) = store.load(diverging).provenance["retried"]
    assert before == {**failures[diverging], "finished": before["finished"]}


@pytest.mark.parametrize("where", ["warm_up", "prune", "train", "evaluate"])
def test_whatever_a_run_raises_is_its_failure(store, records, monkeypatch, where):
    plain, calls = getattr(runs, where), []

    def fail(*args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory\n  tried to allocate")
        return plain(*args, **options)

    monkeypatch.setattr(runs, where, fail)
    assert run(store) == (3, 0, 1, 0)
    stage = {"warm_up": "scoring", "prune": "scoring", "train": "training", "evaluate": "test"}[where]
    reason = "OutOfMemoryError: out of memory tried to allocate"
    assert store.load(SPECS[0]).failure == {"reason": reason, "where": stage}
    assert run(store, retry_failed=True) == (1, 3, 0, 0)
    assert all(settled(store.load(spec)) == records[spec] for spec in SPECS[1:])


def test_data_that_cannot_be_had_stop_it_before_it_starts(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PAI_DATA", str(tmp_path))
    (tmp_path / "cifar10.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"cifar10.npz must be \.npz"):
        run(store, [TINY, replace(TINY, dataset="cifar10")])
    assert files(store.root) == []


@pytest.mark.parametrize(("name", "value"), [("budget", 0), ("budget", -1.0), ("workers", 0)])
def test_numbers_that_make_no_sense(store, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: it must be above 0"):
        run(store, **{name: value})


# --- records that are not what they should be


def test_records_that_cannot_be_used_are_set_aside(store, records):
    run(store)
    texts = {}
    for spec, change in zip(SPECS, (lambda t: t[:99], lambda t: t.replace('"seed": 0', '"seed": 9'),
                                    lambda t: t.replace('"schema": 1', '"schema": 2')), strict=False):  # fmt: skip
        path = store.path(spec)
        texts[path] = change(path.read_text())
        path.write_text(texts[path])
    with pytest.warns(RecordWarning) as told:
        assert run(store) == (3, 1, 0, 0)
    assert {path for path in texts for each in told if str(path) in str(each.message)} == set(texts)
    assert_complete(store, records)
    for path, text in texts.items():
        assert path.with_name(f"{path.name}.unreadable").read_text() == text


def test_a_record_that_is_not_of_the_campaign_is_left_alone(store):
    path = store.save(replace(quick(TINY), spec=replace(TINY, seed=99)))
    path.write_text("{")
    assert run(store) == (4, 0, 0, 0)  # a warning would be told
    assert path.read_text() == "{"


def write_images(folder, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 2
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)


def test_a_data_set_that_changed_between_sweeps(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PAI_DATA", str(tmp_path))
    write_images(tmp_path, 0)
    specs = [replace(TINY, dataset="cifar10", train_fraction=1.0, seed=seed) for seed in range(2)]
    assert run(store, specs) == (2, 0, 0, 0)
    before = {spec: store.load(spec) for spec in specs}
    write_images(tmp_path, 1)
    with pytest.warns(RecordWarning) as told:
        assert run(store, specs[:1]) == (1, 0, 0, 0)
    assert "is set aside as" in str(told[-1].message)
    assert store.load(specs[0]).data["fingerprint"] != before[specs[0]].data["fingerprint"]
    assert store.load(specs[1]) == before[specs[1]]
    assert len(files(store.root)) == 3
    write_images(tmp_path, 0)
    with pytest.warns(RecordWarning):
        assert run(store, specs) == (1, 1, 0, 0)
    assert untimed(store.load(specs[0])) == untimed(before[specs[0]])
    assert len(files(store.root)) == 4


# --- stopping


class Clock:
    def __init__(self, *times):
        self.times = iter(times)

    def monotonic(self):
        return next(self.times)


def test_an_epoch_that_would_end_too_late_is_not_begun(monkeypatch):
    monkeypatch.setattr(engine, "time", Clock(0.0, 3.0, 5.0, 7.0, 8.5))
    stop = engine._Stop(lambda: False, 10.0)
    assert [stop(), stop(), stop(), stop()] == [False, False, False, False]  # at 3, 5, 7 and 8.5 seconds
    monkeypatch.setattr(engine, "time", Clock(0.0, 3.0, 7.0, 10.5))
    stop = engine._Stop(lambda: False, 10.0)
    assert [stop(), stop()] == [False, True]  # an epoch took 4 seconds, 3 are left
    monkeypatch.setattr(engine, "time", Clock(0.0, 0.0))
    assert engine._Stop(lambda: True, float("inf"))()


def test_a_budget_starts_nothing_that_would_end_later(store, capsys):
    assert run(store, SPECS[:1]) == (1, 0, 0, 0)
    long = [replace(TINY, seed=8, epochs=10**6), replace(TINY, seed=9)]
    assert run(store, long, budget=60.0) == (0, 0, 0, 2)
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 0 done, 0 reused, 0 failed, 2 left."
    assert run(store, [SPECS[0], *long], budget=60.0) == (0, 1, 0, 2)
    assert run(store, long[1:], budget=600.0) == (1, 0, 0, 0)


def test_a_run_that_overruns_its_budget_keeps_its_checkpoint(store):
    spec = replace(TINY, epochs=400)
    began = time.monotonic()
    assert run(store, [spec, SPECS[0]], budget=1.0) == (0, 0, 0, 2)  # without a basis one is tried
    spent = time.monotonic() - began
    done = epochs_done(store.checkpoint(spec))
    assert done < 400
    assert spent < 60
    assert files(store.root) == []
    short = replace(spec, epochs=4)
    assert run(store, [short]) == (1, 0, 0, 0)
    assert store.checkpoint(spec).is_file()  # that of another run is left alone


def interrupting(monkeypatch, at, times=1, number=signal.SIGINT):
    """Have the run with a number be interrupted as by Ctrl-C."""
    plain, calls = engine.perform, []

    def perform(*args, **options):
        calls.append(1)
        if len(calls) == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return plain(*args, **options)

    monkeypatch.setattr(engine, "perform", perform)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_after_the_epoch(store, records, monkeypatch, capfd, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupting(patch, at=2, number=number)
        counts = sweep(SPECS, store, device="cpu")
    assert counts["interrupted"]
    assert (counts["done"], counts["left"]) == (1, 3)
    out, err = capfd.readouterr()
    assert err == "pai: stops after the current epoch; a second Ctrl-C stops at once\n"
    assert out.splitlines()[-1] == "4 runs: 1 done, 0 reused, 0 failed, 3 left."
    assert store.checkpoint(SPECS[1]).is_file()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run(store) == (3, 1, 0, 0)
    assert len(store.load(SPECS[1]).provenance["resumed"]) == 1
    assert_complete(store, records)


def test_a_second_interrupt_ends_at_once(store, records, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, at=2, times=2)
        with pytest.raises(KeyboardInterrupt):
            sweep(SPECS, store, device="cpu")
    assert len(store.records()) == 1
    assert run(store) == (3, 1, 0, 0)
    assert_complete(store, records)


# --- several processes


def test_what_another_process_does_is_left_to_it(store, records):
    taken = threading.Event()

    def elsewhere():
        locks = [store.lock(spec) for spec in SPECS[:2]]
        for lock in locks:
            lock.acquire()
        taken.set()
        while len(store.records()) < 2:  # until the other two are done here
            time.sleep(0.01)
        store.save(quick(SPECS[0]))
        for lock in locks:  # the second one gave up
            lock.release()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    taken.wait()
    assert run(store) == (3, 1, 0, 0)
    thread.join()
    assert_complete(store, records)


# --- disks


def test_a_full_disk_stops_it_and_loses_nothing(store, records, capsys):
    run(store, SPECS[:1])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=rf"not written: '{store.path(SPECS[1])}'"):
            run(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs: 0 done, 1 reused, 0 failed, 3 left."
    assert files(store.root) == [f"digits/resnet8/{SPECS[0].id}.json"]
    assert run(store) == (3, 1, 0, 0)
    assert_complete(store, records)


def test_a_really_full_disk(tmp_path, records):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        store = Store(disk / "results")
        with pytest.raises(OSError, match="No space left on device"):
            run(store)
        done = len(store.records())
        assert 0 < done < 4
        assert [name for name in files(store.root) if not name.endswith(".json")] == []
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        assert run(store) == (4 - done, done, 0, 0)
        assert_complete(store, records)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_results_folder_that_cannot_be_written_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "load_data", lambda *args, **options: pytest.fail("work was done"))
    (tmp_path / "results").write_text("")
    with pytest.raises(OSError, match=f"The results folder {tmp_path / 'results'} is not writable"):
        sweep(SPECS, Store(tmp_path / "results"))


# --- a Dask cluster: what needs none


def test_without_dask_there_is_a_sentence(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match="--workers and --scheduler need Dask: pip install 'distributed"):
        run(store, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "tcp://silent"])
def test_a_scheduler_that_does_not_answer(store, address):
    pytest.importorskip("distributed")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = address.replace("silent", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RuntimeError, match=f"The scheduler {address} does not answer"):
            run(store, scheduler=address)
    assert files(store.root) == []


# --- processes that are really killed: pytest -m slow

DRIVER = """
import os, sys, time
from pai_lib import cli, records, sweep

plain, save, perform = os.fsync, records.Store.save, sweep.perform

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
    if spec.id == os.environ.get("DEADLY"):
        os._exit(9)
    return perform(spec, *args, **options)

os.fsync, records.Store.save, sweep.perform = slow, noted_save, noted_perform
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


class Sweeper:
    """Starts ``pai sweep`` in processes of their own and notes what they do."""

    def __init__(self, folder, specs=None):
        self.folder, self.store, self.running = folder, Store(folder / "results"), []
        self.campaign = folder / "campaign.yaml"
        (folder / "driver.py").write_text(DRIVER)
        if specs is None:
            self.campaign = Path(__file__).parents[1] / "campaigns" / "digits.yaml"
            return
        names = "seed sparsity".split()
        pairs = [{"grid": {name: [getattr(spec, name)] for name in names}} for spec in specs]
        base = {name: value for name, value in specs[0].to_dict().items() if name not in names}
        self.campaign.write_text(yaml.safe_dump({"base": base, "also": pairs}))

    def start(self, *words, slow=0.0):
        command = [sys.executable, self.folder / "driver.py", "sweep", self.campaign]
        command += ["--results", self.store.root, "--device", "cpu", *words]
        environment = os.environ | {"NOTES": str(self.folder / "notes"), "SLOW": str(slow), "OMP_NUM_THREADS": "1"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        self.running.append(subprocess.Popen(command, env=environment, **options))
        return self.running[-1]

    def notes(self, what):
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]

    def wait_for(self, condition, process):
        while not condition():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)

    def temporary(self):
        return list((self.store.root / "digits").rglob("*.tmp"))

    def finish(self, *words):
        """Let one sweep end; its exit code, its last line and what it said on stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out.splitlines()[-1], err


@pytest.fixture
def sweeper(tmp_path):
    made = Sweeper(tmp_path, SPECS)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_between_runs_and_while_it_writes_a_record(sweeper, records):
    store = sweeper.store
    process = sweeper.start(slow=0.2)
    sweeper.wait_for(lambda: len(sweeper.notes("began")) == 2, process)  # within the second run
    process.kill()
    process.wait()
    assert len(store.records()) == 1
    process = sweeper.start(slow=3600.0)
    sweeper.wait_for(sweeper.temporary, process)
    process.kill()
    process.wait()
    assert len(sweeper.temporary()) == 1  # really half way
    assert len(store.records()) == 1
    assert sweeper.finish() == (0, "4 runs: 3 done, 1 reused, 0 failed, 0 left.", "")
    assert_complete(store, records)
    assert sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)  # none twice


@pytest.mark.slow
def test_two_sweeps_on_one_folder(sweeper, records):
    first, second = sweeper.start(slow=0.1), sweeper.start(slow=0.1)
    told = [process.communicate(timeout=300) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), told
    lines = [out.splitlines()[-1] for out, _ in told]
    done = [int(line.split()[2]) for line in lines]
    assert sum(done) == len(SPECS)
    assert all(line.endswith(" 0 failed, 0 left.") for line in lines)
    assert sorted(sweeper.notes("began")) == sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)
    assert_complete(sweeper.store, records)


@pytest.mark.slow
def test_one_of_two_sweeps_is_killed(sweeper, records):
    first = sweeper.start(slow=3600.0)
    sweeper.wait_for(sweeper.temporary, first)  # it holds the lock of its first run, whose record is half written
    second = sweeper.start()
    sweeper.wait_for(lambda: len(sweeper.notes("saved")) >= 3, second)  # all but the one that is locked
    first.kill()
    out, _ = second.communicate(timeout=300)
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert_complete(sweeper.store, records)


@pytest.mark.slow
def test_a_long_run_is_interrupted_and_goes_on_bit_for_bit(tmp_path):
    spec = replace(TINY, epochs=300, lr=0.01)
    sweeper = Sweeper(tmp_path, [spec])
    epochs = 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process = sweeper.start()
        count = len(sweeper.notes("began"))
        sweeper.wait_for(lambda count=count: len(sweeper.notes("began")) > count, process)
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 130
        assert out.splitlines()[-1] == "1 runs: 0 done, 0 reused, 0 failed, 1 left."
        assert err == "pai: stops after the current epoch; a second Ctrl-C stops at once\n"
        before, epochs = epochs, epochs_done(sweeper.store.checkpoint(spec))
        assert before <= epochs < 300
    code, line, _ = sweeper.finish()
    assert (code, line) == (0, "1 runs: 1 done, 0 reused, 0 failed, 0 left.")
    record = sweeper.store.load(spec)
    assert [piece["epoch"] for piece in record.provenance["resumed"]][-1] == epochs
    assert settled(record) == settled(quick(spec))


# --- and on a Dask cluster


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


LONG = replace(TINY, epochs=200, lr=0.01, seed=9)


@pytest.mark.slow
def test_a_local_cluster_of_which_a_worker_is_killed(tmp_path, records):
    pytest.importorskip("distributed")
    sweeper = Sweeper(tmp_path, SPECS)
    process = sweeper.start("--workers", "2")
    sweeper.wait_for(lambda: len(sweeper.notes("saved")) >= 1, process)
    for worker in workers_of(process)[-1:]:
        os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)  # none twice
    assert_complete(sweeper.store, records)


@pytest.mark.slow
def test_a_local_cluster_is_interrupted_and_killed(tmp_path):
    pytest.importorskip("distributed")
    specs = [LONG, replace(LONG, seed=10)]
    sweeper = Sweeper(tmp_path, specs)
    store = sweeper.store
    process = sweeper.start("--workers", "2")
    sweeper.wait_for(lambda: len(workers_of(process)) == 2, process)
    sweeper.wait_for(lambda: len(list(store.root.glob(".checkpoints/*.lock"))) == 2, process)
    time.sleep(5)  # for the workers to import torch
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out.splitlines()[-1] == "2 runs: 0 done, 0 reused, 0 failed, 2 left."
    assert all(store.checkpoint(spec).is_file() for spec in specs)
    process = sweeper.start("--workers", "2")
    sweeper.wait_for(lambda: len(workers_of(process)) == 2, process)
    orphans = workers_of(process)
    process.kill()
    process.wait()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in orphans + workers))
    assert sweeper.finish()[:2] == (0, "2 runs: 2 done, 0 reused, 0 failed, 0 left.")
    for spec in specs:
        record = store.load(spec)
        assert record.provenance["resumed"]
        assert settled(record) == settled(quick(spec))


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_a_failure(sweeper, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("DEADLY", SPECS[1].id)  # the processes of a local cluster run the driver's own lines, too
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    code, line, _ = sweeper.finish("--workers", "2")
    assert (code, line) == (1, "4 runs: 3 done, 0 reused, 1 failed, 0 left.")
    failure = sweeper.store.load(SPECS[1]).failure
    assert failure["where"] == "a worker"
    monkeypatch.delenv("DEADLY")
    assert sweeper.finish("--retry-failed")[:2] == (0, "4 runs: 1 done, 3 reused, 0 failed, 0 left.")
    assert sweeper.store.load(SPECS[1]).provenance["retried"][0]["reason"] == failure["reason"]


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Cluster:
    """A scheduler and workers, each a process of its own, without nannies that would start them again."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.processes = folder, []
        self.scheduler = self.start("scheduler", "--host", self.address)
        self.workers = [self.worker(), self.worker()]

    def start(self, *words):
        command = [Path(sys.executable).with_name("dask"), *words, "--no-dashboard"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen(command, cwd=self.folder, env=environment, **quiet))
        return self.processes[-1]

    def worker(self):
        words = "--no-nanny --nthreads 1 --memory-limit 0 --host 127.0.0.1 --local-directory".split()
        return self.start("worker", self.address, *words, self.folder)


@pytest.fixture
def cluster(tmp_path):
    pytest.importorskip("distributed")
    made = Cluster(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_scheduler_and_a_worker_that_is_killed(sweeper, cluster, records):
    process = sweeper.start("--scheduler", cluster.address)
    sweeper.wait_for(lambda: len(sweeper.notes("saved")) >= 1, process)
    cluster.workers[0].kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert sorted(sweeper.notes("saved")) == sorted(spec.id for spec in SPECS)  # none twice
    assert_complete(sweeper.store, records)


@pytest.mark.slow
def test_a_worker_goes_on_where_a_killed_one_was(tmp_path, cluster):
    sweeper = Sweeper(tmp_path, [LONG])
    process = sweeper.start("--scheduler", cluster.address)
    lock = sweeper.store.lock(LONG).lock_file
    sweeper.wait_for(lambda: os.path.exists(lock), process)
    time.sleep(10)  # one of the workers is within the run
    for worker in cluster.workers:
        worker.kill()
    cluster.workers = [cluster.worker()]
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "1 runs: 1 done, 0 reused, 0 failed, 0 left."
    assert settled(sweeper.store.load(LONG)) == settled(quick(LONG))


@pytest.mark.slow
def test_a_scheduler_that_is_lost(sweeper, cluster, records):
    process = sweeper.start("--scheduler", cluster.address)
    sweeper.wait_for(lambda: len(sweeper.notes("saved")) >= 1, process)
    cluster.scheduler.kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "pai: error: The connection to the Dask scheduler is lost; start the sweep again." in err
    assert " 0 failed, " in out.splitlines()[-1]
    assert sweeper.finish()[0] == 0
    assert_complete(sweeper.store, records)


# --- a hundred runs


def assert_a_hundred(sweeper):
    """Each run of the campaign is recorded, was saved once, and is what it would be undisturbed."""
    specs = read_campaign(sweeper.campaign)
    assert len(specs) >= 100
    saved = sweeper.notes("saved")  # one may be missing, if the kill came between the saving and the note
    assert len(set(saved)) == len(saved)
    assert_complete(sweeper.store, {spec: settled(sweeper.store.load(spec)) for spec in specs}, specs)
    for spec in specs[::10]:
        assert settled(sweeper.store.load(spec)) == settled(quick(spec))


def killed(process):
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_hundred_runs_killed_several_ways(tmp_path):
    sweeper = Sweeper(tmp_path)

    def saved(more):
        count = len(sweeper.notes("saved")) + more
        return lambda: len(sweeper.notes("saved")) >= count

    for more in (7, 12):  # within a run, or between two
        process = sweeper.start()
        sweeper.wait_for(saved(more), process)
        killed(process)
    for _ in range(2):  # while it writes a record
        process = sweeper.start(slow=3600.0)
        sweeper.wait_for(sweeper.temporary, process)
        killed(process)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = sweeper.start()
        sweeper.wait_for(saved(10), process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 130
        assert out.splitlines()[-1].startswith("105 runs: ")
    process, other = sweeper.start(), sweeper.start()  # two at once, of which one is killed
    sweeper.wait_for(saved(30), process)
    killed(other)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert out.splitlines()[-1].endswith(" 0 failed, 0 left.")
    assert_a_hundred(sweeper)


@pytest.mark.slow
def test_a_hundred_runs_on_a_cluster_killed_several_ways(tmp_path, cluster):
    sweeper = Sweeper(tmp_path)
    words = ("--scheduler", cluster.address)

    def saved(more):
        count = len(sweeper.notes("saved")) + more
        return lambda: len(sweeper.notes("saved")) >= count

    process = sweeper.start(*words)
    sweeper.wait_for(saved(10), process)
    cluster.workers.pop(0).kill()  # a worker within a run
    cluster.workers.append(cluster.worker())
    sweeper.wait_for(saved(20), process)
    killed(process)  # the one that writes records
    process = sweeper.start(*words, slow=3600.0)
    sweeper.wait_for(sweeper.temporary, process)
    killed(process)  # while it writes one
    process = sweeper.start(*words)
    sweeper.wait_for(saved(20), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    process = sweeper.start(*words)
    sweeper.wait_for(saved(10), process)
    for worker in cluster.workers:  # all of them, and others come
        worker.kill()
    cluster.workers = [cluster.worker(), cluster.worker()]
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].endswith(" 0 failed, 0 left.")
    assert_a_hundred(sweeper)
