"""Calling a model: in evaluation mode, on inputs of any form, with other weights in place of its own."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .adjoints import PlainOperations
from .data import Inputs, each_of

ByParameter = dict[str, Tensor]


def plain(tensor: Tensor) -> Tensor:
    """The tensor without its graph; a copy where it was made in inference mode, which no graph may hold."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model: a mapping holds its keyword arguments, a tuple its positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def first_called(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model, and say in a sentence what is wrong with that.

    Raises:
        ValueError: as ``failing_in_a_sentence``, and for a model that draws random numbers.
    """
    device = each_of(inputs)[0].device
    before = _random_states(device)
    with failing_in_a_sentence(model, inputs), PlainOperations():
        out = called(model, inputs)
    if not all(map(torch.equal, before, _random_states(device))):
        torch.set_rng_state(before[0])
        raise ValueError(
            "The model draws random numbers in evaluation mode (as F.dropout does without "
            "training=self.training), so scores would differ from call to call: switch that off."
        )
    return out


@contextlib.contextmanager
def failing_in_a_sentence(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Raise ValueError for inputs that a model does not take, and where its forward pass fails in the block."""
    tensors = each_of(inputs)
    given = ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in tensors).replace("torch.", "")
    if not isinstance(inputs, Tensor):
        kind = (
            f"a mapping of {', '.join(inputs)}"
            if isinstance(inputs, Mapping)
            else f"a tuple of {len(tensors)} tensors"
        )
        signature = inspect.signature(model.forward)
        try:
            signature.bind(**inputs) if isinstance(inputs, Mapping) else signature.bind(*inputs)
        except TypeError as error:
            raise ValueError(
                f"The inputs are {kind}, and the model's forward{signature} does not take them: {error}."
            ) from None
    try:
        yield
    except (RuntimeError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"The model's forward pass fails for inputs of {given}: {said}") from error


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextlib.contextmanager
def substituted(model: nn.Module, state: ByParameter) -> Iterator[None]:
    """Have a model compute with other tensors, by the names of its own, until the end of the block.

    Unlike ``torch.func.functional_call`` also while a backward pass recomputes (activation checkpointing).
    """
    named = (*model.named_parameters(), *model.named_buffers())
    others = {id(tensor): state[name] for name, tensor in named if name in state}
    modules = list(model.modules())
    holders: list[Any] = [store for module in modules for store in (module._parameters, module._buffers)]
    before = [dict(store) for store in holders]
    try:
        for store in holders:
            store.update({name: others[id(tensor)] for name, tensor in store.items() if id(tensor) in others})
        yield
    finally:
        for store, tensors in zip(holders, before, strict=True):
            store.update(tensors)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and give back each one's own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
