"""What was executed decides: curved operations and uses that are not understood are errors, never numbers."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, assert_equal_diagonals, batch_of, fisher_loop, hessian, linear
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import pai_lib as pai

BATCH = batch_of(6, 4)
TOKENS = batch_of(6, 5, 4)
IMAGES = batch_of(6, 4, 3, 3)
PER_SAMPLE = {"fisher": pai.fisher_diag, "ggn": pai.ggn_diag, "exact": pai.exact_diag}
per_sample = pytest.mark.parametrize("estimator", PER_SAMPLE.values(), ids=PER_SAMPLE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def body(function, **parts):
    """A linear layer, the function, and a head."""
    return Net(lambda net, x: net.head(function(net, net.a(x))), a=linear(), head=linear(4, 3), **parts)


def write_into_part(net, x):
    x = x.clone()
    x[:, :2].exp_()
    return x


def attend(net, x):
    return ((x @ x.transpose(1, 2)).softmax(-1) @ TOKENS.inputs[0]).mean(1)


class Relu(torch.autograd.Function):
    """A user's own function under a trusted name: it is a cube."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


CURVED = {
    "gelu": ("Gelu", lambda net, x: F.gelu(x)),
    "silu": ("Silu", lambda net, x: F.silu(x)),
    "sigmoid": ("Sigmoid", lambda net, x: x.sigmoid()),
    "power": ("Pow", lambda net, x: x**2),
    "square": ("Mul", lambda net, x: x * x),
    "shared upstream": ("Mul", lambda net, x: F.relu(x) * (1 - x.abs())),
    "divisor": ("Div", lambda net, x: x / (1 + x.abs())),
    "layer norm": ("NativeLayerNorm", lambda net, x: F.layer_norm(x, (4,))),
    "norm": ("LinalgVectorNorm", lambda net, x: x * x.detach() + x.norm(dim=1, keepdim=True)),
    "subtraction": ("Mul", lambda net, x: (1 - x).flip(1) * x.relu()),
    "in place into a part": ("CopySlices", write_into_part),
    "a user's function": ("ReluBackward", lambda net, x: Relu.apply(x)),
}


@pytest.mark.parametrize("case", CURVED)
def test_exact_diagonal_names_the_operation_that_bends_the_logits(case):
    operation, function = CURVED[case]
    reason = "makes the logits curved" if operation in ("Mul", "Div") else "is not known to be piecewise linear"
    with pytest.raises(ValueError, match=f"The operation '{operation}' {reason}.*use ggn_diag"):
        pai.exact_diag(body(function), BATCH)


def test_exact_diagonal_names_the_operations_of_softmax_attention():
    with pytest.raises(ValueError, match="'Bmm' makes the logits curved"):
        pai.exact_diag(body(attend), TOKENS)
    one_sided = body(lambda net, x: (x @ TOKENS.inputs[0].T).softmax(-1).mean(1)[:, :4])
    with pytest.raises(ValueError, match="'Softmax' is not known to be piecewise linear"):
        pai.exact_diag(one_sided, TOKENS)


def product(net, x):
    """Of two activations that no weight shares: linear in each single weight."""
    return net.head(F.relu(net.a(x)) * F.relu(net.b(x)))


def above(net, x):
    """Curved, but only below the weights in question."""
    return net.head(F.relu(net.a(F.gelu(x).softmax(-1) ** 2)))


@pytest.mark.parametrize("function", [product, above])
def test_a_product_of_different_weights_and_a_curve_below_them_are_fine(function):
    model = Net(function, a=linear(), b=linear(), head=linear(4, 3))
    names = [n for n in ("a.weight", "a.bias", "b.weight", "head.weight") if function is product or n[0] != "b"]
    found = pai.exact_diag(model, BATCH, parameters=names)
    assert_equal_diagonals(found, hessian(model, BATCH, names).diag())


def test_only_the_weights_asked_for_decide():
    model = Net(lambda net, x: net.b(F.gelu(net.a(x))), a=linear(), b=linear(4, 3))
    expected = hessian(model, BATCH, ["b.weight"]).diag()
    assert_equal_diagonals(pai.exact_diag(model, BATCH, parameters=["b.weight"]), expected)
    with pytest.raises(ValueError, match="Gelu"):
        pai.exact_diag(model, BATCH, parameters=["a.weight"])


