"""Convolutions that are differentiated twice, against PyTorch's own rules in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pai_lib.curvature.adjoints import DirectAdjoints


def second_derivatives(function, tensors):
    """Value, first derivatives of a curved function of it, and the derivatives of a product with these."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    first = torch.autograd.grad((out.sin() * out).sum(), leaves, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    product = sum((g * v).sum() for g, v in zip(first, vectors, strict=True))
    return [out, *first, *torch.autograd.grad(product, leaves)]


def assert_same(function, *tensors):
    with DirectAdjoints():
        got = second_derivatives(function, tensors)
    for a, b in zip(got, second_derivatives(function, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    axes=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]), kernel=st.integers(1, 3), bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_convolution(axes, stride, padding, dilation, groups, kernel, bias, seed):
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    x, weight = draw(2, 4, *(5,) * axes, seed=seed), draw(4, 4 // groups, *(kernel,) * axes, seed=seed + 1)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if bias:
        assert_same(lambda x, w, b: convolve(x, w, b, **options), x, weight, draw(4))
    else:
        assert_same(lambda x, w: convolve(x, w, **options), x, weight)


def test_other_ways_to_call_a_convolution():
    x, weight = draw(2, 3, 6, 5), draw(4, 3, 3, 2)
    assert_same(F.conv2d, x, weight)
    assert_same(lambda x, w: F.conv2d(x, weight=w, stride=(2, 1), padding=[1, 0]), x, weight)
    assert_same(lambda x, w: F.conv2d(x, w, padding="same"), x, draw(4, 3, 3, 3))
    assert_same(F.conv2d, x[0], weight)  # one sample, without a batch axis
    assert_same(lambda x, w: torch.vmap(lambda one: F.conv2d(one[None], w)[0])(x), x, weight)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_convolution_of_which_one_operand_is_fixed(frozen):
    x, weight = draw(2, 3, 6, 5), draw(4, 3, 3, 2)
    assert_same(lambda t: F.conv2d(*(x, t) if frozen == 0 else (t, weight)), weight if frozen == 0 else x)


def test_it_replaces_what_it_says():
    with DirectAdjoints():
        out = nn.Conv2d(1, 2, 3, bias=False)(torch.ones(1, 1, 4, 4))
    assert out.grad_fn.name() == "_ConvolutionBackward"
    assert nn.Conv2d(1, 2, 3)(torch.ones(1, 1, 4, 4)).grad_fn.name() == "ConvolutionBackward0"
