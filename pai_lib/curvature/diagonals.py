"""Diagonals of the empirical Fisher, the generalised Gauss-Newton matrix and the Hessian.

Loss, conventions and guarantees are those of ``pai_lib.problem``. Squared gradients are contracted
layer by layer from the inputs and output gradients that the autograd graph holds: by-sample
gradients are never stored for more than one group of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..names import checked_keywords
from ..progress import steps
from .calls import ByParameter, generator_or_new
from .derivatives import summed_gradient
from .operations import curved_operation
from .problem import chunks, groups_of, problem_at, size
from .squares import Squares


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
    """Diagonal of the empirical Fisher, F̂ᵢᵢ = (1/G) Σ over G groups of (∂ᵢ of the group's mean loss)².

    With ``group=1`` it is the mean of squared per-sample gradients; on what it is not: Kunstner et
    al., 2019. Groups above 1 square averaged gradients: another, smaller quantity. Samples are
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
        ``{name: F̂ of the parameter's shape}``, in loss² a weight². Cost: one forward and backward
        pass in which the weight gradients are formed group by group and never stored (after
        Goodfellow, 2015).

    Raises:
        ValueError: as in ``gradient``, and if a parameter is used twice or in a way not understood.
    """
    with problem_at(model, batch, temperature, parameters, "Fisher diagonal", progress) as problem:
        groups = groups_of(problem, group)
        limit = size(chunks(problem, chunk)[0])
        if size(groups[0]) > limit:  # a group that does not fit is summed first
            total = [torch.zeros_like(leaf) for leaf in problem.leaves]
            for part in steps(groups, "group"):
                grads = summed_gradient(problem, part, chunk)
                torch._foreach_addcmul_(total, grads, grads, 1 / len(groups))
            return problem.mapped(total)

        def residual(logits: Tensor, part: slice, sizes: list[int]) -> list[Tensor]:
            seed = logits.detach().softmax(1) - F.one_hot(problem.labels[part], logits.shape[1])
            return [seed / torch.tensor(sizes, dtype=seed.dtype, device=seed.device)[:, None]]

        total = Squares(problem, residual).total(_packed(groups, limit))
        return problem.mapped(torch._foreach_div(total, len(groups)))


def _packed(groups: list[slice], limit: int) -> list[list[slice]]:
    per_pass = max(1, limit // size(groups[0]))
    return [groups[i : i + per_pass] for i in range(0, len(groups), per_pass)]


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
            which is unbiased and C times cheaper.
        temperature: T, divides the logits.
        parameters: ``"prunable"``, ``"all"`` or a list of names.
        generator: for ``"mc"``; ``None`` is a new one with seed 0.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        ``{name: diagonal of the parameter's shape}``. Cost: C − 1 (or 1) backward passes of
        ``fisher_diag``.

    Raises:
        ValueError: as in ``fisher_diag``, and for another mode.
    """
    if mode not in ("exact", "mc"):
        raise ValueError(f'mode={mode!r}: it must be "exact" or "mc".')
    return _ggn_diag(model, batch, mode, temperature, parameters, generator, chunk, progress)


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
        ``{name: diagonal of the parameter's shape}``. Cost: C − 1 backward passes of
        ``fisher_diag``.

    Raises:
        ValueError: if an operation bends the logits, naming it; ``ggn_diag`` is what such a network
            can have.

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

    return _ggn_diag(model, batch, "exact", temperature, parameters, None, chunk, progress, check)


def _ggn_diag(
    model: nn.Module, batch: Batch, mode: str, temperature: float, parameters: str | Iterable[str],
    generator: torch.Generator | None, chunk: int | None, progress: bool,
    check: Callable[[Tensor, ByParameter], None] | None = None,
) -> ByParameter:  # fmt: skip
    generator = generator_or_new(generator)
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

    what = "Gauss-Newton diagonal" if check is None else "exact diagonal"
    with problem_at(model, batch, temperature, parameters, what, progress) as problem:
        pieces = [[slice(i, i + 1) for i in range(p.start, p.stop)] for p in chunks(problem, chunk)]
        total = Squares(problem, seeds).total(pieces)
        return problem.mapped(torch._foreach_div(total, problem.samples))


def _draw_labels(p: Tensor, generator: torch.Generator) -> Tensor:
    """One label a sample with probabilities p (n×C), as `torch.multinomial` draws them from the same generator.

    It takes the class of the largest p_c/e_c with e_c exponential. That is done here since the
    generator may be of another device than p, and since it would have a GPU's host wait to see
    whether the p are probabilities.
    """
    waiting = torch.empty(p.shape, dtype=p.dtype, device=generator.device).exponential_(
        generator=generator
    )
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
