"""Architectures: sizes, shapes, initialization; and which weights of a model can be pruned."""

import math

import pytest
import torch
from conftest import batch_of
from torch import nn

import pai_lib as pai
from pai_lib.curvature.parameters import prunable, resolve_parameters
from pai_lib.models import build_model, model_names

CHANNELS = {"resnet": (1, 2, 4, 8), "vgg": (1, 2, 4, 8, 8)}
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 64, False),
    "resnet34": ((3, 4, 6, 3), 64, False),
    "resnet50": ((3, 4, 6, 3), 64, True),
    "resnet50_imagenet": ((3, 4, 6, 3), 64, True),
    "resnet20": ((3, 3, 3), 16, False),
    "resnet8": ((1, 1, 1), 16, False),
}
VGGS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
SMALL = [*RESNETS, *VGGS]
VITS = {
    "vit_b_16": (224, 16, 12, 4, 768),
    "vit_cifar": (32, 4, 9, 2, 192),
    "vit_lite_6": (32, 4, 6, 2, 256),
}  # size, patch, layers, mlp ratio, width


def conv_and_norm(c_in, c_out, kernel):
    """Parameters of a convolution without bias and of the norm after it."""
    return c_in * c_out * kernel**2 + 2 * c_out


def expected_count(name, classes, c_in, width):
    """Derive the number of parameters from the architecture's description, layer by layer."""
    if name in VGGS:
        total = 0
        for stage, depth in enumerate(VGGS[name]):
            for _ in range(depth):
                c_out = width * CHANNELS["vgg"][stage]
                total, c_in = total + conv_and_norm(c_in, c_out, 3), c_out
        return total + c_in * classes + classes
    stages, _, bottleneck = RESNETS[name]
    total, c_in = conv_and_norm(c_in, width, 7 if "imagenet" in name else 3), width
    for stage, depth in enumerate(stages):
        middle = width * CHANNELS["resnet"][stage]
        c_out = 4 * middle if bottleneck else middle
        for block in range(depth):
            if bottleneck:
                total += conv_and_norm(c_in, middle, 1) + conv_and_norm(middle, middle, 3)
                total += conv_and_norm(middle, c_out, 1)
            else:
                total += conv_and_norm(c_in, middle, 3) + conv_and_norm(middle, c_out, 3)
            if block == 0 and (stage > 0 or c_in != c_out):
                total += conv_and_norm(c_in, c_out, 1)
            c_in = c_out
    return total + c_in * classes + classes


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_covered_here():
    assert set(model_names()) == {*SMALL, *VITS}


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("resnet34", 10, 21_282_122),
        ("resnet50", 10, 23_520_842),
        ("resnet50_imagenet", 1000, 25_557_032),
        ("resnet20", 10, None),
        ("vgg11", 10, None),
        ("vgg16", 10, None),
        ("vgg19", 10, None),
    ],
)
def test_parameter_counts_at_full_width(name, classes, published):
    width = RESNETS[name][1] if name in RESNETS else 64
    with torch.device("meta"):  # the sizes without the memory
        found = count(build_model(name, classes))
    assert found == expected_count(name, classes, 3, width)
    assert published in (None, found)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("classes", "c_in", "width"), [(7, 1, 4), (10, 3, 5)])
def test_sizes_and_shapes_at_small_width(name, classes, c_in, width):
    model = build_model(name, classes, in_channels=c_in, width=width).eval()
    assert count(model) == expected_count(name, classes, c_in, width)
    with torch.no_grad():
        assert model(torch.rand(2, c_in, 32, 32)).shape == (2, classes)


def test_the_imagenet_resnet_is_torchvisions():
    """The same function of the same weights, in evaluation and in training."""
    import torchvision

    ours, theirs = build_model("resnet50_imagenet", 7), torchvision.models.resnet50(num_classes=7)
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        pair = ([m for m in model.modules() if isinstance(m, kind)] for model in (ours, theirs))
        for own, other in zip(*pair, strict=True):
            own.load_state_dict(other.state_dict())
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for mode in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(ours.train(mode)(inputs), theirs.train(mode)(inputs))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16"])
def test_trunk_is_torchvisions(name):
    """The same convolutions as torchvision's but for the stem, 7×7 there and 3×3 here."""
    import torchvision

    def shapes(model, names):
        return sorted(tuple(model.get_parameter(name).shape) for name in names)

    peer = getattr(torchvision.models, name + ("_bn" if "vgg" in name else ""))
    with torch.device("meta"):
        ours, theirs = build_model(name, 10), peer()
    names = [n for n, m in theirs.named_modules() if isinstance(m, nn.Conv2d)]
    convolutions = [f"{n}.weight" for n in names]
    if "resnet" in name:
        assert ours.get_parameter("stem.0.weight").shape == (64, 3, 3, 3)
        assert shapes(ours, prunable(ours)[1:]) == shapes(theirs, convolutions[1:])
    else:
        assert shapes(ours, prunable(ours)) == shapes(theirs, convolutions)


