"""Scores to masks: ranking, rounds, controls, and what a mask looks like.

A mask is ``{parameter name: bool tensor}`` with True = kept, over prunable parameters only.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from .calls import ByParameter
from .criteria import ScoreOptions, get_criterion, score
from .data import Batch
from .models import resolve_parameters
from .parameters import checked_keywords, nearest
from .progress import Bar, steps

SCOPES = ("global", "layer", "erk")
RANKED = {getattr(torch, name) for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8".split()}

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
        raise ValueError(f"sparsity={sparsity}: it must be at least 0 and below 1, the fraction removed.")


@checked_keywords
def make_mask(scores: ByParameter, sparsity: float, scope: str = "global") -> ByParameter:
    """Keep the k = max(1, int((1 − s)·n)) weights with the highest scores; ties go to the earlier position.

    Args:
        scores: ``{parameter name: scores}``, finite, higher = keep: tensors, on any devices, or NumPy arrays.
        sparsity: s, fraction of weights removed, 0 ≤ s < 1.
        scope: ``"global"`` ranks all weights together; ``"layer"`` each tensor by itself; ``"erk"`` each tensor
            at the Erdős–Rényi-kernel density, ∝ (Σ of its dimensions)/(their product) (Evci et al., 2020).

    Returns:
        ``{parameter name: bool tensor}``, True = kept, each where its scores are.

    Raises:
        TypeError: for scores that are not a mapping to dense tensors or arrays.
        ValueError: for no scores, NaN, infinite, complex or bool scores, scores that are all equal although some
            weights must go, a sparsity outside [0, 1) or an unknown scope.

    Warns:
        TiedScoresWarning: if equal scores at the threshold leave more than ``TIED_PART`` of the kept weights (of
            the network, or with another scope of a tensor) to their position.

    >>> make_mask({"w": torch.tensor([3.0, 1.0, 2.0, 0.0])}, sparsity=0.5)
    {'w': tensor([ True, False,  True, False])}
    """
    check_sparsity(sparsity)
    check_scope(scope)
    tensors = _checked(scores)
    mask, ties = _ranked(tensors, 1.0 - sparsity, scope)
    _warn_of_ties(tensors, mask, ties)
    return mask


def check_scope(scope: str) -> None:
    """Raise ValueError unless the scope is known."""
    if scope not in SCOPES:
        raise ValueError(f"Unknown scope {scope!r}: {nearest(scope, SCOPES)}")


def _checked(scores: Mapping[str, Any]) -> ByParameter:
    """Scores as tensors; a clear error for what is none."""
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores is a {type(scores).__name__}: it must be {{parameter name: tensor of its scores}}."
        )
    if not scores:
        raise ValueError("There are no scores to make a mask from.")
    tensors = {}
    for name, value in scores.items():
        if isinstance(value, np.ndarray | np.generic):  # a copy: as it lies in a file it may not be writable
            value = torch.as_tensor(np.array(value, value.dtype.newbyteorder("=")), device="cpu")
        if not isinstance(value, Tensor) or value.is_nested or value.layout != torch.strided or value.is_meta:
            kind = type(value).__name__ if not isinstance(value, Tensor) else f"{value.layout} tensor"
            kind = "meta tensor" if getattr(value, "is_meta", False) else kind
            raise TypeError(f"The scores of {name!r} are a {kind}: they must be a dense tensor or a NumPy array.")
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
    values = torch.stack([number.to(numbers[0].device) for number in numbers]).cpu().tolist() if numbers else []
    return dict(zip(tensors, values, strict=True))


def _ranked(scores: ByParameter, density: float, scope: str) -> tuple[ByParameter, dict[str, _Ties]]:
    """A mask, and for each name the ties of the ranking that it was in."""
    if scope == "global":
        rankings = [("all prunable weights together", list(scores), density)]
    else:
        densities = dict.fromkeys(scores, density) if scope == "layer" else _erk_densities(scores, density)
        rankings = [(name, [name], part) for name, part in densities.items()]
    mask: ByParameter = {}
    ties: list[_Ties] = []
    for what, names, part in rankings:
        values = [scores[name] for name in names]
        flat = torch.cat([value.flatten().to(values[0].device) for value in values])
        kept, found = _keep_highest(flat, _count(part, flat.numel(), what))
        pieces = kept.split([value.numel() for value in values])
        mask |= {n: p.view_as(v).to(v.device) for n, p, v in zip(names, pieces, values, strict=True)}
        ties.append(found)
    choice = any(found.decided for found in ties)
    if choice and len({n for end in (torch.amin, torch.amax) for n in host_numbers(end, scores).values()}) == 1:
        raise ValueError("All scores are equal, so they cannot tell which weights to remove: is the head zero?")
    return mask, {name: found for (_, names, _), found in zip(rankings, ties, strict=True) for name in names}


def _tied(scores: ByParameter, ties: dict[str, _Ties]) -> ByParameter:
    """Where scores are equal to the threshold."""
    return {name: scores[name] == found.threshold.to(scores[name].device) for name, found in ties.items()}


def _warn_of_ties(scores: ByParameter, mask: ByParameter, ties: dict[str, _Ties]) -> None:
    """Warn where equal scores at the threshold left more than ``TIED_PART`` of a ranking to position."""
    shared = {name: found for name, found in ties.items() if found.decided > TIED_PART * found.kept}
    tied = _tied(scores, shared)
    kept = host_numbers(torch.sum, {name: mask[name] & equal for name, equal in tied.items()})
    layers = [f"{name} ({kept[name]} of {n})" for name, n in host_numbers(torch.sum, tied).items() if n]
    if layers:
        more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
        warnings.warn(
            f"Of {count_kept(tied)} weights whose scores are equal at the threshold {sum(kept.values())} are kept "
            f"by their position alone ({count_kept({name: mask[name] for name in tied})} are kept in all): "
            f"{', '.join(layers[:5])}{more}.",
            TiedScoresWarning,
            stacklevel=4,
        )


def _warn_of_earlier_ties(mask: ByParameter, won: ByParameter, lost: ByParameter) -> None:
    """Warn where what is kept won by its position in a round before the last, and as much else lost by its own."""
    winners, losers = count_kept({name: each & mask[name] for name, each in won.items()}), count_kept(lost)
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


class _Ties(NamedTuple):
    """The lowest score that is kept, how many weights have it, how many of these are kept, and of all."""

    threshold: Tensor
    tied: int
    chosen: int
    kept: int

    @property
    def decided(self) -> int:
        """How many weights might be exchanged if position did not decide."""
        return min(self.chosen, self.tied - self.chosen)


def _keep_highest(flat: Tensor, k: int) -> tuple[Tensor, _Ties]:
    """Mask of the k highest values; of equal ones the earlier. Linear time: selection, no sort."""
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat > threshold
    tied = (flat == threshold).nonzero()[:, 0]
    chosen = k - int(kept.sum())
    kept[tied[:chosen]] = True
    return kept, _Ties(threshold, len(tied), chosen, k)


def _erk_densities(scores: ByParameter, density: float) -> dict[str, float]:
    """Layer densities ε·(Σ dims)/(Π dims), capped at 1, with ε such that the total density is met."""
    raw = {name: sum(value.shape) / value.numel() for name, value in scores.items()}
    full: set[str] = set()
    while True:
        budget = density * sum(v.numel() for v in scores.values()) - sum(scores[n].numel() for n in full)
        scale = budget / sum(raw[n] * scores[n].numel() for n in scores if n not in full)
        over = {n for n in scores if n not in full and scale * raw[n] > 1}
        if not over:
            return {n: 1.0 if n in full else scale * raw[n] for n in scores}
        full |= over
        if len(full) == len(scores):
            return dict.fromkeys(scores, 1.0)


@checked_keywords
def prune(
    model: nn.Module,
    batch: Batch,
    key: str,
    sparsity: float,
    *,
    scope: str = "global",
    rounds: int | None = None,
    variant: str = "cited",
    **options: Unpack[ScoreOptions],
) -> ByParameter:
    """Score and mask in the criterion's own number of rounds: what most callers want.

    In round k of n the weights removed so far are zero and the kept fraction is d^(k/n), d = 1 − sparsity
    (Tanaka et al., 2020, for SynFlow with n = 100). SynFlow's ``variant="released"`` instead raises the
    removed fraction to k/n, so that the first round already removes almost everything and ties fill the mask,
    of which it does not warn.

    Args:
        model: returns logits N×C; is left as it was, also when scoring fails.
        batch: scoring samples.
        key: criterion.
        sparsity: fraction of weights removed.
        scope: as in ``make_mask``.
        rounds: ``None`` is the criterion's own, 100 for SynFlow and 1 elsewhere.
        variant: as in ``score``.
        **options: further options of ``score``.

    Returns:
        ``{parameter name: bool tensor}``, True = kept.

    Raises:
        ValueError: as ``make_mask`` and ``score`` do.

    Warns:
        TiedScoresWarning: as ``make_mask`` does, and if ties in rounds before the last decided as much.
    """
    check_sparsity(sparsity)
    check_scope(scope)
    rule = get_criterion(key, variant)
    rounds = rule.rounds if rounds is None else rounds
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r}: it must be a whole number of at least 1.")
    released = key == "synflow" and variant == "released"
    names = resolve_parameters(model, options.get("parameters", "prunable"))
    options["parameters"] = names  # once, for all rounds
    if rounds > 1:
        options["remember"] = None  # the weights change from round to round
    mask: ByParameter = {}
    won: ByParameter = {}
    lost: ByParameter = {}
    originals = {name: p.detach().clone() for name, p in model.named_parameters()} if rounds > 1 else {}
    bar = Bar("pruning", options.get("progress", True))
    try:
        for k in steps(range(1, rounds + 1), "round"):
            scores = _checked(score(model, batch, key, variant=variant, **options))
            for name, kept in mask.items():  # what is gone stays gone, whatever its score
                scores[name] = scores[name].masked_fill(~kept, -torch.inf)
            with warnings.catch_warnings():
                if k < rounds:
                    warnings.simplefilter("ignore", SparsityWarning)  # the last round tells
                density = 1 - sparsity ** (k / rounds) if released else (1 - sparsity) ** (k / rounds)
                mask, ties = _ranked(scores, 1.0 - sparsity if k == rounds else density, scope)
            if k == rounds:
                if not released:  # its schedule is to fill up with ties
                    _warn_of_ties(scores, mask, ties)
                    _warn_of_earlier_ties(mask, won, lost)
                return mask
            for name, equal in _tied(scores, {n: found for n, found in ties.items() if found.decided}).items():
                won[name] = won.get(name, False) | (equal & mask[name])
                lost[name] = lost.get(name, False) | (equal & ~mask[name])
            apply_mask(model, mask)
    finally:
        bar.close()
        with torch.no_grad():
            for name, original in originals.items():
                model.get_parameter(name).copy_(original)
    raise AssertionError("the last round returns")


def check_bools(mask: ByParameter, what: str = "The mask") -> None:
    """Raise TypeError for what is no mapping, ValueError unless it holds bool tensors."""
    check_mapping(mask, what)
    for name, kept in mask.items():
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
            found = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
            raise ValueError(f"{what} is no mask: {name!r} must be a bool tensor, not {found}.")
    if not mask:
        raise ValueError(f"{what} is no mask: there is no tensor in it.")


def check_mapping(mask: Any, what: str = "The mask") -> None:
    """Raise TypeError for what is no mapping."""
    if not isinstance(mask, Mapping):
        raise TypeError(f"{what} is a {type(mask).__name__}: it must be {{parameter name: bool tensor}}.")


def check_mask(model: nn.Module, mask: ByParameter) -> None:
    """Raise ValueError unless the mask's names, shapes and type fit the model, TypeError if it is no mapping."""
    check_mapping(mask)
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        if name not in parameters:
            if f"{name}_orig" in parameters:
                raise ValueError(
                    f"{name!r} is pruned already: make that permanent with torch.nn.utils.prune.remove."
                )
            raise ValueError(f"The mask has {name!r}, which the model has not: {nearest(name, parameters)}")
        shape = tuple(parameters[name].shape)
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != shape:
            found = (kept.dtype, tuple(kept.shape)) if isinstance(kept, Tensor) else (type(kept).__name__,)
            raise ValueError(
                f"The mask of {name!r} must be a bool tensor of shape {shape}, not {' '.join(map(str, found))}."
            )


