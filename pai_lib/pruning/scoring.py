"""Scores of a model's weights by the criteria, each quantity that several of them share computed once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ..curvature.calls import ByParameter, generator_or_new
from ..curvature.derivatives import gradient, hessian_vector_product, synaptic_flow
from ..curvature.diagonals import exact_diag, fisher_diag
from ..curvature.hutchinson import hessian_row_norm, hutchinson_diag
from ..curvature.parameters import resolve_parameters
from ..data.batch import Batch, as_batch
from ..names import checked_keywords, nearest
from ..progress import Bar, steps
from .criteria import get_criterion

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
            extra = (
                {"variant": variant}
                if "variant" in inspect.signature(rule.function).parameters
                else {}
            )
            scores[rule.key] = {
                name: rule.function(
                    **{need: values[name] for need, values in inputs.items()}, **extra
                )
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
        if self.remember is None or need in (
            "weight",
            "group",
            "noise",
            "normal",
        ):  # not worth remembering
            return compute()
        key = (need, temperature, self.group, self.probes, self.chunk, *self.names)
        if need not in ("hutchinson", "row_norm"):
            return self.remember(key, compute)
        before = self.generator.get_state().numpy().tobytes()  # of it the probes are drawn
        found, after = self.remember(
            (*key, before), lambda: (compute(), self.generator.get_state())
        )
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
            "noise": lambda: {
                name: _noise(model.get_parameter(name), generator, torch.rand) for name in names
            },
            "normal": lambda: {
                name: _noise(model.get_parameter(name), generator, torch.randn) for name in names
            },
            "flow": lambda: synaptic_flow(model, batch, parameters=names),
            "gradient": lambda: gradient(model, batch, **some),
            "hessian_gradient": lambda: hessian_vector_product(model, batch, g(), **at),
            "fisher": lambda: fisher_diag(model, batch, self.group, **some),
            "exact": lambda: exact_diag(model, batch, **some),
            "hutchinson": lambda: hutchinson_diag(
                model, batch, *probed, generator=generator, **some
            ),
            "row_norm": lambda: hessian_row_norm(
                model, batch, *probed, generator=generator, **some
            ),
        }
        if need not in ways:
            raise ValueError(f"No quantity is called {need!r}: {nearest(need, ways)}")
        return ways[need]()


def _noise(like: Tensor, generator: torch.Generator, draw: Callable[..., Tensor]) -> Tensor:
    """Float32 noise from the generator's device: that of a seed is the same for all weights and defaults."""
    return draw(like.shape, generator=generator, dtype=torch.float32, device=generator.device).to(
        like
    )
