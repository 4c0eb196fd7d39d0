"""The masks of one network, described: all criteria at all sparsities, without training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..names import check_known
from .spec import FIELDS, RunSpec, Spec

REFERENCES = ("exact", "mc")


@dataclass(frozen=True)
class MaskSpec(Spec):
    """What shapes the masks of one network at initialization, each as ``run`` would make it.

    The fields that ``RunSpec`` has, too, mean the same here and have its defaults. Rankings are
    global, criteria in their cited form. Criteria and sparsities are held in order: however they
    are listed it is one record.

    Args:
        dataset: as in ``RunSpec``, and so are those down to ``probes``.
        model: architecture.
        width: channels of the first stage.
        image_size: squares of so many pixels.
        seed: of initialization, samples and probes.
        warmup: batch-norm updates before scoring.
        batch_size: images an update.
        samples_per_class: scoring samples a class.
        group: samples averaged before a gradient is squared or probed.
        probes: Hutchinson's random vectors a group.
        criteria: keys of ``CRITERIA``, at least one.
        sparsities: fractions removed, at least one.
        reference: the mask that all others are compared with: of the exact diagonal ("exact"), or
            of the Monte-Carlo Gauss-Newton diagonal ("mc") where that costs too much or the
            network is not piecewise linear.

    Raises:
        ValueError: as ``RunSpec``, for a list that is empty, holds a value twice or is none, and
            for criteria that need more probes.

    >>> MaskSpec(model="resnet8", criteria=("snip", "magnitude")).criteria
    ('magnitude', 'snip')
    """

    kind: ClassVar[str] = "masks"
    precision: ClassVar[str] = "float32"  # of the weights, in which they are scored

    dataset: str = RunSpec.dataset
    model: str = RunSpec.model
    width: int | None = RunSpec.width
    image_size: int | None = RunSpec.image_size
    seed: int = RunSpec.seed
    warmup: int = RunSpec.warmup
    batch_size: int = RunSpec.batch_size
    samples_per_class: int = RunSpec.samples_per_class
    group: int = RunSpec.group
    probes: int = RunSpec.probes
    criteria: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
    reference: str = "exact"

    def __post_init__(self) -> None:
        for name in ("criteria", "sparsities"):
            given = getattr(self, name)
            if not isinstance(given, tuple | list) or not given:
                raise ValueError(f"{name}={given!r}: it must be a list of at least one value.")
        if "dense" in self.criteria:
            raise ValueError("criteria: 'dense' has no mask; leave it out.")
        check_known("reference", self.reference, REFERENCES)
        of_criteria = [self.as_run(key, self.sparsities[0]) for key in self.criteria]
        sparsities = [self.as_run(self.criteria[0], s).sparsity for s in self.sparsities]
        for name in SHARED:  # as the runs hold them, which refuse what is wrong
            object.__setattr__(self, name, getattr(of_criteria[0], name))
        for name, values in (("criteria", self.criteria), ("sparsities", sparsities)):
            object.__setattr__(self, name, tuple(sorted(values)))
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={getattr(self, name)}: it holds a value twice.")

    def as_run(self, criterion: str, sparsity: float) -> RunSpec:
        """The run that one of the masks is that of."""
        values: dict[str, Any] = {name: getattr(self, name) for name in SHARED}
        run = RunSpec(criterion=criterion, sparsity=sparsity, **values)
        return run.with_data(self._fingerprint)


SHARED = [option.name for option in fields(MaskSpec) if option.name in FIELDS]
AnySpec = RunSpec | MaskSpec
KINDS: dict[str, type[AnySpec]] = {spec.kind: spec for spec in (RunSpec, MaskSpec)}