def apply_mask(model: nn.Module, mask: ByParameter) -> None:
    """Set the removed weights of a model to zero, in place. Raises ValueError for a mask that does not fit."""
    check_mask(model, mask)
    with torch.no_grad():
        for name, kept in mask.items():
            model.get_parameter(name).mul_(kept.to(model.get_parameter(name).device))


def shuffle_within_layers(mask: ByParameter, generator: torch.Generator | None = None) -> ByParameter:
    """Control: the same density in each layer, at random positions (Frankle et al., 2021; Su et al., 2020)."""
    check_bools(mask)
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=generator, device=generator.device, dtype=torch.int64)

    return {name: kept.flatten()[order(kept.numel()).to(kept.device)].view_as(kept) for name, kept in mask.items()}


def invert_scores(scores: ByParameter) -> ByParameter:
    """Control: keep what the criterion would remove first (Frankle et al., 2021)."""
    checked = _checked(scores)  # signed: -1 of an unsigned type is its highest value
    return {name: -(value if value.is_floating_point() else value.long()) for name, value in checked.items()}


def layer_density(mask: ByParameter) -> dict[str, float]:
    """Fraction kept in each layer."""
    check_bools(mask)
    return host_numbers(lambda kept: kept.float().mean(), mask)


def collapsed_layers(mask: ByParameter) -> list[str]:
    """Names of the layers with no weight left."""
    check_bools(mask)
    return [name for name, alive in host_numbers(torch.any, mask).items() if not alive]


