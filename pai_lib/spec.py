"""One run, described: frozen, validated against the registries, hashed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .criteria import CRITERIA, get_criterion
from .data import dataset_names
from .masks import check_scope, check_sparsity
from .models import model_names, nearest
from .training import PRECISIONS

CONTROLS = ("none", "shuffle", "reinit", "invert")


@dataclass(frozen=True)
class RunSpec:
    """Everything that shapes one run: prune a network at initialization, train it, test it.

    The defaults are the paper's protocol on CIFAR-10. ``id`` hashes the fields that differ from them, so that a
    field added later (with the old behaviour as its default) renames no record.

    >>> RunSpec(dataset="digits", model="resnet8", sparsity=0.9).id
    '62c0d0a2a0c9'
    """

    dataset: str = "cifar10"  # a name of dataset_names(), or a folder of class folders
    model: str = "resnet18"
    width: int | None = None  # channels of the first stage; None is the architecture's own
    criterion: str = "hts"  # or "dense", with sparsity 0
    variant: str = "cited"
    sparsity: float = 0.98  # fraction of the prunable weights removed
    scope: str = "global"
    samples_per_class: int = 10  # scoring samples
    group: int = 1  # samples averaged before a gradient is squared or probed
    probes: int = 10  # Hutchinson's random vectors a group
    temperature: float | None = None  # None is the criterion's own
    rounds: int | None = None  # None is the criterion's own
    warmup: int = 98  # batch-norm updates before scoring; 0 is none
    control: str = "none"
    epochs: int = 160
    batch_size: int = 512
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_drops: tuple[float, ...] = (0.5, 0.75)  # fractions of the run
    lr_drop_factor: float = 0.2
    precision: str = "float32"
    seed: int = 0
    train_fraction: float = 1.0  # stratified part of the training images that is used

    def __post_init__(self):
        object.__setattr__(self, "lr_drops", tuple(self.lr_drops))
        _check_types(self)
        if self.dataset not in dataset_names() and not Path(self.dataset).expanduser().is_dir():
            raise ValueError(f"Unknown dataset {self.dataset!r}: {nearest(self.dataset, dataset_names())}")
        if self.model not in model_names():
            raise ValueError(f"Unknown model {self.model!r}: {nearest(self.model, model_names())}")
        check_sparsity(self.sparsity)
        check_scope(self.scope)
        if (self.criterion == "dense") != (self.sparsity == 0):
            raise ValueError(
                f"criterion={self.criterion!r} with sparsity={self.sparsity}: the dense network is "
                'criterion="dense" with sparsity=0, one way to say it.'
            )
        if self.criterion != "dense":
            if self.criterion not in CRITERIA:
                raise ValueError(f"Unknown criterion {self.criterion!r}: {nearest(self.criterion, CRITERIA)}")
            get_criterion(self.criterion, self.variant)
        for name, known in (("control", CONTROLS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}: {nearest(getattr(self, name), known)}")
        for name in ("width", "samples_per_class", "group", "probes", "rounds", "epochs", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1.")
        for name in ("warmup", "seed", "momentum", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must not be negative.")
        for name in ("temperature", "lr", "lr_drop_factor"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be positive.")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction={self.train_fraction}: it must be above 0 and at most 1.")
        if not all(0 < drop < 1 for drop in self.lr_drops):
            raise ValueError(f"lr_drops={self.lr_drops}: each is a fraction of the run, between 0 and 1.")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 over the fields that differ from their defaults."""
        differing = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict:
        """Every field, in plain JSON types."""
        return {**asdict(self), "lr_drops": list(self.lr_drops)}

    @classmethod
    def from_dict(cls, values: dict) -> RunSpec:
        """Build from a mapping; an unknown field is an error that names the nearest one."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"RunSpec has no field {name!r}: {nearest(name, known)}")
        return cls(**values)


def _check_types(spec: RunSpec) -> None:
    wanted = {"str": str, "int": int, "float": (int, float), "tuple[float, ...]": tuple}
    for field in fields(spec):
        kind, _, optional = field.type.partition(" | ")
        value = getattr(spec, field.name)
        if optional and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, wanted[kind]):
            article = "a list of numbers" if kind.startswith("tuple") else f"of type {kind}"
            raise ValueError(f"{field.name}={value!r}: it must be {article}, not {type(value).__name__}.")
        if kind == "float":  # 1 and 1.0 are the same run
            object.__setattr__(spec, field.name, float(value))
    if not all(isinstance(d, int | float) and not isinstance(d, bool) for d in spec.lr_drops):
        raise ValueError(f"lr_drops={spec.lr_drops!r}: it must be a list of numbers.")
    object.__setattr__(spec, "lr_drops", tuple(map(float, spec.lr_drops)))
