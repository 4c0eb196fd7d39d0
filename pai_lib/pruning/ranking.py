"""Scores to masks by ranking, and what equal scores leave to position.

A mask is ``{parameter name: bool tensor}`` with True = kept.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..curvature.calls import ByParameter
from ..names import check_known, check_number, checked_keywords
from .profiles import PROFILES

RANKED = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)

TIED_PART = 0.1
"""Part of the kept weights that position may decide on before ``TiedScoresWarning`` is given."""


class SparsityWarning(UserWarning):
    """A tensor keeps more weights than the sparsity asks for, since it must keep one."""


class TiedScoresWarning(UserWarning):
    """For more than ``TIED_PART`` of the kept weights, equal at the threshold, position decided."""


def check_sparsity(sparsity: float) -> float:
    """Return a sparsity in double precision; ValueError unless 0 ≤ sparsity < 1."""
    check_number("sparsity", sparsity, "at least 0 and below 1, the fraction removed")
    return float(sparsity)


@checked_keywords
def make_mask(scores: ByParameter, sparsity: float, scope: str = "global") -> ByParameter:
    """Keep the k = max(1, int((1 − s)·n)) weights with the highest scores; of ties the earlier.

    Args:
        scores: ``{parameter name: scores}``, finite, higher = keep: tensors, on any devices, or
            NumPy arrays.
        sparsity: s, fraction of weights removed, 0 ≤ s < 1.
        scope: ``"global"`` ranks all weights together; ``"layer"`` each tensor by itself; ``"erk"``
            each tensor at the Erdős–Rényi-kernel density, ∝ (Σ of its dimensions)/(their product)
            (Evci et al., 2020); ``"smart_ratio"`` each at the smart ratio, ∝ k² + k for a layer k
            before the end (Su et al., 2020); ``"equal"`` the same number in each; ``"equal_worth"``
            and ``"equal_worth_unsigned"`` each at what it wins of a lottery in which layers are
            worth the same. A layer whose density is 0 keeps nothing.

    Returns:
        ``{parameter name: bool tensor}``, True = kept, each where its scores are.

    Raises:
        TypeError: for scores that are not a mapping to dense tensors or arrays.
        ValueError: for no scores, NaN, infinite, complex or bool scores, scores that are all equal
            although some weights must go, a sparsity outside [0, 1) or an unknown scope.

    Warns:
        TiedScoresWarning: if equal scores at the threshold leave more than ``TIED_PART`` of the
            kept weights (of the network, or with another scope of a tensor) to their position.

    >>> make_mask({"w": torch.tensor([3.0, 1.0, 2.0, 0.0])}, sparsity=0.5)
    {'w': tensor([ True, False,  True, False])}
    """
    sparsity = check_sparsity(sparsity)
    check_known("scope", scope, scopes())
    tensors = checked_scores(scores)
    mask, ties = ranked(tensors, 1.0 - sparsity, scope)
    warn_of_ties(mask, ties)
    return mask


def scopes() -> tuple[str, ...]:
    """Names of the ways to rank: all weights together, or at the densities of a profile."""
    return ("global", *PROFILES)


class ScoresNotFiniteError(ValueError):
    """Scores hold NaN or infinite values."""


def checked_scores(scores: Mapping[str, Any]) -> ByParameter:
    """Scores as tensors; a clear error for what is none."""
    if not isinstance(scores, Mapping):
        kind = type(scores).__name__
        raise TypeError(f"scores is a {kind}: it must be {{parameter name: tensor of its scores}}.")
    if not scores:
        raise ValueError("There are no scores to make a mask from.")
    tensors = {name: _checked(name, value) for name, value in scores.items()}
    finite = host_numbers(lambda value: torch.isfinite(value).all(), tensors)
    for name in tensors:
        if not finite[name]:
            raise ScoresNotFiniteError(f"The scores of {name!r} hold NaN or infinite values.")
    return tensors


def _checked(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray | np.generic):  # a copy: in a file it may not be writable
        with contextlib.suppress(TypeError):  # of text, or wider numbers
            value = torch.as_tensor(np.array(value, value.dtype.newbyteorder("=")), device="cpu")
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    if not dense or value.is_meta:
        kind = getattr(value, "dtype", None) or type(value).__name__
        if isinstance(value, Tensor):
            kind = "meta tensor" if value.is_meta else f"{value.layout} tensor"
        right = "they must be a dense tensor or a NumPy array"
        raise TypeError(f"The scores of {name!r} are a {kind}: {right}.")
    if value.dtype not in RANKED or value.numel() == 0:
        kind = value.dtype if value.numel() else "empty"
        right = "they must be real numbers, as float32, one a weight"
        raise ValueError(f"The scores of {name!r} are {kind}: {right}.")
    return value.detach()


def host_numbers(function: Callable[[Tensor], Tensor], tensors: ByParameter) -> dict[str, Any]:
    """What a function makes of each tensor, one number, for the host to know: in one read."""
    numbers = [function(tensor) for tensor in tensors.values()]
    if not numbers:
        return {}
    together = torch.stack([number.to(numbers[0].device) for number in numbers])
    return dict(zip(tensors, together.cpu().tolist(), strict=True))


def count_kept(mask: ByParameter) -> int:
    """Number of weights that are kept."""
    return sum(host_numbers(torch.sum, mask).values())


class Ties(NamedTuple):
    """Where a tensor's scores are equal to the threshold, if not all or none of them are kept."""

    tied: Tensor
    share: float  # weights that position decided on, over those kept, in the tensor's ranking