def sparsity_of(mask: ByParameter) -> float:
    """Fraction of the masked parameters' weights that is removed."""
    check_bools(mask)
    return 1 - count_kept(mask) / sum(kept.numel() for kept in mask.values())


def count_kept(mask: ByParameter) -> int:
    """Number of weights that are kept."""
    return sum(host_numbers(torch.sum, mask).values())


def _check_same(first: ByParameter, second: ByParameter) -> None:
    if {n: v.shape for n, v in first.items()} != {n: v.shape for n, v in second.items()}:
        raise ValueError("The two are not about the same parameters: their names and shapes must agree.")


def _overlap(first: ByParameter, second: ByParameter) -> ByParameter:
    """Weights kept by both, where the first mask is."""
    for mask in (first, second):
        check_bools(mask)
    _check_same(first, second)
    return {name: kept & second[name].to(kept.device) for name, kept in first.items()}


def jaccard(first: ByParameter, second: ByParameter) -> float:
    """Overlap of two masks: weights kept by both over weights kept by either.

    Raises:
        ValueError: for masks of different parameters, or that keep nothing.
    """
    both = count_kept(_overlap(first, second))
    either = count_kept(first) + count_kept(second) - both
    if not either:
        raise ValueError("Neither mask keeps a weight, so their overlap is not defined.")
    return both / either


def shared_fraction(first: ByParameter, second: ByParameter) -> float:
    """Fraction of the weights kept by ``first`` that ``second`` keeps too; by chance, ``second``'s density.

    Raises:
        ValueError: for masks of different parameters, or a first that keeps nothing.
    """
    both, own = count_kept(_overlap(first, second)), count_kept(first)
    if not own:
        raise ValueError("The first mask keeps no weight, so there is nothing to share.")
    return both / own


def rank_correlation(first: ByParameter, second: ByParameter) -> float:
    """Spearman's rank correlation of two score maps over all weights together.

    Raises:
        ValueError: for scores of different parameters, or that are all equal, NaN or infinite.
    """
    from scipy.stats import spearmanr

    _check_same(first, second)
    first, second = _checked(first), _checked(second)
    ranked = [torch.cat([scores[name].flatten().double().cpu() for name in first]) for scores in (first, second)]
    if any(bool((values == values[0]).all()) for values in ranked):
        raise ValueError("All scores of one of the two are equal: they have no ranks to correlate.")
    return float(spearmanr(*ranked).statistic)
