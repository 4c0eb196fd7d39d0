"""Masks: pruning in rounds, controls, and what a mask looks like.

A mask is ``{parameter name: bool tensor}`` with True = kept, over prunable parameters only.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ..curvature.calls import ByParameter, generator_or_new, numbers_restored
from ..curvature.parameters import meant, resolve_parameters
from ..data.batch import Batch
from ..draws import ONE_THREAD
from ..models import check_model
from ..names import check_known, checked_keywords, count_of
from ..progress import Bar, steps
from .criteria import get_criterion
from .ranking import (
    EarlierTies,
    SparsityWarning,
    Ties,
    check_sparsity,
    checked_scores,
    count_kept,
    host_numbers,
    ranked,
    scopes,
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
    sparsity = check_sparsity(sparsity)
    check_known("scope", scope, scopes())
    rule = get_criterion(key, variant)
    rounds = count_of("rounds", rule.rounds if rounds is None else rounds)
    released = key == "synflow" and variant == "released"
    options["parameters"] = resolve_parameters(model, options.get("parameters", "prunable"))
    if rounds > 1:
        options["remember"] = None  # the weights change from round to round
    mask: ByParameter = {}
    ties: dict[str, Ties] = {}
    earlier = EarlierTies()
    written = model.parameters() if rounds > 1 else ()
    with Bar("pruning", options.get("progress", True)), ONE_THREAD, numbers_restored(written):
        for k in steps(range(1, rounds + 1), "round"):
            _remove(model, mask, by_the_way=True)
            earlier.note(mask, ties)
            scores = checked_scores(score(model, batch, key, variant=variant, **options))
            for name, value in scores.items():  # one's own criterion may give others
                if value.shape != (shape := model.get_parameter(name).shape):
                    said = f"are {tuple(value.shape)} for {name!r}, whose shape is {tuple(shape)}"
                    raise ValueError(f"The scores of {key!r} {said}.")
            for name, kept in mask.items():  # what is gone stays gone, whatever its score
                value = scores[name] if scores[name].is_floating_point() else scores[name].double()
                scores[name] = value.masked_fill(~kept, -torch.inf)
            density = (1.0 - sparsity) ** (k / rounds)
            if released:
                density = 1.0 - sparsity ** (k / rounds)
            with warnings.catch_warnings():
                if k < rounds:
                    warnings.simplefilter("ignore", SparsityWarning)  # the last round tells
                mask, ties = ranked(scores, density, scope)
    if not released:  # its schedule is to fill up with ties
        warn_of_ties(mask, ties)
        earlier.warn(mask)
    return mask


def check_mapping(mask: Any, title: str = "The mask") -> None:
    """Raise TypeError for what is no mapping."""
    if not isinstance(mask, Mapping):
        kind = type(mask).__name__
        raise TypeError(f"{title} is a {kind}: it must be {{parameter name: bool tensor}}.")


def check_bools(mask: ByParameter, title: str = "The mask") -> None:
    """Raise TypeError for what is no mapping, ValueError unless it holds bool tensors."""
    check_mapping(mask, title)
    if not mask:
        raise ValueError(f"{title} is no mask: there is no tensor in it.")
    for name, kept in mask.items():
        if not isinstance(name, str):
            raise TypeError(f"{title} has the name {name!r}: it must be that of a parameter.")
        if not _described(kept).startswith("torch.bool") or not kept.numel():
            right = f"{name!r} must be a bool tensor, not {_described(kept)}"
            raise ValueError(f"{title} is no mask: {right}.")


def check_mask(model: nn.Module, mask: ByParameter) -> None:
    """Raise ValueError unless names, shapes and type fit the model, TypeError for no mapping."""
    check_model(model, values=False)
    check_mapping(mask)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, kept in mask.items():
        if f"{name}_orig" in parameters and f"{name}_mask" in buffers:
            raise ValueError(f"{name!r} {PRUNED_ALREADY}")
        if name not in parameters:
            absent = f"The mask has {name!r}, which the model has not"
            raise ValueError(f"{absent}: {meant(model, name)}")
        shape = tuple(parameters[name].shape)
        if _described(kept) != f"torch.bool {shape}":
            right = f"must be a bool tensor of shape {shape}, not {_described(kept)}"
            raise ValueError(f"The mask of {name!r} {right}.")


PRUNED_ALREADY = "is pruned already: make that permanent with torch.nn.utils.prune.remove."


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = "meta " * value.is_meta + "sparse " * (value.layout != torch.strided)
        return f"{kind}{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def apply_mask(model: nn.Module, mask: ByParameter) -> None:
    """Set the removed weights of a model to zero, in place.

    Raises:
        ValueError: for a mask that does not fit, or a weight that shares memory with another, or
            whose entries do.
    """
    _remove(model, mask)


def _remove(model: nn.Module, mask: ByParameter, by_the_way: bool = False) -> None:
    """As ``apply_mask``; without a trace for graphs that look at the weights' version."""
    check_mask(model, mask)
    weights = {name: model.get_parameter(name) for name in mask}
    for name, weight in weights.items():
        if any(n > 1 and not step for n, step in zip(weight.shape, weight.stride(), strict=True)):
            raise ValueError(f"{name!r} is expanded, its entries share memory: register a clone.")
    held: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)  # by memory
    for name, parameter in model.named_parameters():
        held[parameter.untyped_storage()._cdata].append((name, parameter))
    for name, weight in weights.items():
        for other, tensor in held[weight.untyped_storage()._cdata]:
            if tensor is not weight and overlap(tensor, weight):
                said = f"{name!r} shares its memory with {other!r}"
                raise ValueError(f"{said}: make them one parameter first.")
    for name, weight in weights.items():
        # What was made in inference mode can be written in it alone.
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            numbers: Tensor = weight.data if by_the_way else weight
            numbers.masked_fill_(~mask[name].to(weight.device), 0)


def overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors share memory."""
    if first.untyped_storage()._cdata != second.untyped_storage()._cdata:
        return False
    starts = [int(tensor.storage_offset()) for tensor in (first, second)]
    return starts[0] < starts[1] + second.numel() and starts[1] < starts[0] + first.numel()


def shuffle_within_layers(
    mask: ByParameter, generator: torch.Generator | None = None
) -> ByParameter:
    """Control: each layer's density at random positions (Frankle et al., 2021; Su et al., 2020)."""
    check_bools(mask)
    generator = generator_or_new(generator)
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    shuffled = {}
    for name, kept in mask.items():
        order = torch.randperm(kept.numel(), dtype=torch.int64, **options)
        shuffled[name] = kept.flatten()[order.to(kept.device)].view_as(kept)
    return shuffled


def invert_scores(scores: ByParameter) -> ByParameter:
    """Control: keep what the criterion would remove first (Frankle et al., 2021)."""
    inverted = {}
    for name, value in checked_scores(scores).items():
        signed = value if value.is_floating_point() else value.long()  # -1 as uint8 is 255
        inverted[name] = -signed
    return inverted


def layer_density(mask: ByParameter) -> dict[str, float]:
    """Fraction kept in each layer."""
    check_bools(mask)
    return {name: n / mask[name].numel() for name, n in host_numbers(torch.sum, mask).items()}


def collapsed_layers(mask: ByParameter) -> list[str]:
    """Names of the layers with no weight left."""
    check_bools(mask)
    return [name for name, alive in host_numbers(torch.any, mask).items() if not alive]


def sparsity_of(mask: ByParameter) -> float:
    """Fraction of the masked parameters' weights that is removed."""
    check_bools(mask)
    return 1 - count_kept(mask) / sum(kept.numel() for kept in mask.values())


def _check_same(first: ByParameter, second: ByParameter) -> None:
    shapes = [{name: np.shape(part) for name, part in parts.items()} for parts in (first, second)]
    if shapes[0] != shapes[1]:
        right = "their names and shapes must agree"
        raise ValueError(f"The two are not about the same parameters: {right}.")


def _kept_by_both(first: ByParameter, second: ByParameter) -> int:
    for mask in (first, second):
        check_bools(mask)
    _check_same(first, second)
    return count_kept({name: kept & second[name].to(kept.device) for name, kept in first.items()})


def jaccard(first: ByParameter, second: ByParameter) -> float:
    """Overlap of two masks: weights kept by both over weights kept by either.

    Raises:
        ValueError: for masks of different parameters, or that keep nothing.
    """
    both = _kept_by_both(first, second)
    either = count_kept(first) + count_kept(second) - both
    if not either:
        raise ValueError("Neither mask keeps a weight, so their overlap is not defined.")
    return both / either


def shared_fraction(first: ByParameter, second: ByParameter) -> float:
    """Fraction of what ``first`` keeps that ``second`` keeps too; by chance, ``second``'s density.

    Raises:
        ValueError: for masks of different parameters, or a first that keeps nothing.
    """
    both, kept = _kept_by_both(first, second), count_kept(first)
    if not kept:
        raise ValueError("The first mask keeps no weight, so there is nothing to share.")
    return both / kept


def rank_correlation(first: ByParameter, second: ByParameter) -> float:
    """Spearman's rank correlation of two score maps over all weights together.

    Raises:
        ValueError: for scores of different parameters, or that are all equal, NaN or infinite.
    """
    from scipy.stats import spearmanr

    for scores in (first, second):
        if not isinstance(scores, Mapping):
            checked_scores(scores)  # which says so
    _check_same(first, second)
    flat = []
    for scores in (checked_scores(first), checked_scores(second)):
        flat.append(torch.cat([scores[name].flatten().double().cpu() for name in first]))
        if flat[-1].amin() == flat[-1].amax():
            raise ValueError("All scores of one of the two are equal: they have no ranks.")
    return float(spearmanr(*flat).statistic)
