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
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from measure import TOLERANCE, Row, Setup, build, difference, machine, resident, save
from peers import (
    PAPER_TEMPERATURE,
    back_propagation,
    backpack_function,
    curvlinops_operator,
    leaves_of,
    loop_fisher,
    loop_hutchinson,
    peer,
)
from torch import nn

import pai_lib as pai

PROBES = 10
BLOCKS = ("fisher", "exact", "hutchinson", "memory", "mask", "linearity")

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
