"""Sums of squared gradients, group by group of samples, each layer from what the autograd graph holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..progress import steps
from .graph import EXPONENTS, Layout, Use, find_uses, lies, owners, signatures, squared_gradients
from .operations import keeps_samples_apart
from .problem import MIXED, Problem, size


class Squares:
    """Σ over groups of samples, and over seeds, of squared gradients; seeds are gradients at the logits.

    Where operations alone do not prove which rows of a layer belong to which sample, it is found in
    the first piece of the batch and verified in all of them, on the device. If one does not fit,
    which is read at the end, all is done once more with a look at each piece.

    Args:
        problem: the loss.
        seeds: ``(logits, slice of the samples, size of each one's group)`` to a list of seeds n×C.
    """

    def __init__(self, problem: Problem, seeds: Callable[[Tensor, slice, list[int]], list[Tensor]]):
        self.problem, self.seeds = problem, seeds
        self.layouts: dict[str, Layout] = {}
        self.sound: list[Tensor] = []  # single bools, not read yet
        self.careful = False  # look at each piece

    def total(self, pieces: list[list[slice]]) -> list[Tensor]:
        """Sum over pieces of the batch, each of them groups that are adjacent."""
        total = [torch.zeros_like(leaf) for leaf in self.problem.leaves]
        for groups in steps(pieces, "piece"):
            part = slice(groups[0].start, groups[-1].stop)
            logits = self.problem.logits(part, watch=len(groups) > 1)  # n × C
            uses = find_uses(logits, self.problem.theta)
            seeds = self.seeds(logits, part, [size(g) for g in groups for _ in range(size(g))])
            if len(groups) > 1 and not self.layouts:
                self.problem.check_companions(logits, part.start)
            self.add(
                logits,
                uses,
                seeds,
                [slice(g.start - part.start, g.stop - part.start) for g in groups],
                total,
            )
        if self.sound and not bool(torch.stack(self.sound).all()):
            self.sound, self.careful = [], True
            return self.total(pieces)
        return total

    def add(
        self,
        logits: Tensor,
        uses: dict[str, Use],
        seeds: list[Tensor],
        groups: list[slice],
        total: list[Tensor],
    ) -> None:
        """Add the squares of one piece."""
        edges = [use.edge for use in uses.values()]
        layouts, grads = dict.fromkeys(uses, Layout()), None
        if len(groups) > 1 and not keeps_samples_apart(logits, uses.values(), self.problem.watched):
            layouts, grads = self.find_layouts(logits, uses, seeds)
        for i, seed in enumerate(seeds):
            if grads is None or i:
                keep = i + 1 < len(seeds)
                grads = torch.autograd.grad(
                    logits, edges, seed.to(logits), retain_graph=keep, materialize_grads=True
                )
            with torch.no_grad():  # the graph's own tensors would otherwise record every square
                for (name, use), grad, out in zip(uses.items(), grads, total, strict=True):
                    out += squared_gradients(use, grad, groups, layouts[name])
            grads = None
            del grad  # before the next pass makes its own

    def find_layouts(
        self, logits: Tensor, uses: dict[str, Use], seeds: list[Tensor]
    ) -> tuple[dict[str, Layout], tuple[Tensor, ...] | None]:
        """Layout of each use in this piece; and, of a single seed, the gradients at the uses."""
        n, layouts = len(logits), {}
        marks, grads = self.marks(logits, uses, seeds)  # of uses, then of inputs
        own = [
            torch.stack([owner.amin() >= 0, sound & first])
            for owner, sound, first, _ in marks[len(uses) :]
        ]
        if self.careful or not self.layouts:
            table = (
                torch.stack([torch.stack(mark[1:]) for mark in marks[: len(uses)]]).cpu().tolist()
            )
            self.check_inputs(own)
            for (name, use), (owner, *_), (sound, first, fastest) in zip(
                uses.items(), marks[: len(uses)], table, strict=True
            ):
                if not sound:
                    raise ValueError(
                        f"Cannot tell which inputs of the layer of {name!r} belong to which sample (or each "
                        "belongs to several): leave it out with parameters=[...]."
                    )
                regular = Layout(use.rows // n, not first)
                self.layouts[name] = regular if first or fastest else Layout(owner=owner)
            return dict(self.layouts), grads
        for (name, use), mark in zip(uses.items(), marks[: len(uses)], strict=True):
            known, (owner, sound, first, fastest) = self.layouts[name], mark
            if known.owner is None and use.rows % n == 0:
                layouts[name] = Layout(use.rows // n, known.fastest)
                sound = sound & (fastest if known.fastest else first)
            else:
                layouts[name] = Layout(owner=owner)
            self.sound.append(sound)
        self.sound += [flags[1] if self.problem.independent else flags.all() for flags in own]
        return layouts, grads

    def check_inputs(self, own: list[Tensor]) -> None:
        """Raise ValueError if a sample's input reaches other logits; if one reaches none, look at all samples."""
        flags = torch.stack(own).cpu().tolist() if own else []
        if not all(sound for _, sound in flags):
            raise ValueError(MIXED)
        if not all(alive for alive, _ in flags):  # as if tokens were passed as real numbers
            self.problem.check_independent()

    def marks(
        self, logits: Tensor, uses: dict[str, Use], seeds: list[Tensor]
    ) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        """What `owners` and `lies` tell of the rows of each use and input; gradients as ``find_layouts``."""
        n, alone = len(logits), len(seeds) == 1
        seed = torch.stack([math.cos(i) * seed for i, seed in enumerate(seeds)]).sum(
            0
        )  # of one, itself
        edges = [use.edge for use in uses.values()] + self.problem.watched
        axes = [use.channel_axis for use in uses.values()] + [1] * len(self.problem.watched)

        scaled = []
        for place in range(max(1, math.ceil(math.log(n, EXPONENTS)))):
            factors = [2.0 ** (i // EXPONENTS**place % EXPONENTS) for i in range(n)]
            factor = torch.tensor(factors, dtype=logits.dtype, device=logits.device)[:, None]
            scaled.append(signatures(_back(logits, edges, seed * factor, True), axes))
        grads = _back(logits, edges, seed, not alone)
        marks: list[tuple[Tensor, ...]] = []
        for plain, *others in zip(signatures(grads, axes), *scaled, strict=True):
            owner, sound = owners(plain, others, n)
            marks.append((owner, sound, lies(owner, n, False), lies(owner, n, True)))
        return marks, grads[: len(uses)] if alone else None


def _back(
    logits: Tensor, edges: list[GradientEdge], seed: Tensor, keep: bool
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        logits, edges, seed.to(logits), retain_graph=keep, materialize_grads=True
    )
