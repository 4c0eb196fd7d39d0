"""Scores to masks: ranking, rounds, controls, and what a mask looks like.

A mask is ``{parameter name: bool tensor}`` with True = kept, over prunable parameters only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Unpack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.overrides import TorchFunctionMode

from .criteria import ScoreOptions, get_criterion, score
from .data import Batch
from .derivatives import ByParameter, problem_at, synaptic_flow
from .graph import find_uses
from .models import resolve_parameters
from .parameters import checked_keywords, nearest
from .progress import Bar, steps

SCOPES = ("global", "layer", "erk")


class SparsityWarning(UserWarning):
    """A tensor keeps more weights than the sparsity asks for, since it must keep one."""


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless 0 ≤ sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity}: it must be at least 0 and below 1, the fraction removed.")


@checked_keywords
def make_mask(scores: ByParameter, sparsity: float, scope: str = "global") -> ByParameter:
    """Keep the k = max(1, int((1 − s)·n)) weights with the highest scores; ties go to the earlier position.

    Args:
        scores: ``{parameter name: scores}``, finite, higher = keep.
        sparsity: s, fraction of weights removed, 0 ≤ s < 1.
        scope: ``"global"`` ranks all weights together; ``"layer"`` each tensor by itself; ``"erk"`` each tensor
            at the Erdős–Rényi-kernel density, ∝ (Σ of its dimensions)/(their product) (Evci et al., 2020).

    Returns:
        ``{parameter name: bool tensor}``, True = kept.

    Raises:
        ValueError: for no scores, NaN or infinite scores, a sparsity outside [0, 1) or an unknown scope.

    >>> make_mask({"w": torch.tensor([3.0, 1.0, 2.0, 0.0])}, sparsity=0.5)
    {'w': tensor([ True, False,  True, False])}
    """
    check_sparsity(sparsity)
    check_scope(scope)
    _check_scores(scores)
    return _ranked(scores, 1.0 - sparsity, scope)


def check_scope(scope: str) -> None:
    """Raise ValueError unless the scope is known."""
    if scope not in SCOPES:
        raise ValueError(f"Unknown scope {scope!r}: {nearest(scope, SCOPES)}")


def _check_scores(scores: ByParameter) -> None:
    if not scores:
        raise ValueError("There are no scores to make a mask from.")
    for name, value in scores.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"The scores of {name!r} hold NaN or infinite values.")


def _ranked(scores: ByParameter, density: float, scope: str) -> ByParameter:
    if scope == "global":
        flat = torch.cat([value.flatten() for value in scores.values()])
        kept = _keep_highest(flat, _count(density, flat.numel(), "all prunable weights together"))
        parts = kept.split([value.numel() for value in scores.values()])
        return {n: part.view_as(value) for (n, value), part in zip(scores.items(), parts, strict=True)}
    densities = dict.fromkeys(scores, density) if scope == "layer" else _erk_densities(scores, density)
    return {
        name: _keep_highest(value.flatten(), _count(densities[name], value.numel(), name)).view_as(value)
        for name, value in scores.items()
    }


def _count(density: float, total: int, what: str) -> int:
    wanted = int(density * total)  # in doubles: the paper's rounding
    if wanted < 1:
        warnings.warn(
            f"A density of {density:.3g} keeps no weight of {what} ({total} weights): one is kept.",
            SparsityWarning,
            stacklevel=5,
        )
    return max(1, wanted)


def _keep_highest(flat: Tensor, k: int) -> Tensor:
    """Mask of the k highest values; of equal ones the earlier. Linear time: selection, no sort."""
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat > threshold
    ties = (flat == threshold).nonzero()[: k - int(kept.sum()), 0]
    kept[ties] = True
    return kept


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
    removed fraction to k/n, so that the first round already removes almost everything.

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
    """
    check_sparsity(sparsity)
    check_scope(scope)
    rule = get_criterion(key, variant)
    rounds = rule.rounds if rounds is None else rounds
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: it must be at least 1.")
    options["parameters"] = resolve_parameters(
        model, options.get("parameters", "prunable")
    )  # once, for all rounds
    if rounds > 1:
        options["remember"] = None  # the weights change from round to round
    mask: ByParameter = {}
    originals = {name: p.detach().clone() for name, p in model.named_parameters()} if rounds > 1 else {}
    bar = Bar("pruning", options.get("progress", True))
    try:
        for k in steps(range(1, rounds + 1), "round"):
            scores = score(model, batch, key, variant=variant, **options)
            _check_scores(scores)
            for name, kept in mask.items():  # what is gone stays gone, whatever its score
                scores[name] = scores[name].masked_fill(~kept, -torch.inf)
            with warnings.catch_warnings():
                if k == rounds:
                    return _ranked(scores, 1.0 - sparsity, scope)
                warnings.simplefilter("ignore", SparsityWarning)  # the last round tells
                released = key == "synflow" and variant == "released"
                density = 1 - sparsity ** (k / rounds) if released else (1 - sparsity) ** (k / rounds)
                mask = _ranked(scores, density, scope)
            apply_mask(model, mask)
    finally:
        bar.close()
        with torch.no_grad():
            for name, original in originals.items():
                model.get_parameter(name).copy_(original)
    raise AssertionError("the last round returns")


