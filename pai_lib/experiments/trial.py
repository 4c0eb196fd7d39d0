"""A user's own criterion on trial: the runs that it needs beside the committed ones, and checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..curvature.calls import ByParameter
from ..data.dataset import Dataset
from ..data.loading import load_data
from ..draws import random_stream
from ..files import load_yaml
from ..models import build_model
from ..names import check_known
from ..pruning.criteria import CRITERIA
from ..pruning.own import Own
from ..pruning.profiles import PROFILES
from ..pruning.ranking import checked_scores
from ..pruning.scoring import score
from .campaign import read_campaign
from .records import Record, Store, default_results, results_folders
from .spec import RunSpec

CONTROLS = ("none", "shuffle", "reinit", "resample")
WAYS = ("criterion", "scope", "control", "seed")  # in which the runs of a protocol differ
SPARSITY = 0.98
CALIBRATION = ("random", "snip")  # committed runs that are done again


@dataclass(frozen=True)
class Protocol:
    """A campaign's base at one sparsity, and the specs that differ from it in how they prune."""

    name: str
    base: RunSpec
    specs: tuple[RunSpec, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the specs."""
        return sorted({spec.seed for spec in self.specs})

    def records(self, store: Store) -> list[Record]:
        """What a store has of this protocol and its seeds, however it is pruned."""
        fixed, seeds = _fixed(self.base), self.seeds
        found = [record for record in store.records() if record.spec.seed in seeds]
        return [record for record in found if _fixed(record.spec) == fixed]

    def calibration(self, store: Store) -> list[RunSpec]:
        """Two recorded specs of the first seed, to be run again here."""
        again = [replace(self.base, criterion=key, seed=self.seeds[0]) for key in CALIBRATION]
        return [spec for spec in again if store.path(spec).is_file()]


def read_protocol(name: str, sparsity: float = SPARSITY) -> Protocol:
    """Read a protocol from the campaign file of this name.

    Args:
        name: of a file in ``campaigns/``, without its ending.
        sparsity: fraction removed.

    Raises:
        ValueError: for no such file, one without runs of its own base at this sparsity, and what
            ``read_campaign`` refuses.
    """
    path = protocol_file(name)
    specs = [spec for spec in read_campaign(path) if isinstance(spec, RunSpec) and spec.sparsity]
    values = {**load_yaml(path).get("base", {}), "criterion": "random", "seed": 0}
    alike: dict[float, list[RunSpec]] = {}
    for spec in specs:
        base = RunSpec.from_dict({**values, "sparsity": spec.sparsity})
        if _fixed(spec) == _fixed(base):
            alike.setdefault(spec.sparsity, []).append(spec)
    if sparsity not in alike:
        has = ", ".join(f"{level:g}" for level in sorted(alike)) or "none"
        raise ValueError(f"{name} has no runs of its base at sparsity {sparsity:g}: it has {has}.")
    base = RunSpec.from_dict({**values, "sparsity": sparsity})
    return Protocol(name, base, tuple(alike[sparsity]))


def with_campaigns(results: Path) -> Path:
    """A results folder if campaigns stand beside it, else the first of the usual ones so."""
    places = [results, *results_folders()]
    return next((place for place in places if (place.parent / "campaigns").is_dir()), results)


def protocol_file(name: str) -> Path:
    """The campaign file of a protocol; ValueError, with the nearest name, if there is none."""
    folder = with_campaigns(default_results()).parent / "campaigns"
    check_known("protocol", name, [path.stem for path in sorted(folder.glob("*.yaml"))])
    return folder / f"{name}.yaml"


def _fixed(spec: RunSpec) -> dict[str, object]:
    """The fields that all runs of a protocol have in common."""
    return {name: value for name, value in spec.to_dict().items() if name not in WAYS}


def trial_specs(protocol: Protocol, own: Own) -> list[RunSpec]:
    """The runs of a trial: each criterion plain and under its controls.

    Those that the verdict rests on come first, seed by seed. Another scoring batch is for criteria
    that use one. A profile is filled by lot, which leaves nothing for a control to take away.
    """
    ways: list[dict[str, Any]] = [
        {"criterion": key, "control": control}
        for control in CONTROLS
        for key in own.criteria
        if control != "resample" or CRITERIA[key].uses_data
    ]
    ways += [{"scope": key} for key in own.profiles]
    specs = [replace(protocol.base, **way, seed=seed) for seed in protocol.seeds for way in ways]
    return sorted(specs, key=lambda spec: spec.control in CONTROLS[2:])


def check_trial(protocol: Protocol, own: Own, records: Sequence[Record]) -> None:
    """Refuse what cannot be compared with these records or scored, before any training.

    Scores are of the untrained network of the protocol, by a sample a class, twice.

    Raises:
        ValueError: for data other than the recorded ones, nothing recorded, and, with the line of
            the user's file, an exception in it or scores that are no scores.
    """
    base = protocol.base
    data = load_data(base.dataset, image_size=base.image_size)
    if not records:
        raise ValueError(f"Nothing is recorded of {protocol.name}: pai sweep does its runs.")
    if any(record.data["fingerprint"] != data.fingerprint for record in records):
        raise ValueError(f"{base.dataset} here holds other data than the records are of.")
    for key in own.criteria:
        _check_criterion(base, own, key, data)
    for key in own.profiles:
        _check_profile(base, own, key, data)


def _check_criterion(base: RunSpec, own: Own, key: str, data: Dataset) -> None:
    scores = [_scores(base, own, key, data) for _ in range(2)]
    start = f"{own.file.at(CRITERIA[key].function)}: the scores of {key}"
    flat = torch.cat([value.flatten().float() for value in scores[0].values()])
    if flat.min() == flat.max():
        raise ValueError(f"{start} are all equal: nothing can be ranked by them.")
    if any(not torch.equal(value, scores[1][name]) for name, value in scores[0].items()):
        way = "take random numbers from the arguments noise or normal"
        raise ValueError(f"{start} are not the same twice for one seed: {way}.")


def _scores(base: RunSpec, own: Own, key: str, data: Dataset) -> ByParameter:
    """Scores of a network that nothing has touched, each of its weight's shape, all finite."""
    channels = data.train_images.shape[1]
    size: dict[str, Any] = {"width": base.width, "in_channels": channels, "seed": base.seed}
    model = build_model(base.model, data.num_classes, **size)
    batch = data.scoring_batch(1, base.seed)
    stream = random_stream(base.seed, "scores")
    with own.file.blamed():
        scores = score(model, batch, key, probes=2, generator=stream, progress=False)
    start = f"{own.file.at(CRITERIA[key].function)}: the scores of {key}"
    for name, value in scores.items():
        wanted, given = tuple(model.get_parameter(name).shape), getattr(value, "shape", None)
        if given is None or tuple(given) != wanted:
            kind = type(value).__name__ if given is None else tuple(given)
            raise ValueError(f"{start} are {kind} for {name!r}, whose shape is {wanted}.")
    try:
        return checked_scores(scores)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{own.file.at(CRITERIA[key].function)}: {key}: {error}") from error


def _check_profile(base: RunSpec, own: Own, key: str, data: Dataset) -> None:
    scores = _scores(base, own, "magnitude", data)
    shapes = {name: tuple(value.shape) for name, value in scores.items()}
    start = f"{own.file.at(PROFILES[key])}: the densities of {key}"
    asked = 1 - base.sparsity
    with own.file.blamed():
        densities = PROFILES[key](shapes, asked)
    sound = isinstance(densities, dict) and densities.keys() == shapes.keys()
    if not sound or not all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in densities.values()
    ):
        raise ValueError(f"{start} must be a dictionary with a number from 0 to 1 for each layer.")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = sum(densities[name] * size for name, size in sizes.items()) / sum(sizes.values())
    if not math.isclose(kept, asked, rel_tol=0.02):
        raise ValueError(f"{start} keep {kept:.3g} of the network, not {asked:.3g}.")
