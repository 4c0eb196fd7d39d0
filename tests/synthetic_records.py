"""A folder of invented records, as rich as a campaign's: several protocols and data sets, controls, failures."""

import random
from dataclasses import replace

import pandas as pd

from pai_lib import CRITERIA, MaskSpec, RunSpec
from pai_lib.experiments.records import MaskRecord, Record, Store

PLAIN = RunSpec(width=16, epochs=12, batch_size=128, lr=0.1, precision="bf16", train_fraction=0.2)
FAILURE = {"reason": 'The loss is nan, "not a number", in epoch 2.', "where": "training, epoch 2"}


def record_of(spec, failed=False):
    """Return a record whose accuracy falls with sparsity, from one level a criterion: the same in every call."""
    level = random.Random(spec.criterion).uniform(0.4, 0.5)
    accuracy = round(level + 0.2 * (1 - spec.sparsity) + random.Random(spec.id).gauss(0, 0.005), 4)
    result = {"parameters": 701466, "warmup_updates": spec.warmup, "training_seconds": 204.625}
    if spec.criterion != "dense":
        result["collapsed"] = ["blocks.2.shortcut.0.weight"] * (spec.sparsity > 0.98)
    if not failed:
        result |= {"test_accuracy": accuracy, "test_loss": 1 / (3 + accuracy)}
    made = {
        "git": "528ea7fd8f7d", "dirty": False, "pai_lib": "0.1.0", "torch": "2.15.0", "device": "CPU (AMD EPYC)",
        "threads": 1, "precision": spec.precision, "started": "2026-11-23T16:33:58+00:00",
        "finished": "2026-11-23T16:38:09+00:00",
    }  # fmt: skip
    data = {"fingerprint": "8e" * 32, "train": int(50_000 * spec.train_fraction), "test": 10_000}
    return Record(spec, result, FAILURE if failed else None, data, made)


def write_records(root, seeds=5):
    """Write about 250 records a seed below ``root``; return the store."""
    store, drawn = Store(root), []
    for seed in range(seeds):
        for warmup in (98, 0):
            drawn += [
                replace(PLAIN, criterion=key, sparsity=sparsity, seed=seed, warmup=warmup)
                for key in CRITERIA for sparsity in (0.8, 0.9, 0.95, 0.98, 0.99)
            ]  # fmt: skip
        drawn.append(replace(PLAIN, criterion="dense", sparsity=0.0, seed=seed))
        others = {"model": "vgg19"}, {"dataset": "cifar100", "width": None}, {"lr": 0.03}, {"lr_drops": (0.5,)}
        drawn += [
            replace(PLAIN, criterion=key, sparsity=sparsity, seed=seed, **other)
            for other in others
            for key in ("snip", "fts") for sparsity in (0.9, 0.98)
        ]  # fmt: skip
        drawn += [
            replace(PLAIN, criterion="snip", seed=seed, **other)
            for other in ({"control": "shuffle"}, {"when": "trained"}, {"temperature": 1.5}, {"scope": "layer"})
        ]
        drawn.append(replace(PLAIN, criterion="grasp", variant="released", seed=seed))
    for spec in drawn:
        failed = spec.criterion == "synflow" and spec.sparsity == 0.99 and spec.seed > 1
        store.save(record_of(spec, failed))
    return store


LAYERS = {
    "stem.0.weight": 432,
    "blocks.0.convs.0.weight": 2304,
    "blocks.1.convs.0.weight": 36864,
    "fc.weight": 640,
}


def masks_of(spec):
    """Return a record of masks: deeper layers keep less; from 0.98 on SNIP empties one, FD three."""
    masks = []
    for key in spec.criteria:
        for sparsity in spec.sparsities:
            kept = [
                int(size * (1 - sparsity) / (layer + 1 + spec.seed)) for layer, size in enumerate(LAYERS.values())
            ]
            emptied = {"snip": 1 if spec.seed == 0 else 0, "fisher_diag": 3}.get(key, 0) if sparsity >= 0.98 else 0
            kept[len(kept) - emptied :] = [0] * emptied
            cut = key == "fisher_diag" and sparsity >= 0.98
            mask = {"kept": kept, "effective_sparsity": 1.0 if cut else sparsity, "shared": 0.5, "seconds": 1.5}
            masks.append({**mask, "criterion": key, "sparsity": sparsity})
    of_all = {"parameters": 50_000, "warmup_updates": spec.warmup, "warmup_seconds": 1.0, "seconds": 9.0}
    result = {**of_all, "peak_memory_bytes": None, "layers": LAYERS, "masks": masks}
    return MaskRecord(spec, result, None, {"fingerprint": "8e" * 32}, {"device": "CPU (AMD EPYC)"})


def write_masks(root):
    """Write records of masks of three networks below ``root``, one of them scored in two ways."""
    store = Store(root)
    plain = MaskSpec(
        width=16, criteria=("snip", "fisher_diag", "hutchinson_pruning"), sparsities=(0.9, 0.98, 0.99)
    )
    specs = [replace(plain, seed=seed, warmup=warmup) for seed in range(3) for warmup in (0, 98)]
    specs += [replace(plain, model="vgg19", width=None), replace(plain, dataset="cifar100", width=None)]
    specs.append(
        replace(plain, model="vgg19", width=None, group=5, criteria=("hutchinson_pruning",), sparsities=(0.9,))
    )
    for spec in specs:
        store.save(masks_of(spec))


def three_seeds():
    """Three seeds of two criteria at two sparsities, and one dense network, as records tell it."""
    base = pd.DataFrame([{**RunSpec().to_dict(), "train_images": 50_000, "fingerprint": "8e" * 32}])
    rows = [("dense", 0.0, 0, 0.9)]
    rows += [("snip", s, seed, 0.8 - s / 10 + seed / 100) for s in (0.9, 0.98) for seed in range(3)]
    rows += [("random", s, seed, 0.5) for s in (0.9, 0.98) for seed in range(3)]
    cells = [dict(zip(("criterion", "sparsity", "seed", "test_accuracy"), row, strict=True)) for row in rows]
    return pd.concat([base.assign(**cell) for cell in cells], ignore_index=True)
