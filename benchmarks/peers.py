"""What the estimators are timed against: plain loops, BackPACK and curvlinops, on the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pai_lib as pai

PAPER_TEMPERATURE = 200.0

# ---------------------------------------------------------------------------------------------------------
# The plain loops that stand for the paper's protocol


def leaves_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable parameters."""
    return {name: model.get_parameter(name) for name in pai.prunable(model)}


def loop_fisher(model: nn.Module, batch: pai.Batch) -> dict[str, Tensor]:
    """Squared gradients, one sample at a time."""
    leaves = leaves_of(model)
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for x, y in zip(*batch, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        for out, grad in zip(total.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
            out += grad**2
    return {name: out / len(batch.labels) for name, out in total.items()}


def loop_hutchinson(model: nn.Module, batch: pai.Batch, probes: int, temperature: float, seed: int = 0):
    """Hutchinson's estimator by double back-propagation, one sample and one probe at a time."""
    leaves, generator = leaves_of(model), torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for x, y in zip(*batch, strict=True):
        loss = F.cross_entropy(model(x[None]) / temperature, y[None])
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        for _ in range(probes):
            vectors = [
                torch.randint(0, 2, leaf.shape, generator=generator).mul(2).sub(1).to(leaf)
                for leaf in leaves.values()
            ]
            products = torch.autograd.grad(grads, list(leaves.values()), vectors, retain_graph=True)
            for out, z, hz in zip(total.values(), vectors, products, strict=True):
                out += (z * hz) / (probes * len(batch.labels))
    return {name: out.detach() for name, out in total.items()}


# ---------------------------------------------------------------------------------------------------------
# Peers


def peer(distribution: str) -> str | None:
    """Version of an installed peer."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def backpack_function(model: nn.Module, quantity: str) -> Callable[[pai.Batch], dict[str, Tensor]]:
    """BackPACK's ``SumGradSquared`` or ``DiagGGNExact`` for the same parameters.

    BackPACK needs a network of modules alone, so the ResNet's sums and means are rebuilt from modules around
    copies of its layers. Only prunable parameters require a gradient; BackPACK skips the others.
    """
    from backpack import backpack, extend, extensions
    from backpack.custom_module.branching import Parallel

    original = copy.deepcopy(model).eval()
    layers: list[nn.Module] = [*original.stem]
    for block in original.blocks:
        body: list[nn.Module] = []
        for conv, norm in zip(block.convs, block.norms, strict=True):
            body += [nn.ReLU(), conv, norm] if body else [conv, norm]
        shortcut = block.shortcut if len(block.shortcut) else nn.Identity()
        layers += [Parallel(nn.Sequential(*body), shortcut), nn.ReLU()]
    original.requires_grad_(False)
    leaves = leaves_of(original)
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    network = extend(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), original.head).eval())
    loss = extend(nn.CrossEntropyLoss())
    extension, attribute = {
        "fisher": (extensions.SumGradSquared, "sum_grad_squared"),
        "exact": (extensions.DiagGGNExact, "diag_ggn_exact"),
    }[quantity]

    def compute(batch: pai.Batch) -> dict[str, Tensor]:
        with backpack(extension()):
            loss(network(batch.inputs), batch.labels).backward()
        # Its sum is of squared gradients of the mean loss: N² times too small for a sum, N for a mean.
        scale = len(batch.labels) if quantity == "fisher" else 1
        result = {name: getattr(leaf, attribute).detach() * scale for name, leaf in leaves.items()}
        for leaf in leaves.values():
            leaf.grad = None
            delattr(leaf, attribute)
        return result

    return compute


def curvlinops_operator(model: nn.Module, batch: pai.Batch):
    """The Hessian of the mean loss over the prunable parameters as curvlinops' linear operator."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(leaves_of(model).values()), [tuple(batch)],
        check_deterministic=False, num_data=len(batch.labels),
    )  # fmt: skip


def back_propagation(model: nn.Module, batch: pai.Batch) -> Callable[[], object]:
    """Make a function that back-propagates through a graph built once."""
    loss, leaves = F.cross_entropy(model(batch.inputs), batch.labels), list(leaves_of(model).values())
    return lambda: torch.autograd.grad(loss, leaves, retain_graph=True)
