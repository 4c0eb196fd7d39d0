"""Histograms of log |score| of each layer of one network before training: data of the page "The masks".

    python benchmarks/score_scales.py [--json results/scales/scores.json]

ResNet-18 of width 16 on CIFAR-10, seed 0, scored as ``pai.run_masks`` scores it, without warm-up and after 98
updates, by Hutchinson and by Fisher pruning. A bin is 0.2 wide in natural logarithms; the first one holds all that
is smaller, too, and a score of zero is counted apart. Four minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import pai_lib as pai
from pai_lib.experiments.mask_run import MaskWork

CRITERIA = ("hutchinson_pruning", "fisher_pruning")
BINS, WIDTH = 120, 0.2


def histograms(scores: dict[str, torch.Tensor]) -> dict:
    """Counts by layer and bin of ln |score|, ``start`` of the first bin, and zeros by layer."""
    sizes = {name: value.detach().double().abs().flatten().numpy() for name, value in scores.items()}
    highest = max(np.log(value.max()) for value in sizes.values() if value.max() > 0)
    start = highest - BINS * WIDTH
    edges = start + WIDTH * np.arange(BINS + 1)
    edges[-1] += 1e-9
    counts, zeros = [], []
    for value in sizes.values():
        logs = np.maximum(np.log(value[value > 0]), start)
        counts.append(np.histogram(logs, edges)[0].tolist())
        zeros.append(int((value == 0).sum()))
    return {"start": round(float(start), 6), "counts": counts, "zeros": zeros}


def scales(spec: pai.MaskSpec, data: pai.Dataset) -> dict:
    """The histograms of the criteria of one spec."""
    work = MaskWork(spec, data, torch.device("cpu")).work
    work.go_on(None)
    work.warm_up()
    found = {key: pai.score(work.model, work.batch, key, **work.scoring()) for key in spec.criteria}
    shown = {key: histograms(scores) for key, scores in found.items()}
    layers = {name: value.numel() for name, value in found[spec.criteria[0]].items()}
    return {"layers": layers, "scores": shown}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--json", default="results/scales/scores.json")
    options = parser.parse_args(arguments)
    data = pai.load_data(options.dataset)
    settings = {"dataset": options.dataset, "model": options.model, "width": options.width}
    result: dict = {"network": settings | {"seed": 0}, "width": WIDTH, "warmups": {}}
    for warmup in (0, 98):
        made = scales(pai.MaskSpec(**settings, seed=0, warmup=warmup, criteria=CRITERIA), data)
        result["layers"] = made["layers"]
        result["warmups"][str(warmup)] = made["scores"]
    path = Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n", "utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes")
    return result


if __name__ == "__main__":
    main()