def check_mask(model: nn.Module, mask: ByParameter) -> None:
    """Raise ValueError unless the mask's names, shapes and type fit the model."""
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        if name not in parameters:
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


def to_torch_prune(model: nn.Module, mask: ByParameter) -> nn.Module:
    """Attach a mask in the form of ``torch.nn.utils.prune``: ``weight_orig`` and ``weight_mask``."""
    check_mask(model, mask)
    for name, kept in mask.items():
        module, _, parameter = name.rpartition(".")
        torch_prune.custom_from_mask(model.get_submodule(module), parameter, kept)
    return model


def shuffle_within_layers(mask: ByParameter, generator: torch.Generator | None = None) -> ByParameter:
    """Control: the same density in each layer, at random positions (Frankle et al., 2021; Su et al., 2020)."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return {
        name: kept.flatten()[torch.randperm(kept.numel(), generator=generator).to(kept.device)].view_as(kept)
        for name, kept in mask.items()
    }


def invert_scores(scores: ByParameter) -> ByParameter:
    """Control: keep what the criterion would remove first (Frankle et al., 2021)."""
    return {name: -value for name, value in scores.items()}


def layer_density(mask: ByParameter) -> dict[str, float]:
    """Fraction kept in each layer."""
    return {name: kept.float().mean().item() for name, kept in mask.items()}


def collapsed_layers(mask: ByParameter) -> list[str]:
    """Names of the layers with no weight left."""
    return [name for name, kept in mask.items() if not bool(kept.any())]


def sparsity_of(mask: ByParameter) -> float:
    """Fraction of the masked parameters' weights that is removed."""
    total = sum(kept.numel() for kept in mask.values())
    return 1 - sum(int(kept.sum()) for kept in mask.values()) / total


def effective_sparsity(model: nn.Module, mask: ByParameter, batch: Batch) -> float:
    """Sparsity counting also the weights that no path from input to output uses (Vysogorets & Kempe, 2023).

    A weight is on a path if positive flow passes it when every kept weight and every other scale is 1 and every
    shift, token and position embedding is 0. A maximum passes flow from all its inputs, a layer norm unit by unit,
    attention from its values and from queries and keys where both are alive. Only the batch's input shape matters.
    Raises ValueError where another operation lets no flow pass.
    """
    check_mask(model, mask)

    def used(kept: ByParameter) -> ByParameter:
        with _EveryPath():
            flow = synaptic_flow(model, batch, parameters=list(mask), state=_connections(model, kept))
        return {name: value > 0 for name, value in flow.items()}

    for name, reached in used({name: torch.ones_like(kept) for name, kept in mask.items()}).items():
        if not bool(reached.flatten(1).any(1).all()):  # units that nothing reaches, although all is kept
            raise ValueError(
                f"Flow does not pass {name!r} even in the whole network (an operation stops it), "
                "so the effective sparsity of this model cannot be told."
            )
    on_path = sum(int(value.sum()) for value in used(mask).values())
    return 1 - on_path / sum(kept.numel() for kept in mask.values())


