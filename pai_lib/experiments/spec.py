"""One run, described: frozen, validated against the registries, hashed."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..data.loading import dataset_names, find_own, load_data
from ..models import model_names
from ..names import nearest
from ..pruning.criteria import CRITERIA, get_criterion
from ..pruning.ranking import SCOPES, check_sparsity
from ..training.loop import OPTIMIZERS, PRECISIONS, SCHEDULES

CONTROLS = ("none", "shuffle", "reinit", "invert")
WHEN = ("init", "trained")


def choices(name: str) -> tuple[str, ...]:
    """Return the names that are known for a field of `RunSpec`; none for a field that is not a name."""
    known = {
        "dataset": dataset_names(),
        "model": model_names(),
        "criterion": CRITERIA,
        "scope": SCOPES,
    }
    known |= {"control": CONTROLS, "precision": PRECISIONS, "when": WHEN}
    return tuple({**known, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}.get(name, ()))


def _option(default: Any, about: str) -> Any:
    """Field with a default and the help that the command line shows."""
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class RunSpec:
    """Everything that shapes one run: prune a network, at initialization or trained, train it, test it.

    The defaults are the paper's protocol on CIFAR-10. ``id`` hashes the fields that differ from
    them, so that a field added later (with the old behaviour as its default) renames no record.
    Data of one's own are hashed by their fingerprint: however their path is spelt it is one run,
    and with other images it is another.

    >>> RunSpec(dataset="digits", model="resnet8", sparsity=0.9).id
    '0c6754f1fed4'
    """

    _known_data = ""  # what `with_data` was told: no field

    dataset: str = _option(
        "cifar10", "a registered data set, or your own: a folder of class folders or an .npz file"
    )
    model: str = _option("resnet18", "architecture")
    width: int | None = _option(None, "channels of the first stage; none is the architecture's own")
    criterion: str = _option("hts", "pruning criterion, or dense with sparsity 0")
    variant: str = _option("cited", "the cited method, or the released code's where it differs")
    sparsity: float = _option(0.98, "fraction of the prunable weights removed")
    scope: str = _option(
        "global", "one ranking over all weights (global), one a layer (layer), or erk"
    )
    samples_per_class: int = _option(10, "scoring samples a class")
    group: int = _option(1, "samples averaged before a gradient is squared or probed")
    probes: int = _option(10, "Hutchinson's random vectors a group")
    temperature: float | None = _option(None, "divides the logits; none is the criterion's own")
    rounds: int | None = _option(None, "rounds of scoring and masking; none is the criterion's own")
    warmup: int = _option(98, "batch-norm updates before scoring")
    control: str = _option(
        "none", "sanity check applied to the mask: none, shuffle, reinit or invert"
    )
    epochs: int = _option(160, "passes over the training images")
    batch_size: int = _option(512, "images a step")
    lr: float = _option(0.03, "first learning rate")
    momentum: float = _option(0.9, "momentum of SGD, first coefficient of AdamW")
    weight_decay: float = _option(5e-4, "weight decay: coupled in SGD, decoupled in AdamW")
    lr_drops: tuple[float, ...] = _option(
        (0.5, 0.75), "fractions of the run at which steps drop the learning rate"
    )
    lr_drop_factor: float = _option(0.2, "factor of each drop")
    precision: str = _option("float32", "float32, or bf16 for autocast in training")
    seed: int = _option(0, "of initialization, samples, probes, order and augmentation")
    train_fraction: float = _option(1.0, "stratified part of the training images that is used")
    when: str = _option(
        "init", "prune at initialization (init) or after training, then train again (trained)"
    )
    optimizer: str = _option("sgd", "sgd, or adamw with the momentum as its first coefficient")
    schedule: str = _option("steps", "learning rate: steps at lr_drops, or cosine to zero")
    lr_warmup: int = _option(0, "epochs of linear increase to the first learning rate")
    label_smoothing: float = _option(
        0.0, "part of each training label that is spread over all classes"
    )
    image_size: int | None = _option(
        None, "resize to squares of so many pixels; none is the data set's own"
    )

    def __post_init__(self) -> None:
        _check_types(self)
        names = "dataset model scope control precision when optimizer schedule".split()
        own = self.dataset not in dataset_names() and find_own(self.dataset)
        for name in names[1:] if own else names:
            if (value := getattr(self, name)) not in choices(name):
                raise ValueError(f"Unknown {name} {value!r}: {nearest(value, choices(name))}")
        check_sparsity(self.sparsity)
        if (self.criterion == "dense") != (self.sparsity == 0):
            raise ValueError(
                f"criterion={self.criterion!r} with sparsity={self.sparsity}: the dense network is "
                'criterion="dense" with sparsity=0, one way to say it.'
            )
        if self.criterion != "dense":
            if self.criterion not in CRITERIA:
                raise ValueError(
                    f"Unknown criterion {self.criterion!r}: {nearest(self.criterion, CRITERIA)}"
                )
            get_criterion(self.criterion, self.variant)
        elif (self.variant, self.control, self.when) != ("cited", "none", "init"):
            raise ValueError(
                f"criterion='dense' with variant={self.variant!r}, control={self.control!r} and "
                f"when={self.when!r}: without a mask there is nothing to vary, control or postpone."
            )
        if self.control == "invert" and self.rounds not in (None, 1):
            raise ValueError(
                f"rounds={self.rounds} with control='invert': inverted scores are ranked once."
            )
        for (
            name
        ) in "width samples_per_class group probes rounds epochs batch_size image_size".split():
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1.")
        for name in ("warmup", "seed", "momentum", "weight_decay", "lr_warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must not be negative.")
        for name in ("temperature", "lr", "lr_drop_factor"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be positive.")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(
                f"train_fraction={self.train_fraction}: it must be above 0 and at most 1."
            )
        if not all(0 < drop < 1 for drop in self.lr_drops):
            raise ValueError(
                f"lr_drops={self.lr_drops}: each is a fraction of the run, between 0 and 1."
            )
        if self.schedule == "cosine" and (self.lr_drops, self.lr_drop_factor) != ((0.5, 0.75), 0.2):
            raise ValueError(
                f"lr_drops={self.lr_drops} and lr_drop_factor={self.lr_drop_factor} with schedule='cosine': "
                "a cosine does not drop; leave them out."
            )
        if self.optimizer == "adamw" and not self.momentum < 1:
            raise ValueError(
                f"momentum={self.momentum} with optimizer='adamw': it must be below 1."
            )
        if not self.lr_warmup < self.epochs:
            raise ValueError(
                f"lr_warmup={self.lr_warmup} with epochs={self.epochs}: it must be shorter."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing}: it must be at least 0 and below 1."
            )

    @property
    def data(self) -> str:
        """What tells the data from others: a registered name, or the fingerprint of one's own.

        These are read for it, unless ``with_data`` was told it; of data that are not there it is
        the name.
        """
        if self.dataset in dataset_names():
            return self.dataset
        if self._known_data or find_own(self.dataset) is None:
            return self._known_data or self.dataset
        return load_data(self.dataset, image_size=self.image_size).fingerprint

    def with_data(self, fingerprint: str) -> RunSpec:
        """The same spec, which need not read one's own data again to know their fingerprint."""
        spec = object.__new__(RunSpec)
        vars(spec).update(vars(self), _known_data=fingerprint)
        return spec

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 over the fields that differ from their defaults."""
        differing = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
        differing |= {"dataset": self.data} if "dataset" in differing else {}
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

    @classmethod
    def from_record(cls, values: dict) -> RunSpec:
        """Build from a record's fields: as ``from_dict``, but the folder of data may be on another machine."""
        if not isinstance(name := values.get("dataset"), str):
            raise ValueError(
                f"dataset={name!r}: it must be of type str, not {type(name).__name__}."
            )
        spec = cls.from_dict({**values, "dataset": cls.dataset})
        object.__setattr__(spec, "dataset", name)
        return spec


def _check_types(spec: RunSpec) -> None:
    wanted: dict[str, Any] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "tuple[float, ...]": (tuple, list),
    }
    for each in fields(spec):
        kind, _, optional = each.type.partition(" | ")
        value = getattr(spec, each.name)
        if optional and value is None:
            continue
        numbers = value if isinstance(value, tuple | list) else [value]
        sound = not any(isinstance(n, bool) for n in numbers) and isinstance(value, wanted[kind])
        if kind.startswith("tuple"):
            sound = sound and all(isinstance(n, int | float) for n in numbers)
        if not sound:
            article = "a list of numbers" if kind.startswith("tuple") else f"of type {kind}"
            raise ValueError(
                f"{each.name}={value!r}: it must be {article}, not {type(value).__name__}."
            )
        if any(isinstance(n, int) and abs(n) >= 2**63 for n in numbers):
            raise ValueError(f"{each.name}={value!r}: it must be below 2**63.")
        if "float" in kind:  # 1 and 1.0 are the same run, and so are 0.0 and -0.0
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"{each.name}={value!r}: it must be finite.")
            numbers = tuple(float(n) + 0.0 for n in numbers)
            object.__setattr__(spec, each.name, numbers if kind.startswith("tuple") else numbers[0])
