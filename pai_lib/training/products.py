"""Products of bf16 numbers on processors that have no instructions for them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in "convolution convolution_backward mm addmm bmm baddbmm".split()
)


class WideProducts(TorchDispatchMode):
    """Convolutions and matrix products of bf16 numbers: taken and summed in float32, then rounded.

    So do processors with instructions for bf16, up to the order of the sum. On others PyTorch goes
    number by number, which takes many times as long.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute one operation."""
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(map(_is_narrow, args)):
            return func(*args, **kwargs)
        wide = [arg.float() if _is_narrow(arg) else arg for arg in args]
        result = func(*wide, **kwargs)
        return tuple(map(_narrow, result)) if isinstance(result, tuple) else _narrow(result)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value


def products(
    device: torch.device, precision: str, compile: bool
) -> contextlib.AbstractContextManager[Any]:
    """``WideProducts`` for training in bf16 on a processor whose best instructions are AVX2's."""
    narrow = device.type == "cpu" and precision == "bf16" and not compile  # which cannot see it
    if narrow and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return WideProducts()
    return contextlib.nullcontext()
