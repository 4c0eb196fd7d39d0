"""Which rows of a layer belong to which sample, where its operations do not say: told by gradients.

Gradients are linear in what comes back from the logits, and a power of two scales them without
rounding: where the seed of sample n is scaled by 2ⁿ, the rows of sample n are scaled by 2ⁿ, and a
row of several samples by no such number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import Use

EXPONENTS = 64  # samples that one pass tells apart: float32 holds 2⁶³ beside its gradients


class Order(IntEnum):
    """How the rows of a layer lie."""

    SAMPLES_FIRST = 0  # as samples × positions
    POSITIONS_FIRST = 1  # as positions × samples
    RAGGED = 2  # as the owner of each row says


class Layout(NamedTuple):
    """How to bring the rows of a layer into the order of their samples."""

    permutation: Tensor | None = None  # where they do not lie so; rows without a gradient left out
    counts: list[int] | None = None  # rows of each sample, where not all have as many


class Owners(NamedTuple):
    """The sample of each row of a layer, and single bools that nobody has read yet."""

    samples: Tensor  # -1 for a row without a gradient
    fits: Tensor  # of each order: whether the rows lie so, and none belongs to several samples


def find_owners(
    logits: Tensor, uses: Sequence[Use], seed: Tensor, keep_graph: bool
) -> tuple[list[Owners], tuple[Tensor, ...]]:
    """Find the owners of the rows of uses, and the gradients there for a seed at the logits."""
    samples = torch.arange(len(logits), device=logits.device)
    exact = [2.0**i for i in range(EXPONENTS)]
    powers = torch.tensor(exact, dtype=logits.dtype, device=logits.device)
    scaled = []
    for place in range(max(1, math.ceil(math.log(len(logits), EXPONENTS)))):
        digits = samples // EXPONENTS**place % EXPONENTS
        gradients = back(logits, uses, seed * powers[digits, None], True)
        scaled.append(_signatures(uses, gradients))
    gradients = back(logits, uses, seed, keep_graph)
    plain = _signatures(uses, gradients)
    owners = []
    for signature, *others in zip(plain, *scaled, strict=True):
        owners.append(_owners(signature, others, powers, len(logits)))
    return owners, gradients


def back(logits: Tensor, uses: Sequence[Use], seed: Tensor, keep_graph: bool) -> tuple[Tensor, ...]:
    """Gradients at the outputs of uses, for one at the logits."""
    edges = [use.edge for use in uses]
    return torch.autograd.grad(
        logits, edges, seed.to(logits), retain_graph=keep_graph, materialize_grads=True
    )


def _signatures(uses: Sequence[Use], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Two numbers a row of each gradient, rows × 2: one that is linear in the row, and its norm."""
    pairs = []
    for use, gradient in zip(uses, gradients, strict=True):
        rows = gradient.flatten(1) if use.channel_axis == 1 else gradient.flatten(0, -2)  # rows × …
        weights = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device).cos_()
        pairs.append(torch.stack([rows @ weights, torch.linalg.vector_norm(rows, dim=1)], 1))
    return pairs


def _owners(plain: Tensor, scaled: list[Tensor], powers: Tensor, samples: int) -> Owners:
    """Owners of rows with these signatures, scaled by 2 to a digit of the sample, lowest first."""
    (value, norm), info = plain.unbind(1), torch.finfo(plain.dtype)
    alive = norm > info.tiny / info.eps  # the square of less is zero
    owner = torch.zeros_like(value, dtype=torch.int64)
    single = torch.isfinite(norm).all()
    for place, signature in enumerate(scaled):
        value_scaled = signature[:, 0]
        exponent = (value_scaled / value).abs().log2().round().nan_to_num(0)
        digit = exponent.clamp(0, EXPONENTS - 1).long()
        error = (value_scaled - value * powers[digit]).abs()
        exact = error <= 1e3 * info.eps * norm * powers[digit]
        single = single & (exact | ~alive).all()
        owner = owner + digit * EXPONENTS**place
    owner = torch.where(alive, owner, -1)
    single = single & (owner < samples).all()
    owner = owner.clamp(max=samples - 1)
    row, dead = torch.arange(len(owner), device=owner.device), owner == -1
    even = single & (len(owner) % samples == 0)
    samples_first = even & ((owner == row // max(1, len(owner) // samples)) | dead).all()
    positions_first = even & ((owner == row % samples) | dead).all()
    return Owners(owner, torch.stack([samples_first, positions_first, single]))


def layout_of(owner: Tensor, order: Order, samples: int) -> Layout:
    """Make the layout of rows that lie in an order, known from the sample of each."""
    if order == Order.SAMPLES_FIRST:
        return Layout()
    if order == Order.POSITIONS_FIRST:
        row = torch.arange(len(owner), device=owner.device)
        return Layout(row.view(-1, samples).T.flatten())
    dead, *counts = (owner + 1).bincount(minlength=samples + 1).cpu().tolist()
    return Layout(owner.argsort(stable=True)[dead:], counts)


def grouped(groups: list[slice], layout: Layout, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The rows of each group of samples, along the first axis of several tensors."""
    if len(groups) == 1:
        return [tensors]
    if layout.permutation is not None:
        tensors = tuple(rows[layout.permutation] for rows in tensors)
    samples = groups[-1].stop
    counts = layout.counts or [len(tensors[0]) // samples] * samples
    lengths = [sum(counts[group]) for group in groups]
    return zip(*(rows.split(lengths) for rows in tensors), strict=True)
