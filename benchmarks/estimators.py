"""Error of each estimator against the exact Hessian diagonal, and the seconds it took: data of a figure.

    python benchmarks/estimators.py [--width 16] [--samples-per-class 10] [--seeds 3] [--json FILE]

ResNet-18 on digits (3×32×32) after batch-norm warm-up, prunable parameters. The truth is the exact diagonal at the
estimator's own temperature T, since dividing the logits by T changes H; the Fisher is compared as it is, without
a best scale. ``error`` is the Euclidean norm of the difference over all weights, over that of the truth, and
``spearman`` the rank correlation with it. About 10 minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import machine, save
from peers import PAPER_TEMPERATURE
from torch import Tensor, nn

import pai_lib as pai


def ggn_mc(model: nn.Module, batch: pai.Batch, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Mean of several Monte-Carlo Gauss-Newton diagonals."""
    total: dict[str, Tensor] = {}
    for _ in range(draws):
        for name, value in pai.ggn_diag(model, batch, "mc", generator=generator).items():
            total[name] = total.get(name, 0) + value / draws
    return total


def estimators(smoke: bool) -> Iterator[tuple[dict, Callable]]:
    """Yield what each estimator is, and the function ``(model, batch, generator) -> diagonal``."""
    yield {"estimator": "Fisher", "group": 1}, lambda m, b, g: pai.fisher_diag(m, b, 1)
    for draws in (1,) if smoke else (1, 4, 16):
        yield {"estimator": "GGN-MC", "draws": draws}, lambda m, b, g, k=draws: ggn_mc(m, b, k, g)
    for probes in (1, 3) if smoke else (1, 3, 10, 30, 100):
        yield (
            {"estimator": "Hutchinson", "draws": probes},
            lambda m, b, g, k=probes: pai.hutchinson_diag(m, b, k, generator=g),
        )
    for group, temperature in ((1, 1.0), (None, PAPER_TEMPERATURE), (1, PAPER_TEMPERATURE)):
        probes = 2 if smoke else 10
        yield (
            {"estimator": "Hutchinson", "draws": probes, "group": group, "temperature": temperature},
            lambda m, b, g, k=probes, n=group, t=temperature: pai.hutchinson_diag(
                m, b, k, n, temperature=t, generator=g
            ),
        )


def timed(function: Callable, device: str) -> tuple[dict[str, Tensor], float]:
    """Result of a function and the seconds that it took: CPU seconds on a CPU (one thread), else wall clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, clock() - start


def error(estimate: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Relative Euclidean (Frobenius) error over all weights together."""
    above = sum(float((estimate[name] - value).double().square().sum()) for name, value in truth.items())
    return (above / sum(float(value.double().square().sum()) for value in truth.values())) ** 0.5


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--samples-per-class", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of the random estimators")
    parser.add_argument("--updates", type=int, default=98, help="warm-up passes, 128 images each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--smoke", action="store_true", help="toy size, for tests: the numbers mean nothing")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.width, args.samples_per_class, args.seeds, args.updates = 4, 1, 1, 1
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    data = pai.load_data("digits32").to(args.device)
    model = pai.build_model("resnet18", data.num_classes, width=args.width).to(args.device)
    pai.warm_up(model, data, updates=args.updates, batch_size=8 if args.smoke else 128)
    batch = data.scoring_batch(samples_per_class=args.samples_per_class)

    pai.gradient(model, batch)
    gradient_seconds = min(timed(lambda: pai.gradient(model, batch), args.device)[1] for _ in range(3))
    truths, rows = {}, []
    for temperature in (1.0, PAPER_TEMPERATURE):
        truths[temperature], seconds = timed(
            lambda t=temperature: pai.exact_diag(model, batch, temperature=t), args.device
        )
        rows.append(
            {"estimator": "exact", "draws": None, "group": None, "temperature": temperature, "seed": None,
             "seconds": seconds, "error": 0.0, "spearman": 1.0}
        )  # fmt: skip
    for what, function in estimators(args.smoke):
        row = {"draws": None, "group": None, "temperature": 1.0} | what
        truth = truths[row["temperature"]]
        for seed in range(args.seeds if row["draws"] else 1):
            generator = torch.Generator().manual_seed(seed)
            estimate, seconds = timed(lambda f=function, g=generator: f(model, batch, g), args.device)
            quality = {"error": error(estimate, truth), "spearman": pai.rank_correlation(estimate, truth)}
            rows.append({**row, "seed": seed if row["draws"] else None, "seconds": seconds, **quality})
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    for row in rows:
        row["gradients"] = row["seconds"] / gradient_seconds
    result = {
        "machine": machine(args.device, 1),
        "settings": {
            "model": "resnet18", "width": args.width, "dataset": data.name, "fingerprint": data.fingerprint,
            "samples": len(batch.labels), "updates": args.updates, "gradient_seconds": gradient_seconds,
            "weights": sum(value.numel() for value in truths[1.0].values()),
        },
        "spearman_of_the_exact_diagonals_at_both_temperatures": pai.rank_correlation(*truths.values()),
        "rows": rows,
    }  # fmt: skip
    print("| estimator | draws | group | T | seed | gradients | error | Spearman |\n" + 8 * "|---" + "|")
    for row in rows:
        cells = (row["estimator"], row["draws"], row["group"] or "all", f"{row['temperature']:g}", row["seed"])
        numbers = (f"{row['gradients']:.1f}", f"{row['error']:.3g}", f"{row['spearman']:.3f}")
        print("| " + " | ".join("–" if cell is None else str(cell) for cell in cells + numbers) + " |")
    save(result, args.json)
    return result


if __name__ == "__main__":
    main()
