"""Campaigns: many specs in one file, what is left of them, and how long that takes."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ..files import load_yaml
from ..models import own_width
from ..names import check_known, nearest
from ..pruning.criteria import get_criterion
from ..training.checkpoint import epochs_done
from .mask_spec import KINDS, AnySpec, MaskSpec
from .records import AnyRecord, MaskRecord, RecordWarning, Store
from .spec import RunSpec, check_name


def read_campaign(path: str | Path) -> list[AnySpec]:
    """Read the specs of a campaign file, in its order.

    It is YAML 1.2 with ``base`` (fields of every run), ``grid`` (lists, crossed; the last one
    varies fastest) and ``also`` (a list of further pairs of base and grid, whose bases add to the
    first one). A pair without a grid is one run, except the first where there is ``also``. With
    ``kind: masks`` the fields are those of ``MaskSpec``, and a run is all masks of one network.

    Raises:
        ValueError: for a file that is not such a campaign: an unknown kind or field, a wrong type,
            an empty grid, two entries that mean the same run, for which data of one's own are read.
            It names the entry.
    """
    campaign = load_yaml(Path(path))
    try:
        return _specs(campaign)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _specs(campaign: Any) -> list[AnySpec]:
    specs: list[AnySpec] = []
    entries: dict[tuple[str, AnySpec], str] = {}
    data: dict[tuple[str, int | None], str] = {}  # read once
    for entry, values in _entries(campaign):
        try:
            kind = campaign.get("kind", RunSpec.kind)
            check_known("kind", kind, KINDS)
            spec: AnySpec = KINDS[kind].from_dict(values)
            check_name("dataset", spec.dataset)
            key = spec.dataset, spec.image_size
            if key not in data:
                data[key] = spec.data
        except (ValueError, OSError) as error:
            raise ValueError(f"{entry}: {error}") from error
        first = entries.setdefault((data[key], _meaning(spec)), entry)
        if first is not entry:
            raise ValueError(f"{entry} means the same run as {first}.")
        specs.append(spec.with_data(data[key]))
    return specs


def _entries(campaign: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each run in a campaign, and its fields."""
    _check_part(campaign, "the campaign", ("kind", "base", "grid", "also"))
    also = campaign.get("also", [])
    if not isinstance(also, list):
        raise ValueError("also must be a list of pairs of base and grid.")
    shared, grid = _pair(campaign, "")
    pairs = [("", shared, grid)] if grid or not also else []
    for number, part in enumerate(also):
        where = f"also[{number}]"
        _check_part(part, where, ("base", "grid"))
        base, grid = _pair(part, f"{where}.")
        pairs.append((f"{where}.", {**shared, **base}, grid))
    for where, base, grid in pairs:
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            words = ", ".join(f"{name}: {value}" for name, value in point.items())
            yield f"{where}{'grid' if grid else 'base'} {{{words}}}", {**base, **point}


def _pair(part: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return base and grid of a part of a campaign."""
    for name in part.keys() & {"base", "grid"}:
        _check_part(part[name], where + name)
    grid = part.get("grid", {})
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            wrong = f"{where}grid: {name} must be a list of at least one value"
            raise ValueError(f"{wrong}, not {values!r}.")
    return part.get("base", {}), grid


def _check_part(part: Any, where: str, names: tuple[str, ...] = ()) -> None:
    if not part:
        raise ValueError(f"{where} is empty.")
    if not isinstance(part, dict):
        raise ValueError(f"{where} must hold names and values.")
    for name in part:
        if names and name not in names:
            raise ValueError(f"{where} has no part {name!r}: {nearest(name, names)}")


def _meaning(spec: AnySpec) -> AnySpec:
    """The spec with its criterion's values spelled out, and one value where any means the same."""
    spec = replace(spec, width=spec.width or own_width(spec.model))
    if isinstance(spec, MaskSpec):
        return replace(spec, dataset=MaskSpec.dataset)
    if not spec.lr_drops:
        spec = replace(spec, lr_drop_factor=1.0)
    if spec.criterion == "dense":
        unused: dict[str, Any] = dict.fromkeys(("samples_per_class", "group", "probes"), 1)
        unused |= {"scope": "global", "temperature": None, "rounds": None}
        return replace(spec, dataset=RunSpec.dataset, **unused)
    rule = get_criterion(spec.criterion, spec.variant)
    values: dict[str, Any] = {"dataset": RunSpec.dataset, "rounds": spec.rounds or rule.rounds}
    values["temperature"] = spec.temperature or rule.default_temperature(spec.variant)
    if not rule.uses_data:
        values |= {"samples_per_class": 1, "temperature": 1.0}
    if not {"hutchinson", "row_norm"}.intersection(rule.needs):
        values["probes"] = 1
        if "fisher" not in rule.needs:
            values["group"] = 1
    return replace(spec, **values)


class Estimate:
    """Seconds of a run, from the records of runs like it.

    These have its model, width and data set, and were made on a CPU or a GPU as it will be.
    Training is proportional to epochs times images; scoring is as long as that of the same
    criterion. Of each the median of the latest runs counts. Masks take as long as those of other
    seeds. ``basis`` holds records from elsewhere that count, too.
    """

    def __init__(self, store: Store, device: torch.device | None, basis: Iterable[AnyRecord] = ()):
        self.store, self.device = store, device
        self.training: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.scoring: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.masking: dict[MaskSpec, list[float]] = defaultdict(list)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordWarning)  # a sweep names those that are its own
            records: list[AnyRecord] = [*basis, *store.records(), *store.mask_records()]
        for record in sorted(records, key=lambda record: str(record.provenance.get("finished"))):
            self.add(record)

    def add(self, record: AnyRecord) -> None:
        """Learn from a record."""
        on_cpu = str(record.provenance.get("device")).startswith("CPU")
        elsewhere = self.device and on_cpu != (self.device.type == "cpu")
        if record.failure or elsewhere:
            return
        if isinstance(record, MaskRecord):
            self.masking[_any_seed(record.spec)].append(record.result["seconds"])
            return
        spec, result = record.spec, record.result
        if not {"training_seconds", "scoring_seconds"} <= result.keys():
            return
        self.training[_like(spec)].append(result["training_seconds"] / _images(spec))
        for key in (_like(spec), (*_like(spec), spec.criterion, spec.rounds)):
            self.scoring[key].append(result["scoring_seconds"])

    def seconds(self, spec: AnySpec) -> float | None:
        """Seconds of what its checkpoint leaves of a run; ``None`` without a basis."""
        if isinstance(spec, MaskSpec):
            masking = self.masking.get(_any_seed(spec))
            return statistics.median(masking[-9:]) if masking else None
        like = _like(spec)
        if like not in self.training:
            return None
        training = statistics.median(self.training[like][-9:])
        done = epochs_done(self.store.checkpoint(spec)) * spec.train_fraction
        if done:
            return training * (_images(spec) - done)
        scoring = self.scoring.get((*like, spec.criterion, spec.rounds)) or self.scoring[like]
        return training * _images(spec) + statistics.median(scoring[-9:])


