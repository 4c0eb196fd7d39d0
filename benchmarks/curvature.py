"""Time and memory of the curvature estimators, each as a ratio measured in this process, beside their peers.

    python benchmarks/curvature.py [--samples 50] [--repeats 5] [--threads 1] [--device cpu|cuda] [--json FILE]

ResNet-18 (10 classes, width 64) in evaluation mode on N×3×32×32 inputs, prunable parameters everywhere, for the
peers too. Whatever is compared is first checked to give the same numbers (that is the warm-up), then timed in
turn, A B A B …; a value is the median of the rounds' ratios, the range their least and greatest. With one thread
a second is a CPU second of this process, so that a busy machine disturbs less; else it is wall-clock time, after
synchronising the GPU. Rounds stop at 3 when a comparison has taken a minute and a half. About 15 minutes on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pai_lib as pai

PROBES, PAPER_TEMPERATURE, TOLERANCE = 10, 200.0, 1e-3
BLOCKS = ("fisher", "exact", "hutchinson", "memory", "mask", "linearity")
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


# ---------------------------------------------------------------------------------------------------------
# The plain loops that stand for the paper's protocol


def leaves_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable parameters."""
    return {name: model.get_parameter(name) for name in pai.prunable(model)}


def loop_fisher(model: nn.Module, batch: pai.Batch) -> dict[str, Tensor]:
    """Squared gradients, one sample at a time."""
    leaves = leaves_of(model)
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for x, y in zip(*batch, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        for out, grad in zip(total.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
            out += grad**2
    return {name: out / len(batch.labels) for name, out in total.items()}


def loop_hutchinson(model: nn.Module, batch: pai.Batch, probes: int, temperature: float, seed: int = 0):
    """Hutchinson's estimator by double back-propagation, one sample and one probe at a time."""
    leaves, generator = leaves_of(model), torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for x, y in zip(*batch, strict=True):
        loss = F.cross_entropy(model(x[None]) / temperature, y[None])
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        for _ in range(probes):
            vectors = [
                torch.randint(0, 2, leaf.shape, generator=generator).mul(2).sub(1).to(leaf)
                for leaf in leaves.values()
            ]
            products = torch.autograd.grad(grads, list(leaves.values()), vectors, retain_graph=True)
            for out, z, hz in zip(total.values(), vectors, products, strict=True):
                out += (z * hz) / (probes * len(batch.labels))
    return {name: out.detach() for name, out in total.items()}


# ---------------------------------------------------------------------------------------------------------
# Peers


def peer(distribution: str) -> str | None:
    """Version of an installed peer."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def backpack_function(model: nn.Module, quantity: str) -> Callable[[pai.Batch], dict[str, Tensor]]:
    """BackPACK's ``SumGradSquared`` or ``DiagGGNExact`` for the same parameters.

    BackPACK needs a network of modules alone, so the ResNet's sums and means are rebuilt from modules around
    copies of its layers. Only prunable parameters require a gradient; BackPACK skips the others.
    """
    from backpack import backpack, extend, extensions
    from backpack.custom_module.branching import Parallel

    original = copy.deepcopy(model).eval()
    layers: list[nn.Module] = [*original.stem]
    for block in original.blocks:
        body: list[nn.Module] = []
        for conv, norm in zip(block.convs, block.norms, strict=True):
            body += [nn.ReLU(), conv, norm] if body else [conv, norm]
        shortcut = block.shortcut if len(block.shortcut) else nn.Identity()
        layers += [Parallel(nn.Sequential(*body), shortcut), nn.ReLU()]
    original.requires_grad_(False)
    leaves = leaves_of(original)
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    network = extend(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), original.head).eval())
    loss = extend(nn.CrossEntropyLoss())
    extension, attribute = {
        "fisher": (extensions.SumGradSquared, "sum_grad_squared"),
        "exact": (extensions.DiagGGNExact, "diag_ggn_exact"),
    }[quantity]

    def compute(batch: pai.Batch) -> dict[str, Tensor]:
        with backpack(extension()):
            loss(network(batch.inputs), batch.labels).backward()
        # Its sum is of squared gradients of the mean loss: N² times too small for a sum, N for a mean.
        scale = len(batch.labels) if quantity == "fisher" else 1
        result = {name: getattr(leaf, attribute).detach() * scale for name, leaf in leaves.items()}
        for leaf in leaves.values():
            leaf.grad = None
            delattr(leaf, attribute)
        return result

    return compute


def curvlinops_operator(model: nn.Module, batch: pai.Batch):
    """The Hessian of the mean loss over the prunable parameters as curvlinops' linear operator."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(leaves_of(model).values()), [tuple(batch)],
        check_deterministic=False, num_data=len(batch.labels),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Blocks of rows


def fisher_rows(s: Setup) -> None:
    model, batch = s.model, s.batch
    ours = pai.fisher_diag(model, batch)
    functions: dict[str, Callable[[], object]] = {
        "gradient": lambda: pai.gradient(model, batch),
        "fisher": lambda: pai.fisher_diag(model, batch),
        "loop": lambda: loop_fisher(model, batch),
    }
    apart = {"loop": difference(loop_fisher(model, batch), ours)}
    if peer("backpack-for-pytorch"):
        theirs = backpack_function(model, "fisher")
        apart["backpack"] = difference(theirs(batch), ours)
        functions["backpack"] = lambda: theirs(batch)
    del ours
    pai.gradient(model, batch)
    spent = s.rounds(**functions)
    s.ratio("fisher/gradient", "Fisher, group 1 / one batched gradient", spent, "fisher", "gradient")
    compared(s, "loop/fisher", "per-sample autograd loop / Fisher", spent, "loop", "fisher", apart)
    compared(s, "backpack/fisher", "BackPACK SumGradSquared / Fisher", spent, "backpack", "fisher", apart)


def compared(s: Setup, key: str, quantity: str, spent, a: str, b: str, apart: dict, **details) -> None:
    """Add a row against something that must give the same numbers."""
    if a not in spent:
        s.add(key, quantity, problem=f"{a} is not installed")
    elif not apart[a] <= TOLERANCE:
        s.add(key, quantity, problem=f"error: results differ by {apart[a]:.1e}", disagreement=apart[a])
    else:
        s.ratio(key, quantity, spent, a, b, disagreement=apart[a], **details)


def exact_rows(s: Setup) -> None:
    model, batch, n = s.model, s.batch, len(s.batch.labels)
    two = s.part(min(2, n))
    ours = pai.hutchinson_diag(
        model, two, PROBES, 1, temperature=PAPER_TEMPERATURE, generator=torch.Generator().manual_seed(0)
    )
    apart = {"paper": difference(loop_hutchinson(model, two, PROBES, PAPER_TEMPERATURE), ours)}
    pai.exact_diag(model, s.part(min(8, n)))
    spent = s.rounds(
        gradient=lambda: pai.gradient(model, batch),
        exact=lambda: pai.exact_diag(model, batch),
        paper=lambda: loop_hutchinson(model, two, PROBES, PAPER_TEMPERATURE),
    )
    s.ratio("exact/gradient", "exact diagonal, 10 classes / one batched gradient", spent, "exact", "gradient")
    compared(
        s, "paper/exact",
        f"paper's Hutchinson ({PROBES} probes, group 1, T = 200; {len(two.labels)} samples, scaled) / exact",
        spent, "paper", "exact", apart, scale=n / len(two.labels),
    )  # fmt: skip
    few, spent = s.part(s.few), {}
    if peer("backpack-for-pytorch"):
        theirs = backpack_function(model, "exact")
        apart["backpack"] = difference(theirs(few), pai.exact_diag(model, few))
        spent = s.rounds(backpack=lambda: theirs(few), exact=lambda: pai.exact_diag(model, few))
    quantity = f"BackPACK DiagGGNExact / exact ({s.few} samples)"
    compared(s, "backpack/exact", quantity, spent, "backpack", "exact", apart)


def back_propagation(model: nn.Module, batch: pai.Batch) -> Callable[[], object]:
    """Make a function that back-propagates through a graph built once."""
    loss, leaves = F.cross_entropy(model(batch.inputs), batch.labels), list(leaves_of(model).values())
    return lambda: torch.autograd.grad(loss, leaves, retain_graph=True)


def hutchinson_rows(s: Setup) -> None:
    model, batch = s.model, s.batch
    pai.hutchinson_diag(model, batch, 1)
    backward = back_propagation(model, batch)
    backward()
    spent = s.rounds(
        gradient=lambda: pai.gradient(model, batch),
        backward=backward,
        one=lambda: pai.hutchinson_diag(model, batch, 1),
        ten=lambda: pai.hutchinson_diag(model, batch, PROBES),
    )
    del backward  # and the graph that it holds
    marginal = [(ten - one) / (PROBES - 1) for ten, one in zip(spent["ten"], spent["one"], strict=True)]
    rows = {
        "probe/gradient": ("one more probe / one batched gradient", marginal, spent["gradient"]),
        "probe/backward": (
            "one more probe / two back-propagations", marginal, [2 * t for t in spent["backward"]],
        ),
        "mean probe/gradient": (
            f"a probe of {PROBES}, set-up included / one batched gradient",
            [t / PROBES for t in spent["ten"]], spent["gradient"],
        ),
    }  # fmt: skip
    for key, (quantity, above, below) in rows.items():
        s.add(
            key, f"Hutchinson on the batch: {quantity}", [a / b for a, b in zip(above, below, strict=True)],
            seconds=spent,
        )  # fmt: skip
    quantity = f"curvlinops Hutchinson diagonal / Hutchinson ({PROBES} probes, {s.few} samples)"
    few, spent, apart = s.part(s.few), {}, {}
    if peer("curvlinops-for-pytorch"):
        from curvlinops import hutchinson_diag

        operator = curvlinops_operator(model, few)
        # Its probes cannot be chosen, so what is compared is the product H v that both average.
        generator = torch.Generator().manual_seed(1)
        vectors = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in leaves_of(model).items()}
        product = operator @ torch.cat([v.flatten() for v in vectors.values()])
        parts = product.detach().split([v.numel() for v in vectors.values()])
        theirs = {n: part.view_as(v) for (n, v), part in zip(vectors.items(), parts, strict=True)}
        apart["curvlinops"] = difference(theirs, pai.hessian_vector_product(model, few, vectors))
        spent = s.rounds(
            curvlinops=lambda: hutchinson_diag(operator, PROBES),
            hutchinson=lambda: pai.hutchinson_diag(model, few, PROBES),
        )
    compared(s, "curvlinops/hutchinson", quantity, spent, "curvlinops", "hutchinson", apart)


ESTIMATORS: dict[str, tuple[str, Callable[[nn.Module, pai.Batch], object]]] = {
    "gradient": ("gradient", pai.gradient),
    "fisher": ("Fisher, group 1", pai.fisher_diag),
    "exact": ("exact diagonal", pai.exact_diag),
    "hutchinson": ("Hutchinson on the batch", lambda model, batch: pai.hutchinson_diag(model, batch, 3)),
}


def peak_bytes(estimator: str, samples: int, width: int, device: str) -> int:
    """Memory that an estimator adds at its peak to a process that holds the network and the batch."""
    _, function = ESTIMATORS[estimator]
    tiny = build(2, 4, device)  # loads code and work spaces without tensors of the network's size
    function(*tiny)
    model, batch = build(samples, width, device)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(model, batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    function(model, batch)
    return resident("VmHWM") - before


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


def memory_rows(s: Setup, width: int, estimators: Iterable[str]) -> dict[str, int]:
    """Peak memory of each estimator in a fresh process, over the gradient's; at toy sizes it means nothing."""
    peaks = {}
    for name in estimators:
        command = [sys.executable, __file__, "--peak-of", name, "--device", s.device, "--width", str(width)]
        command += ["--samples", str(len(s.batch.labels)), "--threads", str(s.threads)]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if name != "gradient":
            quantity = f"peak memory: {ESTIMATORS[name][0]} / gradient ({peaks['gradient'] / 2**20:.0f} MiB)"
            if min(peaks.values()) <= 0:
                s.add("memory", quantity, problem="too small to measure")
            else:
                s.add("memory", quantity, [peaks[name] / peaks["gradient"]])
    return peaks


def mask_row(s: Setup) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(p.shape, generator=generator).to(p) for n, p in leaves_of(s.model).items()}
    count = sum(value.numel() for value in scores.values())
    spent = s.rounds(warm_up=True, mask=lambda: pai.make_mask(scores, 0.95))
    s.add("mask", f"scores to global mask, {count:,} weights", spent["mask"], seconds=spent, unit="s")


def linearity(s: Setup, width: int) -> list[dict]:
    """Seconds against samples (at half the width) and against parameters (at two fifths of the samples)."""
    n = len(s.batch.labels)
    by_samples = [(max(1, round(n * part)), width // 2) for part in (0.2, 0.5, 1, 1.5, 2)]
    by_width = [(max(1, round(0.4 * n)), round(width * part / 4)) for part in (1, 2, 3, 4)]
    functions = {"gradient": pai.gradient, "Fisher, group 1": pai.fisher_diag, "exact diagonal": pai.exact_diag}
    fits = []
    for axis, grid in (("samples", by_samples), ("parameters", by_width)):
        cases = [build(*case, s.device) for case in grid]
        x = [
            samples if axis == "samples" else sum(model.get_parameter(k).numel() for k in pai.prunable(model))
            for (samples, _), (model, _) in zip(grid, cases, strict=True)
        ]
        for name, function in functions.items():
            function(*cases[0])
            rounds = range(min(3, s.repeats))
            spent = [[s.seconds(lambda f=function, c=case: f(*c)) for case in cases] for _ in rounds]
            y = np.median(spent, axis=0)
            slope, intercept = np.polyfit(x, y, 1)
            residual = y - slope * np.array(x) - intercept
            r2 = float(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum())
            fixed = f"width {grid[0][1]}" if axis == "samples" else f"{grid[0][0]} samples"
            fits.append(
                {"estimator": name, "against": axis, "at": fixed, "x": x, "seconds": y.tolist(),
                 "slope": float(slope), "intercept": float(intercept), "r2": r2}
            )  # fmt: skip
            print(f"  {name} against {axis}: R² = {r2:.4f}", file=sys.stderr, flush=True)
    return fits


# ---------------------------------------------------------------------------------------------------------
# Report


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


def report(result: dict, rows: list[Row]) -> str:
    """Write the machine, the table and the fits as Markdown."""
    m, settings = result["machine"], result["settings"]
    where = f"{m['gpu']} beside {m['cpu']}" if m["gpu"] else m["cpu"]
    lines = [
        f"{where}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}, {m['clock']}; BackPACK "
        f"{m['backpack']}, curvlinops {m['curvlinops']}. ResNet-18 of width {settings['width']}, "
        f"{settings['samples']}×3×32×32, prunable parameters, {settings['repeats']} rounds.",
        "",
        "| quantity | measured: median (min–max) | target | met? |",
        "|---|---|---|---|",
        *map(str, rows),
    ]
    if result["linearity"]:
        lines += ["", "| linear fit | against | range | seconds | R² |", "|---|---|---|---|---|"]
        lines += [
            f"| {fit['estimator']} | {fit['against']} ({fit['at']}) | {fit['x'][0]:,}–{fit['x'][-1]:,} "
            f"| {fit['seconds'][0]:.3g}–{fit['seconds'][-1]:.3g} | {fit['r2']:.4f} |"
            for fit in result["linearity"]
        ]
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--few", type=int, default=20, help="samples where a peer needs gigabytes")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=BLOCKS, default=BLOCKS)
    parser.add_argument("--smoke", action="store_true", help="toy size, for tests: the numbers mean nothing")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    parser.add_argument("--peak-of", choices=ESTIMATORS, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args(arguments)
    if args.smoke:
        args.samples, args.few, args.width, args.repeats = 4, 2, 4, 2
    for name in ("samples", "few", "repeats", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.width < 4:
        parser.error("--width must be at least 4")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    args.few = min(args.few, args.samples)
    return args


def save(result: dict, file: Path | None) -> None:
    """Write everything measured as JSON, if a file is given."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> dict:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # all in true float32
    if args.peak_of:
        print(peak_bytes(args.peak_of, args.samples, args.width, args.device))
        return {}
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # BackPACK and the input layer
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # curvlinops
    s = Setup(*build(args.samples, args.width, args.device), args.device, args.threads, args.repeats, args.few)
    settings = {key: getattr(args, key) for key in ("samples", "few", "width", "repeats", "device", "smoke")}
    result = {"machine": machine(args.device, args.threads), "settings": settings, "memory": {}, "linearity": []}
    if "fisher" in args.only:
        fisher_rows(s)
    if "exact" in args.only:
        exact_rows(s)
    if "hutchinson" in args.only:
        hutchinson_rows(s)
    if "memory" in args.only:
        chosen = list(ESTIMATORS)[:2] if args.smoke else ESTIMATORS
        result["memory"] = memory_rows(s, args.width, chosen)
    if "mask" in args.only:
        mask_row(s)
    if "linearity" in args.only:
        result["linearity"] = linearity(s, args.width)
    result["rows"] = [
        asdict(row) | {"median": statistics.median(row.values) if row.values else None, "met": row.met}
        for row in s.rows
    ]
    print(report(result, s.rows))
    save(result, args.json)
    return result


if __name__ == "__main__":
    main()
