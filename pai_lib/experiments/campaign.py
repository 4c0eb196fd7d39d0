"""Campaigns: many specs in one file, what is left of them, and how long that takes."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..files import load_yaml
from ..names import nearest
from ..pruning.criteria import get_criterion
from ..training.checkpoint import epochs_done
from .records import Record, RecordWarning, Store
from .spec import RunSpec


def read_campaign(path: str | Path) -> list[RunSpec]:
    """Read the specs of a campaign file, in its order.

    It is YAML 1.2 with ``base`` (fields of every run), ``grid`` (lists, crossed; the last one
    varies fastest) and ``also`` (a list of further pairs of base and grid, whose bases add to the
    first one). A pair without a grid is one run, except the first where there is ``also``.

    Raises:
        ValueError: for a file that is not such a campaign: an unknown field, a wrong type, an empty
            grid, two entries that mean the same run, for which data of one's own are read. It names
            the entry.
    """
    try:
        pairs = list(_pairs(load_yaml(Path(path))))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    specs: list[RunSpec] = []
    entries: dict[tuple[str, RunSpec], str] = {}
    data = cache(lambda name, image_size: RunSpec(dataset=name, image_size=image_size).data)
    for where, base, grid in pairs:
        for values in itertools.product(*grid.values()):
            own = dict(zip(grid, values, strict=True))
            entry = f"{where} {{{', '.join(f'{name}: {value}' for name, value in own.items())}}}"
            try:
                spec = RunSpec.from_dict({**base, **own})
                specs.append(spec.with_data(data(spec.dataset, spec.image_size)))
            except (ValueError, OSError) as error:
                raise ValueError(f"{path}: {entry}: {error}") from error
            meaning = specs[-1].data, replace(_meaning(spec), dataset=RunSpec.dataset)
            if (known := entries.setdefault(meaning, entry)) is not entry:
                raise ValueError(f"{path}: {entry} means the same run as {known}.")
    return specs


def _pairs(top: Any) -> Iterator[tuple[str, dict, dict]]:
    def mapping(value: Any, where: str, known: Iterable[str] | None = None) -> dict:
        if not isinstance(value, dict) or not value:
            raise ValueError(
                f"{where} is empty." if not value else f"{where} must hold names and values."
            )
        for name in value:
            if known and name not in known:
                raise ValueError(f"{where} has no part {name!r}: {nearest(name, known)}")
        return value

    def pair(part: dict, where: str, inherited: dict) -> tuple[str, dict, dict]:
        base = mapping(part["base"], f"{where}base") if "base" in part else {}
        grid = mapping(part["grid"], f"{where}grid") if "grid" in part else {}
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(
                    f"{where}grid: {name} must be a list of at least one value, not {values!r}."
                )
        return f"{where}grid" if grid else f"{where}base", {**inherited, **base}, grid

    mapping(top, "the campaign", ("base", "grid", "also"))
    first = pair(top, "", {})
    also = top.get("also", [])
    if not isinstance(also, list):
        raise ValueError("also must be a list of pairs of base and grid.")
    if "grid" in top or not also:
        yield first
    for number, part in enumerate(also):
        where = f"also[{number}]"
        yield pair(mapping(part, where, ("base", "grid")), f"{where}.", first[1])


def _meaning(spec: RunSpec) -> RunSpec:
    """The spec with the criterion's own values spelled out, and one value where any means the same."""
    if spec.criterion == "dense":
        unused: dict[str, Any] = dict.fromkeys(("samples_per_class", "group", "probes"), 1)
        return replace(spec, scope="global", temperature=None, rounds=None, **unused)
    rule = get_criterion(spec.criterion, spec.variant)
    own = {"temperature": rule.default_temperature(spec.variant), "rounds": rule.rounds}
    values: dict[str, Any] = {
        name: value for name, value in own.items() if getattr(spec, name) is None
    }
    if not rule.uses_data:
        values |= {"samples_per_class": 1, "temperature": 1.0}
    exact = {"weight", "gradient", "hessian_gradient", "exact", "flow", "noise", "normal"}
    if exact.issuperset(rule.needs):
        values |= {"group": 1, "probes": 1}
    elif {*exact, "fisher", "group"}.issuperset(rule.needs):
        values["probes"] = 1
    return replace(spec, **values)


