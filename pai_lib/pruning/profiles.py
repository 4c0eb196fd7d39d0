"""Profiles: the density of each layer by a formula of the layers' shapes.

A profile is a function of ``{name: shape}`` and the density of the whole network that returns
``{name: density}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The same density in each layer."""
    return dict.fromkeys(shapes, density)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdős–Rényi-kernel densities min(1, ε·(Σ dims)/(Π dims)) (Evci et al., 2020).

    ε is such that the density of the network is met.
    """
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    factor = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    full: set[str] = set()
    while len(full) < len(shapes):
        rest = [name for name in shapes if name not in full]
        budget = density * sum(size.values()) - sum(size[name] for name in full)
        scale = budget / sum(factor[name] * size[name] for name in rest)
        over = {name for name in rest if scale * factor[name] > 1}
        if not over:
            return {name: 1.0 if name in full else scale * factor[name] for name in shapes}
        full |= over
    return dict.fromkeys(shapes, 1.0)


PROFILES: dict[str, Callable[[Shapes, float], dict[str, float]]] = {"layer": uniform, "erk": erk}
