"""Diagonals of the empirical Fisher, the generalised Gauss-Newton matrix and the Hessian.

The loss is that of ``curvature.problem``. Squared gradients are contracted layer by layer from the
inputs and output gradients that the autograd graph holds: by-sample gradients are never stored for
more than one group of one layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..names import check_known, checked_keywords
from ..progress import steps
from .calls import ByParameter, generator_or_new
from .derivatives import summed_gradient
from .operations import curved_operation
from .problem import Problem, chunks, groups_of, problem_at, size
from .squares import Seeds, summed_squares


@checked_keywords
def fisher_diag(
    model: nn.Module,
    batch: Batch,
    group: int | None = 1,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    chunk: int | None = None,
    progress: bool = True,
) -> ByParameter:
    """Diagonal of the empirical Fisher, F̂ᵢᵢ = the mean over groups of (∂ᵢ of a group's mean loss)².

    With ``group=1`` it is the mean of squared per-sample gradients; Kunstner et al. (2019) say what
    it is not. Groups above 1 square averaged gradients: another, smaller quantity. Samples are
    grouped in their order; a last, smaller group counts as one group.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        group: samples whose loss is averaged before squaring; ``None`` is the whole batch.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        ``{name: F̂ of the parameter's shape}``, in loss² a weight². The cost is one forward and
        backward pass in which the weight gradients are formed group by group and never stored
        (after Goodfellow, 2015).

    Raises:
        ValueError: as in ``gradient``, and if a parameter is used twice or in a way not understood.
    """
    with problem_at(model, batch, temperature, parameters, "Fisher diagonal", progress) as problem:
        groups = groups_of(problem, group)
        limit = size(chunks(problem, chunk)[0])
        if size(groups[0]) > limit:  # a group that does not fit is summed first
            total = problem.zeros()
            for part in steps(groups, "group"):
                gradients = summed_gradient(problem, part, chunk)
                torch._foreach_addcmul_(total, gradients, gradients, 1 / len(groups))
            return problem.mapped(total)

        sizes = [size(part) for part in groups for _ in range(size(part))]  # of each sample's group

        def residual(logits: Tensor, part: slice) -> list[Tensor]:
            seed = logits.detach().softmax(1) - F.one_hot(problem.labels[part], logits.shape[1])
            divisor = torch.tensor(sizes[part], device=seed.device)
            return [seed / divisor[:, None]]

        groups_a_pass = max(1, limit // size(groups[0]))
        pieces = [groups[i : i + groups_a_pass] for i in range(0, len(groups), groups_a_pass)]
        total = summed_squares(problem, pieces, residual)
        return problem.mapped(torch._foreach_div(total, len(groups)))


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
    progress: bool = True,
) -> ByParameter:
    """Diagonal of the generalised Gauss-Newton matrix (1/N) Σₙ JₙᵀSₙSₙᵀJₙ (Schraudolph, 2002).

    J is the Jacobian of the logits/T and SSᵀ = diag(p) − p pᵀ the curvature of the cross-entropy
    there; S has C − 1 columns (Tanabe & Sagae, 1992). For this loss it is also the (true) Fisher.
    Never negative.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``; the labels do not matter.
        mode: ``"exact"`` sums over all C classes; ``"mc"`` draws one label a sample from the model,
            which is unbiased and C − 1 times cheaper.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        generator: for ``"mc"``; ``None`` is a new one with seed 0.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        ``{name: diagonal of the parameter's shape}``, at the cost of C − 1 backward passes of
        ``fisher_diag``, or of 1 by ``"mc"``.

    Raises:
        ValueError: as in ``fisher_diag``, and for another mode.
    """
    check_known("mode", mode, ("exact", "mc"))
    source = generator_or_new(generator)
    labels: dict[int, Tensor] = {}  # those drawn for the piece that begins there

    def seeds(logits: Tensor, part: slice) -> list[Tensor]:
        if mode == "exact":
            return _factor(logits.detach())
        p = logits.detach().softmax(1)
        if part.start not in labels:
            labels[part.start] = _draw_labels(p, source)
        return [p - F.one_hot(labels[part.start], p.shape[1])]

    what = "Gauss-Newton diagonal"
    with problem_at(model, batch, temperature, parameters, what, progress) as problem:
        return _mean_of_squares(problem, chunk, seeds)


@checked_keywords
def exact_diag(
    model: nn.Module,
    batch: Batch,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    chunk: int | None = None,
    progress: bool = True,
) -> ByParameter:
    """Exact diagonal Hᵢᵢ of the Hessian of the mean loss, without variance.

    Where the logits are piecewise linear in every single weight (convolution, linear, ReLU,
    pooling, sums, batch norm in evaluation mode), ∂²f/∂θᵢ² = 0 almost everywhere and Hᵢᵢ equals the
    Gauss-Newton diagonal. Whether that holds is decided from the operations that were executed.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``; the labels do not matter.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        ``{name: diagonal of the parameter's shape}``, at the cost of C − 1 backward passes of
        ``fisher_diag``.

    Raises:
        ValueError: if an operation bends the logits, naming it; ``ggn_diag`` is what such a network
            can have.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> batch = Batch(torch.eye(2), torch.arange(2))
    >>> exact_diag(model, batch)["0.weight"].min() >= 0
    tensor(True)
    """

    def seeds(logits: Tensor, part: slice) -> list[Tensor]:
        _check_straight(logits, problem)
        return _factor(logits.detach())

    with problem_at(model, batch, temperature, parameters, "exact diagonal", progress) as problem:
        return _mean_of_squares(problem, chunk, seeds)


def check_exact(model: nn.Module, batch: Batch) -> None:
    """Raise ValueError, as ``exact_diag`` would, unless the model is piecewise linear.

    It costs a forward pass of one sample.
    """
    with problem_at(model, batch, 1.0, "prunable") as problem:
        _check_straight(problem.logits(slice(0, 1)), problem)


def _check_straight(logits: Tensor, problem: Problem) -> None:
    reason = curved_operation(logits, problem.theta)
    if reason is not None:
        raise ValueError(
            f"{reason}, so the Hessian diagonal may not be the Gauss-Newton diagonal: use "
            "ggn_diag and call it that."
        )


def _mean_of_squares(problem: Problem, chunk: int | None, seeds: Seeds) -> ByParameter:
    """Mean over samples of the sum over seeds of squared gradients."""
    pieces = []
    for part in chunks(problem, chunk):
        pieces.append([slice(sample, sample + 1) for sample in range(part.start, part.stop)])
    total = summed_squares(problem, pieces, seeds)
    return problem.mapped(torch._foreach_div(total, problem.samples))


def _draw_labels(p: Tensor, generator: torch.Generator) -> Tensor:
    """One label a sample with probabilities p, n×C, as `torch.multinomial` draws them.

    It takes the class of the largest p_c/e_c with e_c exponential. That is done here since the
    generator may be of another device than p, and since it would have a GPU's host wait to see
    whether the p are probabilities.
    """
    times = torch.empty(p.shape, dtype=p.dtype, device=generator.device)
    times.exponential_(generator=generator)
    return (p / times.to(p.device)).argmax(1)


def _factor(logits: Tensor) -> list[Tensor]:
    """Columns s_c of a triangular S with SSᵀ = diag(p) − ppᵀ a sample (Tanabe & Sagae, 1992).

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
