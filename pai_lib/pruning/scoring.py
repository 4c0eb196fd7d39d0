"""Scores of a model's weights by the criteria, which share the quantities that they need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..curvature.calls import ByParameter, generator_or_new
from ..curvature.derivatives import gradient, hessian_vector_product, synaptic_flow
from ..curvature.diagonals import exact_diag, fisher_diag
from ..curvature.hutchinson import hessian_row_norm, hutchinson_diag
from ..curvature.parameters import resolve_parameters
from ..data.batch import Batch, as_batch
from ..names import checked_keywords, nearest
from ..progress import Bar, steps
from .criteria import NEEDS, get_criterion

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
    model: nn.Module,
    batch: Batch,
    key: str,
    *,
    variant: str = "cited",
    **options: Unpack[ScoreOptions],
) -> ByParameter:
    """Score every prunable weight of a model by one criterion: higher = keep.

    Args:
        model: returns logits N×C; is left as it was.
        batch: inputs and labels that the criterion sees; data-free criteria use the input's shape
            at most.
        key: one of ``CRITERIA``.
        variant: as in ``score_many``.
        **options: those of ``score_many``.

    Returns:
        ``{parameter name: scores of its shape}``.

    Raises:
        ValueError: for an unknown criterion, variant or option value, and whatever the estimators
            raise.
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
        group: samples averaged before a gradient is squared (Fisher) or probed (Hutchinson);
            ``None`` is all.
        probes: Hutchinson's random vectors a group.
        temperature: T for all of them; ``None`` is each criterion's own.
        variant: ``"cited"`` or, for some criteria, ``"released"``.
        generator: for noise and probes; ``None`` is a new one with seed 0.
        parameters: what is scored, ``"prunable"`` by default.
        chunk: samples a forward pass.
        remember: ``remember(key, compute)`` returns what it has for the key, else what
            ``compute()`` returns; it must belong to this very model and batch.
        progress: show a bar where it takes long.

    Returns:
        ``{criterion: {parameter name: scores}}``.

    Raises:
        ValueError, TypeError: as ``score``; TypeError also for one criterion in place of a list.
    """
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: it must be a list of criteria, [{keys!r}].")
    rules = [get_criterion(key, variant) for key in keys]
    quantities = _Quantities(
        model,
        as_batch(batch),
        resolve_parameters(model, parameters),
        generator_or_new(generator),
        group=group,
        probes=probes,
        variant=variant,
        chunk=chunk,
        remember=remember,
    )
    scores: dict[str, ByParameter] = {}
    with Bar("scoring", progress):
        for rule in steps(rules, "criterion"):
            t = rule.default_temperature(variant) if temperature is None else temperature
            needs = inspect.signature(rule.function).parameters
            values = {need: quantities.get(need, t) for need in needs}
            own = not str(rule.function.__module__).startswith(__package__)  # it may work in place
            scores[rule.key] = {}
            for name in quantities.names:
                given = {need: value[name] for need, value in values.items()}
                given = tree_map_only(Tensor, Tensor.clone, given) if own else given
                scores[rule.key][name] = rule.function(**given)
                if own and getattr(given.get("weight"), "_version", False):
                    raise ValueError(f"{rule.key} changes the weights: it must work on a copy.")
    return scores


@dataclass
class _Quantities:
    """What criteria ask for, by the names of `criteria.py`: computed once, when first asked for."""

    model: nn.Module
    batch: Batch
    names: list[str]
    generator: torch.Generator
    group: int | None
    probes: int
    variant: str
    chunk: int | None
    remember: Remember | None
    computed: dict[tuple[str, float], dict[str, Any]] = field(default_factory=dict)

    def get(self, need: str, temperature: float) -> dict[str, Any]:
        """Return a quantity at a temperature, as ``{parameter name: value}``."""
        key = need, temperature
        if key not in self.computed:
            self.computed[key] = self.remembered(*key)
        return self.computed[key]

    def remembered(self, need: str, temperature: float) -> dict[str, Any]:
        """Return what is remembered of an earlier call, if it drew the same random numbers."""
        if self.remember is None or need in ("weight", "group", "variant", "noise", "normal"):
            return self.compute(need, temperature)

        def compute() -> tuple[dict[str, Any], Tensor]:
            return self.compute(need, temperature), self.generator.get_state()

        random = self.generator.get_state().numpy().tobytes()
        options = self.group, self.probes, self.chunk, *self.names
        value, state = self.remember((need, temperature, *options, random), compute)
        self.generator.set_state(state)
        return value

    def compute(self, need: str, temperature: float) -> dict[str, Any]:
        """Compute a quantity."""
        model, batch, names, group = self.model, self.batch, self.names, self.group
        at: dict[str, Any] = {"temperature": temperature, "chunk": self.chunk}
        some = {**at, "parameters": names}
        probed = {**some, "probes": self.probes, "group": group, "generator": self.generator}
        match need:
            case "weight":
                return {name: model.get_parameter(name).detach() for name in names}
            case "gradient":
                return gradient(model, batch, **some)
            case "hessian_gradient":
                return hessian_vector_product(model, batch, self.get("gradient", temperature), **at)
            case "fisher":
                return fisher_diag(model, batch, group, **some)
            case "hutchinson":
                return hutchinson_diag(model, batch, **probed)
            case "exact":
                return exact_diag(model, batch, **some)
            case "row_norm":
                return hessian_row_norm(model, batch, **probed)
            case "flow":
                return synaptic_flow(model, batch, parameters=names)
            case "noise":
                return self.draw(torch.rand)
            case "normal":
                return self.draw(torch.randn)
            case "group":
                return dict.fromkeys(names, min(group or len(batch.labels), len(batch.labels)))
            case "variant":
                return dict.fromkeys(names, self.variant)
        raise ValueError(f"No quantity is called {need!r}: {nearest(need, NEEDS)}")

    def draw(self, draw: Callable[..., Tensor]) -> ByParameter:
        """Draw float32 noise where the generator is: a seed's is the same for all weights."""
        options: dict[str, Any] = {"generator": self.generator, "device": self.generator.device}
        weights = {name: self.model.get_parameter(name) for name in self.names}
        return {
            name: draw(weight.shape, dtype=torch.float32, **options).to(weight)
            for name, weight in weights.items()
        }
