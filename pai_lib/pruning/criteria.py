"""Every pruning criterion, on one page.

A criterion is a function of one parameter tensor and of the quantities that its argument names ask
for:

    weight            θ
    gradient          g, gradient of the mean loss
    hessian_gradient  H g
    fisher            F̂, diagonal of the empirical Fisher
    hutchinson        ĥ, Hutchinson's estimate of the Hessian diagonal
    exact             Hᵢᵢ, the exact Hessian diagonal
    row_norm          √Σⱼ Hᵢⱼ², estimated by the probes of ĥ: the scale of its noise
    flow              θ ⊙ ∂R/∂θ, synaptic flow
    noise             uniform noise
    normal            standard normal noise
    group             number of samples whose loss is averaged before squaring

It returns scores of the tensor's shape: one real number a weight, **higher = keep**, for every
criterion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..names import nearest

Rule = Callable[..., Tensor]


@dataclass(frozen=True)
class Criterion:
    """What the library knows of a criterion; labels, figures, tables and tests are made from this."""

    key: str
    label: str  # short, for figures
    name: str
    formula: str  # LaTeX
    source: str  # key in references.bib
    function: Rule
    temperature: float = 1.0
    rounds: int = 1
    variants: tuple[str, ...] = ("cited",)

    @property
    def needs(self) -> tuple[str, ...]:
        """Quantities that the function asks for by the names of its arguments."""
        return tuple(
            name for name in inspect.signature(self.function).parameters if name != "variant"
        )

    @property
    def uses_data(self) -> bool:
        """Whether the scores depend on training samples."""
        return not {"weight", "flow", "noise", "normal"}.issuperset(self.needs)

    def default_temperature(self, variant: str = "cited") -> float:
        """Temperature of the cited method; the released GraSP uses 1."""
        return 1.0 if variant == "released" else self.temperature


CRITERIA: dict[str, Criterion] = {}


def criterion(
    key: str, label: str, name: str, formula: str, source: str, **options: Any
) -> Callable[[Rule], Rule]:
    """Register the decorated function as a criterion."""

    def register(function: Rule) -> Rule:
        CRITERIA[key] = Criterion(key, label, name, formula, source, function, **options)
        return function

    return register


@criterion("random", "Random", "Random", r"u \sim \mathcal{U}(0, 1)", "gale2019")
def random(noise):
    return noise


@criterion("magnitude", "Magnitude", "Magnitude", r"\lvert\theta\rvert", "han2015")
def magnitude(weight):
    return weight.abs()


@criterion("grad_norm", "GN", "Gradient norm", r"\lvert g\rvert", "gollini2026")
def grad_norm(gradient):
    return gradient.abs()


@criterion("snip", "SNIP", "SNIP", r"\lvert\theta\, g\rvert", "lee2019")
def snip(weight, gradient):
    return (weight * gradient).abs()


@criterion(
    "grasp",
    "GraSP",
    "GraSP",
    r"\theta\, (H g)",
    "wang2020",
    temperature=200.0,
    variants=("cited", "released"),
)
def grasp(weight, hessian_gradient, variant="cited"):
    score = (
        weight * hessian_gradient
    )  # Wang et al. remove the largest −θ ⊙ Hg; the released code keeps them
    return -score if variant == "released" else score


@criterion(
    "synflow", "SynFlow", "Synaptic flow", r"\left\lvert\theta\, \frac{\partial R}{\partial\theta}\right\rvert",
    "tanaka2020", rounds=100, variants=("cited", "released"),
)  # fmt: skip
def synflow(flow):
    return flow.abs()


@criterion("fisher_diag", "FD", "Fisher diagonal", r"\hat F", "gollini2026")
def fisher_diagonal(fisher):
    return fisher


@criterion("fisher_pruning", "FP", "Fisher pruning", r"\tfrac12\theta^2\hat F", "theis2018")
def fisher_pruning(weight, fisher):
    return weight**2 * fisher / 2


@criterion(
    "fts", "FTS", "Fisher-Taylor sensitivity",
    r"\left\lvert\theta\, g + \tfrac12\theta^2\hat F\right\rvert", "gollini2026",
)  # fmt: skip
def fisher_taylor(weight, gradient, fisher):
    return (weight * gradient + weight**2 * fisher / 2).abs()


@criterion(
    "hutchinson_diag", "HD", "Hutchinson diagonal", r"\hat h", "gollini2026", temperature=200.0
)
def hutchinson_diagonal(hutchinson):
    return hutchinson


@criterion(
    "hutchinson_pruning",
    "HP",
    "Hutchinson pruning",
    r"\tfrac12\theta^2\hat h",
    "gollini2026",
    temperature=200.0,
)
def hutchinson_pruning(weight, hutchinson):
    return weight**2 * hutchinson / 2


@criterion(
    "hts", "HTS", "Hutchinson-Taylor sensitivity",
    r"\left\lvert\theta\, g + \tfrac12\theta^2\hat h\right\rvert", "gollini2026", temperature=200.0,
)  # fmt: skip
def hutchinson_taylor(weight, gradient, hutchinson):
    return (weight * gradient + weight**2 * hutchinson / 2).abs()


@criterion("exact_diag", "ED", "Exact diagonal", r"H_{ii}", "lecun1989")
def exact_diagonal(exact):
    return exact


@criterion("exact_pruning", "EP", "Exact pruning", r"\tfrac12\theta^2 H_{ii}", "lecun1989")
def exact_pruning(weight, exact):
    return weight**2 * exact / 2


@criterion(
    "exact_taylor", "ETS", "Exact Taylor sensitivity",
    r"\left\lvert\theta\, g + \tfrac12\theta^2 H_{ii}\right\rvert", "lecun1989",
)  # fmt: skip
def exact_taylor(weight, gradient, exact):
    return (weight * gradient + weight**2 * exact / 2).abs()


@criterion(
    "fbss", "FBSS", "Fisher brain-surgeon sensitivity",
    r"\tfrac12 B\hat F\theta^2 - \theta\, g + \frac{g^2}{2B\hat F}", "gollini2026",
)  # fmt: skip
def fisher_brain_surgeon(weight, gradient, fisher, group):
    curvature = group * fisher
    score = curvature * weight**2 / 2 - weight * gradient + gradient**2 / (2 * curvature)
    return torch.where(fisher > 0, score, 0)


# Of this project: the scale of HP's noise without the noise, other noise of that scale, noise
# without the scale.


@criterion(
    "row_norm", "Row norm", "Row-norm pruning (ours)",
    r"\tfrac12\theta^2 \sqrt{\textstyle\sum_j H_{ij}^2}", "dauphin2015", temperature=200.0,
)  # fmt: skip
def row_norm_pruning(weight, row_norm):
    return weight**2 * row_norm / 2


@criterion(
    "scaled_noise", "Scaled noise", "Scaled noise (ours)",
    r"\tfrac12\theta^2 \sqrt{\textstyle\sum_j H_{ij}^2}\; \xi,\; \xi \sim \mathcal{N}(0, 1)",
    "dauphin2015", temperature=200.0,
)  # fmt: skip
def scaled_noise(weight, row_norm, normal):
    return weight**2 * row_norm / 2 * normal


@criterion(
    "weight_noise", "Weight noise", "Weight noise (ours)",
    r"\tfrac12\theta^2\, \xi,\; \xi \sim \mathcal{N}(0, 1)", "su2020",
)  # fmt: skip
def weight_noise(weight, normal):
    return weight**2 / 2 * normal


def get_criterion(key: str, variant: str = "cited") -> Criterion:
    """Look a criterion up, with a clear error for an unknown key or a variant it does not have."""
    if key not in CRITERIA:
        raise ValueError(f"Unknown criterion {key!r}: {nearest(key, CRITERIA)}")
    found = CRITERIA[key]
    if variant not in found.variants:
        others = ", ".join(c.key for c in CRITERIA.values() if variant in c.variants)
        hint = (
            f" Only these have it: {others}."
            if others
            else f" It has: {', '.join(found.variants)}."
        )
        raise ValueError(f"Criterion {key!r} has no variant {variant!r}.{hint}")
    return found


def criterion_label(key: str) -> str:
    """Short label of a criterion, for figures and tables."""
    return "Dense" if key == "dense" else get_criterion(key).label
