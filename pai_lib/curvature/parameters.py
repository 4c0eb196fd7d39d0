"""Which of a model's parameters are looked at: all, the prunable ones, or a list of names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..models import check_model
from ..names import nearest

PRUNABLE_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)
# The last four are an attention's: one, or with separate projections the other three.
PRUNABLE_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
ALLOWED = 'it must be "prunable", "all" or a list of the names of parameters'


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

    >>> prunable(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)))
    ['0.weight']
    """
    check_model(model, values=False)
    names, linear = [], []
    for prefix, module in model.named_modules():
        if not isinstance(module, PRUNABLE_MODULES):
            continue
        for attribute in PRUNABLE_WEIGHTS:
            if getattr(module, attribute, None) is not None:
                names.append(f"{prefix}.{attribute}".lstrip("."))
        if isinstance(module, nn.Linear):
            linear.append(names[-1])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in parameters:
            raise ValueError(
                f"The weight {name!r} is computed from other parameters (as by weight norm or "
                "torch.nn.utils.prune): make it permanent first."
            )
    head = [parameters[name] for name in (linear or names)[-1:]]
    body = []
    for name, weight in model.named_parameters():  # a shared weight by its first name
        if name in names and not any(weight is last for last in head):
            body.append(name)
    if not body:
        raise ValueError(
            f"{type(model).__name__} has no prunable weight: it needs a convolution or linear "
            "layer besides its classifier head."
        )
    return body


def resolve_parameters(model: nn.Module, parameters: str | Iterable[str] = "prunable") -> list[str]:
    """Turn ``"prunable"``, ``"all"`` or a list of names into parameter names of ``model``.

    Raises:
        ValueError: for an unknown name, for a parameter that is no real floating-point tensor, for
            a model that is scripted or wrapped (``torch.compile``, ``DataParallel``), and as
            ``prunable``.
    """
    check_model(model)
    _check_unwrapped(model)
    tensors = dict(model.named_parameters())
    if parameters == "prunable":
        names = prunable(model)
    elif parameters == "all":
        names = list(tensors)
    elif isinstance(parameters, str):
        raise ValueError(f"parameters={parameters!r}: {ALLOWED}.")
    else:
        names = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"parameters: {ALLOWED}.")
    if not names:
        raise ValueError("parameters is empty: at least one name is needed.")
    for name in names:
        if name not in tensors:
            raise ValueError(f"The model has no parameter {name!r}: {meant(model, name)}")
        dtype = tensors[name].dtype
        if not dtype.is_floating_point:
            raise ValueError(f"The parameter {name!r} is {dtype}: only real weights can be scored.")
    # The order of a set is another in each process, and with it what is drawn for each weight.
    return (
        sorted(names, key=list(tensors).index) if isinstance(parameters, set | frozenset) else names
    )


def meant(model: nn.Module, name: str) -> str:
    """End of an error sentence: which parameter an unknown name may mean."""
    tensors = dict(model.named_parameters())
    same = dict(model.named_parameters(remove_duplicate=False)).get(name)
    first = [other for other, tensor in tensors.items() if tensor is same]
    return (
        f"it is {first[0]!r}, which is shared; use that name." if first else nearest(name, tensors)
    )


def _check_unwrapped(model: nn.Module) -> None:
    """Raise ValueError for a model whose parameters cannot be replaced for a derivative."""
    for name, module in model.named_modules():
        subject = f"The module {name!r}" if name else "The model"
        kind = type(module).__name__
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(f"{subject} is wrapped in {kind}: use what it wraps, its .module.")
        if "_orig_mod" in module._modules:
            raise ValueError(f"{subject} is compiled: use what was compiled, its ._orig_mod.")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{subject} is a TorchScript module: use what it was made from.")