def test_the_stride_of_a_bottleneck_sits_on_its_3x3_convolution():
    strides = [m.stride for m in build_model("resnet50", 10, width=2).blocks[3].convs]
    assert strides == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", ["resnet8", "vgg11"])
def test_a_seed_makes_the_weights_and_leaves_the_global_generator(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_model(name, 10, width=4, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    later = build_model(name, 10, width=4, seed=0).state_dict()
    for key, value in first.items():
        assert torch.equal(value, again[key])
        assert torch.equal(value, later[key])
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", SMALL)
def test_initialization_is_pytorchs_default(name):
    model = build_model(name, 10, width=8, seed=3)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for module in layers:
        fan_in = module.weight[0].numel()  # Kaiming-uniform with a = √5: bound √(6/(1 + 5)/fan_in)
        bound = 1 / math.sqrt(fan_in)
        assert float(module.weight.detach().abs().max()) <= bound
        assert float(module.weight.detach().abs().max()) > 0.9 * bound
        assert float(module.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)
        if module.bias is not None:
            assert float(module.bias.detach().abs().max()) <= bound
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
            assert (module.momentum, module.eps) == (0.1, 1e-5)


def test_first_weights_are_those_of_a_fresh_convolution():
    model = build_model("resnet18", 10, width=4, seed=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        fresh = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert torch.equal(model.stem[0].weight, fresh.weight)


@pytest.mark.parametrize("name", SMALL)
def test_all_but_head_norms_and_biases_can_be_pruned(name):
    model = build_model(name, 10, width=4)
    names = prunable(model)
    assert names == [n for n, p in model.named_parameters() if p.ndim == 4]
    assert not any(n.startswith("head") for n in names)
    if name in RESNETS:
        assert any("shortcut" in n for n in names)  # its convolution; its norm, also a Sequential's child, never
        assert not [n for n in names if "shortcut.1" in n]


# Vision transformers


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize(("classes", "c_in"), [(7, 1), (10, 3)])
def test_vision_transformer_sizes(name, classes, c_in):
    size, patch, layers, ratio, _ = VITS[name]
    d, tokens = 24, (size // patch) ** 2 + 1
    block = (
        4 * d * d + 4 * d + 2 * ratio * d * d + ratio * d + d + 4 * d
    )  # attention, two linear layers, two norms
    expected = c_in * patch**2 * d + d + d + tokens * d + layers * block + 2 * d + d * classes + classes
    model = build_model(name, classes, in_channels=c_in, width=d).eval()
    assert count(model) == expected
    with torch.no_grad():
        assert model(torch.rand(2, c_in, size, size)).shape == (2, classes)


def test_vit_b_16_is_torchvisions_but_for_its_head():
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(3)
        peer = torchvision.models.vit_b_16(num_classes=100).state_dict()
    ours = build_model("vit_b_16", 100, seed=3).state_dict()
    assert list(ours) == list(peer)
    assert [name for name in peer if not torch.equal(ours[name], peer[name])] == [
        "heads.head.weight", "heads.head.bias",
    ]  # fmt: skip
    assert sum(value.numel() for value in build_model("vit_b_16", 1000).state_dict().values()) == 86_567_656
    assert 0.9 < float(ours["heads.head.weight"].abs().max()) * math.sqrt(768) <= 1  # PyTorch's default


def test_why_the_head_is_not_torchvisions():
    """It starts at zero, and then no derivative reaches the weights that could be pruned."""
    model = build_model("vit_cifar", 10, width=24)
    batch = batch_of(4, 3, 32, 32, dtype=torch.float32)
    assert all(bool(g.any()) for g in pai.gradient(model, batch).values())
    nn.init.zeros_(model.heads.head.weight)
    for scores in (
        pai.gradient(model, batch),
        pai.fisher_diag(model, batch),
        pai.hutchinson_diag(model, batch, 1),
    ):
        assert not any(bool(value.any()) for value in scores.values())


def test_the_first_layer_for_other_channels_has_torchvisions_scale():
    weight = build_model("vit_cifar", 10, in_channels=5, width=192).conv_proj.weight.detach()
    assert weight.shape == (192, 5, 4, 4)
    assert float(weight.std()) == pytest.approx((5 * 16) ** -0.5, rel=0.05)


def test_what_of_a_vision_transformer_can_be_pruned():
    model = build_model("vit_cifar", 10, width=24)
    parts = ("self_attention.in_proj_weight", "self_attention.out_proj.weight", "mlp.0.weight", "mlp.3.weight")
    blocks = [f"encoder.layers.encoder_layer_{i}.{part}" for i in range(9) for part in parts]
    assert prunable(model) == ["conv_proj.weight", *blocks]


EXACT = [key for key in pai.CRITERIA if key.startswith("exact_")]


@pytest.mark.parametrize("key", EXACT)
def test_a_vision_transformer_has_no_exact_diagonal(key):
    model, batch = build_model("vit_cifar", 10, width=24), batch_of(3, 3, 32, 32, dtype=torch.float32)
    with pytest.raises(ValueError, match="'NativeLayerNorm' is not known to be piecewise linear"):
        pai.score(model, batch, key)


@pytest.mark.parametrize("key", [key for key in pai.CRITERIA if key not in EXACT])
def test_every_other_criterion_prunes_a_vision_transformer(key):
    model, batch = build_model("vit_cifar", 10, width=24), batch_of(10, 3, 32, 32, dtype=torch.float32)
    for variant in pai.CRITERIA[key].variants:
        generator = torch.Generator().manual_seed(0)
        scores = pai.score(model, batch, key, probes=2, variant=variant, generator=generator)
        assert list(scores) == prunable(model)
        assert all(bool(value.isfinite().all()) and bool(value.any()) for value in scores.values())
        mask = pai.prune(model, batch, key, 0.8, rounds=2 if key == "synflow" else None, probes=2, variant=variant)
        assert pai.sparsity_of(mask) == pytest.approx(0.8, abs=1e-4)
        assert pai.effective_sparsity(model, mask, batch) >= pai.sparsity_of(mask)
        assert pai.collapsed_layers(mask) == [n for n, density in pai.layer_density(mask).items() if density == 0]


class Attention(nn.Module):
    """A user's model with all that must not be pruned: tokens, embeddings, norms, odd names."""

    def __init__(self, **options):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.words = nn.Embedding(11, 8)
        self.bn_linear_fc_bias = nn.Linear(8, 8)  # its name is no reason to leave it out
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.norm = nn.LayerNorm(8)
        self.groups = nn.GroupNorm(2, 8)
        self.patch = nn.Conv1d(8, 8, 1)
        self.classifier = nn.Linear(8, 3)


def test_prunable_goes_by_module_type():
    wanted = ["bn_linear_fc_bias.weight", "attention.in_proj_weight", "attention.out_proj.weight", "patch.weight"]
    assert prunable(Attention()) == wanted


def test_attention_with_separate_projections():
    names = prunable(Attention(kdim=4, vdim=6))
    parts = [f"attention.{part}_proj_weight" for part in "qkv"]
    assert [n for n in names if "attention" in n] == [*parts, "attention.out_proj.weight"]


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), ["0.weight"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)), ["0.weight", "1.weight"]),
        (nn.Sequential(nn.Linear(4, 2), nn.Conv1d(2, 2, 1)), ["1.weight"]),  # the last linear is the head
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Linear(2, 2)), ["0.weight"]),
    ],
)
def test_the_head_is_left_out(model, wanted):
    assert prunable(model) == wanted