def twice(net, x):
    return net.head(F.relu(net.a(F.relu(net.a(x)))))


def tied():
    def forward(net, x):
        return net.head(F.relu(net.b(F.relu(net.a(x)))))

    model = Net(forward, a=linear(), b=linear(), head=linear(4, 3))
    model.b.weight = model.a.weight
    return model


def from_parameter(function, *shape):
    weight = nn.Parameter(torch.randn(*shape, dtype=torch.float64))
    return Net(lambda net, x: net.head(F.relu(function(x, net.w))), w=weight, head=linear(4, 3))


torch.manual_seed(0)
POSITIONS = torch.randn(6, 4, dtype=torch.float64)  # as many as there are samples


UNREACHED = "No gradient reaches '[au].weight': it is not used, or only where none flows"
UNKNOWN = {
    "called twice": (Net(twice, a=linear(), head=linear(4, 3)), BATCH, "a.weight", "used 2 times|'Addmm'"),
    "tied": (tied(), BATCH, "a.weight", "used 2 times|'Addmm'"),
    "unused": (body(lambda net, x: x, u=linear()), BATCH, "u.weight", UNREACHED),
    "detached": (body(lambda net, x: x.detach()), BATCH, "a.weight", UNREACHED),
    "transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(32, 3)).double(),
        IMAGES,
        "0.weight",
        "used by 'Convolution', whose per-sample gradient is not known",
    ),
    "weight times matrix": (from_parameter(lambda x, w: x @ w, 4, 4), BATCH, "w", "used by 'Mm'"),
    "scaled addmm": (
        from_parameter(lambda x, w: torch.addmm(x, x, w.t(), alpha=2), 4, 4), BATCH, "w", "used by 'Addmm'",
    ),
    "scaled bias": (from_parameter(lambda x, w: torch.add(x, w, alpha=2), 4), BATCH, "w", "used by 'Add'"),
    "one number for all": (from_parameter(lambda x, w: x + w, 1), BATCH, "w", "used by 'Add'"),
    "scale": (from_parameter(lambda x, w: x * w, 4), BATCH, "w", "used by 'Mul'"),
    "not of the samples": (
        Net(lambda net, x: net.head(x.mean(1) * F.relu(net.a(POSITIONS)).sum(0)), a=linear(), head=linear(4, 3)),
        TOKENS,
        "a.weight",
        "Cannot tell which inputs of the layer of 'a.weight'",
    ),
    "layer norm": (
        nn.Sequential(linear(), nn.LayerNorm(4), linear(4, 3)).double(), BATCH, "1.weight", "NativeLayerNorm",
    ),
}  # fmt: skip


@per_sample
@pytest.mark.parametrize("case", UNKNOWN)
def test_a_use_that_is_not_understood_is_an_error(case, estimator):
    model, batch, name, message = UNKNOWN[case]
    with pytest.raises(ValueError, match=message):
        estimator(model, batch, parameters=[name])


@pytest.mark.parametrize("estimator", [pai.gradient, pai.hutchinson_diag])
@pytest.mark.parametrize("case", ["unused", "detached"])
def test_a_weight_that_the_loss_does_not_see_is_an_error_and_not_a_zero(case, estimator):
    model, batch, name, _ = UNKNOWN[case]
    with pytest.raises(ValueError, match=f"No gradient reaches '{name}'"):
        estimator(model, batch, parameters=[name])


