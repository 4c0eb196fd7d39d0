"""Operations made of others: for graphs that tell what ran, and for cheap second derivatives.

PyTorch differentiates a convolution's backward pass by transposed copies of its operands, which on
a CPU costs more than all the rest of a Hessian-vector product. A convolution y = x ∗ W is bilinear,
so the derivatives of its adjoint are again convolutions and adjoints of it. For g at y, the adjoint
gives x̄ = Wᵀg and W̄ = xᵀg, and for a at x̄ and b at W̄ its own adjoint gives a ∗ W + x ∗ b at g,
bᵀg at x and aᵀg at W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_convolution, _backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward


def _recomputed() -> bool:
    """Whether what runs now will run again in the backward pass, for activation checkpointing.

    `torch.autograd.grad` takes a mode for an override of itself and runs without it. Tensors of the
    operations here would then be mistaken for those of PyTorch's own, of the same shapes.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class PlainOperations(TorchFunctionMode):
    """While active, operations are made of others whose graph tells all, or has two derivatives."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Replace circular padding, which writes in place, hard sigmoid and weight norm."""
        if function in _PLAIN and not _recomputed():
            function = _PLAIN[function]
        return function(*args, **(kwargs or {}))


def _pad(input, pad, mode="constant", value=None) -> Tensor:
    too_long = any(n > input.shape[-1 - i // 2] for i, n in enumerate(pad))
    if mode != "circular" or min(pad) < 0 or too_long:
        return F.pad(input, pad, mode, value)
    for axis, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        start = input.narrow(-axis, input.shape[-axis] - before, before)
        input = torch.cat([start, input, input.narrow(-axis, 0, after)], -axis)
    return input


def _hardsigmoid(input, inplace=False) -> Tensor:
    value = F.hardtanh(input + 3, 0.0, 6.0) / 6  # the same at the bends: their derivative is 0
    return input.copy_(value) if inplace else value


def _weight_norm(v, g, dim=0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))  # PyTorch's takes the norm for a constant


_PLAIN = {F.pad: _pad, F.hardsigmoid: _hardsigmoid, torch._weight_norm: _weight_norm}


class DirectAdjoints(TorchFunctionMode):
    """While active, what runs can be differentiated twice (not three times) by the rules above."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Replace convolutions of batches; nothing else."""
        kwargs = kwargs or {}
        result: Any = NotImplemented
        if function in (torch.conv1d, torch.conv2d, torch.conv3d) and not _recomputed():
            result = _convolve(*args, **kwargs)
        return function(*args, **kwargs) if result is NotImplemented else result


def _convolve(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Any:
    cast = torch.is_autocast_enabled(input.device.type) or input.is_complex()
    if isinstance(padding, str) or input.ndim != weight.ndim or cast:
        return NotImplemented
    sizes = [[n] if isinstance(n, int) else n for n in (stride, padding, dilation)]
    out = _Convolution.apply(input, weight, (*sizes, False, [0], groups))  # N×C×…
    return out if bias is None else out + bias.view(-1, *(1,) * (weight.ndim - 2))


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, options):
        return _convolution(x, weight, None, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        needed = ctx.needs_input_grad[:2]
        return *_Adjoint.apply(gradient, *ctx.saved_tensors, ctx.options, needed), None


class _Adjoint(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, x, weight, options, needed):
        return _backward(gradient, x, weight, None, *options, (*needed, False))[:2]

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.options, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, a, b):
        (gradient, x, weight), options = ctx.saved_tensors, ctx.options
        at_gradient = at_x = at_weight = None
        if a is not None:
            at_gradient = _convolution(a, weight, None, *options)
            if ctx.needs_input_grad[2]:
                at_weight = _backward(gradient, a, weight, None, *options, (False, True, False))[1]
        if b is not None:
            product = _convolution(x, b, None, *options)
            at_gradient = product if at_gradient is None else at_gradient + product
            if ctx.needs_input_grad[1]:
                at_x = _backward(gradient, x, b, None, *options, (True, False, False))[0]
        return at_gradient, at_x, at_weight, None, None
