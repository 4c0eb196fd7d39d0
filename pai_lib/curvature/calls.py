"""Calling a model: in evaluation mode, on inputs of any form, with other weights than its own."""

from __future__ import annotations

import contextlib
import pickle
import random
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any_only, tree_leaves

from ..data.batch import Inputs, each_of, of_each
from ..draws import ONE_THREAD
from .adjoints import PlainOperations

SUBSTITUTED: ContextVar[dict[int, str]] = ContextVar("names of the weights, by their id")
ByParameter = dict[str, Tensor]
HELD = (
    "The forward pass takes {!r} from elsewhere than its module (as from a list or a functools."
    "partial), where no derivative sees it: read it from its module, or register it there too."
)
UNREPEATABLE = (
    "The model's output differs from call to call in evaluation mode: switch its random numbers "
    "off (as of F.dropout without training=self.training), or the state that it keeps."
)

FAILURES = RuntimeError, TypeError, IndexError, AssertionError  # of a forward pass
# In words alone: of PyTorch's allocator, CUDA and its libraries, C++, Linux.
_EXHAUSTED = (
    r"DefaultCPUAllocator: (not enough|can't allocate) memory|CUDA error: out of memory|bad_alloc"
    r"|\bCU[A-Z]+_(\w+_)?ALLOC\w*_FAILED|\[Errno 12\]|Cannot allocate memory( \(12\)|$)"
    r"|Storage size calculation overflowed"
)


def exhausted(error: BaseException) -> bool:
    """Tell whether an error says that memory is exhausted."""
    told = isinstance(error, RuntimeError | OSError) and re.search(_EXHAUSTED, str(error))
    return bool(told) or isinstance(error, MemoryError | torch.OutOfMemoryError)


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model: a mapping holds its keyword arguments, a tuple its positional ones.

    Within an autocast, as around all of training, one of the model's own would take the casts that
    an earlier call made: of weights that have changed since, or without gradients. So it is with
    what ``parametrize.cached()`` keeps.
    """
    torch.clear_autocast_cache()
    cache, parametrize._cache = parametrize._cache, {}
    try:
        names = SUBSTITUTED.get({})  # not in all of the block in which they are: that is slow
        with _HeldElsewhere(names) if names else contextlib.nullcontext():
            if isinstance(inputs, Mapping):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    finally:
        parametrize._cache = cache
        torch.clear_autocast_cache()


def answered(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with plain operations; ValueError as ``fails_in_a_sentence``."""
    with fails_in_a_sentence(inputs), PlainOperations():
        return called(model, inputs)


@contextlib.contextmanager
def fails_in_a_sentence(inputs: Inputs) -> Iterator[None]:
    """Raise ValueError where a model's forward pass fails in the block, with the inputs' shapes."""
    try:
        yield
    except FAILURES as error:
        if exhausted(error):
            raise
        said = ", ".join(
            f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in each_of(inputs)
        )
        if isinstance(inputs, Mapping):
            said = f"a mapping of {', '.join(inputs)}: {said}"
        fails = f"The model's forward pass fails for inputs of {said.replace('torch.', '')}"
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{fails}: {reason}") from error


def check_repeats(model: nn.Module, inputs: Inputs, random_state: Tensor) -> None:
    """Raise ValueError, and restore a random state, if a model's output differs when called again.

    Outputs are compared, not the states of generators, which only tell where to look twice: other
    threads, as those of a Dask worker, draw from them too.
    """
    try:
        with torch.no_grad(), PlainOperations():
            first, second = (called(model, of_each(inputs, Tensor.clone)) for _ in range(2))
    except (*FAILURES, ValueError):  # so few samples are too few for it
        return
    if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.is_floating_point()):
        return  # refused elsewhere
    rounding = 1e4 * torch.finfo(first.dtype).eps  # a GPU may add in another order
    if first.shape != second.shape or (first - second).abs().max() > rounding * first.abs().max():
        torch.set_rng_state(random_state)
        raise ValueError(UNREPEATABLE)