@pytest.mark.parametrize("case", ["called twice", "tied"])
def test_what_needs_no_single_samples_works_with_a_shared_weight(case):
    """Hutchinson's estimate of a shared weight: its probes see the whole Hessian."""
    model, batch, name, _ = UNKNOWN[case]
    dense = hessian(model, batch, [name])
    assert dense.any()
    off_diagonal = dense - dense.diag().diag()
    found = pai.hutchinson_diag(model, batch, 400, parameters=[name])[name].flatten()
    assert ((found - dense.diag()).abs() <= 4 * off_diagonal.norm(dim=1) / 20).all()
    assert pai.prunable(model) == [name]  # and it is listed once


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4)])
@pytest.mark.parametrize("group", [1, 3, 6])
@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_batch_statistics_are_an_error_and_running_statistics_are_not(norm, group, chunk):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)).double().train()
    if norm.track_running_stats:
        expected = fisher_loop(model, IMAGES, ["0.weight"], group)
        assert_equal_diagonals(pai.fisher_diag(model.train(), IMAGES, group, chunk=chunk), expected)
        return
    calls = [lambda: pai.ggn_diag(model, IMAGES)]
    if chunk < 6:  # in one piece, the gradient of the whole batch's loss is well defined
        calls += [lambda: pai.gradient(model, IMAGES, chunk=chunk)]
    if min(group, chunk) < 6:
        calls += [lambda: pai.hutchinson_diag(model, IMAGES, 1, group, chunk=chunk)]
        calls += [lambda: pai.fisher_diag(model, IMAGES, group, chunk=chunk)]
    for call in calls:
        with pytest.raises(ValueError, match="statistics of the batch"):
            call()


@pytest.mark.parametrize("estimator", [*PER_SAMPLE.values(), pai.gradient, pai.hutchinson_diag, pai.synaptic_flow])
def test_a_weight_computed_from_others_is_an_error(estimator):
    model = nn.Sequential(weight_norm(linear()), nn.ReLU(), linear(4, 3))
    with pytest.raises(ValueError, match=r"'0\.weight' is computed from other parameters"):
        estimator(model, BATCH)
    if estimator in PER_SAMPLE.values():
        with pytest.raises(ValueError, match=r"0\.parametrizations\.weight\.original1|WeightNorm"):
            estimator(model, BATCH, parameters=["0.parametrizations.weight.original1"])


def dead(net, x):
    """No gradient reaches the layer from the first sample, nor from the last."""
    alive = x.abs().amax((1, 2), keepdim=True) > 0
    return net.head((F.relu(net.a(x)) * alive).mean(1))


LAYOUTS = {
    "mean": lambda net, x: net.head(F.relu(net.a(x)).mean(1)),
    "first token": lambda net, x: net.head(F.relu(net.a(x))[:, 0]),
    "last token": lambda net, x: net.head(F.relu(net.a(x))[:, -1]),
    "positions first": lambda net, x: net.head(F.relu(net.a(x.transpose(0, 1))).mean(0)),
    "positions first, first token": lambda net, x: net.head(F.relu(net.a(x.transpose(0, 1)))[0]),
    "positions first, last token": lambda net, x: net.head(F.relu(net.a(x.transpose(0, 1)))[-1]),
    "dead samples": dead,
}


@pytest.mark.parametrize("tokens", [1, 5, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", LAYOUTS)
def test_rows_of_a_token_layer_are_given_to_their_samples(case, bias, tokens):
    model, batch = Net(LAYOUTS[case], a=linear(bias=bias), head=linear(4, 3)), batch_of(6, tokens, 4)
    names = ["a.weight", "a.bias"] if bias else ["a.weight"]
    if case == "dead samples":
        batch.inputs[[0, -1]] = 0
    for group in (1, 4):
        found = pai.fisher_diag(model, batch, group, parameters=names)
        assert_equal_diagonals(found, fisher_loop(model, batch, names, group))


@pytest.mark.parametrize("estimator", [pai.fisher_diag, pai.ggn_diag, pai.exact_diag])
def test_a_model_that_mixes_samples_is_an_error(estimator):
    net = Net(lambda net, x: net.head(net.body(x - x.mean(0)).relu()), body=linear(), head=linear())
    with pytest.raises(ValueError, match="logits of one sample depend on another"):
        estimator(net, batch_of(5, 4))
    assert estimator(net, batch_of(1, 4))  # one sample cannot be mixed with others
    assert pai.fisher_diag(net, batch_of(5, 4), None)  # nor does a single group mind


def test_the_exact_diagonal_says_that_a_weight_is_shared():
    net = Net(lambda net, x: net.head(net.body(net.body(x).relu())), body=linear(), head=linear())
    with pytest.raises(ValueError, match=r"'body\.weight' was used 2 times"):
        pai.exact_diag(net, batch_of(3, 4))
