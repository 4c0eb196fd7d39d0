"""The runs of the paper's experiments at its size: how many, whether recorded, what they cost."""

from __future__ import annotations

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..experiments.campaign import read_campaign
from ..experiments.records import Store
from ..experiments.spec import RunSpec
from ..models import build_model

SIZES = {  # training images, side in pixels, classes
    "cifar10": (50_000, 32, 10),
    "cifar100": (50_000, 32, 100),
    "tiny-imagenet-200": (100_000, 64, 200),
    "imagenet": (1_281_167, 224, 1000),
}


def paper_runs(store: Store, dataset: str | None = None, model: str | None = None) -> pd.DataFrame:
    """The runs of ``campaigns/paper-*.yaml``, or of one network and data set: a row a run.

    Args:
        store: holds the records; the campaigns are beside its folder.
        dataset: only of these data.
        model: only of this network.

    Returns:
        Columns dataset, model, campaign, epochs, operations and recorded.
    """
    rows, once = [], {}
    for path in sorted((store.root.parent / "campaigns").glob("paper-*.yaml")):
        for spec in read_campaign(path):
            if not isinstance(spec, RunSpec) or (dataset or spec.dataset) != spec.dataset:
                continue
            if (model or spec.model) != spec.model:
                continue
            key = spec.dataset, spec.model, spec.epochs, spec.train_fraction, spec.when
            if key not in once:
                once[key] = operations(spec)
            made = once[key], store.load(spec) is not None
            rows.append((spec.dataset, spec.model, path.name, spec.epochs, *made))
    return pd.DataFrame(rows, columns="dataset model campaign epochs operations recorded".split())


def operations(spec: RunSpec) -> float:
    """Floating-point operations of training: three forward passes a step."""
    images, side, classes = SIZES[spec.dataset]
    with torch.device("meta"):
        network = build_model(spec.model, classes, width=spec.width).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    passes = images * spec.train_fraction * spec.epochs
    return 3 * counter.get_total_flops() * passes * (1 + (spec.when == "trained"))