class Estimate:
    """Seconds of a run, from records of runs of the same model, width and data set on the same kind of device.

    Training is proportional to epochs times images; scoring is as long as that of the same
    criterion. Of each the median of the latest runs counts.
    """

    def __init__(self, store: Store, device: torch.device | None):
        self.store = store
        self.kind = device and ("CPU" if device.type == "cpu" else "GPU")
        self.training: dict[tuple, list[float]] = defaultdict(list)
        self.scoring: dict[tuple, list[float]] = defaultdict(list)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordWarning)  # a sweep names those that are its own
            records = store.records()
        for record in sorted(records, key=lambda record: str(record.provenance.get("finished"))):
            self.add(record)

    def add(self, record: Record) -> None:
        """Learn from a record."""
        made_on = "CPU" if str(record.provenance.get("device")).startswith("CPU") else "GPU"
        if record.failure or self.kind not in (None, made_on):
            return
        spec = record.spec
        self.training[self._like(spec)].append(
            record.result["training_seconds"] / self._images(spec)
        )
        for key in (self._like(spec), (*self._like(spec), spec.criterion, spec.rounds)):
            self.scoring[key].append(record.result["scoring_seconds"])

    def seconds(self, spec: RunSpec) -> float | None:
        """Seconds of a run, or of what is left of it after its checkpoint; ``None`` without a basis."""
        like = self._like(spec)
        if like not in self.training:
            return None
        scoring = self.scoring.get((*like, spec.criterion, spec.rounds)) or self.scoring[like]
        whole = statistics.median(self.training[like][-9:]) * self._images(spec)
        done = epochs_done(self.store.checkpoint(spec)) * spec.train_fraction / self._images(spec)
        return whole * (1 - done) + (0 if done else statistics.median(scoring[-9:]))

    @staticmethod
    def _like(spec: RunSpec) -> tuple:
        return spec.data, spec.image_size, spec.model, spec.width

    @staticmethod
    def _images(spec: RunSpec) -> float:
        return spec.epochs * spec.train_fraction * (2 if spec.when == "trained" else 1)


def differing(specs: Iterable[RunSpec]) -> list[str]:
    """Names of the fields that are not the same in all specs."""
    specs = list(specs)
    return [
        each.name
        for each in fields(RunSpec)
        if len({getattr(spec, each.name) for spec in specs}) > 1
    ]


def named(spec: RunSpec, names: Iterable[str]) -> str:
    """A run in a line: its id and the fields of the given names."""
    return "  ".join([spec.id, *(f"{name}={getattr(spec, name)}" for name in names)])


def lasting(seconds: float) -> str:
    """Seconds, for people.

    >>> lasting(42.2), lasting(4000)
    ('42 s', '1 h 7 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_plan(
    specs: list[RunSpec], store: Store, device: torch.device, retry_failed: bool = False
) -> None:
    """Say of each run whether it has a record, and how long what is left would take.

    Registered data are not read for it.
    """
    names, estimate, states = differing(specs), Estimate(store, device), Counter[str]()
    known, unknown = 0.0, 0
    for spec in specs:
        try:
            record = store.load(spec)
            state = "to do" if record is None else "failed" if record.failure else "recorded"
        except ValueError as error:
            print(error)
            state = "to do"
        states[state] += 1
        seconds = None
        if state == "to do" or (state == "failed" and retry_failed):
            seconds = estimate.seconds(spec)
            known, unknown = known + (seconds or 0), unknown + (seconds is None)
        print(f"{named(spec, names)}  {state}" + (f", about {lasting(seconds)}" if seconds else ""))
    if known:
        print(f"What is left takes about {lasting(known)} in one process.")
    if unknown:
        print(f"There is no basis to estimate {unknown} of them: nothing like it is recorded here.")
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    print(f"{len(specs)} runs: {counts}.")
