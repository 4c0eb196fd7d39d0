"""Diagonals of the empirical Fisher, the generalised Gauss-Newton matrix and the Hessian.

Loss, conventions and guarantees are those of ``pai_lib.derivatives``. Squared gradients are contracted layer
by layer from the inputs and output gradients that the autograd graph holds: by-sample gradients are never
stored for more than one group of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Batch
from .derivatives import (
    TWICE,
    ByParameter,
    Problem,
    chunks,
    hessian_products,
    problem_at,
    size,
    summed_gradient,
)
from .graph import curved_operation, find_uses, sample_fastest, squared_gradients
from .parameters import checked_keywords


def _groups(problem: Problem, group: int | None) -> list[slice]:
    n = len(problem.inputs)
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
        total = [torch.zeros_like(leaf) for leaf in problem.leaves]
        limit = size(chunks(problem, chunk)[0])
        if size(groups[0]) > limit:  # a group that does not fit is summed first
            for part in groups:
                grads = summed_gradient(problem, part, chunk)
                torch._foreach_addcmul_(total, grads, grads, 1 / len(groups))
            return problem.mapped(total)
        for batch_of_groups in _packed(groups, limit):
            part = slice(batch_of_groups[0].start, batch_of_groups[-1].stop)
            logits = problem.logits(part)
            local = [slice(g.start - part.start, g.stop - part.start) for g in batch_of_groups]
            sizes = torch.tensor([size(g) for g in local for _ in range(size(g))]).to(logits)
            residual = logits.detach().softmax(1) - F.one_hot(problem.labels[part], logits.shape[1])
            _add_squares(problem, logits, [residual / sizes[:, None]], local, total)
        return problem.mapped(torch._foreach_div(total, len(groups)))


def _packed(groups: list[slice], limit: int) -> list[list[slice]]:
    per_pass = max(1, limit // size(groups[0]))
    return [groups[i : i + per_pass] for i in range(0, len(groups), per_pass)]


def _add_squares(
    problem: Problem, logits: Tensor, seeds: list[Tensor], groups: list[slice], total: list[Tensor]
) -> None:
    """Add Σ over seeds and groups of squared group gradients, seeds being gradients at the logits."""
    uses = find_uses(logits, problem.theta)
    fastest = sample_fastest(logits, uses)
    if size(groups[0]) < len(problem.inputs):
        problem.check_independent()
    edges = [use.edge for use in uses.values()]
    for i, seed in enumerate(seeds):
        keep = i + 1 < len(seeds)
        grads = torch.autograd.grad(logits, edges, seed.to(logits), retain_graph=keep, materialize_grads=True)
        with torch.no_grad():  # the graph's own tensors would otherwise record every square
            for (name, use), grad, out in zip(uses.items(), grads, total, strict=True):
                out += squared_gradients(use, grad, groups, name in fastest)
        del grads, grad  # before the next pass makes its own


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

    def check(logits: Tensor) -> None:
        name = curved_operation(logits)
        if name is not None:
            raise ValueError(
                f"The operation {name!r} makes the logits curved in a single weight, so the Hessian diagonal "
                "is not the Gauss-Newton diagonal: use ggn_diag and call it that."
            )

    return _ggn_diag(model, batch, "exact", temperature, parameters, None, chunk, check)


def _ggn_diag(
    model: nn.Module, batch: Batch, mode: str, temperature: float, parameters: str | Iterable[str],
    generator: torch.Generator | None, chunk: int | None, check: Callable[[Tensor], None] | None = None,
) -> ByParameter:  # fmt: skip
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with problem_at(model, batch, temperature, parameters) as problem:
        total = [torch.zeros_like(leaf) for leaf in problem.leaves]
        for part in chunks(problem, chunk):
            logits = problem.logits(part)  # n × C
            find_uses(logits, problem.theta)  # its errors say more than those of the check
            if check is not None:
                check(logits)
            p = logits.detach().softmax(1)
            if mode == "exact":
                seeds = _factor(logits.detach())
            else:
                drawn = torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0]
                seeds = [p - F.one_hot(drawn, p.shape[1]).to(p)]
            singles = [slice(i, i + 1) for i in range(size(part))]
            _add_squares(problem, logits, seeds, singles, total)
        return problem.mapped(torch._foreach_div(total, len(problem.inputs)))


def _factor(logits: Tensor) -> list[Tensor]:
    """Columns s_c of a triangular S with SSᵀ = diag(p) − ppᵀ for each sample (Tanabe & Sagae, 1992).

    C − 1 columns, the rank, where √p_c (e_c − p) would be C. With q_c = Σ_{j≥c} p_j, column c is
    √(p_c q_{c+1}/q_c) times 1 at c and −p_j/q_{c+1} at every j > c.
    """
    log_p = logits.log_softmax(1)  # n × C, finite where p itself underflows
    log_q = log_p.flip(1).logcumsumexp(1).flip(1)
    columns = []
    for c in range(logits.shape[1] - 1):
        below = (log_p[:, c + 1 :] - log_q[:, [c + 1]]).exp()  # sums to 1
        scale = ((log_p[:, c] + log_q[:, c + 1] - log_q[:, c]) / 2).exp()
        columns.append(F.pad(-below, (c + 1, 0)).index_fill_(1, torch.tensor(c), 1.0) * scale[:, None])
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
                weight = size(part) / len(problem.inputs)
                torch._foreach_add_(estimate, mean, alpha=weight)
                torch._foreach_add_(variance, squares, alpha=weight**2 / (probes * (probes - 1)))
                continue
            state = generator.get_state()
            for piece in chunks(problem, chunk, part.start, part.stop, TWICE):
                generator.set_state(state)  # every piece of a group meets the same probes
                share = size(piece) / len(problem.inputs) / probes
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
    # Drawn on the generator's device, so that a seed means the same probe wherever the model lives.
    if distribution == "normal":
        drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    else:
        drawn = torch.randint(0, 2, like.shape, dtype=torch.int8, generator=generator, device=generator.device)
        drawn = drawn.mul_(2).sub_(1)
    return drawn.to(like)
