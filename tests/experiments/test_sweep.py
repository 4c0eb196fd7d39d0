"""Sweeps: each run once, whatever fails, stops or kills them, here and on a Dask cluster."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SPECS, TINY, assert_complete, files, quick, settled, untimed

from pai_lib import cli
from pai_lib.experiments import run as runs
from pai_lib.experiments import sweep as engine
from pai_lib.experiments.records import RecordWarning, Store
from pai_lib.experiments.sweep import sweep
from pai_lib.training.checkpoint import Checkpoint, epochs_done


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def run(store, specs=SPECS, **options):
    """Sweep; return the counts."""
    counts = sweep(specs, store, device="cpu", **options)
    assert len(files(store.root)) >= counts["done"]
    return tuple(counts[name] for name in ("done", "reused", "failed", "left"))


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


def test_the_checkpoint_of_a_recorded_run_is_removed_and_that_of_a_failed_one_kept(store):
    failing = replace(TINY, lr=1e12, epochs=4, seed=7)
    run(store, [TINY, failing])
    for spec in (TINY, failing):  # the first by a worker that lost its sweep, the second by one that tries again
        store.checkpoint(spec).write_bytes(b"")
    assert run(store, [TINY, failing]) == (0, 1, 1, 0)
    assert not store.checkpoint(TINY).exists()
    assert store.checkpoint(failing).exists()


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
    too_large = replace(TINY, seed=8)
    specs = [diverging, too_large, TINY]
    plain = engine.perform

    def perform(spec, *args, **options):
        if spec == too_large:
            raise MemoryError("no room\nat all")
        return plain(spec, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "perform", perform)
        assert run(store, specs) == (1, 0, 2, 0)
    lines = capsys.readouterr().out.splitlines()
    assert "  failed in epoch " in lines[0]
    assert "  failed in preparation: MemoryError: no room at all" in lines[1]
    failures = {spec: store.load(spec).failure for spec in specs}
    assert failures[diverging]["reason"].startswith("The training loss became ")
    assert failures[TINY] is None
    record = store.load(too_large)
    assert record.result == {}
    assert record.data == {"fingerprint": store.load(TINY).data["fingerprint"]}
    assert store.frame()["failure"].notna().sum() == 2
    assert run(store, specs) == (0, 1, 2, 0)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "perform", lambda spec, *args, **options: replace(quick(TINY), spec=spec))
        assert run(store, specs, retry_failed=True) == (2, 1, 0, 0)
    (before,) = store.load(diverging).provenance["retried"]
    assert before == {**failures[diverging], "finished": before["finished"]}


STAGES = {"warm_up": "scoring", "prune": "scoring", "train": "training", "evaluate": "test"}


def raising(monkeypatch, where, error, at=1):
    """Have the call with a number of a function that runs use raise an error."""
    plain, calls = getattr(runs, where), []

    def fail(*args, **options):
        calls.append(1)
        if len(calls) == at:
            raise error
        return plain(*args, **options)

    monkeypatch.setattr(runs, where, fail)


@pytest.mark.parametrize("where", STAGES)
def test_exhausted_memory_is_the_failure_of_a_run(store, records, monkeypatch, where):
    raising(monkeypatch, where, torch.OutOfMemoryError("out of memory\n  tried to allocate"))
    assert run(store) == (3, 0, 1, 0)
    stage = STAGES[where]
    reason = "OutOfMemoryError: out of memory tried to allocate"
    assert store.load(SPECS[0]).failure == {"reason": reason, "where": stage}
    assert run(store, retry_failed=True) == (1, 3, 0, 0)
    assert all(settled(store.load(spec)) == records[spec] for spec in SPECS[1:])


def allocate_too_much(*args, **options):
    torch.empty(10**15)  # four petabytes


@pytest.mark.parametrize(
    "fail",
    [
        allocate_too_much,
        lambda *args, **options: np.empty(10**15),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        MemoryError("std::bad_alloc"),
        RuntimeError("unable to mmap 1024 bytes from file </torch_1>: Cannot allocate memory (12)"),
        OSError(12, "Cannot allocate memory"),  # no process for the images' reader, say
    ],
)
def test_what_counts_as_exhausted_memory(store, monkeypatch, fail):
    if isinstance(fail, Exception):
        raising(monkeypatch, "prune", fail)
    else:
        monkeypatch.setattr(runs, "prune", fail)
    assert run(store, [TINY]) == (0, 0, 1, 0)
    assert store.load(TINY).failure["where"] == "scoring"


BROKEN = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("the layer has not enough memory slots"),
    RuntimeError("Cannot allocate memory bank 3: there are two"),
    ValueError("a bug"),
    KeyError("a bug"),
    OSError(5, "Input/output error"),
    AssertionError(),
]


# One handler is around all stages: each error in one of them, and one error in each.
ENDS = [*((error, "train") for error in BROKEN), *((BROKEN[2], where) for where in STAGES if where != "train")]


@pytest.mark.parametrize(("error", "where"), ENDS)
def test_what_else_a_run_raises_ends_the_sweep_and_is_no_record(store, records, monkeypatch, capsys, where, error):
    done = 2 if where == "warm_up" else 1  # the second seed is the third run
    with monkeypatch.context() as patch:
        raising(patch, where, error, at=2)
        with pytest.raises(type(error)) as raised:
            run(store)
    assert raised.value is error
    assert SPECS[done].id in error.__notes__[-1]
    assert str(SPECS[done]) in error.__notes__[-1]
    assert raised.traceback[-1].name == "fail"  # where it went wrong
    assert capsys.readouterr().out.splitlines()[-1] == f"4 runs: {done} done, 0 reused, 0 failed, {4 - done} left."
    assert len(store.records()) == done
    assert run(store) == (4 - done, done, 0, 0)  # at once: no lock is left, whoever still holds the traceback
    assert_complete(store, records)


@pytest.mark.parametrize("error", [ValueError("a bug"), torch.AcceleratorError("CUDA error: device-side assert")])
def test_the_command_shows_the_traceback_of_a_run_and_its_name(store, tmp_path, monkeypatch, error):
    campaign = tmp_path / "campaign.yaml"
    campaign.write_text(json.dumps({"base": TINY.to_dict()}))
    raising(monkeypatch, "prune", error)
    store.root.mkdir(exist_ok=True)
    words = ["sweep", str(campaign), "--results", str(store.root), "--device", "cpu"]
    with pytest.raises(type(error)) as raised:  # no sentence for one's own mistake
        cli.main(words)
    text = "".join(traceback.format_exception(raised.value))
    assert "in scored" in text
    assert f"This was raised by the run {TINY.id}, of which nothing is recorded: RunSpec(dataset='digits'" in text
    assert files(store.root) == []


def test_a_run_that_breaks_after_an_epoch_goes_on_from_its_checkpoint(store, monkeypatch):
    spec = replace(TINY, epochs=3)
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
    with monkeypatch.context() as patch:
        raising(patch, "evaluate", RuntimeError("CUDA error: device-side assert triggered"))
        with pytest.raises(RuntimeError, match="device-side assert"):
            run(store, [spec])
    assert epochs_done(store.checkpoint(spec)) == 2
    assert run(store, [spec]) == (1, 0, 0, 0)
    assert [piece["epoch"] for piece in store.load(spec).provenance["resumed"]] == [2]
    assert settled(store.load(spec)) == settled(quick(spec))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"samples_per_class": 200}, "samples_per_class=200 must be 1 to 14, the images of class 0"),
        ({"samples_per_class": 20, "train_fraction": 0.05}, "samples_per_class=20 must be 1 to 7"),
        ({"model": "vgg11", "width": 4}, ""),
    ],
)
def test_a_run_that_its_data_do_not_allow_is_refused_before_the_first(store, monkeypatch, change, sentence):
    impossible = replace(TINY, seed=9, **change)
    monkeypatch.setattr(engine, "perform", lambda *args, **options: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"{impossible.id} .*: .*{sentence}") as error:
        run(store, [TINY, impossible])
    assert "\n" not in str(error.value)
    assert files(store.root) == []


def test_a_failure_whose_record_is_gone_is_repeated_all_the_same(store, monkeypatch):
    failing = replace(TINY, lr=1e12, epochs=4, seed=7)
    assert run(store, [failing]) == (0, 0, 1, 0)
    plain = engine.Estimate.seconds

    def removing(self, spec):  # asked for after the records have been read, and before the run begins
        store.path(spec).unlink(missing_ok=True)
        return plain(self, spec)

    monkeypatch.setattr(engine.Estimate, "seconds", removing)
    assert run(store, [failing], retry_failed=True) == (0, 0, 1, 0)


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


def test_a_second_interrupt_ends_at_once_and_leaves_no_lock(store, records, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, at=2, times=2)
        with pytest.raises(KeyboardInterrupt) as held:  # with every frame of the sweep
            sweep(SPECS, store, device="cpu")
    assert len(store.records()) == 1
    for spec in SPECS:
        with store.lock(spec).acquire(blocking=False):
            pass
    assert run(store) == (3, 1, 0, 0)
    assert_complete(store, records)
    assert held.type is KeyboardInterrupt


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
