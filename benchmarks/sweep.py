"""What a sweep adds to its runs, and how long it takes to list 10,000 records.

    python benchmarks/sweep.py [--records 10000] [--runs 200] [--json FILE]

A sweep's overhead is timed with runs that take no time, since each returns a record at once: reading what is
recorded, estimating, locking, writing the record to the disk, printing. The checkpoint is that of ResNet-18,
written once a minute. Seconds are wall-clock time; about two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch
from measure import machine, save

import pai_lib as pai
from pai_lib.experiments import sweep as engine
from pai_lib.training.checkpoint import Checkpoint

RUN = 30.0  # seconds of the run that the overhead is compared with
EPOCHS = 160  # values of a curve
SPEC = pai.RunSpec(dataset="digits", model="resnet8", width=4, criterion="snip", sparsity=0.9, epochs=1,
                   samples_per_class=2, warmup=2, batch_size=64, train_fraction=0.2)  # fmt: skip


def example() -> pai.Record:
    """Return a record as long as one of 160 epochs of ResNet-18."""
    record = pai.run(SPEC, device="cpu", progress=False)
    curves = {name: [curve[0] / (1 + i) for i in range(EPOCHS)] for name, curve in record.result["curves"].items()}
    density = {f"stages.{i // 5}.{i % 5}.convs.0.weight": 1 / (1 + i) for i in range(20)}
    return replace(record, result={**record.result, "curves": curves, "density": density})


def listing(record: pai.Record, count: int, folder: Path) -> dict:
    """Time the table of ``count`` records."""
    store = pai.Store(folder)
    for seed in range(count):
        store.save(replace(record, spec=replace(record.spec, seed=seed)))
    start = time.perf_counter()
    rows = len(store.frame())
    size = store.path(record.spec).stat().st_size
    return {"records": rows, "bytes each": size, "seconds": time.perf_counter() - start}


def overhead(record: pai.Record, known: int, runs: int, folder: Path) -> dict:
    """Time a sweep whose runs take no time, in a folder with ``known`` records of other runs."""
    store = pai.Store(folder)
    for seed in range(known):
        store.save(replace(record, spec=replace(record.spec, seed=seed)))
    specs = [replace(record.spec, seed=10**6 + seed) for seed in range(runs)]
    perform, engine.perform = engine.perform, lambda spec, *args, **options: replace(record, spec=spec)
    try:
        start = time.perf_counter()
        with redirect_stdout(StringIO()):
            counts = engine.sweep(specs, store, device="cpu")
        seconds = time.perf_counter() - start
    finally:
        engine.perform = perform
    assert counts["done"] == runs
    return {"runs": runs, "known": known, "seconds a run": seconds / runs}


def checkpoint(width: int, folder: Path) -> dict:
    """Time one checkpoint of ResNet-18 with its momentum."""
    model = pai.build_model("resnet18", 10, width=width)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    kept = Checkpoint(folder / "checkpoint.safetensors", {})
    start = time.perf_counter()
    kept.keep(model, optimizer, torch.Generator(), epoch=1, curves={}, seconds=0.0)
    return {"width": width, "bytes": kept.path.stat().st_size, "seconds": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--smoke", action="store_true", help="toy size, for tests: the numbers mean nothing")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.records, args.runs = 20, 3
    torch.set_num_threads(1)
    record = example()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        listed = listing(record, args.records, folder / "listing")
        added = overhead(record, args.records // 10, args.runs, folder / "sweep")
        kept = [checkpoint(width, folder) for width in ((4,) if args.smoke else (16, 64))]
    worst = added["seconds a run"] + kept[-1]["seconds"] * RUN / 60
    result = {
        "machine": machine("cpu", 1) | {"clock": "wall-clock seconds"},
        "listing": listed,
        "overhead": added,
        "checkpoints": kept,
        "percent of a 30-second run": 100 * worst / RUN,
    }
    print("| quantity | measured | target |\n|---|---|---|")
    what = f"{listed['records']:,} records of {listed['bytes each']:,} bytes into a DataFrame"
    print(f"| {what} | {listed['seconds']:.2f} s | ≤ 2 s |")
    print(
        f"| sweep, beside its runs ({added['known']:,} records known) | {added['seconds a run']:.3f} s a run | |"
    )
    for each in kept:
        size = f"{each['bytes'] / 1e6:.0f} MB"
        print(f"| checkpoint of ResNet-18, width {each['width']} ({size}) | {each['seconds']:.3f} s a minute | |")
    print(f"| both of a 30-second run, widest | {result['percent of a 30-second run']:.2f} % | ≤ 2 % |")
    save(result, args.json)
    return result


if __name__ == "__main__":
    main()