def _any_seed(spec: MaskSpec) -> MaskSpec:
    return replace(spec, dataset=spec.data, seed=MaskSpec.seed)


def _like(spec: RunSpec) -> tuple[Any, ...]:
    return spec.data, spec.image_size, spec.model, spec.width


def _images(spec: RunSpec) -> float:
    return spec.epochs * spec.train_fraction * (2 if spec.when == "trained" else 1)


def differing(specs: Sequence[AnySpec]) -> list[str]:
    """Names of the fields that are not the same in all specs, which are of one kind."""
    names = [option.name for option in fields(specs[0])] if specs else []
    return [name for name in names if len({getattr(spec, name) for spec in specs}) > 1]


def named(spec: AnySpec, names: Iterable[str]) -> str:
    """A run in a line: its id and the fields of the given names."""
    return "  ".join([spec.id, *(f"{name}={_brief(getattr(spec, name))}" for name in names)])


def _brief(value: Any) -> Any:
    """A value, or of a long list its first one and the number of the others."""
    long = isinstance(value, tuple) and len(value) > 3
    return f"{value[0]} and {len(value) - 1} more" if long else value


def outcome(record: AnyRecord) -> str:
    """What a run gave, in words, and the seconds of its work."""
    result, failure = record.result, record.failure
    if failure:
        words = f"failed in {failure['where']}: {failure['reason']}"
    elif isinstance(record, MaskRecord):
        cut = sum(mask["effective_sparsity"] == 1 for mask in result["masks"])
        return f"{len(result['masks'])} masks, {cut} of them cut  {result['seconds']:.1f} s"
    else:
        words = f"test accuracy {100 * result['test_accuracy']:.2f} %"
    seconds = result.get("scoring_seconds", 0) + result.get("training_seconds", 0)
    return f"{words}  {seconds:.1f} s"


def lasting(seconds: float) -> str:
    """Seconds, for people.

    >>> lasting(42.2), lasting(4000)
    ('42 s', '1 h 7 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def announce(specs: Sequence[AnySpec], estimate: Estimate) -> None:
    """Say how many runs begin, and how long they take together, if that is over ten minutes."""
    seconds = sum(estimate.seconds(spec) or 0 for spec in specs)
    if seconds > 600:
        runs = "1 run" if len(specs) == 1 else f"{len(specs)} runs"
        print(f"{runs} to do: about {lasting(seconds)} in one process.", flush=True)


def show_plan(
    specs: Sequence[AnySpec],
    store: Store,
    device: torch.device,
    retry_failed: bool = False,
    basis: Iterable[AnyRecord] = (),
) -> None:
    """Say of each run whether it has a record, and how long what is left would take.

    Registered data are not read for it.
    """
    names, estimate, states = differing(specs), Estimate(store, device, basis), Counter[str]()
    total, without_basis = 0.0, 0
    for spec in specs:
        try:
            record = store.load(spec)
            state = "to do" if record is None else "failed" if record.failure else "recorded"
        except ValueError as error:
            print(error)
            state = "to do"
        states[state] += 1
        line = f"{named(spec, names)}  {state}"
        if state == "to do" or (state == "failed" and retry_failed):
            seconds = estimate.seconds(spec)
            total += seconds or 0
            without_basis += seconds is None
            line += f", about {lasting(seconds)}" if seconds else ""
        print(line)
    if total:
        print(f"What is left takes about {lasting(total)} in one process.")
    if without_basis:
        missing = f"There is no basis to estimate {without_basis} of them"
        print(f"{missing}: nothing like it is recorded here.")
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    print(f"{len(specs)} runs: {counts}.")