def flops_left(model: nn.Module, mask: ByParameter, batch: Batch) -> float:
    """Fraction of the masked layers' multiply-adds that is left: a weight costs one an output position.

    What hardware could save at most if it skipped every removed weight; only the batch's input shape matters.
    Early layers of a convolutional network have few weights and many positions, so it is not the density.
    """
    check_mask(model, mask)
    with problem_at(model, Batch(batch.inputs[:1], batch.labels[:1]), 1.0, list(mask)) as problem:
        uses = find_uses(problem.logits(slice(0, 1)), problem.theta)
    left = whole = 0
    for name, use in uses.items():
        shape = use.edge.node._input_metadata[0].shape  # 1×channels×… or …×channels, of the layer's output
        positions = math.prod(shape) // shape[use.channel_axis]
        left += positions * int(mask[name].sum())
        whole += positions * mask[name].numel()
    return left / whole


def _bounded(flow: Tensor, *_: Any, **__: Any) -> Tensor:
    """Flow over its largest entry, so that products do not overflow."""
    return flow / flow.detach().amax().clamp(min=1)


_FLOW: dict[str, Any] = {
    "layer_norm": _bounded,
    "softmax": lambda scores, *_, **__: 1 + _bounded(scores),  # uniform, and more where query and key meet
    "scaled_dot_product_attention": lambda query, key, value, *_, **__: (1 + _bounded(query @ key.mT)) @ value,
}


class _EveryPath(TorchFunctionMode):
    """Operations that stop flow, although a path leads through them, let it pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        kind, dimensions = name[:-2], name[-2:]
        if kind == "adaptive_max_pool" and dimensions in ("1d", "2d", "3d"):
            return getattr(F, name.replace("max", "avg"))(args[0], kwargs.get("output_size", args[-1]))
        if kind == "max_pool" and kwargs.get("dilation", 1) in (1, (1, 1)) and len(args) < 5:
            windows = dict(zip(("kernel_size", "stride", "padding"), args[1:4], strict=False))
            windows |= {k: v for k, v in kwargs.items() if k in ("kernel_size", "stride", "padding", "ceil_mode")}
            return getattr(F, name.replace("max", "avg"))(args[0], **windows)
        if name == "multi_head_attention_forward":  # it calls two of them where this mode does not see it
            with patch.multiple(F, **{key: _FLOW[key] for key in ("softmax", "scaled_dot_product_attention")}):
                return func(*args, **kwargs)
        return _FLOW.get(name, func)(*args, **kwargs)


_ZERO = {"bias", "running_mean", "in_proj_bias", "class_token", "cls_token", "pos_embedding", "pos_embed"}


def _connections(model: nn.Module, mask: ByParameter) -> ByParameter:
    state = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            zero = name.rpartition(".")[2] in _ZERO
            state[name] = torch.zeros_like(tensor) if zero else torch.ones_like(tensor)
    return {**state, **{name: kept.to(state[name]) for name, kept in mask.items()}}


def _check_same(first: ByParameter, second: ByParameter) -> None:
    if {n: v.shape for n, v in first.items()} != {n: v.shape for n, v in second.items()}:
        raise ValueError("The two are not about the same parameters: their names and shapes must agree.")


def jaccard(first: ByParameter, second: ByParameter) -> float:
    """Overlap of two masks: weights kept by both over weights kept by either."""
    _check_same(first, second)
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    return both / sum(int((first[name] | second[name]).sum()) for name in first)


def shared_fraction(first: ByParameter, second: ByParameter) -> float:
    """Fraction of the weights kept by ``first`` that ``second`` keeps too; by chance, ``second``'s density."""
    _check_same(first, second)
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    return both / sum(int(kept.sum()) for kept in first.values())


def rank_correlation(first: ByParameter, second: ByParameter) -> float:
    """Spearman's rank correlation of two score maps over all weights together."""
    from scipy.stats import spearmanr

    _check_same(first, second)

    def flat(scores: ByParameter, names: Iterable[str]) -> Tensor:
        return torch.cat([scores[name].flatten().double().cpu() for name in names])

    return float(spearmanr(flat(first, first), flat(second, first)).statistic)
