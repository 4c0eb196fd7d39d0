"""Derivatives and curvature diagonals against dense automatic differentiation in float64."""

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    Net,
    assert_equal_diagonals,
    batch_of,
    fisher_loop,
    flat,
    ggn_loop,
    hessian,
    linear,
    loss_function,
    randomize,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pai_lib as pai
from pai_lib.curvature.diagonals import _factor

# ---------------------------------------------------------------------------------------------------------
# Networks drawn at random: every one is piecewise linear in each single weight


class Branches(nn.Module):
    """Two branches, summed or concatenated."""

    def __init__(self, left, right, concatenate):
        super().__init__()
        self.left, self.right, self.concatenate = left, right, concatenate

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        return torch.cat([left, right], 1) if self.concatenate else left + right


class Tokens(nn.Module):
    """Positions become tokens N×T×C; a linear layer sees all of them, pooled by mean or by the first."""

    def __init__(self, c_in, c_out, bias, first):
        super().__init__()
        self.mix, self.first = nn.Linear(c_in, c_out, bias=bias), first

    def forward(self, x):
        x = F.relu(self.mix(x.flatten(2).transpose(1, 2)))  # N×T×C
        return x[:, 0] if self.first else x.mean(1)


activations = st.sampled_from(
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2, inplace=True), nn.Identity()]
)


@st.composite
def convolutions(draw, c_in, c_out, strides=(1,)):
    groups = draw(st.sampled_from([g for g in (1, 2) if c_in % g == c_out % g == 0]))
    kernel, dilation = draw(st.sampled_from([(1, 1), (3, 1), (3, 2)]))
    layers = [
        nn.Conv2d(
            c_in, c_out, kernel, draw(st.sampled_from(strides)), dilation * (kernel // 2), dilation, groups,
            bias=draw(st.booleans()), padding_mode=draw(st.sampled_from(["zeros", "replicate"])),
        )
    ]  # fmt: skip
    if draw(st.booleans()):
        layers.append(nn.BatchNorm2d(c_out))
    return nn.Sequential(*layers, draw(activations))


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 10**6)))
    channels, layers = 2, []
    for _ in range(draw(st.integers(1, 2))):
        match draw(st.sampled_from(["plain", "residual", "concatenate", "functional"])):
            case "plain":
                c_out = draw(st.sampled_from([2, 4]))
                layers.append(draw(convolutions(channels, c_out, strides=(1, 2))))
                channels = c_out
            case "residual":
                layers.append(Branches(draw(convolutions(channels, channels)), nn.Identity(), False))
            case "concatenate":
                layers.append(Branches(draw(convolutions(channels, 2)), nn.AvgPool2d(3, 1, 1), True))
                channels += 2
            case "functional":
                conv = draw(convolutions(channels, channels))
                layers.append(Net(lambda net, x: F.relu(x - 0.5 * net.conv(x)).clamp(max=2).abs() / 3, conv=conv))
        layers.append(
            draw(st.sampled_from([nn.Identity(), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, ceil_mode=True)]))
        )
    pools = [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)]
    end = draw(st.sampled_from([*pools, "tokens"]))
    if end == "tokens":
        layers += [Tokens(channels, 3, bias=draw(st.booleans()), first=draw(st.booleans()))]
        channels = 3
    else:
        layers += [end, nn.Flatten()]
    model = randomize(nn.Sequential(*layers, nn.Linear(channels, 3)).double(), seed=draw(st.integers(0, 9)))
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    return model


IMAGES = batch_of(4, 2, 6, 6)


def all_names(model):
    return [name for name, _ in model.named_parameters()]


@given(networks(), st.sampled_from([1.0, 3.0]), st.sampled_from([None, 1, 3]))
@settings(max_examples=60)
def test_exact_diagonal_is_the_diagonal_of_the_hessian(model, temperature, chunk):
    found = pai.exact_diag(model, IMAGES, temperature=temperature, parameters="all", chunk=chunk)
    assert_equal_diagonals(found, hessian(model, IMAGES, all_names(model), temperature).diag())


