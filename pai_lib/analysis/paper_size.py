"""The runs of the paper's experiments at its size: how many, whether recorded, what they cost."""

from functools import cache

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


def paper_runs(store: Store) -> pd.DataFrame:
    """The runs of ``campaigns/paper-*.yaml``: a row a run.

    Args:
        store: holds the records; the campaigns are beside its folder.

    Returns:
        Columns dataset, model, campaign, epochs, operations and recorded.
    """
    rows = []
    for path in sorted((store.root.parent / "campaigns").glob("paper-*.yaml")):
        for spec in read_campaign(path):
            if isinstance(spec, RunSpec):
                made = operations(spec), store.load(spec) is not None
                rows.append((spec.dataset, spec.model, path.name, spec.epochs, *made))
    return pd.DataFrame(rows, columns="dataset model campaign epochs operations recorded".split())


def operations(spec: RunSpec) -> float:
    """Floating-point operations of training: three forward passes a step."""
    passes = SIZES[spec.dataset][0] * spec.train_fraction * spec.epochs
    forward = _forward_operations(spec.dataset, spec.model, spec.width)
    return 3 * forward * passes * (1 + (spec.when == "trained"))


@cache
def _forward_operations(dataset: str, model: str, width: int | None) -> int:
    """Those of one image's forward pass."""
    _, side, classes = SIZES[dataset]
    with torch.device("meta"):
        network = build_model(model, classes, width=width).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    return counter.get_total_flops()
