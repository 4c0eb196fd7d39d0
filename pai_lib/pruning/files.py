"""A mask in the form of PyTorch's own pruning."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils._pytree import tree_leaves

from ..curvature.calls import ByParameter
from ..files import plain_copy, tensors_of, write_whole
from .masks import PRUNED_ALREADY, check_bools, check_mask, overlap

ORDER = "pai_lib.order"  # of layers, in the header of a mask's file, which sorts them by name


def to_torch_prune(model: nn.Module, mask: ByParameter) -> nn.Module:
    """Attach a mask in the form of ``torch.nn.utils.prune``: ``weight_orig`` and ``weight_mask``.

    The model computes what it does after ``apply_mask``, in training too. A weight that several
    modules share gets its mask in each; a module that uses weights of those inside it without
    calling them, as attention does, computes them anew before it runs.

    Raises:
        ValueError: before anything is attached, for a mask that does not fit, and for a weight that
            is pruned or parametrized already, or that is held elsewhere too, where the mask would
            not reach it.
    """
    check_mask(model, mask)
    parameters = dict(model.named_parameters())
    owners = {name: _owners(model, name, parameters[name]) for name in mask}
    for name, kept in mask.items():
        for module, attribute in owners[name]:
            torch_prune.custom_from_mask(module, attribute, kept.to(parameters[name].device))
            hooks: Any = module._forward_pre_hooks
            hooks.move_to_end(next(reversed(hooks)), last=False)  # others may read the weight
    pruned = {module for places in owners.values() for module, _ in places}
    only_calling = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for module in model.modules():
        inside = pruned.intersection(module.modules()) - {module}
        if inside and type(module) not in only_calling:
            module.register_forward_pre_hook(_prune_inside, prepend=True)
    return model


def _prune_inside(module: nn.Module, inputs: Any) -> None:
    """Do what the pruning hooks of the modules inside would do when those were called."""
    for inner in module.modules():
        for hook in inner._forward_pre_hooks.values() if inner is not module else ():
            if isinstance(hook, torch_prune.BasePruningMethod):
                hook(inner, inputs)


def _owners(model: nn.Module, name: str, parameter: Tensor) -> list[tuple[nn.Module, str]]:
    """All places that hold a parameter; an error where a mask would not reach it."""
    places = []
    for path, module in model.named_modules():
        fixed = isinstance(module, torch.jit.ScriptModule | parametrize.ParametrizationList)
        if fixed and any(tensor is parameter for tensor in module.parameters()):
            kind = type(module).__name__
            raise ValueError(f"{name!r} is in a {kind}, where torch cannot prune it.")
        tensors = {**module._parameters, **module._buffers}
        for attribute, tensor in tensors.items():
            if tensor is parameter:
                places.append((module, attribute))
                if f"{attribute.removesuffix('_orig')}_mask" in tensors:
                    raise ValueError(f"{name!r} {PRUNED_ALREADY}")
            elif tensor is not None and overlap(tensor, parameter):
                other = f"{path}.{attribute}".lstrip(".")
                right = "make them one parameter first"
                raise ValueError(f"{name!r} shares its memory with {other!r}: {right}.")
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_flat_weights"):  # an RNN's, kept up
                continue
            held = tree_leaves(value)
            held += tree_leaves([[p.args, p.keywords] for p in held if isinstance(p, partial)])
            if any(leaf is parameter for leaf in held):
                other = f"{path}.{attribute}".lstrip(".")
                reason = "where its mask would not reach it"
                raise ValueError(f"{name!r} is also held in {other!r}, {reason}.")
    return places


def save_mask(mask: dict[str, Tensor], path: str | Path, **about: str | float) -> None:
    """Write a mask to one safetensors file, whole or not at all.

    Args:
        mask: ``{parameter name: bool tensor}``, True = kept.
        path: of the file; its folder is made if need be.
        **about: what to say of it, such as ``criterion="snip", sparsity=0.9``: kept as text in the
            file's header, where ``safetensors.safe_open(path, "pt").metadata()`` finds it.

    Raises:
        ValueError: for what is no mask.
        OSError: for a path that cannot be written.

    >>> path = getfixture("tmp_path") / "mask.safetensors"
    >>> save_mask({"fc.weight": torch.tensor([[True, False]])}, path)
    >>> load_mask(path)
    {'fc.weight': tensor([[ True, False]])}
    """
    check_bools(mask, "This mask")
    if "__metadata__" in mask:
        raise ValueError("'__metadata__' is a name that a safetensors file keeps for itself.")
    plain = {name: plain_copy(kept) for name, kept in mask.items()}
    said = {name: str(value) for name, value in about.items()}
    if list(mask) != sorted(mask):
        said[ORDER] = json.dumps(list(mask))
    write_whole(Path(path), save(plain, said))


def load_mask(path: str | Path) -> dict[str, Tensor]:
    """Read the mask that `save_mask` wrote, on the CPU; where it is used shows whether it fits.

    Raises:
        ValueError: for a file that holds no mask.
        OSError: for a file that cannot be read.
    """
    Path(path).open("rb").close()  # a folder, or nothing, has an error of its own
    try:
        with safe_open(path, "pt") as file:
            mask = tensors_of(file)
            order = json.loads((file.metadata() or {}).get(ORDER, "[]"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}.") from None
    if isinstance(order, list) and sorted(map(str, order)) == sorted(mask):
        mask = {name: mask[name] for name in order}
    check_bools(mask, f"{path}: what it holds")
    return mask
