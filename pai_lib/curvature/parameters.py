"""Which of a model's parameters are looked at: all, the prunable ones, or a list."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..models import (
    check_model,
)
from ..names import nearest

PRUNABLE_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)


def _check_unwrapped(model: nn.Module) -> None:
    """Raise ValueError for a model whose parameters cannot be replaced for a derivative."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    for name, module in model.named_modules():
        what = f"The module {name!r}" if name else "The model"
        if isinstance(module, wrappers):
            raise ValueError(
                f"{what} is wrapped in {type(module).__name__}: use what it wraps, its .module."
            )
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(
                f"{what} is compiled: use it as it was before (after .compile(), copy.deepcopy of it is)."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{what} is a TorchScript module: use the module that it was made from."
            )


def prunable(model: nn.Module) -> list[str]:
    """Names of the weight tensors that may be pruned, in the model's own order.

    Weights of convolutions and linear layers (an attention's fused ``in_proj_weight`` included),
    decided by module type and never by name. Left out: the classifier head, which is the last
    linear layer to be registered (the last convolution in a network without one), biases,
    normalisation, embeddings and tokens.

    A weight that several layers share is listed once, and not at all if it is the head's.

    Raises:
        ValueError: if nothing is left to prune, a weight is computed from other parameters or a
            module is lazy.

    >>> prunable(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)))
    ['0.weight']
    """
    check_model(model)
    names, linear = [], []
    for prefix, module in model.named_modules():
        if not isinstance(module, PRUNABLE_MODULES):
            continue
        own = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        if (
            getattr(module, own, None) is None
        ):  # attention with separate projections keeps three weights
            names += [f"{prefix}.{part}_proj_weight".lstrip(".") for part in "qkv"]
            continue
        names.append(f"{prefix}.{own}".lstrip("."))
        if isinstance(module, nn.Linear):
            linear.append(names[-1])
    head = (linear or names)[-1:]
    named = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in named:
            raise ValueError(
                f"The weight {name!r} is computed from other parameters (a parametrization such as weight norm, "
                "or a mask of torch.nn.utils.prune): make it permanent first."
            )
    listed = {name for name, _ in model.named_parameters()}  # the first name of each
    body = [
        name
        for name in names
        if name in listed and not any(named[name] is named[last] for last in head)
    ]
    if not body:
        raise ValueError(
            f"{type(model).__name__} has no prunable weight: it needs a convolution or linear layer "
            "besides its classifier head."
        )
    return body


def resolve_parameters(model: nn.Module, parameters: str | Iterable[str] = "prunable") -> list[str]:
    """Turn ``"prunable"``, ``"all"`` or a list of names into parameter names of ``model``.

    Raises:
        ValueError: for an unknown name, for a parameter that is no real floating-point tensor, for
            a model that is compiled, scripted or wrapped in ``DataParallel``, and as ``prunable``.
    """
    check_model(model)
    _check_unwrapped(model)
    known = dict(model.named_parameters())
    if isinstance(parameters, str) and parameters not in ("prunable", "all"):
        raise ValueError(
            f'parameters={parameters!r}: it must be "prunable", "all" or a list of parameter names.'
        )
    if not isinstance(parameters, str):
        parameters = list(parameters) if isinstance(parameters, Iterable) else [parameters]
        if not all(isinstance(name, str) for name in parameters):
            raise TypeError(
                'parameters must be "prunable", "all" or a list of the names of parameters.'
            )
    names = (
        prunable(model)
        if parameters == "prunable"
        else list(known if parameters == "all" else parameters)
    )
    if not names:
        raise ValueError("parameters is empty: at least one name is needed.")
    for name in names:
        if name not in known:
            raise ValueError(f"The model has no parameter {name!r}: {nearest(name, known)}")
        if not known[name].is_floating_point():
            raise ValueError(
                f"The parameter {name!r} is {known[name].dtype}: only real weights can be scored."
            )
        if known[name].is_meta:
            raise ValueError(
                f"The parameter {name!r} has no values: the model is on the meta device."
            )
    return names
