"""Scores to masks by ranking, and what equal scores leave to position.

A mask is ``{parameter name: bool tensor}`` with True = kept.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..curvature.calls import ByParameter
from ..names import checked_keywords, nearest

SCOPES = ("global", "layer", "erk")
RANKED = {
    getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8".split()
}

TIED_PART = 0.1
"""Part of the kept weights that equal scores may decide by position before ``TiedScoresWarning`` is given."""


class SparsityWarning(UserWarning):
    """A tensor keeps more weights than the sparsity asks for, since it must keep one."""


class TiedScoresWarning(UserWarning):
    """Equal scores at the threshold: for more than ``TIED_PART`` of the kept weights their position decided."""


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless 0 ≤ sparsity < 1."""
    if isinstance(sparsity, Tensor) or not isinstance(sparsity, numbers.Real):
        raise ValueError(f"sparsity={sparsity!r}: it must be a number, the fraction removed.")
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity={sparsity}: it must be at least 0 and below 1, the fraction removed."
        )


@checked_keywords
def make_mask(scores: ByParameter, sparsity: float, scope: str = "global") -> ByParameter:
    """Keep the k = max(1, int((1 − s)·n)) weights with the highest scores; ties go to the earlier position.

    Args:
        scores: ``{parameter name: scores}``, finite, higher = keep: tensors, on any devices, or
            NumPy arrays.
        sparsity: s, fraction of weights removed, 0 ≤ s < 1.
        scope: ``"global"`` ranks all weights together; ``"layer"`` each tensor by itself; ``"erk"``
            each tensor at the Erdős–Rényi-kernel density, ∝ (Σ of its dimensions)/(their product)
            (Evci et al., 2020).

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
    check_sparsity(sparsity)
    check_scope(scope)
    tensors = checked_scores(scores)
    mask, ties = ranked(tensors, 1.0 - sparsity, scope)
    warn_of_ties(tensors, mask, ties)
    return mask


def check_scope(scope: str) -> None:
    """Raise ValueError unless the scope is known."""
    if scope not in SCOPES:
        raise ValueError(f"Unknown scope {scope!r}: {nearest(scope, SCOPES)}")


def checked_scores(scores: Mapping[str, Any]) -> ByParameter:
    """Scores as tensors; a clear error for what is none."""
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores is a {type(scores).__name__}: it must be {{parameter name: tensor of its scores}}."
        )
    if not scores:
        raise ValueError("There are no scores to make a mask from.")
    tensors = {}
    for name, value in scores.items():
        if isinstance(
            value, np.ndarray | np.generic
        ):  # a copy: as it lies in a file it may not be writable
            value = torch.as_tensor(np.array(value, value.dtype.newbyteorder("=")), device="cpu")
        if (
            not isinstance(value, Tensor)
            or value.is_nested
            or value.layout != torch.strided
            or value.is_meta
        ):
            kind = (
                type(value).__name__ if not isinstance(value, Tensor) else f"{value.layout} tensor"
            )
            kind = "meta tensor" if getattr(value, "is_meta", False) else kind
            raise TypeError(
                f"The scores of {name!r} are a {kind}: they must be a dense tensor or a NumPy array."
            )
        if value.dtype not in RANKED or value.numel() == 0:
            what = "empty" if value.numel() == 0 else value.dtype
            raise ValueError(
                f"The scores of {name!r} are {what}: they must be real numbers, as float32, one a weight."
            )
        tensors[name] = value.detach()
    for name, finite in host_numbers(lambda value: torch.isfinite(value).all(), tensors).items():
        if not finite:
            raise ValueError(f"The scores of {name!r} hold NaN or infinite values.")
    return tensors


def host_numbers(function: Callable[[Tensor], Tensor], tensors: ByParameter) -> dict[str, Any]:
    """What a function makes of each tensor, one number, for the host to know: in one read."""
    numbers = [function(tensor) for tensor in tensors.values()]
    values = (
        torch.stack([number.to(numbers[0].device) for number in numbers]).cpu().tolist()
        if numbers
        else []
    )
    return dict(zip(tensors, values, strict=True))


def count_kept(mask: ByParameter) -> int:
    """Number of weights that are kept."""
    return sum(host_numbers(torch.sum, mask).values())


def ranked(scores: ByParameter, density: float, scope: str) -> tuple[ByParameter, dict[str, Ties]]:
    """A mask, and for each name the ties of the ranking that it was in."""
    if scope == "global":
        rankings = [("all prunable weights together", list(scores), density)]
    else:
        densities = (
            dict.fromkeys(scores, density) if scope == "layer" else _erk_densities(scores, density)
        )
        rankings = [(name, [name], part) for name, part in densities.items()]
    mask: ByParameter = {}
    ties: list[Ties] = []
    for what, names, part in rankings:
        values = [scores[name] for name in names]
        flat = torch.cat([value.flatten().to(values[0].device) for value in values])
        kept, found = _keep_highest(flat, _count(part, flat.numel(), what))
        pieces = kept.split([value.numel() for value in values])
        mask |= {
            n: p.view_as(v).to(v.device) for n, p, v in zip(names, pieces, values, strict=True)
        }
        ties.append(found)
    choice = any(found.decided for found in ties)
    if (
        choice
        and len({n for end in (torch.amin, torch.amax) for n in host_numbers(end, scores).values()})
        == 1
    ):
        raise ValueError(
            "All scores are equal, so they cannot tell which weights to remove: is the head zero?"
        )
    return mask, {
        name: found for (_, names, _), found in zip(rankings, ties, strict=True) for name in names
    }


def tied_with_threshold(scores: ByParameter, ties: dict[str, Ties]) -> ByParameter:
    """Where scores are equal to the threshold."""
    return {
        name: scores[name] == found.threshold.to(scores[name].device)
        for name, found in ties.items()
    }


def warn_of_ties(scores: ByParameter, mask: ByParameter, ties: dict[str, Ties]) -> None:
    """Warn where equal scores at the threshold left more than ``TIED_PART`` of a ranking to position."""
    shared = {name: found for name, found in ties.items() if found.decided > TIED_PART * found.kept}
    tied = tied_with_threshold(scores, shared)
    kept = host_numbers(torch.sum, {name: mask[name] & equal for name, equal in tied.items()})
    layers = [
        f"{name} ({kept[name]} of {n})" for name, n in host_numbers(torch.sum, tied).items() if n
    ]
    if layers:
        more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
        warnings.warn(
            f"Of {count_kept(tied)} weights whose scores are equal at the threshold {sum(kept.values())} are kept "
            f"by their position alone ({count_kept({name: mask[name] for name in tied})} are kept in all): "
            f"{', '.join(layers[:5])}{more}.",
            TiedScoresWarning,
            stacklevel=4,
        )


def warn_of_earlier_ties(mask: ByParameter, won: ByParameter, lost: ByParameter) -> None:
    """Warn where what is kept won by its position in a round before the last, and as much else lost by its own."""
    winners, losers = (
        count_kept({name: each & mask[name] for name, each in won.items()}),
        count_kept(lost),
    )
    if won and min(winners, losers) > TIED_PART * (kept := count_kept(mask)):
        warnings.warn(
            f"In rounds before the last equal scores at the threshold removed {losers} weights by their position "
            f"alone, while {winners} of the {kept} that are kept stayed by theirs.",
            TiedScoresWarning,
            stacklevel=4,
        )


def _count(density: float, total: int, what: str) -> int:
    wanted = int(density * total)  # in doubles: the paper's rounding
    if wanted < 1:
        warnings.warn(
            f"A density of {density:.3g} keeps no weight of {what} ({total} weights): one is kept.",
            SparsityWarning,
            stacklevel=5,
        )
    return max(1, wanted)


class Ties(NamedTuple):
    """The lowest score that is kept, how many weights have it, how many of these are kept, and of all."""

    threshold: Tensor
    tied: int
    chosen: int
    kept: int

    @property
    def decided(self) -> int:
        """How many weights might be exchanged if position did not decide."""
        return min(self.chosen, self.tied - self.chosen)


def _keep_highest(flat: Tensor, k: int) -> tuple[Tensor, Ties]:
    """Mask of the k highest values; of equal ones the earlier. Linear time: selection, no sort."""
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat > threshold
    tied = (flat == threshold).nonzero()[:, 0]
    chosen = k - int(kept.sum())
    kept[tied[:chosen]] = True
    return kept, Ties(threshold, len(tied), chosen, k)


def _erk_densities(scores: ByParameter, density: float) -> dict[str, float]:
    """Layer densities ε·(Σ dims)/(Π dims), capped at 1, with ε such that the total density is met."""
    raw = {name: sum(value.shape) / value.numel() for name, value in scores.items()}
    full: set[str] = set()
    while True:
        budget = density * sum(v.numel() for v in scores.values()) - sum(
            scores[n].numel() for n in full
        )
        scale = budget / sum(raw[n] * scores[n].numel() for n in scores if n not in full)
        over = {n for n in scores if n not in full and scale * raw[n] > 1}
        if not over:
            return {n: 1.0 if n in full else scale * raw[n] for n in scores}
        full |= over
        if len(full) == len(scores):
            return dict.fromkeys(scores, 1.0)
