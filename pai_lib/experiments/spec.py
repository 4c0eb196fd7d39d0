"""What a record is of, described: frozen, validated against the registries, hashed."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, NoReturn, Self

from ..data.dataset import Dataset, digest_of
from ..data.loading import dataset_names, find_own, is_augmented, load_data
from ..models import model_names
from ..names import check_known, nearest, within
from ..pruning.criteria import CRITERIA, get_criterion
from ..pruning.ranking import scopes
from ..training.loop import OPTIMIZERS, PRECISIONS, SCHEDULES, checked_drops

CONTROLS = ("none", "shuffle", "reinit", "invert", "resample")
WHEN = ("init", "trained")


# The fields of a specification: what they hold, the help of the command line, and which values.


def _name(default: str, about: str, names: Iterable[str] | Callable[[], Iterable[str]] = ()) -> Any:
    return field(default=default, metadata={"kind": str, "help": about, "names": names})


def _whole(default: int | None, about: str, bounds: str = "at least 1") -> Any:
    return field(default=default, metadata={"kind": int, "help": about, "bounds": bounds})


def _number(default: Any, about: str, bounds: str = "above 0") -> Any:
    return field(default=default, metadata={"kind": float, "help": about, "bounds": bounds})


class Spec:
    """A description, frozen, of what one record is of.

    ``id`` hashes the fields that differ from their defaults, so that a field added later (with the
    old behaviour as its default) renames no record. Data of one's own are hashed by their
    fingerprint: however their path is spelt it is one record, and with other images it is another.
    """

    kind: ClassVar[str] = "runs"  # another kind is hashed with the fields
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    _fingerprint = ""  # what `with_data` was told: no field

    dataset: str
    model: str
    image_size: int | None

    @property
    def data(self) -> str:
        """What tells the data from others: a registered name, or the fingerprint of one's own.

        These are read for it, unless ``with_data`` was told it.
        """
        if self.dataset in dataset_names():
            return self.dataset
        return self._fingerprint or load_data(self.dataset, image_size=self.image_size).fingerprint

    def with_data(self, fingerprint: str) -> Self:
        """The same spec, which need not read one's own data again to know their fingerprint."""
        spec = copy.copy(self)
        object.__setattr__(spec, "_fingerprint", fingerprint)
        return spec

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 over the fields that are not the default."""
        values = [(option, getattr(self, option.name)) for option in fields(self)]
        differing = {option.name: v for option, v in values if v != option.default}
        if "dataset" in differing:
            differing["dataset"] = self.data
        if self.kind != Spec.kind:
            differing["kind"] = self.kind
        return hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Every field, in plain JSON types."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping; an unknown field is an error that names the nearest one."""
        known = [option.name for option in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no field {name!r}: {nearest(name, known)}")
        return cls(**values)


@dataclass(frozen=True)
class RunSpec(Spec):
    """Everything that shapes one run: prune a network, new or trained, train it, test it.

    The defaults are the paper's protocol on CIFAR-10. ``id``, ``data`` and what else does not
    depend on the fields are those of every ``Spec``.

    Raises:
        ValueError: for a value of another type, out of bounds or unknown, and for values that do
            not go together. Whether data of one's own are there is asked when they are needed.

    >>> RunSpec(dataset="digits", model="resnet8", sparsity=0.9).id
    '0c6754f1fed4'
    """

    dataset: str = _name(
        "cifar10",
        "a registered data set, or your own: a folder of class folders or an .npz file",
        dataset_names,
    )
    model: str = _name("resnet18", "architecture", model_names)
    width: int | None = _whole(None, "channels of the first stage; none is the architecture's own")
    criterion: str = _name("hts", "pruning criterion, or dense with sparsity 0", CRITERIA)
    variant: str = _name("cited", "the cited method, or the released code's where it differs")
    sparsity: float = _number(
        0.98,
        "fraction of the prunable weights removed",
        "at least 0 and below 1, the fraction removed",
    )
    scope: str = _name(
        "global",
        "one ranking over all weights (global), one a layer (layer), or at densities by a formula "
        "(erk, smart_ratio, equal, equal_worth, equal_worth_unsigned)",
        scopes,
    )
    samples_per_class: int = _whole(10, "scoring samples a class")
    group: int = _whole(1, "samples averaged before a gradient is squared or probed")
    probes: int = _whole(10, "Hutchinson's random vectors a group")
    temperature: float | None = _number(None, "divides the logits; none is the criterion's own")
    rounds: int | None = _whole(None, "rounds of scoring and masking; none is the criterion's own")
    warmup: int = _whole(98, "batch-norm updates before scoring", "at least 0")
    control: str = _name(
        "none",
        "sanity check applied to the mask: none, shuffle, reinit or invert; or resample, which "
        "scores on other samples",
        CONTROLS,
    )
    epochs: int = _whole(160, "passes over the training images")
    batch_size: int = _whole(512, "images a step")
    lr: float = _number(0.03, "first learning rate")
    momentum: float = _number(0.9, "momentum of SGD, first coefficient of AdamW", "at least 0")
    weight_decay: float = _number(
        5e-4, "weight decay: coupled in SGD, decoupled in AdamW", "at least 0"
    )
    lr_drops: tuple[float, ...] = _number(
        (0.5, 0.75),
        "fractions of the run at which steps drop the learning rate",
        "above 0 and below 1, each a fraction of the run",
    )
    lr_drop_factor: float = _number(0.2, "factor of each drop")
    precision: str = _name("float32", "float32, or bf16 for autocast in training", PRECISIONS)
    seed: int = _whole(
        0, "of initialization, samples, probes, order and augmentation", "at least 0"
    )
    train_fraction: float = _number(
        1.0, "stratified part of the training images that is used", "above 0 and at most 1"
    )
    when: str = _name(
        "init", "prune at initialization (init) or after training, then train again (trained)", WHEN
    )
    optimizer: str = _name(
        "sgd", "sgd, or adamw with the momentum as its first coefficient", OPTIMIZERS
    )
    schedule: str = _name("steps", "learning rate: steps at lr_drops, or cosine to zero", SCHEDULES)
    lr_warmup: int = _whole(0, "epochs of linear increase to the first learning rate", "at least 0")
    label_smoothing: float = _number(
        0.0, "part of each training label that is spread over all classes", "at least 0 and below 1"
    )
    image_size: int | None = _whole(
        None, "resize to squares of so many pixels; none is the data set's own"
    )

    def __post_init__(self) -> None:
        for name in FIELDS:
            object.__setattr__(self, name, field_value(name, getattr(self, name)))
        checked_drops(self.lr_drops)
        dense = self.criterion == "dense"
        if dense != (self.sparsity == 0):
            reason = 'the dense network is criterion="dense" with sparsity=0, one way to say it'
            self._refuse("criterion with sparsity", reason)
        if not dense:
            rule = get_criterion(self.criterion, self.variant)
            if "row_norm" in rule.needs and self.probes < 2:
                said = f"probes={self.probes} with {self.criterion!r}"
                raise ValueError(f"{said}: it must be at least 2.")
        elif (self.variant, self.control, self.when) != ("cited", "none", "init"):
            reason = "without a mask there is nothing to vary, control or postpone"
            self._refuse("criterion with variant and control and when", reason)
        if self.control == "invert" and self.rounds not in (None, 1):
            self._refuse("rounds with control", "inverted scores are ranked once")
        if self.schedule == "cosine" and (self.lr_drops, self.lr_drop_factor) != ((0.5, 0.75), 0.2):
            reason = "a cosine does not drop; leave them out"
            self._refuse("lr_drops and lr_drop_factor with schedule", reason)
        if self.optimizer == "adamw" and not self.momentum < 1:
            self._refuse("momentum with optimizer", "it must be below 1")
        if not self.lr_warmup < self.epochs:
            self._refuse("lr_warmup with epochs", "it must be shorter")

    def _refuse(self, names: str, reason: str) -> NoReturn:
        values = {name: f"{name}={getattr(self, name)!r}" for name in FIELDS}
        together = " ".join(values.get(word, word) for word in names.split())
        raise ValueError(f"{together}: {reason}.")


FIELDS = {option.name: option for option in fields(RunSpec)}


def is_list(name: str) -> bool:
    """Whether a field holds a list of numbers."""
    return isinstance(FIELDS[name].default, tuple)


def choices(name: str) -> tuple[str, ...]:
    """Return the names that are known for a field; none for a field that is not a name."""
    names = FIELDS[name].metadata.get("names", ())
    return tuple(names() if callable(names) else names)


def check_name(name: str, value: str) -> None:
    """Raise ValueError for an unknown name; data of one's own have to be there."""
    known = choices(name)
    if known and not (name == "dataset" and find_own(value)):
        check_known(name, value, known)


def check_given(spec: Any, whole: Dataset) -> None:
    """Raise ValueError for data of which a record would say what they are not."""
    if not hasattr(whole, "fingerprint"):
        raise TypeError(f"data is a {type(whole).__name__}: give a Dataset, as of load_data.")
    if spec.dataset in choices("dataset") and whole.name != spec.dataset:
        raise ValueError(f"data is {whole.name!r}, and the run's data set {spec.dataset!r}.")
    if spec.image_size is None and getattr(whole, "resized", None):
        raise ValueError(f"data is resized: give the run image_size={whole.resized}, too.")
    if spec.image_size not in (None, whole.image_shape[-1]):
        raise ValueError(f"image_size={spec.image_size}: data has {whole.image_shape[-1]} pixels.")
    if whole.augment != is_augmented(spec.dataset):
        raise ValueError(f"data.augment={whole.augment}: {spec.dataset} is otherwise in all runs.")
    tensors = whole.train_images, whole.train_labels, whole.test_images, whole.test_labels
    if type(whole) is Dataset and whole.fingerprint != digest_of(*tensors):
        raise ValueError("data is a part of what its fingerprint is of, or changed: give it whole.")


def field_value(name: str, value: Any) -> Any:
    """Return a value as its field holds it.

    Raises:
        ValueError: for another type, out of bounds, or an unknown name. Which data sets and
            criteria there are is asked elsewhere: ``dense`` is none, and own data may be gone.
    """
    option = FIELDS[name]
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if type(value) is type(option.default) and value == option.default:
        return option.default
    kind, several = option.metadata["kind"], is_list(name)
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    wanted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)  # those of NumPy, too
    sound = all(isinstance(item, wanted) and not isinstance(item, bool) for item in items)
    if several != isinstance(value, tuple | list) or not sound:
        kinds = "a list of numbers" if several else f"of type {kind.__name__}"
        raise ValueError(f"{name}={value!r}: it must be {kinds}, not {type(value).__name__}.")
    if kind is str:
        if value != value.encode(errors="replace").decode():
            raise ValueError(f"{name}={value!r}: it is not UTF-8, which records are: rename it.")
        if name not in ("dataset", "criterion"):
            check_name(name, value)
        return value
    if any(isinstance(item, numbers.Integral) and abs(int(item)) >= 2**63 for item in items):
        raise ValueError(f"{name}={value!r}: it must be below 2**63.")
    if not all(map(math.isfinite, items)):
        raise ValueError(f"{name}={value!r}: it must be finite.")
    converted = tuple(kind(item) + 0 for item in items)  # 1 is 1.0, and -0.0 is 0.0
    value = converted if several else converted[0]
    if not all(within(number, option.metadata["bounds"]) for number in converted):
        raise ValueError(f"{name}={value}: it must be {option.metadata['bounds']}.")
    return value