@given(networks(), st.integers(1, 5), st.sampled_from([1.0, 2.0]), st.sampled_from([None, 1, 2, 3]))
@settings(max_examples=60)
def test_fisher_is_a_loop_over_the_groups(model, group, temperature, chunk):
    """Groups of one, in the middle, not dividing N, the whole batch and more; any chunk."""
    found = pai.fisher_diag(model, IMAGES, group, temperature=temperature, parameters="all", chunk=chunk)
    assert_equal_diagonals(found, fisher_loop(model, IMAGES, all_names(model), group, temperature))


@given(networks(), st.sampled_from([None, 1, 3]), st.integers(0, 99))
def test_gradient_and_hessian_product_are_those_of_the_dense_loss(model, chunk, seed):
    names = all_names(model)
    loss, at = loss_function(model, IMAGES, names)
    gradient = pai.gradient(model, IMAGES, parameters="all", chunk=chunk)
    assert_equal_diagonals(gradient, torch.func.grad(loss)(at), 1e-12)

    v = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed), dtype=at.dtype)
    parts = v.split([gradient[name].numel() for name in names])
    vectors = {n: part.view_as(gradient[n]) for n, part in zip(names, parts, strict=True)}
    product = pai.hessian_vector_product(model, IMAGES, vectors, chunk=chunk)
    assert_equal_diagonals(product, torch.func.jvp(torch.func.grad(loss), (at,), (v,))[1])


def smooth():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 5), nn.GELU(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def test_hessian_product_is_the_central_difference_of_gradients():
    """On a smooth network, where no step crosses a kink."""
    model, names = smooth(), ["0.weight", "3.weight", "5.bias"]
    vectors = {name: torch.randn_like(model.get_parameter(name)) for name in names}
    product = pai.hessian_vector_product(model, IMAGES, vectors, temperature=2.0)
    step, at = 1e-5, {name: model.get_parameter(name).detach().clone() for name in names}
    shifted = []
    for sign in (1, -1):
        for name in names:
            model.get_parameter(name).data = at[name] + sign * step * vectors[name]
        shifted.append(pai.gradient(model, IMAGES, temperature=2.0, parameters=names))
    difference = {name: (shifted[0][name] - shifted[1][name]) / (2 * step) for name in names}
    assert_equal_diagonals(product, flat(difference), 1e-8)


# ---------------------------------------------------------------------------------------------------------
# Curved networks: the Gauss-Newton diagonal


def attention(batch_first, need_weights):
    def forward(net, x):
        tokens = x if batch_first else x.transpose(0, 1)
        out, _ = net.mix(tokens, tokens, tokens, need_weights=need_weights)
        return net.head(F.gelu(net.norm(out + tokens)).mean(1 if batch_first else 0))

    mix = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    return Net(forward, mix=mix, norm=nn.LayerNorm(4), head=nn.Linear(4, 3))


def by_hand(net, x):
    q, k, v = net.qkv(x).chunk(3, -1)
    x = (q @ k.transpose(1, 2) / 2).softmax(-1) @ v
    return net.head(net.mix(x)[:, 0])  # the first token only, as of a class token


TOKENS = batch_of(5, 3, 4)
CURVED = {
    "GELU and SiLU": (smooth, IMAGES),
    "attention, batch first": (lambda: attention(True, True), TOKENS),
    "attention, batch second": (lambda: attention(False, True), TOKENS),
    "scaled dot product, batch first": (lambda: attention(True, False), TOKENS),
    "scaled dot product, batch second": (lambda: attention(False, False), TOKENS),
    "attention by hand": (
        lambda: Net(by_hand, qkv=nn.Linear(4, 12), mix=nn.Linear(4, 4, bias=False), head=nn.Linear(4, 3)),
        TOKENS,
    ),
    "encoder, batch first": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        TOKENS,
    ),
    "encoder, batch second": (
        lambda: Net(
            lambda net, x: net.head(net.encoder(x.transpose(0, 1))[-1]),
            encoder=nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", norm_first=True),
            head=nn.Linear(4, 3),
        ),
        TOKENS,
    ),
    "as many tokens as samples": (lambda: attention(False, True), batch_of(4, 4, 4)),
}


@pytest.fixture(params=CURVED)
def curved(request):
    torch.manual_seed(0)
    build, batch = CURVED[request.param]
    model = build().double()
    return model, batch, [name for name in all_names(model) if "norm" not in name]


