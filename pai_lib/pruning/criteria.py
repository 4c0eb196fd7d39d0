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
    variant           "cited" or "released"

It returns scores of the tensor's shape: one real number a weight, **higher = keep**, for every
criterion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..names import NameTakenError, check_known

Rule = Callable[..., Tensor]
NEEDS = (
    *("weight", "gradient", "hessian_gradient", "fisher", "hutchinson", "exact", "row_norm"),
    *("flow", "noise", "normal", "group"),
)
"""What an argument may be called, beside ``variant``."""


@dataclass(frozen=True)
class Criterion:
    """What is known of a criterion; labels, figures, tables and tests are made from this."""

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
        arguments = inspect.signature(self.function).parameters
        return tuple(name for name in arguments if name != "variant")

    @property
    def uses_data(self) -> bool:
        """Whether the scores depend on training samples."""
        return not {"weight", "flow", "noise", "normal"}.issuperset(self.needs)

    def default_temperature(self, variant: str = "cited") -> float:
        """Temperature of the cited method; the released GraSP uses 1."""
        return 1.0 if variant == "released" else self.temperature


CRITERIA: dict[str, Criterion] = {}


def criterion(
    key: str,
    label: str,
    name: str,
    formula: str,
    source: str,
    temperature: float = 1.0,
    rounds: int = 1,
    variants: tuple[str, ...] = ("cited",),
) -> Callable[[Rule], Rule]:
    """Register the decorated function as a criterion, described as in ``Criterion``.

    What it is given are copies: it may work in place, but on the weight. ValueError for a name that
    the library has given.
    """

    def register(function: Rule) -> Rule:
        taken = key in CRITERIA and CRITERIA[key].function.__module__ == __name__
        if taken or key == "dense":
            raise NameTakenError(key)
        about = (key, label, name, formula, source)
        CRITERIA[key] = Criterion(*about, function, temperature, rounds, variants)
        return function

    return register


at_200 = partial(criterion, temperature=200.0)  # products with the Hessian, as their papers do
BOTH = ("cited", "released")


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


@at_200("grasp", "GraSP", "GraSP", r"\theta\, (H g)", "wang2020", variants=BOTH)
def grasp(weight, hessian_gradient, variant):
    score = weight * hessian_gradient  # Wang et al. remove the largest −θ ⊙ Hg
    return -score if variant == "released" else score  # the released code keeps them


FLOW = r"\left\lvert\theta\, \frac{\partial R}{\partial\theta}\right\rvert"


@criterion("synflow", "SynFlow", "Synaptic flow", FLOW, "tanaka2020", rounds=100, variants=BOTH)
def synflow(flow):
    return flow.abs()


@criterion("fisher_diag", "FD", "Fisher diagonal", r"\hat F", "gollini2026")
def fisher_diagonal(fisher):
    return fisher


@criterion("fisher_pruning", "FP", "Fisher pruning", r"\tfrac12\theta^2\hat F", "theis2018")
def fisher_pruning(weight, fisher):
    return weight**2 * fisher / 2


def taylor(curvature: str) -> str:
    """Formula of the expansion's first two terms."""
    return rf"\left\lvert\theta\, g + \tfrac12\theta^2{curvature}\right\rvert"


@criterion("fts", "FTS", "Fisher-Taylor sensitivity", taylor(r"\hat F"), "gollini2026")
def fisher_taylor(weight, gradient, fisher):
    return (weight * gradient + weight**2 * fisher / 2).abs()


@at_200("hutchinson_diag", "HD", "Hutchinson diagonal", r"\hat h", "gollini2026")
def hutchinson_diagonal(hutchinson):
    return hutchinson


@at_200("hutchinson_pruning", "HP", "Hutchinson pruning", r"\tfrac12\theta^2\hat h", "gollini2026")
def hutchinson_pruning(weight, hutchinson):
    return weight**2 * hutchinson / 2


@at_200("hts", "HTS", "Hutchinson-Taylor sensitivity", taylor(r"\hat h"), "gollini2026")
def hutchinson_taylor(weight, gradient, hutchinson):
    return (weight * gradient + weight**2 * hutchinson / 2).abs()


@criterion("exact_diag", "ED", "Exact diagonal (ours)", r"H_{ii}", "lecun1989")
def exact_diagonal(exact):
    return exact


@criterion("exact_pruning", "EP", "Exact pruning", r"\tfrac12\theta^2 H_{ii}", "lecun1989")
def exact_pruning(weight, exact):
    return weight**2 * exact / 2


@criterion("exact_taylor", "ETS", "Exact Taylor sensitivity (ours)", taylor(" H_{ii}"), "lecun1989")
def exact_taylor(weight, gradient, exact):
    return (weight * gradient + weight**2 * exact / 2).abs()


SURGEON = r"\tfrac12 B\hat F\theta^2 - \theta\, g + \frac{g^2}{2B\hat F}"


@criterion("fbss", "FBSS", "Fisher brain-surgeon sensitivity", SURGEON, "gollini2026")
def fisher_brain_surgeon(weight, gradient, fisher, group):
    curvature = group * fisher
    score = curvature * weight**2 / 2 - weight * gradient + gradient**2 / (2 * curvature)
    return torch.where(fisher > 0, score, 0)


# Of this project: the scale of HP's noise without the noise, other noise of that scale, noise
# without the scale.
ROW_NORM = r"\tfrac12\theta^2 \sqrt{\textstyle\sum_j H_{ij}^2}"
NOISE = r"\xi,\; \xi \sim \mathcal{N}(0, 1)"


@at_200("row_norm", "Row norm", "Row-norm pruning (ours)", ROW_NORM, "dauphin2015")
def row_norm_pruning(weight, row_norm):
    return weight**2 * row_norm / 2


@at_200(
    "scaled_noise", "Scaled noise", "Scaled noise (ours)", rf"{ROW_NORM}\; {NOISE}", "dauphin2015"
)
def scaled_noise(weight, row_norm, normal):
    return weight**2 * row_norm / 2 * normal


@criterion(
    "weight_noise", "Weight noise", "Weight noise (ours)", rf"\tfrac12\theta^2\, {NOISE}", "su2020"
)
def weight_noise(weight, normal):
    return weight**2 / 2 * normal


def get_criterion(key: str, variant: str = "cited") -> Criterion:
    """Look a criterion up, with a clear error for an unknown key or a variant it does not have."""
    check_known("criterion", key, CRITERIA)
    if variant not in CRITERIA[key].variants:
        message = f"Criterion {key!r} has no variant {variant!r}."
        others = ", ".join(rule.key for rule in CRITERIA.values() if variant in rule.variants)
        raise ValueError(f"{message} Only these have it: {others}." if others else message)
    return CRITERIA[key]


def criterion_label(key: str) -> str:
    """Short label of a criterion, for figures and tables."""
    return "Dense" if key == "dense" else get_criterion(key).label
