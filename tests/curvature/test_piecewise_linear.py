"""Every operation that is trusted to be piecewise linear: there the exact diagonal is the Hessian's."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_equal_diagonals
from torch import nn

import pai_lib as pai
from pai_lib.curvature.adjoints import PlainOperations
from pai_lib.curvature.graph import nodes, operation
from pai_lib.curvature.operations import ADDED_PRODUCTS, FIRST_OPERAND, PIECEWISE_LINEAR, PRODUCTS

FIRST = torch.tensor([0])


def volume(x):  # N×4×6×6 -> N×1×4×6×6
    return x.unsqueeze(1)


def line(x):  # -> N×4×6
    return x[..., 0]


def indices(x):
    return torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.int64)


OPERATIONS = {
    "rectifiers": lambda x: F.relu(x) + F.leaky_relu(x) + F.relu6(x) + F.hardtanh(x) + F.threshold(x, 0.1, 1.0),
    "shrinkage": lambda x: (
        F.hardshrink(x) + F.softshrink(x) + F.rrelu(x) + F.hardsigmoid(x) + F.prelu(x, FIRST.double() + 0.3)
    ),
    "absolute": lambda x: x.abs() - x.neg() + (1 - x),
    "clamp": lambda x: x.clamp(-0.3, 0.3) + x.clamp_min(0) + x.clamp_max(0) + x.clamp(min=x.detach() / 2),
    "rounding": lambda x: x + x.round() + x.floor() + x.ceil() + x.trunc() + x.sign(),
    "remainders": lambda x: x.remainder(0.2) + x.fmod(0.3) + x.frac(),
    "divided by a number": lambda x: x / 3 + x / torch.full_like(x, 2) + torch.addcmul(x, x.detach(), x.detach()),
    "of two": lambda x: torch.maximum(x, -x) + torch.minimum(x, 2 * x) + torch.fmax(x, -x) + torch.fmin(x, 2 * x),
    "choice": lambda x: (
        torch.where(x > 0, x, -x) + x.masked_fill(x > 0.2, 1.0) + x.masked_scatter(x > 0, x.flatten())
    ),
    "selection": lambda x: torch.stack([x[x > -9], x.masked_select(x > -9)]).view(2, *x.shape).sum(0),
    "largest of an axis": lambda x: (
        x.amax(1) + x.amin(1) + x.max(1).values + x.min(1).values + torch.aminmax(x, dim=1).max
    ),
    "largest of all": lambda x: x * 0.1 + x.max() + x.min() + x.median(),
    "sorting": lambda x: x.sort(1).values[:, :2] + x.topk(2, 1).values,
    "middle": lambda x: x.median(1).values + x.nanmedian(1).values + x.kthvalue(2, 1).values + x.mode(1).values,
    "running": lambda x: x.cummax(1).values + x.cummin(1).values + x.cumsum(1),
    "sums": lambda x: x.sum(1) + x.mean(1) + x.nansum(1) + x.nan_to_num().sum(1),
    "gather": lambda x: x.gather(1, indices(x)) + x.index_select(1, FIRST) + x[:, FIRST],
    "take": lambda x: x.reshape(len(x), -1)[:, :2] + x.take(torch.tensor([[1, 2]])),
    "scatter": lambda x: x.scatter(1, indices(x), x[:, 1:2]) + x.scatter_add(1, indices(x), x[:, 1:2]),
    "index": lambda x: (
        x.index_add(1, FIRST, x[:, 1:2]) + x.index_copy(1, FIRST, x[:, 1:2]) + x.index_fill(1, FIRST, 1.0)
    ),
    "index put": lambda x: x.transpose(0, 1).index_put((FIRST,), x[:, 0] + 1).transpose(0, 1),
    "slices scattered": lambda x: x.select_scatter(x[:, 0], 1, 1) + x.slice_scatter(x[:, :1], 1, 1, 2),
    "diagonals": lambda x: x.diagonal(dim1=2, dim2=3).diag_embed() + x.tril() + x.triu() + x[0, 0].trace(),
    "blocks": lambda x: torch.stack([torch.block_diag(part[0], part[1]) for part in x]),
    "shapes": lambda x: (
        x.flatten(1).unflatten(1, (4, 6, 6)).permute(0, 1, 3, 2).mT.unsqueeze(1).squeeze(1).contiguous()
    ),
    "parts": lambda x: (
        torch.cat([*x.split([1, 1], 1)[:1], *x.unsafe_split(1, 1)[1:2], x.unbind(1)[2][:, None]], 1)
        if x.shape[1] == 2
        else torch.cat([*x.split([1, 3], 1), x.unsafe_split(2, 1)[0], x.unbind(1)[0][:, None], *x.split(2, 1)], 1)
    ),
    "copies": lambda x: torch.empty_like(x).copy_(x) + x.clone() + x.float().double() + torch.ops.aten.alias(x),
    "strides": lambda x: x.as_strided(x.shape, x.stride()) + x[:, :1].expand_as(x) + x[:, :1].repeat(1, 4, 1, 1),
    "turns": lambda x: x.flip(1) + x.roll(1, 1) + x.rot90(1, [2, 3]) + F.channel_shuffle(x, 2),
    "matrices of a batch": lambda x: x.mT @ x.detach().abs(),
    "matrices": lambda x: (
        torch.stack([part[0].t() for part in x])[:, None] @ torch.ones(6, 5).double()
        + x @ torch.eye(6, 5).double()
    ),
    "pixels": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "windows": lambda x: F.fold(F.unfold(x, 2), (6, 6), 2) + x.unfold(2, 2, 1).sum().unsqueeze(0),
    "average pools": lambda x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 3),
    "maximum pools": lambda x: F.max_pool2d(x, 2) + F.adaptive_max_pool2d(x, 3),
    "unpooling": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "random pools": lambda x: F.fractional_max_pool2d(
        x, 2, 3, _random_samples=torch.full((len(x), 4, 2), 0.3).double()
    ),
    "pools of a line": lambda x: (
        F.avg_pool1d(line(x), 2) + F.max_pool1d(line(x), 2) + F.adaptive_avg_pool1d(line(x), 3)
    ),
    "pools of a volume": lambda x: (
        F.avg_pool3d(volume(x), 2)
        + F.max_pool3d(volume(x), 2)
        + F.adaptive_avg_pool3d(volume(x), (2, 3, 3))
        + F.adaptive_max_pool3d(volume(x), (2, 3, 3))
    ),
    "unpooling a volume": lambda x: F.max_unpool3d(*F.max_pool3d(volume(x), 2, return_indices=True), 2),
    "random pools of a volume": lambda x: F.fractional_max_pool3d(
        volume(x), 2, 2, _random_samples=torch.full((len(x), 1, 3), 0.3).double()
    ),
    "padding": lambda x: sum(
        F.pad(x, (1, 1, 1, 1), mode) for mode in ("constant", "reflect", "replicate", "circular")
    ),
    "padding of a line": lambda x: sum(
        F.pad(line(x), (1, 2), mode) for mode in ("reflect", "replicate", "circular")
    ),
    "padding of a volume": lambda x: sum(
        F.pad(volume(x), (1,) * 6, mode) for mode in ("reflect", "replicate", "circular")
    ),
    "circular convolution": lambda x: F.conv2d(
        F.pad(x, (2, 1, 0, 1), "circular"), torch.ones(2, 4, 3, 3).double()
    ),
    "enlarged": lambda x: sum(
        F.interpolate(x, scale_factor=2, mode=mode) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
    ),
    "enlarged line": lambda x: sum(
        F.interpolate(line(x), scale_factor=2, mode=mode) for mode in ("nearest", "nearest-exact", "linear")
    ),
    "enlarged volume": lambda x: sum(
        F.interpolate(volume(x), scale_factor=2, mode=mode) for mode in ("nearest", "nearest-exact", "trilinear")
    ),
    "sampled at a grid": lambda x: F.grid_sample(
        x, torch.full((len(x), 2, 2, 2), 0.3).double(), align_corners=False
    ),
    "looked up": lambda x: x[:, :1, :2] + F.embedding(torch.tensor([[0, 1]]), x[0, 0])[:, None],
}


class Through(nn.Module):
    """A convolution of eight weights, the operation, and fixed sums of what it gives as logits."""

    def __init__(self, function):
        super().__init__()
        self.function, self.body = function, nn.Conv2d(2, 4, 1, dtype=torch.float64)

    def forward(self, x):
        out = self.function(self.body(x)).flatten(1)
        weights = torch.randn(out.shape[1], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return out @ weights / out.shape[1] ** 0.5


def batch(samples):
    inputs = torch.randn(samples, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return pai.Batch(inputs, torch.arange(samples) % 3)


def twice_differentiated(model, batch, names):
    """The Hessian of the mean loss, one row after the other (not all of these operations can be batched)."""
    parameters = [model.get_parameter(name) for name in names]
    loss = F.cross_entropy(model(batch.inputs), batch.labels)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = [
        torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        for entry in torch.cat([part.flatten() for part in gradient])
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("case", OPERATIONS)
def test_the_exact_diagonal_is_the_hessians(case):
    torch.manual_seed(0)
    model, one = Through(OPERATIONS[case]), batch(1)  # some of these functions mix samples
    names = ["body.weight", "body.bias"]
    with PlainOperations():
        expected = twice_differentiated(model, one, names).diag()
    assert expected.any()
    rounded = 1e-6 if case == "copies" else 1e-10  # through float32
    assert_equal_diagonals(pai.exact_diag(model, one, parameters=names), expected, rounded)


def test_nothing_is_trusted_without_a_case():
    """And nothing on the lists is a name that PyTorch does not give."""
    seen = set()
    for function in OPERATIONS.values():
        model = Through(function)
        seen |= {operation(node) for node in nodes(model(batch(1).inputs).grad_fn)}
        with PlainOperations():
            seen |= {operation(node) for node in nodes(model(batch(1).inputs).grad_fn)}
    assert sorted(PIECEWISE_LINEAR - seen) == []
    assert not PIECEWISE_LINEAR & {*FIRST_OPERAND, *PRODUCTS, *ADDED_PRODUCTS}


SECOND = {
    "hard sigmoid": nn.Hardsigmoid(),
    "hard sigmoid in place": nn.Hardsigmoid(inplace=True),
    "hard swish": nn.Hardswish(),
    "circular padding": nn.CircularPad1d((2, 1)),
}


@pytest.mark.parametrize("case", SECOND)
def test_layers_whose_second_derivative_pytorch_lacks_have_their_rule(case):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), SECOND[case], nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)).double()
    one = pai.Batch(3 * torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3)
    model(one.inputs)
    names = ["0.weight", "2.weight"]
    plain = nn.Sequential(model[0], Plain(SECOND[case]), *model[2:])
    dense = twice_differentiated(plain, one, names)
    v = pai.gradient(model, one, parameters=names)
    found = pai.hessian_vector_product(model, one, v)
    product = dense @ torch.cat([v[name].flatten() for name in names])
    assert torch.allclose(torch.cat([found[name].flatten() for name in names]), product, rtol=1e-10, atol=1e-14)


class Plain(nn.Module):
    """The same function of what can be differentiated twice."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        if isinstance(self.layer, nn.CircularPad1d):
            return torch.cat([x[:, -2:], x, x[:, :1]], 1)
        hard = (x + 3).clamp(0, 6) / 6
        return x * hard if isinstance(self.layer, nn.Hardswish) else hard


def test_an_operation_without_a_second_derivative_is_named():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] ** 2 * gradient

    model = Through(Cube.apply)
    with pytest.raises(ValueError, match="second derivative"):
        pai.hutchinson_diag(model, batch(2), parameters=["body.weight"])
