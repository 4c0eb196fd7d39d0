"""Every pruning criterion, on one page.

A criterion is a function of one parameter tensor and of the quantities that its argument names ask for:

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

It returns scores of the tensor's shape: one real number a weight, **higher = keep**, for every criterion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from .calls import ByParameter, generator_or_new
from .curvature import exact_diag, fisher_diag
from .data import Batch, as_batch
from .derivatives import gradient, hessian_vector_product, synaptic_flow
from .hutchinson import hessian_row_norm, hutchinson_diag
from .models import resolve_parameters
from .parameters import checked_keywords, nearest
from .progress import Bar, steps

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
        return tuple(name for name in inspect.signature(self.function).parameters if name != "variant")

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
    "grasp", "GraSP", "GraSP", r"\theta\, (H g)", "wang2020", temperature=200.0, variants=("cited", "released")
)
def grasp(weight, hessian_gradient, variant="cited"):
    score = weight * hessian_gradient  # Wang et al. remove the largest −θ ⊙ Hg; the released code keeps them
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


@criterion("hutchinson_diag", "HD", "Hutchinson diagonal", r"\hat h", "gollini2026", temperature=200.0)
def hutchinson_diagonal(hutchinson):
    return hutchinson


@criterion(
    "hutchinson_pruning", "HP", "Hutchinson pruning", r"\tfrac12\theta^2\hat h", "gollini2026", temperature=200.0
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


# Of this project: the scale of HP's noise without the noise, other noise of that scale, noise without the scale.


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
        hint = f" Only these have it: {others}." if others else f" It has: {', '.join(found.variants)}."
        raise ValueError(f"Criterion {key!r} has no variant {variant!r}.{hint}")
    return found


Remember = Callable[[Hashable, Callable[[], Any]], Any]


class ScoreOptions(TypedDict, total=False):
    """Options of ``score`` and ``prune``: those of ``score_many``, which says what they are."""

    group: int | None
    probes: int
    temperature: float | None
    generator: torch.Generator | None
    parameters: str | Iterable[str]
    chunk: int | None
    remember: Remember | None
    progress: bool


@checked_keywords
def score(
    model: nn.Module, batch: Batch, key: str, *, variant: str = "cited", **options: Unpack[ScoreOptions]
) -> ByParameter:
    """Score every prunable weight of a model by one criterion: higher = keep.

    Args:
        model: returns logits N×C; is left as it was.
        batch: inputs and labels that the criterion sees; data-free criteria use the input's shape at most.
        key: one of ``CRITERIA``.
        variant: as in ``score_many``.
        **options: those of ``score_many``.

    Returns:
        ``{parameter name: scores of its shape}``.

    Raises:
        ValueError: for an unknown criterion, variant or option value, and whatever the estimators raise.
    """
    return score_many(model, batch, [key], variant=variant, **options)[key]


@checked_keywords
def score_many(
    model: nn.Module,
    batch: Batch,
    keys: Iterable[str],
    *,
    group: int | None = 1,
    probes: int = 10,
    temperature: float | None = None,
    variant: str = "cited",
    generator: torch.Generator | None = None,
    parameters: str | Iterable[str] = "prunable",
    chunk: int | None = None,
    remember: Remember | None = None,
    progress: bool = True,
) -> dict[str, ByParameter]:
    """Score by several criteria, computing each quantity that they share once.

    Args:
        model: as in ``score``.
        batch: as in ``score``.
        keys: criteria.
        group: samples averaged before a gradient is squared (Fisher) or probed (Hutchinson); ``None`` is all.
        probes: Hutchinson's random vectors a group.
        temperature: T for all of them; ``None`` is each criterion's own.
        variant: ``"cited"`` or, for some criteria, ``"released"``.
        generator: for noise and probes; ``None`` is a new one with seed 0.
        parameters: what is scored, ``"prunable"`` by default.
        chunk: samples a forward pass.
        remember: ``remember(key, compute)`` returns what it has for the key, else what ``compute()`` returns; it
            must belong to this very model and batch.
        progress: show a bar where it takes long.

    Returns:
        ``{criterion: {parameter name: scores}}``.

    Raises:
        ValueError, TypeError: as ``score``; TypeError also for one criterion in place of a list.
    """
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: it must be a list of criteria, [{keys!r}].")
    chosen = [get_criterion(key, variant) for key in keys]
    batch = as_batch(batch)
    generator = generator_or_new(generator)
    names = resolve_parameters(model, parameters)
    quantities = _Quantities(model, batch, names, group, probes, chunk, generator, remember)
    scores = {}
    with Bar("scoring", progress):
        for rule in steps(chosen, "criterion"):
            at = rule.default_temperature(variant) if temperature is None else temperature
            inputs = {need: quantities.at(need, at) for need in rule.needs}
            extra = {"variant": variant} if "variant" in inspect.signature(rule.function).parameters else {}
            scores[rule.key] = {
                name: rule.function(**{need: values[name] for need, values in inputs.items()}, **extra)
                for name in names
            }
    return scores


@dataclass
class _Quantities:
    """What criteria ask for of one model and batch, each computed when it is first asked for."""

    model: nn.Module
    batch: Batch
    names: list[str]
    group: int | None
    probes: int
    chunk: int | None
    generator: torch.Generator
    remember: Remember | None
    known: dict[tuple[str, float], dict[str, Any]] = field(default_factory=dict)

    def at(self, need: str, temperature: float) -> dict[str, Any]:
        """Return a quantity at a temperature."""
        if (key := (need, temperature)) not in self.known:
            self.known[key] = self._remembered(*key)
        return self.known[key]

    def _remembered(self, need: str, temperature: float) -> dict[str, Any]:
        compute = partial(self._computed, need, temperature)
        if self.remember is None or need in ("weight", "group", "noise", "normal"):  # not worth remembering
            return compute()
        key = (need, temperature, self.group, self.probes, self.chunk, *self.names)
        if need not in ("hutchinson", "row_norm"):
            return self.remember(key, compute)
        before = self.generator.get_state().numpy().tobytes()  # of it the probes are drawn
        found, after = self.remember((*key, before), lambda: (compute(), self.generator.get_state()))
        self.generator.set_state(after)
        return found

    def _computed(self, need: str, temperature: float) -> dict[str, Any]:
        model, batch, names, generator = self.model, self.batch, self.names, self.generator
        at: dict[str, Any] = {"temperature": temperature, "chunk": self.chunk}
        some, probed = at | {"parameters": names}, (self.probes, self.group)
        g = partial(self.at, "gradient", temperature)
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "weight": lambda: {name: model.get_parameter(name).detach() for name in names},
            "group": lambda: dict.fromkeys(names, min(self.group or len(batch[1]), len(batch[1]))),
            "noise": lambda: {name: _noise(model.get_parameter(name), generator, torch.rand) for name in names},
            "normal": lambda: {name: _noise(model.get_parameter(name), generator, torch.randn) for name in names},
            "flow": lambda: synaptic_flow(model, batch, parameters=names),
            "gradient": lambda: gradient(model, batch, **some),
            "hessian_gradient": lambda: hessian_vector_product(model, batch, g(), **at),
            "fisher": lambda: fisher_diag(model, batch, self.group, **some),
            "exact": lambda: exact_diag(model, batch, **some),
            "hutchinson": lambda: hutchinson_diag(model, batch, *probed, generator=generator, **some),
            "row_norm": lambda: hessian_row_norm(model, batch, *probed, generator=generator, **some),
        }
        if need not in ways:
            raise ValueError(f"No quantity is called {need!r}: {nearest(need, ways)}")
        return ways[need]()


def _noise(like: Tensor, generator: torch.Generator, draw: Callable[..., Tensor]) -> Tensor:
    """Float32 noise from the generator's device: that of a seed is the same for all weights and defaults."""
    return draw(like.shape, generator=generator, dtype=torch.float32, device=generator.device).to(like)
