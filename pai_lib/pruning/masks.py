"""Masks: pruning in rounds, controls, and what a mask looks like.

A mask is ``{parameter name: bool tensor}`` with True = kept, over prunable parameters only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..curvature.calls import ByParameter
from ..curvature.parameters import resolve_parameters
from ..data.batch import Batch
from ..names import checked_keywords, nearest
from ..progress import Bar, steps
from .criteria import get_criterion
from .ranking import (
    SparsityWarning,
    check_scope,
    check_sparsity,
    checked_scores,
    count_kept,
    host_numbers,
    ranked,
    tied_with_threshold,
    warn_of_earlier_ties,
    warn_of_ties,
)
from .scoring import ScoreOptions, score


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

    In round k of n the weights removed so far are zero and the kept fraction is d^(k/n), d = 1 −
    sparsity (Tanaka et al., 2020, for SynFlow with n = 100). SynFlow's ``variant="released"``
    instead raises the removed fraction to k/n, so that the first round already removes almost
    everything and ties fill the mask, of which it does not warn.

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
        TiedScoresWarning: as ``make_mask`` does, and if ties in rounds before the last decided as
            much.
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
    originals = (
        {name: p.detach().clone() for name, p in model.named_parameters()} if rounds > 1 else {}
    )
    bar = Bar("pruning", options.get("progress", True))
    try:
        for k in steps(range(1, rounds + 1), "round"):
            scores = checked_scores(score(model, batch, key, variant=variant, **options))
            for name, kept in mask.items():  # what is gone stays gone, whatever its score
                scores[name] = scores[name].masked_fill(~kept, -torch.inf)
            with warnings.catch_warnings():
                if k < rounds:
                    warnings.simplefilter("ignore", SparsityWarning)  # the last round tells
                density = (
                    1 - sparsity ** (k / rounds) if released else (1 - sparsity) ** (k / rounds)
                )
                mask, ties = ranked(scores, 1.0 - sparsity if k == rounds else density, scope)
            if k == rounds:
                if not released:  # its schedule is to fill up with ties
                    warn_of_ties(scores, mask, ties)
                    warn_of_earlier_ties(mask, won, lost)
                return mask
            for name, equal in tied_with_threshold(
                scores, {n: found for n, found in ties.items() if found.decided}
            ).items():
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
        raise TypeError(
            f"{what} is a {type(mask).__name__}: it must be {{parameter name: bool tensor}}."
        )


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
            raise ValueError(
                f"The mask has {name!r}, which the model has not: {nearest(name, parameters)}"
            )
        shape = tuple(parameters[name].shape)
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != shape:
            found = (
                (kept.dtype, tuple(kept.shape))
                if isinstance(kept, Tensor)
                else (type(kept).__name__,)
            )
            raise ValueError(
                f"The mask of {name!r} must be a bool tensor of shape {shape}, not {' '.join(map(str, found))}."
            )


def apply_mask(model: nn.Module, mask: ByParameter) -> None:
    """Set the removed weights of a model to zero, in place. Raises ValueError for a mask that does not fit."""
    check_mask(model, mask)
    with torch.no_grad():
        for name, kept in mask.items():
            model.get_parameter(name).mul_(kept.to(model.get_parameter(name).device))


def shuffle_within_layers(
    mask: ByParameter, generator: torch.Generator | None = None
) -> ByParameter:
    """Control: the same density in each layer, at random positions (Frankle et al., 2021; Su et al., 2020)."""
    check_bools(mask)
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator

    def order(count: int) -> Tensor:
        return torch.randperm(
            count, generator=generator, device=generator.device, dtype=torch.int64
        )

    return {
        name: kept.flatten()[order(kept.numel()).to(kept.device)].view_as(kept)
        for name, kept in mask.items()
    }


def invert_scores(scores: ByParameter) -> ByParameter:
    """Control: keep what the criterion would remove first (Frankle et al., 2021)."""
    checked = checked_scores(scores)  # signed: -1 of an unsigned type is its highest value
    return {
        name: -(value if value.is_floating_point() else value.long())
        for name, value in checked.items()
    }


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


def _check_same(first: ByParameter, second: ByParameter) -> None:
    if {n: v.shape for n, v in first.items()} != {n: v.shape for n, v in second.items()}:
        raise ValueError(
            "The two are not about the same parameters: their names and shapes must agree."
        )


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
    first, second = checked_scores(first), checked_scores(second)
    ranked = [
        torch.cat([scores[name].flatten().double().cpu() for name in first])
        for scores in (first, second)
    ]
    if any(bool((values == values[0]).all()) for values in ranked):
        raise ValueError("All scores of one of the two are equal: they have no ranks to correlate.")
    return float(spearmanr(*ranked).statistic)