def test_a_model_of_only_a_head_has_nothing_to_prune():
    with pytest.raises(ValueError, match="Sequential has no prunable weight: it needs a convolution or linear"):
        prunable(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: build_model("resnet81", 10), "Unknown model 'resnet81': did you mean 'resnet8'?"),
        (lambda: build_model("transformer", 10), "Unknown model 'transformer': known: resnet18, "),
        (lambda: build_model("resnet8", 0), "num_classes=0: it must be at least 1."),
        (lambda: build_model("resnet8", 10, in_channels=0), "in_channels=0: it must be at least 1."),
        (lambda: build_model("resnet8", 10, width=-1), "width=-1: it must be at least 1."),
        (lambda: build_model("vgg11", 10, width=2)(torch.zeros(2, 3, 8, 8)), "images of 8×8 are too small"),
        (lambda: build_model("vit_cifar", 10, width=100), "width=100: it must be a multiple of 12"),
        (
            lambda: build_model("vit_b_16", 10, width=12)(torch.zeros(2, 3, 32, 32)),
            "embeddings for images of 224×224, not 32×32: use image_size=224.",
        ),
        (
            lambda: resolve_parameters(build_model("resnet8", 10, width=2), ["stem.0.wieght"]),
            "no parameter 'stem.0.wieght': did you mean 'stem.0.weight'?",
        ),
        (lambda: resolve_parameters(build_model("resnet8", 10, width=2), "some"), "parameters='some': it must be"),
    ],
)
def test_errors_are_one_sentence_with_the_value(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_by_name():
    model = build_model("resnet8", 10, width=2)
    assert resolve_parameters(model) == prunable(model)
    assert resolve_parameters(model, "all") == [name for name, _ in model.named_parameters()]
    assert resolve_parameters(model, ("head.bias",)) == ["head.bias"]
