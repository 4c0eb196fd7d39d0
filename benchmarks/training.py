"""Images trained a second: the library's training beside a plain PyTorch loop, an epoch of each in turn.

    python benchmarks/training.py [--widths 64 16] [--rounds 3] [--device cpu|cuda] [--together N] [--json FILE]
    python benchmarks/training.py --model vit_cifar --widths 192 --only bf16 "bf16 compiled"

ResNet-18, or another model, for ten classes on 32×32 noise, random crop and flip, SGD with momentum. The plain
loop is float32, with images opened, cropped and flipped by Pillow in two worker processes; ours trains under a
random mask of sparsity 0.9. Each contender is a process of its own that runs one epoch when told to, A B A B …,
after a first one that is not counted (start-up, compilation). A ratio is the median of the rounds' ratios, the
range their least and greatest: of wall-clock time, in which the plain loop's workers run on other cores, and of
the CPU seconds of the training process alone, which a busy machine disturbs less. On a GPU an epoch has 50,000
images, and the data stay on the device. ``--together N`` runs N copies of the fastest at once. About 15 minutes on
a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import Row, machine, resident, save
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

import pai_lib as pai
from pai_lib.training.loop import TrainingStoppedError

CPU = {
    "plain": "plain loop, float32, two workers",
    "float32": "train, float32",
    "bf16": "train, bf16",
    "bf16 compiled": "train, bf16, compiled",
}
RATIOS = (("plain", "bf16"), ("plain", "float32"), ("float32", "bf16"), ("bf16", "bf16 compiled"))
EPOCH = ("≤", 1.5)  # seconds of ResNet-18 of width 64 on a GPU
TARGETS = {("plain", "bf16", "cpu"): ("≥", 1.8), ("bf16", "cuda"): EPOCH, ("bf16 compiled", "cuda"): EPOCH}


class Pictures(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR-10 gives them: opened by Pillow, then transformed one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, data: pai.Dataset):
        self.images, self.labels = images, labels
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def plain_loop(model, loader: DataLoader, device: str, stop: Callable[[], bool]) -> None:
    """The loop of many tutorials."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    model.train()
    while not stop():
        total = 0.0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)


