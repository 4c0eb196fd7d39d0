"""Profiles: the density of each layer by a formula of the layers' shapes.

A profile is a function of ``{name: shape}`` and the density of the whole network that returns
``{name: density}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..names import NameTakenError

Shapes = Mapping[str, Sequence[int]]
Profile = Callable[[Shapes, float], dict[str, float]]
PROFILES: dict[str, Profile] = {}


def profile(key: str) -> Callable[[Profile], Profile]:
    """Register the decorated function as a profile: a scope of this name, which is to be free."""

    def register(function: Profile) -> Profile:
        taken = key in PROFILES and PROFILES[key].__module__ == __name__
        if taken or key == "global":
            raise NameTakenError(key)
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
    factors = {name: (sum(shape) or 1) / math.prod(shape) for name, shape in shapes.items()}
    return _in_proportion(factors, shapes, density)


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


@profile("equal")
def equal(shapes: Shapes, density: float) -> dict[str, float]:
    """The same number of weights in each layer, or all of a layer that has fewer.

    Of all masks with random positions it leaves a chain of layers the most paths from input to
    output: their number is in proportion to Π kₗ, which is greatest at equal kₗ.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    shares = _in_proportion({n: 1 / size for n, size in sizes.items()}, shapes, density)
    return {name: _whole(share, sizes[name]) for name, share in shares.items()}


@profile("equal_worth")
def equal_worth(shapes: Shapes, density: float) -> dict[str, float]:
    """Densities P(u²z > τN) of a layer of N weights: a lottery in which layers are worth the same.

    It supposes that the scores of each layer add up to the same, as those of θg do in a chain of
    layers (Tanaka et al., 2020), so that a weight of a layer of N has a share of 1/N. PyTorch draws
    weights uniformly, and a Hutchinson estimate of few probes is noise of either sign: the score is
    u²z/N, u uniform on [0, 1] and z normal. τ meets the density of the network; a layer that
    expects less than half a weight gets none.
    """
    return _lottery(shapes, density, lottery_share)


@profile("equal_worth_unsigned")
def equal_worth_unsigned(shapes: Shapes, density: float) -> dict[str, float]:
    """Densities P(u²|z| > τN): ``equal_worth`` of a score without a sign.

    No sign keeps a layer below one half, so that small layers are kept more densely.
    """
    return _lottery(shapes, density, lambda level: min(1.0, 2 * lottery_share(level)))


def lottery_share(level: float) -> float:
    """P(u²z > t) = Φ(−t) − √t·2^(−3/4)·Γ(¼, t²/2)/√(2π) at t ≥ 0; one minus that of −t below."""
    from scipy.special import gamma, gammaincc, ndtr  # the library alone does not need it

    if level < 0:
        return 1 - lottery_share(-level)
    tail = gamma(0.25) * gammaincc(0.25, level**2 / 2)
    return max(0.0, float(ndtr(-level) - math.sqrt(level) * 2**-0.75 * tail / math.sqrt(math.tau)))


def _lottery(shapes: Shapes, density: float, above: Callable[[float], float]) -> dict[str, float]:
    """Densities above(τN) that meet the density of the network."""
    from scipy.optimize import brentq

    if density >= 1:
        return dict.fromkeys(shapes, 1.0)
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = density * sum(size.values())

    # By the root of τ, with τ's sign: near 0 densities are linear in it.
    def at(root: float) -> dict[str, float]:
        return {name: above(root * abs(root) * count) for name, count in size.items()}

    def surplus(root: float) -> float:
        return sum(share * size[name] for name, share in at(root).items()) - budget

    most = math.sqrt(40 / min(size.values()))  # P(u²z > 40) is 0 in doubles
    shares = at(brentq(surplus, -most, most, xtol=1e-16))
    if max(shares[name] * count for name, count in size.items()) < 0.5:
        return shares
    for name, count in size.items():
        if shares[name] * count < 1:  # none or one
            shares[name] = _exactly(round(shares[name] * count), count)
    return shares


def _whole(share: float, size: int) -> float:
    """A share that gives a whole number of weights but for rounding, so that it does."""
    count = round(share * size)
    return _exactly(count, size) if count and abs(share * size - count) < 1e-9 else share


def _exactly(count: int, size: int) -> float:
    """The share that keeps so many weights: 1/49 · 49 is below one in doubles."""
    return min(1.0, math.nextafter(count / size, count))


def _in_proportion(
    factors: Mapping[str, float], shapes: Shapes, density: float
) -> dict[str, float]:
    """Densities min(1, ε·factor) that meet the density of the network."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    full = set(shapes) if density >= 1 else set[str]()
    while len(full) < len(shapes):
        rest = [name for name in shapes if name not in full]
        budget = density * sum(size.values()) - sum(size[name] for name in full)
        scale = budget / sum(factors[name] * size[name] for name in rest)
        over = {name for name in rest if scale * factors[name] > 1}
        if not over:
            return {name: 1.0 if name in full else scale * factors[name] for name in shapes}
        full |= over
    return dict.fromkeys(shapes, 1.0)
