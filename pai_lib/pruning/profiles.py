"""Profiles: the density of each layer by a formula of the layers' shapes.

A profile is a function of ``{name: shape}`` and the density of the whole network that returns
``{name: density}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]
Profile = Callable[[Shapes, float], dict[str, float]]
PROFILES: dict[str, Profile] = {}


def profile(key: str) -> Callable[[Profile], Profile]:
    """Register the decorated function as a profile: a scope of this name."""

    def register(function: Profile) -> Profile:
        PROFILES[key] = function
        return function

    return register


@profile("layer")
def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The same density in each layer."""
    return dict.fromkeys(shapes, density)


@profile("erk")
def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdős–Rényi-kernel densities min(1, ε·(Σ dims)/(Π dims)) (Evci et al., 2020).

    ε is such that the density of the network is met.
    """
    return _in_proportion({n: sum(d) / math.prod(d) for n, d in shapes.items()}, shapes, density)


@profile("smart_ratio")
def smart_ratio(shapes: Shapes, density: float) -> dict[str, float]:
    """Densities min(1, ε·(k² + k)), k layers before the end: *smart ratio* (Su et al., 2020).

    This is their rule for residual networks. The last of L prunable layers has k = 2, the first
    k = L + 1, for the head, which they count too, is not pruned here. ε is such that the density of
    the network is met.
    """
    from_the_end = range(len(shapes) + 1, 1, -1)
    factors = {name: k**2 + k for name, k in zip(shapes, from_the_end, strict=True)}
    return _in_proportion(factors, shapes, density)


def _in_proportion(
    factors: Mapping[str, float], shapes: Shapes, density: float
) -> dict[str, float]:
    """Densities min(1, ε·factor) that meet the density of the network."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while len(full) < len(shapes):
        rest = [name for name in shapes if name not in full]
        budget = density * sum(size.values()) - sum(size[name] for name in full)
        scale = budget / sum(factors[name] * size[name] for name in rest)
        over = {name for name in rest if scale * factors[name] > 1}
        if not over:
            return {name: 1.0 if name in full else scale * factors[name] for name in shapes}
        full |= over
    return dict.fromkeys(shapes, 1.0)
