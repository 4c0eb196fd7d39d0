"""Diagonals of the empirical Fisher, the generalised Gauss-Newton matrix and the Hessian.

Loss, conventions and guarantees are those of ``pai_lib.derivatives``. Squared gradients are contracted layer
by layer from the inputs and output gradients that the autograd graph holds: by-sample gradients are never
stored for more than one group of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from .data import Batch
from .derivatives import (
    MIXED,
    TWICE,
    ByParameter,
    Problem,
    chunks,
    hessian_products,
    problem_at,
    size,
    summed_gradient,
)
from .graph import EXPONENTS, Layout, Use, find_uses, lies, owners, signatures, squared_gradients
from .operations import curved_operation, keeps_samples_apart
from .parameters import checked_keywords


def _groups(problem: Problem, group: int | None) -> list[slice]:
    n = problem.samples
    group = n if group is None else group
    if not group >= 1:
        raise ValueError(f"group={group}: a group holds at least 1 sample.")
    return [slice(i, min(i + group, n)) for i in range(0, n, group)]


@checked_keywords
def fisher_diag(
    model: nn.Module,
    batch: Batch,
    group: int | None = 1,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    chunk: int | None = None,
) -> ByParameter:
    """Diagonal of the empirical Fisher, F̂ᵢᵢ = (1/G) Σ over G groups of (∂ᵢ of the group's mean loss)².

    With ``group=1`` it is the mean of squared per-sample gradients; on what it is not: Kunstner et al., 2019.
    Groups above 1 square averaged gradients: another, smaller quantity. Samples are grouped in their order;
    a last, smaller group counts as one group.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        group: samples whose loss is averaged before squaring; ``None`` is the whole batch.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        chunk: samples a forward pass.

    Returns:
        ``{name: F̂ of the parameter's shape}``, in loss² a weight². Cost: one forward and backward pass in
        which the weight gradients are formed group by group and never stored (after Goodfellow, 2015).

    Raises:
        ValueError: as in ``gradient``, and if a parameter is used twice or in a way not understood.
    """
    with problem_at(model, batch, temperature, parameters) as problem:
        groups = _groups(problem, group)
        limit = size(chunks(problem, chunk)[0])
        if size(groups[0]) > limit:  # a group that does not fit is summed first
            total = [torch.zeros_like(leaf) for leaf in problem.leaves]
            for part in groups:
                grads = summed_gradient(problem, part, chunk)
                torch._foreach_addcmul_(total, grads, grads, 1 / len(groups))
            return problem.mapped(total)

        def residual(logits: Tensor, part: slice, sizes: list[int]) -> list[Tensor]:
            seed = logits.detach().softmax(1) - F.one_hot(problem.labels[part], logits.shape[1])
            return [seed / torch.tensor(sizes, dtype=seed.dtype, device=seed.device)[:, None]]

        total = _Squares(problem, residual).total(_packed(groups, limit))
        return problem.mapped(torch._foreach_div(total, len(groups)))


def _packed(groups: list[slice], limit: int) -> list[list[slice]]:
    per_pass = max(1, limit // size(groups[0]))
    return [groups[i : i + per_pass] for i in range(0, len(groups), per_pass)]


class _Squares:
    """Σ over groups of samples, and over seeds, of squared gradients; seeds are gradients at the logits.

    Where operations alone do not prove which rows of a layer belong to which sample, it is found in the first
    piece of the batch and verified in all of them, on the device. If one does not fit, which is read at the end,
    all is done once more with a look at each piece.

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
        for groups in pieces:
            part = slice(groups[0].start, groups[-1].stop)
            logits = self.problem.logits(part, watch=len(groups) > 1)  # n × C
            uses = find_uses(logits, self.problem.theta)
            seeds = self.seeds(logits, part, [size(g) for g in groups for _ in range(size(g))])
            if len(groups) > 1 and not self.layouts:
                self.problem.check_companions(logits, part.start)
            self.add(
                logits, uses, seeds, [slice(g.start - part.start, g.stop - part.start) for g in groups], total
            )
        if self.sound and not bool(torch.stack(self.sound).all()):
            self.sound, self.careful = [], True
            return self.total(pieces)
        return total

    def add(
        self, logits: Tensor, uses: dict[str, Use], seeds: list[Tensor], groups: list[slice], total: list[Tensor]
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
        own = [torch.stack([owner.amin() >= 0, sound & first]) for owner, sound, first, _ in marks[len(uses) :]]
        if self.careful or not self.layouts:
            table = torch.stack([torch.stack(mark[1:]) for mark in marks[: len(uses)]]).tolist()
            self.check_inputs(own)
            for (name, use), (owner, *_), (sound, first, fastest) in zip(
                uses.items(), marks[: len(uses)], table, strict=True
            ):
                if not sound:
                    raise ValueError(f"Cannot tell which inputs of the layer of {name!r} belong to which sample.")
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
        flags = torch.stack(own).tolist() if own else []
        if not all(sound for _, sound in flags):
            raise ValueError(MIXED)
        if not all(alive for alive, _ in flags):  # as if tokens were passed as real numbers
            self.problem.check_independent()

    def marks(
        self, logits: Tensor, uses: dict[str, Use], seeds: list[Tensor]
    ) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        """What `owners` and `lies` tell of the rows of each use and input; gradients as ``find_layouts``."""
        n, alone = len(logits), len(seeds) == 1
        seed = torch.stack([math.cos(i) * seed for i, seed in enumerate(seeds)]).sum(0)  # of one, itself
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


def _back(logits: Tensor, edges: list[GradientEdge], seed: Tensor, keep: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(logits, edges, seed.to(logits), retain_graph=keep, materialize_grads=True)


@checked_keywords
def ggn_diag(
    model: nn.Module,
    batch: Batch,
    mode: str = "exact",
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> ByParameter:
    """Diagonal of the generalised Gauss-Newton matrix (1/N) Σₙ JₙᵀSₙSₙᵀJₙ (Schraudolph, 2002).

    J is the Jacobian of the logits/T and SSᵀ = diag(p) − p pᵀ the curvature of the cross-entropy there; S has
    C − 1 columns (Tanabe & Sagae, 1992). For this loss it is also the (true) Fisher. Never negative.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``; the labels do not matter.
        mode: ``"exact"`` sums over all C classes; ``"mc"`` draws one label a sample from the model, which is
            unbiased and C times cheaper.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        generator: for ``"mc"``; ``None`` is a new one with seed 0.
        chunk: samples a forward pass.

    Returns:
        ``{name: diagonal of the parameter's shape}``. Cost: C − 1 (or 1) backward passes of ``fisher_diag``.

    Raises:
        ValueError: as in ``fisher_diag``, and for another mode.
    """
    if mode not in ("exact", "mc"):
        raise ValueError(f'mode={mode!r}: it must be "exact" or "mc".')
    return _ggn_diag(model, batch, mode, temperature, parameters, generator, chunk)


@checked_keywords
def exact_diag(
    model: nn.Module,
    batch: Batch,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    chunk: int | None = None,
) -> ByParameter:
    """Exact diagonal Hᵢᵢ of the Hessian of the mean loss, without variance.

    Where the logits are piecewise linear in every single weight (convolution, linear, ReLU, pooling, sums,
    batch norm in evaluation mode), ∂²f/∂θᵢ² = 0 almost everywhere and Hᵢᵢ equals the Gauss-Newton diagonal.
    Whether that holds is decided from the operations that were executed.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``; the labels do not matter.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        chunk: samples a forward pass.

    Returns:
        ``{name: diagonal of the parameter's shape}``. Cost: C − 1 backward passes of ``fisher_diag``.

    Raises:
        ValueError: if an operation bends the logits, naming it; ``ggn_diag`` is what such a network can have.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> batch = Batch(torch.eye(2), torch.arange(2))
    >>> exact_diag(model, batch)["0.weight"].min() >= 0
    tensor(True)
    """

    def check(logits: Tensor, parameters: ByParameter) -> None:
        reason = curved_operation(logits, parameters)
        if reason is not None:
            raise ValueError(
                f"{reason}, so the Hessian diagonal may not be the Gauss-Newton diagonal: use ggn_diag and call "
                "it that."
            )

    return _ggn_diag(model, batch, "exact", temperature, parameters, None, chunk, check)


def _ggn_diag(
    model: nn.Module, batch: Batch, mode: str, temperature: float, parameters: str | Iterable[str],
    generator: torch.Generator | None, chunk: int | None,
    check: Callable[[Tensor, ByParameter], None] | None = None,
) -> ByParameter:  # fmt: skip
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn: dict[int, Tensor] = {}

    def seeds(logits: Tensor, part: slice, sizes: list[int]) -> list[Tensor]:
        if check is not None:
            check(logits, problem.theta)
        if mode == "exact":
            return _factor(logits.detach())
        p = logits.detach().softmax(1)
        if part.start not in drawn:
            drawn[part.start] = _draw_labels(p, generator)
        return [p - F.one_hot(drawn[part.start], p.shape[1])]

    with problem_at(model, batch, temperature, parameters) as problem:
        pieces = [[slice(i, i + 1) for i in range(p.start, p.stop)] for p in chunks(problem, chunk)]
        total = _Squares(problem, seeds).total(pieces)
        return problem.mapped(torch._foreach_div(total, problem.samples))


def _draw_labels(p: Tensor, generator: torch.Generator) -> Tensor:
    """One label a sample with probabilities p (n×C), as `torch.multinomial` draws them from the same generator.

    It takes the class of the largest p_c/e_c with e_c exponential. That is done here since the generator may be of
    another device than p, and since it would have a GPU's host wait to see whether the p are probabilities.
    """
    waiting = torch.empty(p.shape, dtype=p.dtype, device=generator.device).exponential_(generator=generator)
    return (p / waiting.to(p.device)).argmax(1)


def _factor(logits: Tensor) -> list[Tensor]:
    """Columns s_c of a triangular S with SSᵀ = diag(p) − ppᵀ for each sample (Tanabe & Sagae, 1992).

    C − 1 columns, the rank, where √p_c (e_c − p) would be C. With q_c = Σ_{j≥c} p_j, column c is
    √(p_c q_{c+1}/q_c) times 1 at c and −p_j/q_{c+1} at every j > c.
    """
    log_p = logits.log_softmax(1)  # n × C, finite where p itself underflows
    log_q = log_p.flip(1).logcumsumexp(1).flip(1)
    columns = []
    for c in range(logits.shape[1] - 1):
        below = (log_p[:, c + 1 :] - log_q[:, c + 1 : c + 2]).exp()  # sums to 1
        scale = ((log_p[:, c] + log_q[:, c + 1] - log_q[:, c]) / 2).exp()
        column = F.pad(-below, (c + 1, 0))
        column[:, c] = 1.0
        columns.append(column * scale[:, None])
    return columns


@overload
def hutchinson_diag(
    model: nn.Module, batch: Batch, probes: int = ..., group: int | None = ..., *, temperature: float = ...,
    parameters: str | Iterable[str] = ..., distribution: str = ..., generator: torch.Generator | None = ...,
    chunk: int | None = ..., standard_error: Literal[False] = ...,
) -> ByParameter: ...  # fmt: skip


@overload
def hutchinson_diag(
    model: nn.Module, batch: Batch, probes: int = ..., group: int | None = ..., *, temperature: float = ...,
    parameters: str | Iterable[str] = ..., distribution: str = ..., generator: torch.Generator | None = ...,
    chunk: int | None = ..., standard_error: Literal[True],
) -> tuple[ByParameter, ByParameter]: ...  # fmt: skip


@checked_keywords
def hutchinson_diag(
    model: nn.Module,
    batch: Batch,
    probes: int = 10,
    group: int | None = None,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    distribution: str = "rademacher",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    standard_error: bool = False,
) -> ByParameter | tuple[ByParameter, ByParameter]:
    """Hutchinson's unbiased estimate of the Hessian diagonal, ĥ = mean over probes z of z ⊙ (H z).

    For G equal groups with m probes each, Var(ĥᵢ) = (1/(m G²)) Σ_g Σ_{j≠i} (H⁽ᵍ⁾ᵢⱼ)² with Rademacher probes;
    normal probes add 2 (H⁽ᵍ⁾ᵢᵢ)² inside (Hutchinson, 1989; Bekas et al., 2007).

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        probes: m, random vectors a group.
        group: samples a group; ``None`` is the whole batch, as unbiased as any other choice since the Hessian
            of a mean is the mean of the Hessians.
        temperature: T, divides the logits.
        parameters: those probed, ``"prunable"``, ``"all"`` or a list of names; fewer mean less noise.
        distribution: ``"rademacher"`` (±1) or ``"normal"``.
        generator: ``None`` is a new one with seed 0.
        chunk: samples a forward pass.
        standard_error: also return the estimate's own standard error, from the spread between probes.

    Returns:
        ĥ as ``{name: tensor}``, or the pair (ĥ, standard error). Cost: one gradient a group and about two
        gradients of that group a probe.

    Raises:
        ValueError: as in ``gradient``; ``probes`` below 1 (2 for a standard error); another distribution.
    """
    if probes < 1 + standard_error:
        need = "2 for a standard error" if standard_error else "1"
        raise ValueError(f"probes={probes}: it must be at least {need}.")
    if distribution not in ("rademacher", "normal"):
        raise ValueError(f'distribution={distribution!r}: it must be "rademacher" or "normal".')
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with problem_at(model, batch, temperature, parameters) as problem:

        def draw() -> list[Tensor]:
            return [_probe(leaf, distribution, generator) for leaf in problem.leaves]

        estimate = [torch.zeros_like(leaf) for leaf in problem.leaves]
        variance = [torch.zeros_like(leaf) for leaf in problem.leaves if standard_error]
        for part in _groups(problem, group):
            if standard_error:  # its spread is that of whole products
                products = hessian_products(problem, part, draw, probes, chunk)
                mean, squares = _mean_and_squares(torch._foreach_mul(z, hz) for z, hz in products)
                weight = size(part) / problem.samples
                torch._foreach_add_(estimate, mean, alpha=weight)
                torch._foreach_add_(variance, squares, alpha=weight**2 / (probes * (probes - 1)))
                continue
            state = generator.get_state()
            for piece in chunks(problem, chunk, part.start, part.stop, TWICE):
                generator.set_state(state)  # every piece of a group meets the same probes
                share = size(piece) / problem.samples / probes
                for z, hz in hessian_products(problem, piece, draw, probes, size(piece)):
                    torch._foreach_addcmul_(estimate, z, hz, share)
        if standard_error:
            return problem.mapped(estimate), problem.mapped(torch._foreach_sqrt(variance))
        return problem.mapped(estimate)


@checked_keywords
def hessian_row_norm(
    model: nn.Module, batch: Batch, probes: int = 10, group: int | None = None, *,
    temperature: float = 1.0, parameters: str | Iterable[str] = "prunable",
    generator: torch.Generator | None = None, chunk: int | None = None,
) -> ByParameter:  # fmt: skip
    """Norm of each row of the Hessian, √Σⱼ Hᵢⱼ², estimated: what Hutchinson's noise is as large as.

    For a Rademacher probe z, E[(Hz)ᵢ²] = Σⱼ Hᵢⱼ² (Dauphin et al., 2015, with normal probes): the products that
    ``hutchinson_diag`` averages with signs are squared here. For G equal groups it is the root mean square of its
    estimate with one probe a group, √(Hᵢᵢ² + (1/G²) Σ_g Σ_{j≠i} (H⁽ᵍ⁾ᵢⱼ)²), for G = 1 the row norm. The square is
    unbiased. In piecewise linear networks Hᵢᵢ falls as 1/T² with a large temperature T, and the norm only as 1/T.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        probes: m, random vectors a group, at least 2.
        group: samples a group; ``None`` is the whole batch.
        temperature: T, divides the logits.
        parameters: those over which j runs.
        generator: as in ``hutchinson_diag``.
        chunk: samples a forward pass.

    Returns:
        ``{name: norm of the parameter's shape}``. Cost and errors are those of ``hutchinson_diag``.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> batch = Batch(torch.eye(2), torch.arange(2))
    >>> norm, estimate = hessian_row_norm(model, batch), hutchinson_diag(model, batch)  # the same probes
    >>> all(bool((norm[name] >= estimate[name].abs()).all()) for name in norm)
    True
    """
    options: Any = {"temperature": temperature, "parameters": parameters, "generator": generator, "chunk": chunk}
    estimate, error = hutchinson_diag(model, batch, probes, group, standard_error=True, **options)
    return {name: torch.hypot(h, (probes - 1) ** 0.5 * error[name]) for name, h in estimate.items()}


def _mean_and_squares(draws: Iterable[tuple[Tensor, ...] | list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and sum of squared deviations in one pass (Welford, 1962), which does not cancel."""
    mean: list[Tensor] = []
    deviations: list[Tensor] = []
    for count, draw in enumerate(draws, start=1):
        if count == 1:
            mean, deviations = list(draw), [torch.zeros_like(d) for d in draw]
            continue
        delta = torch._foreach_sub(draw, mean)
        torch._foreach_add_(mean, delta, alpha=1 / count)
        torch._foreach_addcmul_(deviations, delta, torch._foreach_sub(draw, mean))
    return mean, deviations


def _probe(like: Tensor, distribution: str, generator: torch.Generator) -> Tensor:
    # On the generator's device and in one dtype, so that a seed means the same probe wherever the model lives.
    if distribution == "normal":
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float32, device=generator.device)
    else:
        drawn = torch.randint(0, 2, like.shape, dtype=torch.int8, generator=generator, device=generator.device)
        drawn = drawn.mul_(2).sub_(1)
    return drawn.to(like)
