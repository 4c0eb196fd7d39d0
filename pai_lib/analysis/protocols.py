"""Which runs may be compared: plain ones, of one protocol, or that differ in one setting."""

import itertools
from typing import Any

import pandas as pd

from ..experiments.records import Store, default_results
from ..experiments.spec import FIELDS as SETTINGS
from ..models import own_width

PLAIN = {"control": "none", "variant": "cited", "scope": "global", "when": "init"}
VARIED = ("criterion", "sparsity", "seed", "temperature", "rounds", "warmup", *PLAIN)

# What makes two runs comparable: the fields that no contrast varies, and the same training images.
PROTOCOL = [name for name in SETTINGS if name not in VARIED] + ["train_images", "fingerprint"]

# Names as papers write them; # stands for a number.
PROPER = {"resnet#": "ResNet-#", "vgg#": "VGG-#", "cifar#": "CIFAR-#", "vit_b_#": "ViT-B/#"}
PROPER |= {"vit_cifar": "small ViT", "resnet#_imagenet": "ResNet-#", "imagenet": "ImageNet"}
PROPER |= {"tiny-imagenet-#": "Tiny ImageNet", "vit_lite_#": "ViT-Lite-#"}


def committed_runs(dataset: str, model: str) -> pd.DataFrame:
    """The committed records of one network and data set."""
    frame = Store(default_results()).frame()
    return frame[(frame["dataset"] == dataset) & (frame["model"] == model)]


def plain_runs(frame: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """Runs without a control, at initialization, with cited criteria as they are and one ranking.

    Args:
        frame: rows of ``records_frame``.
        settings: fields of ``RunSpec`` that are to have another value, or one of a tuple of values.
    """
    rows = frame[frame["temperature"].isna() & frame["rounds"].isna()]
    for name, value in {**PLAIN, **settings}.items():
        rows = rows[rows[name].isin(value if isinstance(value, tuple) else (value,))]
    return rows


def one_protocol(frame: pd.DataFrame, *but: str) -> pd.DataFrame:
    """The records of the protocol that has the most of them, whatever these fields are."""
    if frame.empty:
        return frame
    protocol = _joined(frame, [name for name in PROTOCOL if name not in but])
    return frame[protocol == protocol.value_counts().idxmax()]


def by_protocol(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split plain records by protocol and warm-up: (its words, its rows).

    First is the group of most criteria, and of most records among equals; seeds without a pruned
    network are left out, as those are on which a learning rate was sought.
    """
    plain = plain_runs(frame)
    groups = [rows for _, rows in plain.groupby(_joined(plain, [*PROTOCOL, "warmup"]))]
    pruned = [rows[rows["seed"].isin(rows.loc[rows["sparsity"] > 0, "seed"])] for rows in groups]
    pruned = [rows for rows in pruned if len(rows)]
    pruned.sort(key=lambda rows: (rows["criterion"].nunique(), len(rows)), reverse=True)
    return [(in_words(rows), rows) for rows in pruned]


def in_words(rows: pd.DataFrame) -> str:
    """The protocol of runs in words: network, data, training and scoring.

    What else is known of the data, ``data_note`` says: once on a page.

    Args:
        rows: of one protocol.
    """
    run = rows.iloc[0]
    scored = not set(rows["criterion"]) <= {"dense", "random"}
    return (
        f"{proper(run['model'])} ({width_in_words(run)}) on {run['train_images']:,.0f} training "
        f"images of {proper(run['dataset'])}, {run['epochs']} epochs of {run['optimizer']} "
        f"at batch {run['batch_size']}, learning rate {run['lr']:g}, {run['precision']}"
        + f"; scores from {run['samples_per_class']} images a class at group size {run['group']}, "
        f"{after(run['warmup'])}" * scored
    )


def after(updates: int) -> str:
    """A number of batch-norm updates in words."""
    return f"after {updates} batch-norm updates" if updates else "without warm-up"


def proper(name: str) -> str:
    """A network or data set by the name that papers call it; another as it is.

    >>> proper("resnet18"), proper("cifar100"), proper("mine")
    ('ResNet-18', 'CIFAR-100', 'mine')
    """
    number = "".join(filter(str.isdigit, name))
    form = PROPER.get(name.replace(number or "#", "#"), "")
    return form.replace("#", number) or name


def width_in_words(run: pd.Series) -> str:
    """The width of a run's network, or of that of masks."""
    if pd.isna(run["width"]):
        return f"its own width of {own_width(run['model'])}"
    return f"width {run['width']:.0f}"


def machines(rows: pd.DataFrame) -> str:
    """The devices that runs were made on."""
    return ", ".join(sorted(rows["device"].dropna().unique())) or "a device that is not recorded"


def twins(frame: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Runs that differ from others in one setting alone: of the values and seeds that all share.

    Where not every value has every seed, those values and seeds that together are most runs.
    """
    values, kept = frame[setting].map(str), []
    for _, rows in frame.groupby(same_but(frame, setting, "seed")):
        seeds = rows["seed"].groupby(values[rows.index]).agg(set).to_dict()
        shared = [
            (set.intersection(*map(seeds.__getitem__, names)), names)
            for count in range(2, len(seeds) + 1)
            for names in itertools.combinations(seeds, count)
        ]
        if shared:
            common, names = max(shared, key=lambda both: len(both[0]) * len(both[1]))
            kept += rows.index[rows["seed"].isin(common) & values[rows.index].isin(names)].tolist()
    return frame[frame.index.isin(kept)]


def same_but(frame: pd.DataFrame, *names: str) -> pd.Series:
    """One text a run, the same for runs that differ in nothing but these settings."""
    known = [*SETTINGS, "train_images", "fingerprint"]
    return _joined(frame, [name for name in known if name not in names])


def _joined(frame: pd.DataFrame, names: list[str]) -> pd.Series:
    """One text a run: pandas cannot group by lists, which some settings are."""
    values = [str(row) for row in frame[names].itertuples(index=False, name=None)]
    return pd.Series(values, frame.index, dtype=object)