@pytest.mark.parametrize("chunk", [None, 2])
def test_ggn_and_fisher_of_curved_networks_are_their_loops(curved, chunk):
    model, batch, names = curved
    with sdpa_kernel(SDPBackend.MATH):
        ggn, fisher = ggn_loop(model, batch, names, 2.0), fisher_loop(model, batch, names, 2, 2.0)
    options = {"temperature": 2.0, "parameters": names, "chunk": chunk}
    assert_equal_diagonals(pai.ggn_diag(model, batch, **options), ggn)
    assert_equal_diagonals(pai.fisher_diag(model, batch, 2, **options), fisher)


@given(networks())
@settings(max_examples=10)
def test_ggn_is_the_exact_diagonal_of_piecewise_linear_networks(model):
    expected = ggn_loop(model.requires_grad_(), IMAGES, all_names(model))
    assert_equal_diagonals(pai.ggn_diag(model, IMAGES, parameters="all"), expected)


def test_sampled_ggn_is_unbiased_and_never_negative(curved):
    model, batch, names = curved
    exact = flat(pai.ggn_diag(model, batch, parameters=names))
    g = torch.Generator().manual_seed(0)
    draws = [flat(pai.ggn_diag(model, batch, "mc", parameters=names, generator=g)) for _ in range(150)]
    draws = torch.stack(draws)
    assert draws.min() >= 0
    assert draws.std(0).max() > 0
    assert ((draws.mean(0) - exact).abs() <= 4 * draws.std(0) / 150**0.5 + 1e-12 * exact.max()).all()


# ---------------------------------------------------------------------------------------------------------
# Hutchinson


def small():
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3)]
    return nn.Sequential(*layers).double(), batch_of(4, 1, 3, 3), ["0.weight", "3.weight", "5.weight"]


def probe_variance(model, batch, names, group, distribution, temperature=1.0):
    """(1/G²) Σ over groups of Σ_{j≠i} (H⁽ᵍ⁾ᵢⱼ)², for normal probes with 2 (H⁽ᵍ⁾ᵢᵢ)² inside; one probe a group."""
    groups = [pai.Batch(*part) for part in zip(*(t.split(group) for t in batch), strict=True)]
    total = 0
    for part in groups:
        h = hessian(model, part, names, temperature)
        diagonal = h.diag().square()
        total = total + h.square().sum(1) - diagonal + (2 * diagonal if distribution == "normal" else 0)
    return total / len(groups) ** 2


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("group", [1, 2, None])
def test_hutchinson_has_the_mean_variance_and_standard_error_that_its_docstring_states(group, distribution):
    model, batch, names = small()
    exact = flat(pai.exact_diag(model, batch, parameters=names))
    formula = probe_variance(model, batch, names, group or 4, distribution) / 3
    options = {"parameters": names, "distribution": distribution, "standard_error": True}
    g = torch.Generator().manual_seed(1)
    pairs = [pai.hutchinson_diag(model, batch, 3, group, generator=g, **options) for _ in range(300)]
    draws, errors = (torch.stack([flat(pair[i]) for pair in pairs]) for i in (0, 1))
    assert ((draws.mean(0) - exact).abs() <= 4 * (formula / 300).sqrt() + 1e-15).all()
    assert draws.var(0).sum().item() == pytest.approx(formula.sum().item(), rel=0.15)
    assert errors.square().mean(0).sum().item() == pytest.approx(formula.sum().item(), rel=0.15)


