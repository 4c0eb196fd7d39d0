"""Hutchinson's estimate of the Hessian diagonal, and the norm of the Hessian's rows from the same probes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..names import checked_keywords, count_of
from ..progress import steps
from .calls import ByParameter, generator_or_new
from .derivatives import TWICE, hessian_products
from .problem import chunks, groups_of, problem_at, size


@overload
def hutchinson_diag(
    model: nn.Module, batch: Batch, probes: int = ..., group: int | None = ..., *, temperature: float = ...,
    parameters: str | Iterable[str] = ..., distribution: str = ..., generator: torch.Generator | None = ...,
    chunk: int | None = ..., progress: bool = ..., standard_error: Literal[False] = ...,
) -> ByParameter: ...  # fmt: skip


@overload
def hutchinson_diag(
    model: nn.Module, batch: Batch, probes: int = ..., group: int | None = ..., *, temperature: float = ...,
    parameters: str | Iterable[str] = ..., distribution: str = ..., generator: torch.Generator | None = ...,
    chunk: int | None = ..., progress: bool = ..., standard_error: Literal[True],
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
    progress: bool = True,
    standard_error: bool = False,
) -> ByParameter | tuple[ByParameter, ByParameter]:
    """Hutchinson's unbiased estimate of the Hessian diagonal, ĥ = mean over probes z of z ⊙ (H z).

    For G equal groups with m probes each, Var(ĥᵢ) = (1/(m G²)) Σ_g Σ_{j≠i} (H⁽ᵍ⁾ᵢⱼ)² with
    Rademacher probes; normal probes add 2 (H⁽ᵍ⁾ᵢᵢ)² inside (Hutchinson, 1989; Bekas et al., 2007).

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        probes: m, random vectors a group.
        group: samples a group; ``None`` is the whole batch, as unbiased as any other choice since
            the Hessian of a mean is the mean of the Hessians.
        temperature: T, divides the logits.
        parameters: those probed, ``"prunable"``, ``"all"`` or a list of names; fewer mean less
            noise.
        distribution: ``"rademacher"`` (±1) or ``"normal"``.
        generator: ``None`` is a new one with seed 0.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.
        standard_error: also return the estimate's own standard error, from the spread between
            probes.

    Returns:
        ĥ as ``{name: tensor}``, or the pair (ĥ, standard error). Cost: one gradient a group and
        about two gradients of that group a probe.

    Raises:
        ValueError: as in ``gradient``; ``probes`` below 1 (2 for a standard error); another
            distribution.
    """
    probes = count_of("probes", probes, 2 if standard_error else 1)
    if distribution not in ("rademacher", "normal"):
        raise ValueError(f'distribution={distribution!r}: it must be "rademacher" or "normal".')
    generator = generator_or_new(generator)
    with problem_at(
        model, batch, temperature, parameters, "Hutchinson's estimate", progress
    ) as problem:

        def draw() -> list[Tensor]:
            return [_probe(leaf, distribution, generator) for leaf in problem.leaves]

        estimate = [torch.zeros_like(leaf) for leaf in problem.leaves]
        variance = [torch.zeros_like(leaf) for leaf in problem.leaves if standard_error]
        for part in steps(groups_of(problem, group), "group"):
            if standard_error:  # its spread is that of whole products
                products = hessian_products(problem, part, draw, probes, chunk)
                mean, squares = _mean_and_squares(torch._foreach_mul(z, hz) for z, hz in products)
                weight = size(part) / problem.samples
                torch._foreach_add_(estimate, mean, alpha=weight)
                torch._foreach_add_(variance, squares, alpha=weight**2 / (probes * (probes - 1)))
                continue
            state = generator.get_state()
            for piece in steps(chunks(problem, chunk, part.start, part.stop, TWICE), "piece"):
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
    generator: torch.Generator | None = None, chunk: int | None = None, progress: bool = True,
) -> ByParameter:  # fmt: skip
    """Norm of each row of the Hessian, √Σⱼ Hᵢⱼ², estimated: what Hutchinson's noise is as large as.

    For a Rademacher probe z, E[(Hz)ᵢ²] = Σⱼ Hᵢⱼ² (Dauphin et al., 2015, with normal probes): the
    products that ``hutchinson_diag`` averages with signs are squared here. For G equal groups it is
    the root mean square of its estimate with one probe a group, √(Hᵢᵢ² + (1/G²) Σ_g Σ_{j≠i}
    (H⁽ᵍ⁾ᵢⱼ)²), for G = 1 the row norm. The square is unbiased. In piecewise linear networks Hᵢᵢ
    falls as 1/T² with a large temperature T, and the norm only as 1/T.

    Args:
        model: as in ``gradient``.
        batch: as in ``gradient``.
        probes: m, random vectors a group, at least 2.
        group: samples a group; ``None`` is the whole batch.
        temperature: T, divides the logits.
        parameters: those over which j runs.
        generator: as in ``hutchinson_diag``.
        chunk: samples a forward pass.
        progress: show a bar if it takes long.

    Returns:
        ``{name: norm of the parameter's shape}``. Cost and errors are those of ``hutchinson_diag``.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> batch = Batch(torch.eye(2), torch.arange(2))
    >>> norm, estimate = hessian_row_norm(model, batch), hutchinson_diag(model, batch)  # the same probes
    >>> all(bool((1.001 * norm[name] >= estimate[name].abs()).all()) for name in norm)  # up to rounding
    True
    """
    options: Any = {"temperature": temperature, "parameters": parameters, "generator": generator}
    options |= {"chunk": chunk, "progress": progress}
    estimate, error = hutchinson_diag(model, batch, probes, group, standard_error=True, **options)
    return {name: torch.hypot(h, (probes - 1) ** 0.5 * error[name]) for name, h in estimate.items()}


def _mean_and_squares(
    draws: Iterable[tuple[Tensor, ...] | list[Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
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
    # On the generator's device and in one dtype, so that a seed means the same probe wherever the
    # model lives.
    if distribution == "normal":
        drawn = torch.randn(
            like.shape, generator=generator, dtype=torch.float32, device=generator.device
        )
    else:
        drawn = torch.randint(
            0, 2, like.shape, dtype=torch.int8, generator=generator, device=generator.device
        )
        drawn = drawn.mul_(2).sub_(1)
    return drawn.to(like)