def ranked(scores: ByParameter, density: float, scope: str) -> tuple[ByParameter, dict[str, Ties]]:
    """A mask, and the ties by parameter, of the rankings in which position decided."""
    if scope == "global":
        rankings = [("all prunable weights together", list(scores), density)]
    else:
        shapes = {name: value.shape for name, value in scores.items()}
        densities = PROFILES[scope](shapes, density)
        if not isinstance(densities, Mapping):
            raise TypeError(f"The profile {scope} gives {densities!r}: it must be a dictionary.")
        for name in scores:
            title = f"The density of {name!r} by {scope}"
            check_number(title, densities.get(name), "at least 0 and at most 1")
        rankings = [(name, [name], densities[name]) for name in scores]
    mask: ByParameter = {}
    ties: dict[str, Ties] = {}
    for title, names, part in rankings:
        values = [scores[name] for name in names]
        if len({value.dtype for value in values}) > 1:  # float16 cannot hold what others do
            values = [value.double() for value in values]
        flat = torch.cat([value.flatten().to(values[0].device) for value in values])
        kept, tied, share = _keep_highest(flat, _count(part, flat.numel(), title))
        sizes = [value.numel() for value in values]
        for name, piece, equal in zip(names, kept.split(sizes), tied.split(sizes), strict=True):
            mask[name] = piece.view_as(scores[name]).to(scores[name].device)
            if share:
                ties[name] = Ties(equal.view_as(scores[name]).to(scores[name].device), share)
    if ties:
        lowest = min(host_numbers(torch.amin, scores).values())
        if lowest == max(host_numbers(torch.amax, scores).values()):
            said = "All scores are equal, so they cannot tell which weights to remove"
            raise ValueError(f"{said}: is the head zero?")
    return mask, ties


def _count(density: float, total: int, title: str) -> int:
    if density == 0:  # a profile that gives a layer nothing says so
        return 0
    count = int(density * total)  # in doubles: the paper's rounding
    if count < 1:
        message = f"A density of {density:.3g} keeps no weight of {title} ({total} weights)"
        warnings.warn(f"{message}: one is kept.", SparsityWarning, stacklevel=5)
    return max(1, count)


def _keep_highest(flat: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """Mask of the k highest values, of equal ones the earlier; those equal to the lowest; a share.

    Linear time: selection, no sort.
    """
    if k == 0:
        none = torch.zeros_like(flat, dtype=torch.bool)
        return none, none, 0.0
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    kept, tied = flat > threshold, flat == threshold
    places = tied.nonzero()[:, 0]
    chosen = k - int(kept.sum())
    kept[places[:chosen]] = True
    return kept, tied, min(chosen, len(places) - chosen) / k


def warn_of_ties(mask: ByParameter, ties: dict[str, Ties]) -> None:
    """Warn where equal scores left more than ``TIED_PART`` of a ranking to position."""
    tied = {name: found.tied for name, found in ties.items() if found.share > TIED_PART}
    sizes = {name: size for name, size in host_numbers(torch.sum, tied).items() if size}
    if not sizes:
        return
    kept = host_numbers(torch.sum, {name: mask[name] & tied[name] for name in sizes})
    layers = [f"{name} ({kept[name]} of {size})" for name, size in sizes.items()]
    more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
    warnings.warn(
        f"Of {sum(sizes.values())} weights whose scores are equal at the threshold "
        f"{sum(kept.values())} are kept by their position alone "
        f"({count_kept({name: mask[name] for name in tied})} are kept in all): "
        f"{', '.join(layers[:5])}{more}.",
        TiedScoresWarning,
        stacklevel=4,
    )


class EarlierTies:
    """Which weights won and which lost by their position in rounds before the last."""

    def __init__(self) -> None:
        self.won: ByParameter = {}
        self.lost: ByParameter = {}

    def note(self, mask: ByParameter, ties: dict[str, Ties]) -> None:
        """Add a round's."""
        for name, (tied, _) in ties.items():
            self.won[name] = self.won.get(name, False) | (tied & mask[name])
            self.lost[name] = self.lost.get(name, False) | (tied & ~mask[name])

    def warn(self, mask: ByParameter) -> None:
        """Warn where what is kept won by its position, and as much else lost by its own."""
        won = count_kept({name: before & mask[name] for name, before in self.won.items()})
        lost, kept = count_kept(self.lost), count_kept(mask)
        if min(won, lost) > TIED_PART * kept:
            warnings.warn(
                f"In rounds before the last equal scores at the threshold removed {lost} weights "
                f"by their position alone, while {won} of the {kept} kept ones stayed by theirs.",
                TiedScoresWarning,
                stacklevel=4,
            )