@pytest.mark.parametrize("group", [1, 3, None])
def test_hutchinson_depends_on_the_seed_and_not_on_the_chunk(group):
    model, batch, names = small()

    def estimate(seed, chunk=None):
        g = torch.Generator().manual_seed(seed)
        return flat(pai.hutchinson_diag(model, batch, 2, group, parameters=names, generator=g, chunk=chunk))

    assert torch.equal(estimate(0), estimate(0))
    assert not torch.equal(estimate(0), estimate(1))
    for chunk in (1, 2, 3):
        assert torch.allclose(estimate(0, chunk), estimate(0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("group", [1, 2, None])
def test_the_square_of_the_row_norm_is_unbiased(group):
    """One group: Σⱼ Hᵢⱼ² of the dense Hessian; G groups: the second moment of an estimate with a probe each."""
    model, batch, names = small()
    h = hessian(model, batch, names)
    expected = h.diag().square() + probe_variance(model, batch, names, group or 4, "rademacher")
    if group is None:
        assert torch.allclose(expected, h.square().sum(1), rtol=1e-12)
    g = torch.Generator().manual_seed(2)
    options = {"parameters": names, "generator": g}
    draws = torch.stack([flat(pai.hessian_row_norm(model, batch, 3, group, **options)) for _ in range(300)]) ** 2
    assert ((draws.mean(0) - expected).abs() <= 4 * draws.std(0) / 300**0.5 + 1e-15).all()
    assert draws.mean(0).sum().item() == pytest.approx(expected.sum().item(), rel=0.05)


def test_the_row_norm_is_the_root_mean_square_of_hessian_products():
    """Of the very products that Hutchinson's estimate averages: known here from estimates of one probe."""
    model, batch, names = small()
    options = {"parameters": names}
    norm = flat(pai.hessian_row_norm(model, batch, 4, generator=torch.Generator().manual_seed(3), **options))
    g = torch.Generator().manual_seed(3)
    products = [flat(pai.hutchinson_diag(model, batch, 1, generator=g, **options)) for _ in range(4)]
    assert torch.allclose(norm, torch.stack(products).square().mean(0).sqrt(), rtol=1e-10, atol=1e-18)


def test_temperature_divides_the_logits():
    """T in the call is a last layer divided by T, for every estimator; another T is another result."""
    model, batch, names = small()
    divided = Net(lambda net, x: net.model(x) / 5, model=model)
    estimators = {
        "gradient": pai.gradient,
        "fisher": pai.fisher_diag,
        "ggn": pai.ggn_diag,
        "exact": pai.exact_diag,
        "hutchinson": pai.hutchinson_diag,
        "row norm": pai.hessian_row_norm,
    }
    for name, estimator in estimators.items():
        found = flat(estimator(model, batch, temperature=5.0, parameters=names))
        expected = flat(estimator(divided, batch, parameters=["model." + n for n in names]))
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-18), name
        assert not torch.allclose(found, flat(estimator(model, batch, parameters=names)), rtol=0.5), name


@pytest.mark.parametrize("group", [1, 2, None])
@pytest.mark.parametrize("probes", [100, 400])
def test_the_noise_falls_with_the_number_of_probes_and_depends_on_the_group(group, probes):
    model, batch, names = small()
    expected = probe_variance(model, batch, names, group or 4, "rademacher").sum().item() / probes
    _, error = pai.hutchinson_diag(model, batch, probes, group, parameters=names, standard_error=True)
    assert flat(error).square().sum().item() == pytest.approx(expected, rel=0.15)


def test_one_weight_needs_no_luck():
    """A Hessian of one row has no off-diagonal: one Rademacher probe is exact, one normal probe is not."""
    model = Net(lambda net, x: net.head(x).relu() * torch.ones(1, 3).double().cumsum(1), head=linear(1, 1))
    model.head.bias.data.fill_(1.0)
    batch = pai.Batch(torch.rand(5, 1, dtype=torch.float64), torch.arange(5) % 3)
    exact = hessian(model, batch, ["head.weight"]).diag()
    options = {"probes": 1, "parameters": ["head.weight"]}
    assert_equal_diagonals(pai.hutchinson_diag(model, batch, **options), exact)
    normal = flat(pai.hutchinson_diag(model, batch, distribution="normal", **options))
    assert not torch.allclose(normal, exact, rtol=0.01)


def test_fisher_depends_on_how_samples_are_grouped_and_the_gradient_does_not():
    model, batch, names = small()
    assert_equal_diagonals(
        pai.fisher_diag(model, batch, None, parameters=names),
        flat(pai.gradient(model, batch, parameters=names)).square(),
    )
    single, pairs = (flat(pai.fisher_diag(model, batch, group, parameters=names)) for group in (1, 2))
    assert pairs.sum() < single.sum()


# ---------------------------------------------------------------------------------------------------------
# Bad input

ESTIMATORS = {
    "gradient": pai.gradient,
    "hessian_vector_product": lambda model, batch, **options: pai.hessian_vector_product(
        model, batch, {"0.weight": torch.ones_like(model[0].weight)}, **options
    ),
    "fisher_diag": pai.fisher_diag,
    "ggn_diag": pai.ggn_diag,
    "exact_diag": pai.exact_diag,
    "hutchinson_diag": pai.hutchinson_diag,
    "hessian_row_norm": pai.hessian_row_norm,
}
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def mlp(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)


def with_labels(labels):
    return pai.Batch(torch.ones(3, 4), labels)


NAN = torch.full((3, 4), torch.nan)
BAD_BATCHES = {
    "empty": (pai.Batch(torch.ones(0, 4), torch.ones(0).long()), "batch is empty"),
    "no labels": (with_labels(None), "needs labels"),
    "label too large": (with_labels(torch.tensor([0, 1, 3])), "Label 3 is out of range: the model has 3"),
    "label negative": (with_labels(torch.tensor([0, -1, 2])), "Label -1 is out of range"),
    "float labels": (with_labels(torch.ones(3)), "3 integers, one a sample, not torch.float32"),
    "labels of another length": (with_labels(torch.ones(2).long()), r"3 integers.*shape \(2,\)"),
    "NaN": (pai.Batch(NAN, torch.zeros(3).long()), "NaN or infinite"),
    "infinite": (pai.Batch(NAN.nan_to_num(torch.inf), torch.zeros(3).long()), "NaN or infinite"),
    "double": (
        pai.Batch(torch.ones(3, 4).double(), torch.zeros(3).long()),
        "forward pass fails for inputs of float64",
    ),
}


@every_estimator
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_an_unusable_batch_is_an_error_in_one_sentence(estimator, case):
    batch, message = BAD_BATCHES[case]
    model = mlp()
    before = flat(model.state_dict())
    with pytest.raises(ValueError, match=message):
        estimator(model, batch)
    assert torch.equal(flat(model.state_dict()), before)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_an_error(estimator, dtype):
    with pytest.raises(ValueError, match=f"The model is in {dtype}"):
        estimator(mlp(dtype), batch_of(3, 4, dtype=dtype))


@every_estimator
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk": -2}, "chunk=-2"),
        ({"chunk": 2.5}, "chunk=2.5: it must be a whole number"),
        ({"temperature": "2"}, "temperature='2': it must be a finite number above 0"),
    ],
)
def test_an_unusable_option_is_named_with_its_value(estimator, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        estimator(mlp(), batch_of(3, 4, dtype=torch.float32), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *at: pai.fisher_diag(*at, 0), "group=0"),
        (lambda *at: pai.fisher_diag(*at, "2"), "group='2': it must be a whole number"),
        (lambda *at: pai.hutchinson_diag(*at, 2.5), "probes=2.5: it must be a whole number"),
        (lambda *at: pai.hutchinson_diag(*at, generator=0), "generator=0: it must be a torch.Generator"),
        (lambda *at: pai.ggn_diag(*at, generator=0), "generator=0: it must be a torch.Generator"),
        (lambda *at: pai.score(*at, "random", generator=0), "generator=0: it must be a torch.Generator"),
        (lambda *at: pai.hessian_vector_product(*at, [torch.ones(2)]), "vectors is a list"),
        (lambda *at: pai.hessian_vector_product(*at, {"0.weight": 1.0}), "must be a tensor of the shape"),
        (lambda *at: pai.gradient(mlp().to("meta"), at[1]), "the model is on the meta device"),
        (lambda *at: pai.hutchinson_diag(*at, group=0), "group=0"),
        (lambda *at: pai.hutchinson_diag(*at, probes=0), "probes=0"),
        (lambda *at: pai.hutchinson_diag(*at, probes=1, standard_error=True), "probes=1: it must be at least 2"),
        (lambda *at: pai.hessian_row_norm(*at, probes=1), "probes=1: it must be at least 2"),
        (lambda *at: pai.hutchinson_diag(*at, distribution="cauchy"), "Unknown distribution 'cauchy'"),
        (lambda *at: pai.ggn_diag(*at, "sampled"), "Unknown mode 'sampled'"),
        (lambda *at: pai.gradient(*at, parameters=["0.wieght"]), "'0.wieght': did you mean '0.weight'"),
        (lambda *at: pai.gradient(*at, parameters="some"), "parameters='some'"),
        (lambda *at: pai.gradient(*at, parameters=[]), "parameters is empty"),
        (lambda *at: pai.gradient(*at, parameters=None), "a list of the names"),
        (lambda *at: pai.gradient(*at, parameters=[torch.ones(2)]), "a list of the names"),
        (lambda *at: pai.hessian_vector_product(*at, {}), "parameters is empty"),
        (lambda *at: pai.hessian_vector_product(*at, {"0.weight": torch.ones(2)}), r"0\.weight.*shape \(5, 4\)"),
    ],
)
def test_an_unusable_argument_is_named_with_its_value(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(mlp(), batch_of(3, 4, dtype=torch.float32))


@every_estimator
@pytest.mark.parametrize(
    ("end", "found"),
    [
        (nn.Unflatten(1, (3, 1)), r"\(3, 3, 1\)"),
        (nn.Flatten(0), r"\(9,\)"),
        (Net(lambda net, x: {"logits": x}), "not dict"),
        (Net(lambda net, x: x[:2]), r"\(2, 3\)"),
    ],
)
def test_an_output_other_than_logits_is_an_error(estimator, end, found):
    with pytest.raises(ValueError, match=r"must return logits of shape \(3, classes\).*" + found):
        estimator(nn.Sequential(*mlp(), end), batch_of(3, 4, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@every_estimator
def test_any_integer_type_will_do_for_labels(estimator, dtype):
    batch = batch_of(3, 4, dtype=torch.float32)
    found = estimator(mlp(), pai.Batch(batch.inputs, batch.labels.to(dtype)))
    assert torch.equal(flat(found), flat(estimator(mlp(), batch)))


@given(seed=st.integers(0, 99), classes=st.integers(2, 9), scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
def test_the_factor_of_the_cross_entropys_curvature(seed, classes, scale):
    logits = scale * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    columns = torch.stack(_factor(logits), dim=2)  # n × C × C−1
    p = logits.softmax(1)
    assert columns.shape == (4, classes, classes - 1)
    expected = p.diag_embed() - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(columns @ columns.mT, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("standard_error", [False, True])
def test_chunks_of_a_group_meet_the_same_probes(standard_error):
    model = randomize(pai.build_model("resnet8", 3, width=4)).double()
    batch = batch_of(7, 3, 8, 8)

    def estimate(chunk):
        generator = torch.Generator().manual_seed(3)
        options = {"group": 5, "generator": generator, "standard_error": standard_error}
        found = pai.hutchinson_diag(model, batch, 3, chunk=chunk, **options)
        return (found if standard_error else (found,)), generator.get_state()

    whole, state = estimate(7)
    for chunk in (1, 2, 3):
        parts, after = estimate(chunk)
        assert torch.equal(state, after)
        for a, b in zip(parts, whole, strict=True):
            torch.testing.assert_close(flat(a), flat(b), rtol=1e-9, atol=1e-12)


def test_the_flops_of_an_estimator_can_be_counted():
    model, batch = pai.build_model("resnet8", 3, width=4), batch_of(4, 3, 8, 8, dtype=torch.float32)
    counts = []
    for function in (pai.gradient, pai.fisher_diag, pai.exact_diag):
        with FlopCounterMode(display=False) as counter:
            function(model, batch)
        counts.append(counter.get_total_flops())
    assert counts[0] <= counts[1] < counts[2]


def test_the_proof_that_samples_are_independent_costs_six_of_them():
    """One forward pass in three, so 6 of 60 samples are 1/30 of a gradient."""
    model, batch = (
        pai.build_model("resnet8", 3, width=2, in_channels=1),
        batch_of(60, 1, 8, 8, dtype=torch.float32),
    )
    counts = []
    for estimator in (pai.gradient, pai.fisher_diag):
        with FlopCounterMode(display=False) as counter:
            estimator(model, batch)
        counts.append(counter.get_total_flops())
    assert 1.02 < counts[1] / counts[0] < 1.04
