"""Sums of squared gradients, group by group of samples, each layer from what the graph holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..progress import steps
from .graph import Use, find_uses
from .operations import keeps_samples_apart
from .problem import Problem
from .rows import Layout, Order, Owners, back, find_owners, grouped, layout_of

Seeds = Callable[[Tensor, slice], list[Tensor]]
FEW_POSITIONS = 32  # of a convolution's output: so many are quicker as one product a sample


def summed_squares(
    problem: Problem, pieces: list[list[slice]], seeds: Seeds, careful: bool = False
) -> list[Tensor]:
    """Σ over groups of samples, and over seeds, of squared gradients, for each leaf of a problem.

    Where operations alone do not prove which rows of a layer belong to which sample, their order is
    found in the first piece and verified in all of them, on the device. If it is another one in
    some piece, which is read at the end, all is done once more with a look at each.

    Args:
        problem: the loss.
        pieces: groups of samples that are adjacent, for one forward pass each.
        seeds: gives for logits n×C, and the samples that they are of, gradients at these logits.
        careful: look at each piece.
    """
    total = problem.zeros()
    orders = _Orders(careful)
    for groups in steps(pieces, "piece"):
        _add_piece(total, problem, groups, seeds, orders)
    if orders.unread and not bool(torch.stack(orders.unread).all()):
        return summed_squares(problem, pieces, seeds, careful=True)
    return total


class _Orders:
    """How the rows of each layer lie: read in the first piece or in all, else still to be read."""

    def __init__(self, careful: bool):
        self.careful = careful
        self.orders: dict[str, Order] = {}
        self.unread: list[Tensor] = []  # single bools: whether rows lie as they did

    def layouts(self, owners: dict[str, Owners], samples: int) -> list[Layout]:
        """Layouts of a piece; ValueError for rows that belong to several samples."""
        if self.careful or not owners.keys() <= self.orders.keys():
            table = torch.stack([rows.fits for rows in owners.values()]).cpu().tolist()
            for name, fits in zip(owners, table, strict=True):
                if not any(fits):
                    raise ValueError(
                        f"Cannot tell which inputs of the layer of {name!r} belong to which sample "
                        "(or each belongs to several): leave it out with parameters=[...]."
                    )
                self.orders[name] = Order(fits.index(True))
        layouts = []
        for name, (owner, fits) in owners.items():
            order = self.orders[name] if len(owner) % samples == 0 else Order.RAGGED
            self.unread.append(fits[order])
            layouts.append(layout_of(owner, order, samples))
        return layouts


def _add_piece(
    total: list[Tensor], problem: Problem, groups: list[slice], make_seeds: Seeds, orders: _Orders
) -> None:
    """Add the squares of the samples of one forward pass."""
    part = slice(groups[0].start, groups[-1].stop)
    groups = [slice(group.start - part.start, group.stop - part.start) for group in groups]
    logits = problem.independent_logits(part) if len(groups) > 1 else problem.logits(part)
    named = find_uses(logits, problem.theta)
    problem.reached.update(named)
    if not named:  # a piece may miss an expert
        return
    total = [out for out, name in zip(total, problem.theta, strict=True) if name in named]
    uses, layouts = list(named.values()), [Layout()] * len(named)
    seeds = make_seeds(logits, part)

    def add(gradients: Sequence[Tensor]) -> None:
        with torch.no_grad():  # the graph's own tensors would otherwise record every square
            for out, use, gradient, layout in zip(total, uses, gradients, layouts, strict=True):
                out += squared_gradients(use, gradient, groups, layout)

    if len(groups) > 1 and not keeps_samples_apart(logits, uses):
        mixture = torch.stack([seed * math.cos(i) for i, seed in enumerate(seeds)]).sum(0)
        owners, gradients = find_owners(logits, uses, mixture, keep_graph=len(seeds) > 1)
        layouts = orders.layouts(dict(zip(named, owners, strict=True)), len(logits))
        if len(seeds) == 1:  # of one seed, the mixture is the seed
            add(gradients)
            return
        del gradients
    for i, seed in enumerate(seeds, start=1):
        add(back(logits, uses, seed, keep_graph=i < len(seeds)))


def squared_gradients(use: Use, gradient: Tensor, groups: list[slice], layout: Layout) -> Tensor:
    """Σ over groups of (Σ over the group's samples of the parameter's gradient)², in its shape.

    A convolution or token layer costs one weight gradient a group, small enough to stay in cache,
    and one copy of the weight; a linear layer with one row a sample needs (g ⊗ a)² = g² ⊗ a², a
    single product.

    Args:
        use: where the parameter was used.
        gradient: loss gradient at the output of that use.
        groups: slices of the sample axis that cover it.
        layout: which rows belong to which sample.
    """
    if use.kind == "channel":
        product = gradient if use.inputs is None else gradient * use.inputs
        if use.channel_axis == 1 and product.ndim > 2:
            product = product.flatten(2).sum(2)
        parts = grouped(groups, layout, product.flatten(0, -2))  # rows × channels
        return torch.stack([rows.sum(0) for (rows,) in parts]).square_().sum(0)
    assert use.inputs is not None  # only a bias has none
    if use.kind == "convolution":
        return _convolution_squares(use, use.inputs, gradient, groups, layout)
    g, a = gradient.flatten(0, -2), use.inputs.flatten(0, -2)  # rows × out, rows × in
    if len(groups) == len(g) and layout.permutation is None:  # a sample a group, a row a sample
        return g.square().T @ a.square()
    total = torch.zeros_like(use.parameter)
    for g_rows, a_rows in grouped(groups, layout, g, a):
        total += (g_rows.T @ a_rows).square_()
    return total


def _convolution_squares(
    use: Use, inputs: Tensor, gradient: Tensor, groups: list[slice], layout: Layout
) -> Tensor:
    stride, padding, dilation, channel_groups = use.options
    total = torch.zeros_like(use.parameter)
    few = gradient.ndim == 4 and gradient.shape[2:].numel() <= FEW_POSITIONS
    if few and channel_groups == 1:
        inputs = F.unfold(inputs, total.shape[2:], dilation, padding, stride)
        gradient = gradient.flatten(2)  # rows × out × positions, as inputs rows × in·kernel × …
        # out × in·kernel, not total.flatten(1): of a weight in channels_last that is a copy
        flat, product = gradient.new_zeros(2, len(total), total[0].numel())
        for g, a in grouped(groups, layout, gradient, inputs):
            g, a = g.transpose(0, 1).flatten(1), a.transpose(0, 1).flatten(1)  # … × rows·positions
            flat.addcmul_(torch.mm(g, a.T, out=product), product)
        return flat.view(total.shape)
    options = stride, padding, dilation, False, [0] * len(stride), channel_groups
    for g, a in grouped(groups, layout, gradient, inputs):
        if len(g):  # a group may have no row
            _, weight, _ = torch.ops.aten.convolution_backward(
                g, a, use.parameter, None, *options, [False, True, False]
            )
            total.addcmul_(weight, weight)
    return total