def contender(
    name: str, width: int, images: int, batch_size: int, threads: int, device: str, architecture: str, pipe
) -> None:
    """A process that runs an epoch for every True it is sent, and sends how long it took."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8), np.arange(images) % 10
    data = pai.Dataset.from_arrays("noise", x, y, x[:10], y[:10])
    model = pai.build_model(architecture, 10, width=width).to(device)
    mask = pai.prune(model, data.scoring_batch(1), "random", 0.9)

    def clock() -> np.ndarray:
        if device == "cuda":
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    started = clock()

    def stop() -> bool:
        nonlocal started
        memory = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
        pipe.send((*(clock() - started), memory))
        going = pipe.recv()
        started = clock()
        return not going

    if name == "plain":
        loader = DataLoader(
            Pictures(x, y, data), batch_size, shuffle=True, num_workers=2,
            persistent_workers=True, multiprocessing_context="fork",  # started in the warm-up, at once
        )  # fmt: skip
        plain_loop(model, loader, device, stop)
        return
    with contextlib.suppress(TrainingStoppedError):
        pai.train(
            model, data.to(device), mask, epochs=10**6, batch_size=batch_size, stop=stop, progress=False,
            precision=name.split()[0], compile=name.endswith("compiled"),
        )  # fmt: skip


def measure(names: list[str], rounds: int, together: int = 1, **settings) -> dict[str, list[tuple]]:
    """Wall seconds, CPU seconds and bytes of each epoch of each contender; the first is the warm-up."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name] = []
        for _ in range(together):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=contender, args=(name, *settings.values(), theirs)))
            processes[-1].start()
            theirs.close()
            ours.recv()
            pipes[name].append(ours)
    spent: dict[str, list[tuple]] = {name: [] for name in names}
    for i in range(rounds + 1):
        for name in names:
            for pipe in pipes[name]:
                pipe.send(True)
            spent[name].append(tuple(np.max([pipe.recv() for pipe in pipes[name]], axis=0).tolist()))
            print(f"  {name}: epoch {i}, {spent[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    for pipe in (pipe for many in pipes.values() for pipe in many):
        pipe.send(False)
    for process in processes:
        process.join()
    return spent


def rows_of(spent: dict[str, list[tuple]], width: int, images: int, device: str, model: str) -> list[Row]:
    """Table of the counted epochs."""
    rows = []
    counted = {name: np.array(epochs[1:]) for name, epochs in spent.items()}  # rounds × (wall, CPU, bytes)
    for name, epochs in counted.items():
        seconds, peak = epochs[:, 0].tolist(), spent[name][-1][2] / 2**20
        what = f"{CPU[name]} (width {width}, peak {peak:,.0f} MiB, first epoch {spent[name][0][0]:.1f} s)"
        rows.append(Row(f"{name}/{width}", what, [images / s for s in seconds], {name: seconds}, unit="images/s"))
        if device == "cuda":
            target = TARGETS.get((name, device)) if (model, width) == ("resnet18", 64) else None
            rows.append(Row(f"epoch/{name}/{width}", f"{CPU[name]}: an epoch", seconds, unit="s", target=target))
    for slow, fast in RATIOS:
        if slow in counted and fast in counted:
            target = TARGETS.get((slow, fast, device))
            for column, clock in ((0, "wall-clock"), (1, "CPU seconds of the training process")):
                values = (counted[slow][:, column] / counted[fast][:, column]).tolist()
                what = f"{CPU[slow]} / {CPU[fast]} (width {width}, {clock})"
                if column == 0 or device == "cpu":
                    rows.append(Row(f"{slow}/{fast}/{width}/{column}", what, values, target=target))
                target = None
    return rows


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--images", type=int, help="an epoch's (50,000 on a GPU, else 65,536 over the width)")
    parser.add_argument("--batch-size", type=int, help="images a step (512 on a GPU, else 128)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=pai.model_names(), default="resnet18")
    parser.add_argument("--only", nargs="+", choices=CPU, help="of the contenders (default: all)")
    parser.add_argument("--compile", action="store_true", help="compile on a CPU too")
    parser.add_argument("--together", type=int, default=1, help="also run so many of the fastest at once")
    parser.add_argument("--smoke", action="store_true", help="toy size, for tests: the numbers mean nothing")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args(arguments)
    if min(args.rounds, args.threads, args.together, args.images or 10, args.batch_size or 1, *args.widths) < 1:
        parser.error("every number must be at least 1")
    if args.smoke:
        args.widths = [12 if args.model.startswith("vit") else 4]
        args.images, args.batch_size, args.rounds = 40, 20, 2
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    names = args.only or [name for name in CPU if cuda or args.compile or "compiled" not in name]
    settings = {
        "batch_size": args.batch_size or (512 if cuda else 128),
        "threads": args.threads,
        "device": args.device,
        "architecture": args.model,
    }
    rows, measured = [], {}
    for width in args.widths:
        sizes = {"width": width, "images": args.images or (50_000 if cuda else 65_536 // width), **settings}
        spent = measured[str(width)] = measure(names, args.rounds, **sizes)
        rows += rows_of(spent, width, sizes["images"], args.device, args.model)
        if args.together > 1:
            fastest = min(names, key=lambda name: statistics.median(epoch[0] for epoch in spent[name][1:]))
            many = measure([fastest], args.rounds, args.together, **sizes)[fastest]
            values = [args.together * a[0] / b[0] for a, b in zip(spent[fastest][1:], many[1:], strict=True)]
            what = f"{args.together} at once / one alone, images/s in total ({CPU[fastest]}, width {width})"
            rows.append(Row(f"together/{width}", what, values, {"together": [epoch[0] for epoch in many[1:]]}))
    about = {**machine(args.device, args.threads), "clock": "see each row"}
    result = {"machine": about, "settings": vars(args) | settings | {"json": None}, "epochs": measured}
    result["rows"] = [asdict(row) | {"median": statistics.median(row.values), "met": row.met} for row in rows]
    where = about["gpu"] or f"{about['cpu']}, {args.threads} thread{'s' * (args.threads > 1)}"
    print(f"{where}, torch {about['torch']}, batch {settings['batch_size']}, {args.rounds} rounds\n")
    print("| quantity | measured: median (min–max) | target | met? |\n|---|---|---|---|")
    print("\n".join(map(str, rows)))
    save(result, args.json)
    return result


if __name__ == "__main__":
    main()
