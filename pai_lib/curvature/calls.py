"""Calling a model: in evaluation mode, on inputs of any form, with other weights in place of its own."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..data.batch import Inputs, each_of, of_each
from .adjoints import PlainOperations

ByParameter = dict[str, Tensor]


def plain(tensor: Tensor) -> Tensor:
    """The tensor without its graph; a copy where it was made in inference mode, which no graph may hold."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model: a mapping holds its keyword arguments, a tuple its positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def answered(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with plain operations; ValueError as ``failing_in_a_sentence``."""
    with failing_in_a_sentence(model, inputs), PlainOperations():
        return called(model, inputs)


def first_called(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model; ValueError as ``failing_in_a_sentence``, and for a model that draws random numbers."""
    device = each_of(inputs)[0].device
    state, before = torch.get_rng_state(), _random_states(device)
    out = answered(model, inputs)
    if before != _random_states(device) and _draws(
        model, of_each(inputs, lambda tensor: tensor[:2])
    ):
        torch.set_rng_state(state)
        raise ValueError(
            "The model draws random numbers in evaluation mode (as F.dropout does without "
            "training=self.training), so scores would differ from call to call: switch that off."
        )
    return out


def _draws(model: nn.Module, few: Inputs) -> bool:
    """Whether each of five calls draws: other threads, as those of a Dask worker, draw now and then."""
    for _ in range(5):
        before = _random_states(each_of(few)[0].device)
        with torch.no_grad():
            answered(model, few)
        if before == _random_states(each_of(few)[0].device):
            return False
    return True


@contextlib.contextmanager
def failing_in_a_sentence(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Raise ValueError for inputs that a model does not take, and where its forward pass fails in the block."""
    tensors = each_of(inputs)
    if not isinstance(inputs, Tensor):
        kind = f"a tuple of {len(tensors)} tensors"
        if isinstance(inputs, Mapping):
            kind = f"a mapping of {', '.join(inputs)}"
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
        given = ", ".join(f"{t.dtype} of shape {tuple(t.shape)}" for t in tensors).replace(
            "torch.", ""
        )
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"The model's forward pass fails for inputs of {given}: {said}") from error


def _random_states(device: torch.device) -> list[Any]:
    states = [torch.get_rng_state()] + (
        [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    )
    others = pickle.dumps(np.random.get_state(legacy=False)), random.getstate()  # noqa: NPY002
    return [*(state.numpy().tobytes() for state in states), *others]


def check_repeats(model: nn.Module, inputs: Inputs) -> None:
    """Raise ValueError for a model whose output for a few inputs is another one when it is called again."""
    if not _repeats(model, inputs):
        raise ValueError(
            "The model's output for the same inputs differs from call to call in evaluation mode, as with random "
            "numbers of its own or a state that it keeps, and so would scores: switch that off."
        )


def _repeats(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with torch.no_grad(), PlainOperations():
            one, two = (called(model, of_each(inputs, Tensor.clone)) for _ in range(2))
    except (RuntimeError, ValueError, IndexError):  # so few samples are too few for it
        return True
    if not (isinstance(one, Tensor) and isinstance(two, Tensor) and one.is_floating_point()):
        return True  # refused elsewhere
    within = 1e4 * torch.finfo(one.dtype).eps  # a GPU may add in another order
    return one.shape == two.shape and not bool((one - two).abs().max() > within * one.abs().max())


class ValuesAlone(TorchFunctionMode):
    """Notes whether values go on without their gradients, as after ``detach``: the graph does not show where."""

    found = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Look at what goes in and comes out."""
        out = function(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        without = any(isinstance(each, Tensor) and not each.requires_grad for each in made)
        if not self.found and (without or function in _READS):
            given = tree_leaves((args, kwargs))
            self.found = any(isinstance(each, Tensor) and each.requires_grad for each in given)
        return out


_READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
}


def generator_or_new(generator: torch.Generator | None) -> torch.Generator:
    """Return a generator; of ``None`` a new one with seed 0. Raises TypeError for anything else, as a seed."""
    if generator is None:
        return torch.Generator("cpu").manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator={generator!r}: it must be a torch.Generator, such as torch.Generator().manual_seed(0)."
        )
    return generator


@contextlib.contextmanager
def substituted(model: nn.Module, state: ByParameter) -> Iterator[None]:
    """Have a model compute with other tensors, by the names of its own, until the end of the block.

    Unlike ``torch.func.functional_call`` also while a backward pass recomputes (activation
    checkpointing).
    """
    named = (*model.named_parameters(), *model.named_buffers())
    others = {id(tensor): state[name] for name, tensor in named if name in state}
    modules = list(model.modules())
    holders: list[Any] = [
        store for module in modules for store in (module._parameters, module._buffers)
    ]
    before = [dict(store) for store in holders]
    try:
        for store in holders:
            store.update(
                {name: others[id(tensor)] for name, tensor in store.items() if id(tensor) in others}
            )
        yield
    finally:
        for store, tensors in zip(holders, before, strict=True):
            for name in store.keys() - tensors.keys():  # registered by the forward pass
                del store[name]
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
