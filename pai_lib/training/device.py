"""What a call changes of a model or of PyTorch and gives back: modes, layout, random states."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability

from ..curvature.calls import evaluation_mode, modes_given_back, random_states_restored
from ..data.batch import of_each
from ..draws import random_stream


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next, which else gets large tensors page by page.

    It cost up to a third of the time of a step on a CPU; the price is a process that stays as large
    as it was. It cannot be given back, so it is for the processes of the command line, and never
    for a user's own.
    """
    with contextlib.suppress(OSError, AttributeError):  # not on other systems
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: return nothing


@contextlib.contextmanager
def own_draws(model: nn.Module, seed: int) -> Iterator[None]:
    """Make what a model draws depend on a seed; the global random states come back at the end.

    Python's and NumPy's are among them.
    """
    devices = list({parameter.device for parameter in model.parameters() if parameter.is_cuda})
    drawn = random_stream(seed, "model").initial_seed()
    with random_states_restored(devices):
        torch.default_generator.manual_seed(drawn)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)  # noqa: NPY002 (models draw from the global one)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(drawn)
        yield


@contextlib.contextmanager
def no_autocast(model: nn.Module) -> Iterator[None]:
    """Compute in the precision of the weights, whatever autocast the caller is in."""
    kinds = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} or {"cpu"}
    with contextlib.ExitStack() as stack:
        for kind in kinds - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def measuring(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Set a model up for forward passes alone: evaluation mode, no gradients, no autocast."""
    with no_autocast(model), torch.no_grad(), own_draws(model, seed), evaluation_mode(model):
        yield


@contextlib.contextmanager
def training(model: nn.Module, seed: int) -> Iterator[Callable[[Any], Any]]:
    """Set a model up to be trained; yield what brings its inputs into the layout of its own.

    At the end modes and layout are as before, each parameter is in its own storage again, and no
    gradient is left.
    """
    fast, fit = fits_channels_last(model), fitting(model)
    kernels = _kernels(model) if fast else []
    storages = [kernel.data for kernel in kernels]

    def laid_out(inputs: Any) -> Any:
        images = fast and isinstance(inputs, Tensor) and inputs.ndim == 4  # N×C×H×W
        return fit(inputs.contiguous(memory_format=torch.channels_last) if images else inputs)

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        no_autocast(model),
        own_draws(model, seed),
        modes_given_back(model),
    ):
        model.train()
        try:
            in_channels_last(model)
            yield laid_out
        finally:
            model.zero_grad()
            for kernel, storage in zip(kernels, storages, strict=True):
                _replace(kernel, storage.copy_(kernel.data))


def fits_channels_last(model: nn.Module) -> bool:
    """Whether a model may compute in channels_last, in which convolutions are faster everywhere.

    It may if every module and hook is PyTorch's, torchvision's or of this library: those of others
    may flatten by ``view``, which that layout forbids. Two kernels in one storage would come apart.
    """
    places = [vars(nn.modules.module), *map(vars, model.modules())]  # hooks of all modules, of each
    places += [{"_hooks": parameter._backward_hooks or {}} for parameter in model.parameters()]
    hooks = [h for at in places for key in at if key.endswith("_hooks") for h in at[key].values()]
    ours = "torchvision.", "pai_lib."
    familiar = all(f"{hook.__module__}.".startswith(("torch.", *ours)) for hook in hooks) and all(
        f"{type(module).__module__}.".startswith(("torch.nn.modules.", *ours))
        and "forward" not in vars(module)
        and not _overruns(module)
        for module in model.modules()
    )
    pairs = itertools.combinations(_kernels(model), 2)
    return familiar and not any(first.is_set_to(second) for first, second in pairs)


def _overruns(module: nn.Module) -> bool:
    """Whether oneDNN would overrun its memory in that layout (uxlfoundation/oneDNN#6035).

    It does in the backward pass of a strided 1×1 convolution of fewer channels than a register of
    AVX2 holds.
    """
    if not isinstance(module, nn.Conv2d) or module.weight.is_cuda:
        return False
    strided = set(module.kernel_size) == {1} and set(module.stride) != {1}
    return strided and module.in_channels < 8 and get_cpu_capability() == "AVX2"


def in_channels_last(model: nn.Module) -> nn.Module:
    """Bring a model into channels_last, if it may be, to stay so."""
    for kernel in _kernels(model) if fits_channels_last(model) else []:
        _replace(kernel, kernel.data.to(memory_format=torch.channels_last))
    return model


def _kernels(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 4]


def _replace(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Give a parameter another tensor to hold its numbers; it stays the same object."""
    if type(parameter) is nn.Parameter:
        parameter.data = tensor
    else:  # a subclass may hold them elsewhere, where .data does not reach
        torch.utils.swap_tensors(parameter, nn.Parameter(tensor, parameter.requires_grad))


def fitting(model: nn.Module) -> Callable[[Any], Any]:
    """What moves inputs to the model's one device and makes images its one floating-point type."""
    devices = {parameter.device for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    device = devices.pop() if len(devices) == 1 else None
    dtype = dtypes.pop() if len(dtypes) == 1 else None

    def fitted(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    return functools.partial(of_each, change=fitted)


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or CUDA where there is one and the CPU elsewhere.

    Raises:
        ValueError: if CUDA is asked for where there is none; there is no silent fall-back.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(device)):
        raise ValueError(f'device="{device}": it must be "cpu" or "cuda".')
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda": PyTorch finds no CUDA device here; use device="cpu".')
    return device
