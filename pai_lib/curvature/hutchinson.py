"""Hutchinson's estimate of the Hessian diagonal, and the norm of the Hessian's rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..names import check_known, checked_keywords, count_of
from ..progress import steps
from .calls import ByParameter, generator_or_new
from .derivatives import TWICE, hessian_products
from .problem import Problem, chunks, groups_of, problem_at, size


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
) -> Any:
    """Hutchinson's unbiased estimate of the Hessian diagonal, ĥ = mean over probes z of z ⊙ (H z).

    For G equal groups with Hessians H⁽ᵍ⁾ and m Rademacher probes each, Var(ĥᵢ) is 1/(m G²) times
    the sum of (H⁽ᵍ⁾ᵢⱼ)² over all groups and all j ≠ i; normal probes add 2 (H⁽ᵍ⁾ᵢᵢ)² of each group
    (Hutchinson, 1989; Bekas et al., 2007).

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
        ĥ as ``{name: tensor}``, or the pair (ĥ, standard error). The cost is one gradient a
        group and about two gradients of that group a probe.

    Raises:
        ValueError: as in ``gradient``; ``probes`` below 1 (2 for a standard error); another
            distribution.
    """
    probes = count_of("probes", probes, 2 if standard_error else 1)
    check_known("distribution", distribution, ("rademacher", "normal"))
    generator = generator_or_new(generator)
    what = "Hutchinson's estimate"
    with problem_at(model, batch, temperature, parameters, what, progress) as problem:
        vectors = _Vectors(problem.leaves, distribution, generator)
        groups = groups_of(problem, group)
        if standard_error:
            mean, error = _mean_and_error(problem, groups, vectors, probes, chunk)
            return problem.mapped(mean), problem.mapped(error)
        return problem.mapped(_mean(problem, groups, vectors, probes, chunk))


@checked_keywords
def hessian_row_norm(
    model: nn.Module,
    batch: Batch,
    probes: int = 10,
    group: int | None = None,
    *,
    temperature: float = 1.0,
    parameters: str | Iterable[str] = "prunable",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    progress: bool = True,
) -> ByParameter:
    """Norm of each row of the Hessian, √Σⱼ Hᵢⱼ², estimated: what Hutchinson's noise is as large as.

    For a Rademacher probe z, E[(Hz)ᵢ²] = Σⱼ Hᵢⱼ² (Dauphin et al., 2015, with normal probes): the
    products that ``hutchinson_diag`` averages with signs are squared here. For G equal groups it is
    the root mean square of that estimate with one probe a group, √(Hᵢᵢ² + Var(ĥᵢ)) for m = 1, and
    for G = 1 the row norm. The square is unbiased. In piecewise linear networks Hᵢᵢ falls as 1/T²
    with a large temperature T, and the norm only as 1/T.

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
    >>> norm, estimate = hessian_row_norm(model, batch), hutchinson_diag(model, batch)
    >>> all(bool((1.001 * norm[name] >= estimate[name].abs()).all()) for name in norm)
    True
    """
    options: Any = {"temperature": temperature, "parameters": parameters, "generator": generator}
    options |= {"chunk": chunk, "progress": progress, "standard_error": True}
    mean, error = hutchinson_diag(model, batch, probes, group, **options)
    return {name: torch.hypot(mean[name], (probes - 1) ** 0.5 * error[name]) for name in mean}


class _Vectors(NamedTuple):
    """Random vectors of the shapes of leaves."""

    leaves: list[Tensor]
    distribution: str
    generator: torch.Generator

    def draw(self) -> list[Tensor]:
        """Draw on the generator's device, in one dtype: a seed means one vector for all models."""
        source: Any = {"generator": self.generator, "device": self.generator.device}
        vectors = []
        for leaf in self.leaves:
            if self.distribution == "normal":
                vector = torch.randn(leaf.shape, dtype=torch.float32, **source)
            else:
                vector = torch.randint(2, leaf.shape, dtype=torch.int8, **source) * 2 - 1
            vectors.append(vector.to(leaf))
        return vectors


def _mean(
    problem: Problem, groups: list[slice], vectors: _Vectors, probes: int, chunk: int | None
) -> list[Tensor]:
    """Mean of z ⊙ (H z), with the graph of a piece's gradient built once for all probes."""
    mean = problem.zeros()
    for part in steps(groups, "group"):
        state = vectors.generator.get_state()
        for piece in steps(chunks(problem, chunk, part, TWICE), "piece"):
            vectors.generator.set_state(state)  # every piece of a group meets the same probes
            share = size(piece) / problem.samples / probes
            for z, hz in hessian_products(problem, piece, vectors.draw, probes, size(piece)):
                torch._foreach_addcmul_(mean, z, hz, share)
    return mean


def _mean_and_error(
    problem: Problem, groups: list[slice], vectors: _Vectors, probes: int, chunk: int | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Mean of z ⊙ (H z), and its standard error from the spread of a group's products.

    In one pass (Welford, 1962), which does not cancel.
    """
    mean, variance = problem.zeros(), problem.zeros()
    for part in steps(groups, "group"):
        group_mean, deviations = problem.zeros(), problem.zeros()
        products = hessian_products(problem, part, vectors.draw, probes, chunk)
        for count, (z, hz) in enumerate(products, start=1):
            product = torch._foreach_mul(z, hz)
            before = torch._foreach_sub(product, group_mean)
            torch._foreach_add_(group_mean, before, alpha=1 / count)
            after = torch._foreach_sub(product, group_mean)
            torch._foreach_addcmul_(deviations, before, after)
        weight = size(part) / problem.samples
        torch._foreach_add_(mean, group_mean, alpha=weight)
        torch._foreach_add_(variance, deviations, alpha=weight**2 / (probes * (probes - 1)))
    return mean, list(torch._foreach_sqrt(variance))
