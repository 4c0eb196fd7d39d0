"""How the benchmarks measure: seconds, memory and the machine, and a row of a table for a ratio."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peers import peer
from torch import Tensor, nn

import pai_lib as pai

TOLERANCE = 1e-3  # relative, between what is compared

# Goals by row and device: upper bounds end in "≤", lower bounds in "≥".
TARGETS = {
    "fisher/gradient": {"cpu": ("≤", 1.7), "cuda": ("≤", 3.0)},
    "loop/fisher": {"cuda": ("≥", 50.0)},
    "exact/gradient": {"cpu": ("≤", 13.0)},
    "paper/exact": {"cpu": ("≥", 9.0), "cuda": ("≥", 100.0)},
    "backpack/exact": {"cpu": ("≥", 1.6)},
    "probe/gradient": {"cpu": ("≤", 2.5)},
    "probe/backward": {"cuda": ("≤", 1.2)},
    "curvlinops/hutchinson": {"cpu": ("≥", 1.0)},
    "memory": {"cpu": ("≤", 1.5), "cuda": ("≤", 1.5)},
    "mask": {"cpu": ("≤", 0.3), "cuda": ("≤", 0.010)},
}


@dataclass
class Row:
    """One line of the table."""

    key: str
    quantity: str
    values: list[float] = field(default_factory=list)  # one a round
    seconds: dict[str, list[float]] = field(default_factory=dict)  # what they were computed from
    unit: str = "×"
    disagreement: float | None = None  # relative difference of the results compared, before timing
    problem: str | None = None  # why there is no value
    target: tuple[str, float] | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None or not self.values:
            return None
        sign, bound = self.target
        median = statistics.median(self.values)
        return median <= bound if sign == "≤" else median >= bound

    def __str__(self) -> str:
        target = f"{self.target[0]} {self.target[1]:g} {self.unit}" if self.target else "–"
        if self.problem:
            return f"| {self.quantity} | {self.problem} | {target} | – |"
        middle, low, high = (f(self.values) for f in (statistics.median, min, max))
        spread = f" ({low:.3g}–{high:.3g})" if len(self.values) > 1 else ""
        met = {None: "–", True: "yes", False: "no"}[self.met]
        return f"| {self.quantity} | {middle:.3g} {self.unit}{spread} | {target} | {met} |"


@dataclass
class Setup:
    """A network, a batch, and how to measure."""

    model: nn.Module
    batch: pai.Batch
    device: str
    threads: int
    repeats: int
    few: int  # samples where a peer is slow or needs much memory
    rows: list[Row] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return pai.prunable(self.model)

    def part(self, samples: int) -> pai.Batch:
        return pai.Batch(self.batch.inputs[:samples], self.batch.labels[:samples])

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.device == "cpu" and self.threads == 1 else time.perf_counter()

    def seconds(self, function: Callable[[], object]) -> float:
        start = self.clock()
        function()
        return self.clock() - start

    def rounds(self, warm_up: bool = False, **functions: Callable[[], object]) -> dict[str, list[float]]:
        """Seconds of each function, measured in turn."""
        if warm_up:
            for function in functions.values():
                function()
        spent: dict[str, list[float]] = {name: [] for name in functions}
        began = time.perf_counter()
        for i in range(self.repeats):
            if i >= 3 and time.perf_counter() - began > 90:
                break
            for name, function in functions.items():
                spent[name].append(self.seconds(function))
        return spent

    def add(self, key: str, quantity: str, values: list[float] | None = None, **details) -> None:
        target = TARGETS.get(key, {}).get(self.device)
        self.rows.append(Row(key, quantity, values or [], target=target, **details))
        print(f"  {self.rows[-1]}", file=sys.stderr, flush=True)

    def ratio(self, key: str, quantity: str, spent: dict[str, list[float]], a: str, b: str, **details) -> None:
        """Add the row a / b of measured seconds."""
        scale = details.pop("scale", 1.0)
        values = [scale * x / y for x, y in zip(spent[a], spent[b], strict=True)]
        self.add(key, quantity, values, seconds={a: spent[a], b: spent[b]}, **details)


def build(samples: int, width: int, device: str = "cpu") -> tuple[nn.Module, pai.Batch]:
    """Make the network and a batch of noise: the estimators' cost does not depend on the images."""
    generator = torch.Generator().manual_seed(0)
    batch = pai.Batch(torch.randn(samples, 3, 32, 32, generator=generator), torch.arange(samples) % 10)
    return pai.build_model("resnet18", 10, width=width).to(device).eval(), batch.to(device)


def difference(result: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest relative difference of a parameter's values, in the Euclidean norm."""
    return max(float((result[name] - value).norm() / value.norm()) for name, value in reference.items())


def resident(field: str) -> int:
    """Bytes of memory that this process holds (``VmRSS``) or ever held (``VmHWM``; elsewhere than Linux always).

    Not ``ru_maxrss`` where it can be helped: on Linux a new process inherits its parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: str, threads: int) -> dict[str, str | int]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "threads": threads,
        "clock": "CPU seconds" if device == "cpu" and threads == 1 else "wall-clock seconds",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pai_lib": pai.__version__,
        "backpack": peer("backpack-for-pytorch") or "not installed",
        "curvlinops": peer("curvlinops-for-pytorch") or "not installed",
    }


def save(result: dict, file: Path | None) -> None:
    """Write everything measured as JSON, if a file is given."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