@contextlib.contextmanager
def repeating(model: nn.Module, taken: Any, parts: list[slice], always: int = 1) -> Iterator[None]:
    """Check that parts of a batch repeat, the first often, if numbers were drawn in the block.

    Else the first ``always`` of them, once. It goes before errors, which may follow from draws.
    ``taken`` gives the inputs of a part.
    """
    state, before = torch.get_rng_state(), _drawn_from(model)
    try:
        yield
    finally:
        often = parts[:1] * 16 + parts[1:]  # a rare draw shows in few calls
        for part in often if _drawn_from(model) != before else parts[:always]:
            check_repeats(model, taken(part), state)


def _states_elsewhere() -> tuple[Any, Any]:
    """Random states of Python and NumPy."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002 (models draw from the global one)


def _drawn_from(model: nn.Module) -> bytes:
    """What changes where numbers are drawn: the global generators, and that of the device."""
    states = [torch.get_rng_state().numpy(), *_states_elsewhere()]
    device = next(model.parameters()).device
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device).numpy())
    return pickle.dumps(states)


class DetachedValues(TorchFunctionMode):
    """Notes whether values go on without gradients, as after ``detach``: no graph shows where."""

    found = False

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes in and comes out."""
        result = call(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        detached = any(isinstance(out, Tensor) and not out.requires_grad for out in outputs)
        if detached or call in _READ_BY_PYTHON:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.found |= any(tensor.requires_grad for tensor in tensors)
        return result


_READ_BY_PYTHON = {
    getattr(Tensor, name) for name in "item tolist __bool__ __float__ __int__ __index__".split()
}


def generator_or_new(generator: torch.Generator | None) -> torch.Generator:
    """Return a generator; of ``None`` a new one with seed 0. TypeError for others, as a seed."""
    if generator is None:
        return torch.Generator("cpu").manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator={generator!r}: it must be a torch.Generator, or None.")
    return generator


class _HeldElsewhere(TorchFunctionMode):
    """Refuses weights that a forward pass takes from where no other can be put in their place."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names = names  # by the weights' id

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes in, views included; hooks and RNNs may compare, and read attributes."""
        result = call(*args, **(kwargs or {}))
        reads = getattr(call, "__name__", "") in ("__get__", "_cudnn_rnn_flatten_weight")
        names = {} if reads else self.names
        given = [*args, *(kwargs or {}).values()]  # not by tree_leaves, which is slow
        for leaf in given + [t for row in given if isinstance(row, tuple | list) for t in row]:
            whole = leaf._base if isinstance(leaf, Tensor) and leaf._base is not None else leaf
            if id(whole) in names and tree_any_only(Tensor, Tensor.is_floating_point, result):
                raise ValueError(HELD.format(names[id(whole)]))
        return result


_CONTAINERS = (OrderedDict, dict, list, deque, set)


@contextlib.contextmanager
def restored(containers: Iterable[Any]) -> Iterator[None]:
    """Give lists, dicts, sets and deques that have changed what they hold now back at the end.

    By the methods of these types: a frozen subclass may refuse its own.
    """
    kinds: list[tuple[Any, Any]] = [
        (container, next(kind for kind in _CONTAINERS if isinstance(container, kind)))
        for container in containers
    ]
    before = [(container, kind, kind(container)) for container, kind in kinds]
    try:
        yield
    finally:
        for container, kind, contents in before:
            if not _same(kind(container), contents):
                kind.clear(container)
                (kind.extend if kind in (list, deque) else kind.update)(container, contents)


def _same(first: Any, second: Any) -> bool:
    """Whether two containers of a type hold the very same: tensors have no single answer to ==."""
    if isinstance(first, set):
        return first == second
    pairs = [[*held.items()] if isinstance(held, dict) else [held] for held in (first, second)]
    ids = [[id(item) for held in part for item in held] for part in pairs]
    return ids[0] == ids[1]


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by its single operations, while no other thread changes how it is done."""
    with ONE_THREAD, sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def numbers_restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors the numbers that they hold now back at the end."""
    dense = [tensor for tensor in tensors if tensor.layout == torch.strided]
    before = [(tensor, tensor.detach().clone()) for tensor in dense]
    try:
        yield
    finally:
        for tensor, numbers in before:
            if not torch.equal(tensor, numbers):
                tensor.data.copy_(numbers)  # whose version, which graphs look at, stays


@contextlib.contextmanager
def substituted(model: nn.Module, state: ByParameter) -> Iterator[None]:
    """Have a model compute with other tensors, by the names of its own, until the end of the block.

    Unlike ``torch.func.functional_call`` also while a backward pass recomputes (activation
    checkpointing).
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    others = {id(tensor): state[name] for name, tensor in tensors.items() if name in state}
    # Where modules keep them: a shared one in several.
    stores: list[Any] = [s for m in model.modules() for s in (m._parameters, m._buffers)]
    token = SUBSTITUTED.set({id(p): name for name, p in model.named_parameters() if name in state})
    with contextlib.ExitStack() as stack:  # the forward pass may register more
        stack.callback(SUBSTITUTED.reset, token)
        stack.enter_context(restored(stores))
        for store in stores:
            for name, tensor in store.items():
                store[name] = others.get(id(tensor), tensor)
        yield


@contextlib.contextmanager
def modes_given_back(model: nn.Module) -> Iterator[None]:
    """Give back each module's own mode at the end, by its own ``train`` where it has changed."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:  # what holds others comes before them
            if module.training != training:
                module.train(training)
                module.training = training  # whatever its own makes of it


@contextlib.contextmanager
def random_states_restored(gpus: list[torch.device]) -> Iterator[None]:
    """Give back the global random states at the end: PyTorch's, Python's and NumPy's."""
    python, of_numpy = _states_elsewhere()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002 (as above)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, on_copies: bool = False) -> Iterator[None]:
    """Put every module in evaluation mode, and leave the model as it was.

    What it holds comes back: modes, attributes (and what is in their containers, as caches are, and
    the numbers of tensors and arrays), parameters and buffers with their numbers; and the global
    random states. ``on_copies`` tells that no forward pass writes to parameters or buffers.
    What ``torch.compile`` made runs as it was written: compiled, it has no second derivative, nor a
    graph that tells what ran.
    """
    with ONE_THREAD:  # else another thread takes what is set here for the model's own
        held: list[Any] = [vars(module) for module in model.modules()]
        seen, attributes = set(map(id, held)), list[Tensor]()
        registered = (*model.parameters(), *model.buffers())
        seen.update(map(id, registered))
        for container in held:  # and those within, which join them
            for value in container.values() if isinstance(container, dict) else container:
                if id(value) in seen:
                    continue
                seen.add(id(value))
                if isinstance(value, _CONTAINERS):
                    held.append(value)
                elif (
                    type(value) in (Tensor, nn.Parameter)
                    and value.layout == torch.strided
                    and not value.is_meta
                ):
                    attributes.append(value.detach())
                elif isinstance(value, np.ndarray) and value.flags.writeable:
                    with contextlib.suppress(TypeError, ValueError):  # of other kinds than tensors
                        attributes.append(torch.from_numpy(value))  # of the same memory
        # A ``train`` of a module's own may write as well: it may merge weights.
        trains = (getattr(module.train, "__func__", None) for module in model.modules())
        own = any(train is not nn.Module.train for train in trains)
        tensors = registered if own or not on_copies else ()
        gpus = list({tensor.device for tensor in registered if tensor.is_cuda})
        compiling = "torch._dynamo" in sys.modules  # importing it takes a second
        with (
            torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext(),
            random_states_restored(gpus),
            numbers_restored((*tensors, *attributes)),
            modes_given_back(model),
            restored(held),
        ):
            model.eval()
            yield
