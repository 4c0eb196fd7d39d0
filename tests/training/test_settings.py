"""What is the user's stays the user's: random states, defaults, modes, layouts, gradients, the process."""

import contextlib
import copy
import math
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.backends.cuda import flash_sdp_enabled
from torch.utils.data import DataLoader, TensorDataset

import pai_lib as pai
from pai_lib.training import device
from pai_lib.training.device import fits_channels_last
from pai_lib.training.loop import TrainingStoppedError


def make_data(seed=0, size=8, channels=1):
    """Return 40 + 13 random images of 3 classes, whose brightness tells the class."""
    rng, parts = np.random.default_rng(seed), []
    for count in (40, 13):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, size, size, channels)) + 60 * labels[:, None, None, None]
        parts += [images.astype(np.uint8), labels]
    return pai.Dataset.from_arrays("noise", *parts, augment=False)


DATA = make_data()
QUICK = {"epochs": 2, "batch_size": 16, "lr": 0.05, "progress": False}


def network(dropout=0.0):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(4, 4, 3, 2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def by_view(model=None):
    """The textbook's network: its flattening by view fails in channels_last."""
    parts = {"a": nn.Conv2d(1, 4, 3), "b": nn.Conv2d(4, 4, 3, 2), "head": nn.Linear(16, 3)}
    return Net(lambda net, x: net.head(net.b(net.a(x).relu()).view(len(x), -1)), **parts)


class View(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Scaled(nn.Module):
    """A model of two inputs."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, scale):
        return self.inner(x * scale)


def layout(model):
    tensors = [*model.parameters(), *model.buffers()]
    modes = [module.training for module in model.modules()]
    return [(t.stride(), t.data_ptr(), t.requires_grad) for t in tensors], modes


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- random states


PUBLIC = {
    "build_model": lambda model: pai.build_model("resnet8", 3, width=2, seed=4),
    "warm_up": lambda model: pai.warm_up(model, DATA, 2, 16),
    "train": lambda model: pai.train(model, DATA, **QUICK),
    "evaluate": lambda model: pai.evaluate(model, DATA.test_batches()),
    "score": lambda model: pai.score(model, DATA.scoring_batch(2), "hts"),
    "score_many": lambda model: pai.score_many(model, DATA.scoring_batch(2), ["random", "scaled_noise", "fts"]),
    "prune": lambda model: pai.prune(model, DATA.scoring_batch(2), "random", 0.5, rounds=2),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_global_random_state_is_neither_read_nor_changed(name):
    results = []
    for seed in (1, 2):
        model = network(dropout=0.5)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        returned = PUBLIC[name](model)
        assert torch.equal(torch.get_rng_state(), before)
        results.append((values(model), returned))
    assert equal(results[0][0], results[1][0])
    if name in ("train", "evaluate"):
        assert results[0][1] == results[1][1]


def test_it_comes_back_when_a_call_fails():
    def failing(net, x):
        torch.rand(3)
        raise ZeroDivisionError

    model = Net(failing, norm=nn.BatchNorm2d(1), head=nn.Linear(4, 3))
    before = torch.get_rng_state()
    for name in ("warm_up", "train", "evaluate"):
        with pytest.raises(ZeroDivisionError):
            PUBLIC[name](model)
        assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_from_the_seed_of_training():
    found = []
    for seed in (0, 0, 1):
        model = network(dropout=0.5)
        twin = copy.deepcopy(DATA)
        pai.train(model, twin, seed=seed, **QUICK)
        found.append(values(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


# --- defaults


def everything(model):
    """One result of every function that draws, builds or counts."""
    pai.warm_up(model, DATA, 2, 16)
    batch = DATA.scoring_batch(2)
    scores = pai.score_many(model, batch, ["random", "weight_noise", "snip"])
    mask = pai.make_mask(scores["snip"], 0.5)
    curves = pai.train(model, DATA, mask, **QUICK)
    tensors = [*values(model).values(), *(t for found in scores.values() for t in found.values())]
    return tensors, curves, pai.evaluate(model, DATA.test_batches())


@pytest.mark.parametrize("default", [torch.float64, torch.float16, "meta"])
def test_neither_default_dtype_nor_default_device_changes_a_number(default):
    """The meta device holds no numbers, so whatever were made on it would fail."""
    expected, model = everything(network()), network()
    built = values(pai.build_model("resnet8", 3, width=2, seed=1))
    try:
        if default == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(default)
            assert equal(values(pai.build_model("resnet8", 3, width=2, seed=1)), built)
            assert torch.get_default_dtype() == default
        data = make_data()  # its scale is made when it is first used
        found = everything(model)
        assert torch.equal(data.normalize(data.test_images), DATA.normalize(DATA.test_images))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert found[1:] == expected[1:]


def test_models_are_built_on_the_default_device():
    with torch.device("meta"):
        assert next(pai.build_model("vit_cifar", 3, width=12).parameters()).is_meta


def test_a_model_built_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        model = pai.build_model("resnet8", 3, in_channels=1, width=2)
    pai.train(model, DATA, **QUICK)


# --- modes, layouts, storages, gradients


FAMILIES = {
    "layers of PyTorch": lambda: network(),
    "flattens by view": by_view,
    "a module that flattens by view": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), View(), nn.Linear(72, 3)),
    "a forward of its own": lambda: with_forward_of_its_own(),
    "a hook that flattens by view": lambda: with_hook("register_forward_hook"),
    "a hook before it": lambda: with_hook("register_forward_pre_hook"),
    "a hook on gradients": lambda: with_hook("register_full_backward_hook"),
    "a hook on a weight's gradient": lambda: with_hook(None),
    "ours": lambda: pai.build_model("resnet8", 3, in_channels=1, width=8),
    "three dimensions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), nn.Flatten(), nn.Linear(72, 3)
    ),
    "in channels_last": lambda: network().to(memory_format=torch.channels_last),
}


def with_hook(register):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 3)
    )
    if register is None:
        model[2].weight.register_hook(lambda gradient: gradient.view(-1).view_as(gradient))
    elif register == "register_forward_hook":
        model[2].register_forward_hook(lambda module, inputs, out: out.view(len(out), -1))
    elif register == "register_forward_pre_hook":
        model[2].register_forward_pre_hook(
            lambda module, inputs: inputs[0].view(len(inputs[0]), -1).view_as(inputs[0])
        )
    else:
        model[2].register_full_backward_hook(
            lambda module, into, out: [g.view(len(g), -1).view_as(g) for g in into]
        )
    return model


def with_forward_of_its_own():
    model = network()
    model.forward = lambda x: model[-1](model[4](model[0](x)).view(len(x), -1))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fails", [False, True])
def test_training_leaves_modes_layouts_and_storages(family, fails):
    model = FAMILIES[family]()
    model.eval()
    list(model.modules())[1].train()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before, weights, shown = layout(model), values(model), model(DATA.scoring_batch(1).inputs)
    held = next(model.parameters()).detach()  # a view that somebody keeps
    stops = iter([False, True])
    if fails:
        with pytest.raises(TrainingStoppedError):
            pai.train(model, DATA, stop=lambda: next(stops), **QUICK)
    else:
        pai.train(model, DATA, **QUICK)
    assert layout(model) == before
    assert torch.equal(held, next(model.parameters()))
    assert not equal(values(model), weights)
    assert not torch.equal(model(DATA.scoring_batch(1).inputs), shown)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_may_be_in_channels_last():
    assert all(fits_channels_last(pai.build_model(name, 3, width=12)) for name in pai.model_names())
    safe = [name for name in FAMILIES if fits_channels_last(FAMILIES[name]())]
    assert safe == ["layers of PyTorch", "ours", "three dimensions", "in channels_last"]
    shared = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    assert fits_channels_last(shared)
    shared[1].weight.data = shared[0].weight.data
    assert not fits_channels_last(shared)


@pytest.mark.parametrize(
    ("capability", "width", "fits"), [("AVX2", 4, False), ("AVX2", 8, True), ("AVX512", 4, True)]
)
def test_where_onednn_overruns_its_memory_a_network_keeps_its_layout(capability, width, fits, monkeypatch):
    monkeypatch.setattr(device, "get_cpu_capability", lambda: capability)
    assert fits_channels_last(pai.build_model("resnet8", 3, width=width)) == fits


def test_our_networks_train_in_channels_last(monkeypatch):
    """Seen at the last convolution's input: it is what their speed comes from."""
    seen = []
    model = pai.build_model("resnet8", 3, in_channels=1, width=8)
    last, plain = model.blocks[-1].convs[1], nn.Conv2d.forward

    def seeing(module, x):  # a hook would be seen
        if module is last:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return plain(module, x)

    monkeypatch.setattr(nn.Conv2d, "forward", seeing)
    pai.train(model, DATA, **{**QUICK, "epochs": 1})
    assert seen == [False, True, True, True]  # the first looks at two blank images, before anything is changed


def test_freezing_is_respected():
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
        parameter.grad = torch.ones_like(parameter)
    before = values(model)
    pai.train(model, DATA, {"0.weight": torch.ones(4, 1, 3, 3).bool()}, **QUICK)
    after = values(model)
    assert [name for name in before if torch.equal(before[name], after[name])] == ["0.weight", "0.bias"]


def test_importing_and_training_leave_the_allocator_alone():
    """A process that keeps what it frees would not return 256 MB."""
    code = """
import resource, torch, pai_lib as pai
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
data = pai.load_data("digits")
pai.train(pai.build_model("resnet8", 10, in_channels=1, width=1), data, epochs=1, progress=False)
before, tensor = resident(), torch.ones(2**26)
assert resident() - before > 2**27
del tensor
print(resident() - before < 2**25)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    )


# --- people's models


def by_hand(model, data, mask, epochs=2, batch_size=16, lr=0.05):
    """Train with the plainest loop there is, on the same batches."""
    order = pai.random_stream(0, "order")
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    pai.apply_mask(model, mask)
    model.train()
    for _ in range(epochs):
        for inputs, labels in data.epoch(batch_size, order):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.to(next(model.parameters()).dtype)), labels).backward()
            optimizer.step()
            pai.apply_mask(model, mask)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.head = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight
        self.unused = nn.Linear(6, 6)

    def forward(self, x):
        return self.head(self.b(self.a(self.first(x.flatten(1)).relu()).relu()).relu())


@settings(max_examples=8)
@given(st.integers(0, 2**16), st.sampled_from([torch.float32, torch.float64]))
def test_tied_and_unused_weights_train_under_a_mask_as_by_hand(seed, dtype):
    torch.manual_seed(seed)
    model = Tied().to(dtype)
    twin = copy.deepcopy(model)
    names = ("first.weight", "a.weight", "unused.weight")
    mask = {name: torch.rand(model.get_parameter(name).shape) < 0.5 for name in names}
    constant = {"lr_drops": ()}
    pai.train(model, DATA, mask, **QUICK, **constant)
    by_hand(twin, DATA, mask)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert not model.a.weight[~mask["a.weight"]].any()


def test_wrapped_models_train_and_are_tested_as_what_they_wrap():
    plain = network()
    expected = pai.train(plain, DATA, **QUICK), pai.evaluate(plain, DATA.test_batches())
    for wrap in (nn.DataParallel, lambda model: torch.compile(model, backend="eager")):
        model = wrap(network())
        found = pai.train(model, DATA, **QUICK), pai.evaluate(model, DATA.test_batches())
        assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-4)
        assert found[1] == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_within_a_context_without_gradients_is_training(context):
    outside, inside = network(), network()
    curves = pai.train(outside, DATA, **QUICK)
    with context():
        assert pai.train(inside, DATA, **QUICK) == curves
    assert equal(values(outside), values(inside))


def test_ambient_autocast_changes_nothing():
    model = network()
    expected = pai.evaluate(model, DATA.test_batches())
    twin = copy.deepcopy(model)
    pai.warm_up(twin, DATA, 2, 16)
    precisions = ("float32", "bf16")
    curves = [pai.train(network(), DATA, precision=name, **QUICK) for name in precisions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [pai.train(network(), DATA, precision=name, **QUICK) for name in precisions] == curves
        assert pai.evaluate(model, DATA.test_batches()) == expected
        pai.warm_up(model, DATA, 2, 16)
    assert equal(values(model), values(twin))


def made_in_inference_mode():
    with torch.inference_mode():
        return network()


UNFIT = {
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "'1.weight' of a lazy module has no shape"),
    "half": (lambda: network().half(), r"weights are torch.float16: train model.float\(\), with precision='bf16'"),
    "bfloat16": (lambda: network().bfloat16(), "weights are torch.bfloat16"),
    "frozen": (lambda: network().requires_grad_(False), "No parameter of the model requires a gradient"),
    "none": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, affine=False)), "No parameter of the model"),
    "inference": (made_in_inference_mode, "made in inference mode"),
    "elsewhere": (lambda: network().to("meta"), "'0.weight' has no values: the model is on the meta device"),
    "a tuple": (lambda: Net(lambda net, x: (net.inner(x),), inner=network()), r"shape \(2, classes\), not tuple"),
    "a dict": (lambda: Net(lambda net, x: {"logits": net.inner(x)}, inner=network()), "not dict"),
    "no matrix": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3)), r"not \(2, 3, 6, 6\)"),
    "complex": (lambda: Net(lambda net, x: net.inner(x) * 1j, inner=network()), "not torch.complex64"),
    "few outputs": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "Label 2 is out of range: the model has 2 outputs"
    ),
    "a class": (lambda: nn.Linear, "The model is the class Linear: it must be a torch.nn.Module"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_cannot_be_trained_is_told_in_a_sentence_and_left(kind):
    make, sentence = UNFIT[kind]
    model = make()
    fixed = kind in ("lazy", "a class", "elsewhere")
    before = None if fixed else (values(model), layout(model))
    mask = {} if fixed or not list(model.parameters()) else {next(n for n, _ in model.named_parameters()): None}
    mask = {name: torch.zeros(model.get_parameter(name).shape).bool() for name in mask}
    with pytest.raises((ValueError, TypeError), match=sentence):
        pai.train(model, DATA, mask, **QUICK)
    if not fixed:
        assert equal(values(model), before[0])
        assert layout(model) == before[1]


def test_a_model_whose_training_mode_returns_more_is_told_so():
    model = Net(lambda net, x: (net.inner(x), x) if net.training else net.inner(x), inner=network())
    with pytest.raises(ValueError, match=r"shape \(16, classes\), not tuple"):
        pai.train(model, DATA, **QUICK)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"epochs": -1}, "epochs=-1: it must be at least 0"),
        ({"label_smoothing": 1}, "label_smoothing=1: it must be at least 0 and below 1"),
        ({"lr": -0.1}, "lr=-0.1: it must be at least 0"),
        ({"lr": "0.1"}, "lr='0.1': it must be a finite number at least 0"),
        ({"lr": True}, "lr=True: it must be a finite number at least 0"),
        ({"lr": math.inf}, "lr=inf: it must be a finite number at least 0"),
        ({"lr": 10**400}, "it must be a finite number at least 0"),
        ({"weight_decay": math.nan}, "weight_decay=nan: it must be a finite number at least 0"),
        ({"lr_drop_factor": -1.0}, "lr_drop_factor=-1.0: it must be at least 0"),
        ({"momentum": -1}, "momentum=-1: it must be at least 0"),
        ({"optimizer": "adamw", "momentum": 1.0}, "momentum=1.0: it must be at least 0 and below 1"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"label_smoothing": True}, "label_smoothing=True: it must be a finite number at least 0 and below 1"),
        ({"lr_drops": (2,)}, "lr_drops=2: it must be above 0 and below 1, each a fraction of the run"),
        ({"lr_drops": (0.5, True)}, "lr_drops=True: it must be a finite number above 0 and below 1"),
        ({"lr_drops": (0.5, math.nan)}, "lr_drops=nan: it must be a finite number above 0 and below 1"),
        ({"lr_drops": "0.5"}, "lr_drops='0': it must be a finite number above 0 and below 1"),
        ({"lr_drops": 0.5}, "lr_drops=0.5: it must be a list of numbers"),
        ({"lr_drops": (0.5, 0.5)}, r"lr_drops=\(0.5, 0.5\): each must be above the last, as lr_drops=\(0.5,\)"),
        ({"lr_drops": (0.75, 0.5)}, r"lr_drops=\(0.75, 0.5\): each must be above the last"),
        ({"lr_warmup": -1}, "lr_warmup=-1: it must be at least 0"),
        ({"seed": -1}, "seed=-1: it must be at least 0"),
        ({"seed": 2**63}, f"seed={2**63}: it must be below {2**63}"),
        ({"mask": {"0.weight": torch.ones(2).bool()}}, "The mask of '0.weight' must be a bool tensor"),
    ],
)
def test_options_are_refused_before_anything_is_changed(option, sentence):
    model = network().eval()
    before = values(model), layout(model)
    mask = {"0.weight": torch.zeros(4, 1, 3, 3).bool()}
    with pytest.raises(ValueError, match=sentence):
        pai.train(model, DATA, **{**QUICK, "mask": mask, **option})
    assert equal(values(model), before[0])
    assert layout(model) == before[1]


def test_drops_may_come_from_a_generator():
    drops = (0.25, 0.5, 0.75)
    options = {**QUICK, "epochs": 4}
    curves = [pai.train(network(), DATA, lr_drops=given, **options)["lr"] for given in (drops, iter(drops))]
    assert curves[0] == curves[1]
    assert len(set(curves[0])) == 4


def test_warm_up_of_people_s_models():
    with pytest.raises(ValueError, match="updates=-1"):
        pai.warm_up(network(), DATA, -1)
    with pytest.raises(ValueError, match="of a lazy module"):
        pai.warm_up(nn.Sequential(nn.LazyBatchNorm2d()), DATA, 1)
    with pytest.raises(ValueError, match="made in inference mode"):
        pai.warm_up(made_in_inference_mode(), DATA, 1)
    single, double = network(), network().double()
    for model in (single, double):
        pai.warm_up(model, DATA, 3, 16)
    torch.testing.assert_close(double[1].running_var.float(), single[1].running_var)


# --- evaluation


def test_evaluation_takes_what_a_loader_gives():
    model = network()
    inputs, labels = DATA.normalize(DATA.test_images), DATA.test_labels
    expected = pai.evaluate(model, DATA.test_batches())
    loader = DataLoader(TensorDataset(inputs, labels), 5)  # lists of two
    assert pai.evaluate(model, loader) == pytest.approx(expected, rel=1e-6)
    assert pai.evaluate(model, [(inputs, labels.int())]) == pytest.approx(expected, rel=1e-6)
    assert pai.evaluate(model.double(), loader) == pytest.approx(expected, rel=1e-5)
    two = Scaled(model)
    scale = torch.ones(len(inputs), 1, 1, 1)
    for many in ((inputs, scale), {"scale": scale, "x": inputs}):
        assert pai.evaluate(two, [(many, labels)]) == pytest.approx(expected, rel=1e-5)
    empty = (inputs[:0], labels[:0])
    assert pai.evaluate(model, [empty, (inputs, labels)]) == pytest.approx(expected, rel=1e-5)


def test_evaluation_takes_one_batch_and_arrays():
    model = network()
    inputs, labels = DATA.normalize(DATA.test_images), DATA.test_labels
    expected = pai.evaluate(model, [(inputs, labels)])
    assert pai.evaluate(model, pai.Batch(inputs, labels)) == expected
    for arrays in ((inputs.numpy(), labels.numpy()), [inputs.numpy(), labels.tolist()]):
        assert pai.evaluate(model, [arrays]) == expected
    with pytest.raises(TypeError, match="batches is a Dataset: it must hold pairs"):
        pai.evaluate(model, DATA)
    with pytest.raises(TypeError, match="The batch is a Tensor: it must be a pair"):
        pai.evaluate(model, (inputs, labels))
    with pytest.raises(TypeError, match="Labels must be a tensor or array of integers, not NoneType"):
        pai.evaluate(model, [(inputs, None)])


@pytest.mark.parametrize("place", ["parameters", "buffers", "inputs"])
def test_what_has_no_values_is_refused(place):
    model, inputs = network(), DATA.normalize(DATA.test_images)
    if place == "inputs":
        inputs = inputs.to("meta")
    elif place == "parameters":
        model.to("meta")
    else:
        model.register_buffer("scale", torch.ones(2, device="meta"))
    batch = (inputs, DATA.test_labels)
    calls = {"evaluate": ([batch],), "gradient": (batch,), "score": (batch, "snip")}
    if place != "inputs":
        calls |= {"warm_up": (DATA, 1), "train": (DATA,)}
    for name, arguments in calls.items():
        with pytest.raises(ValueError, match=r"has no values: .* on the meta device"):
            getattr(pai, name)(model, *arguments)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, y: (x, y.where(y != 1, -1)), "Label -1 is out of range"),
        (
            lambda x, y: (x, y.where(y != 1, -100)),
            "Label -100 is out of range",
        ),  # PyTorch leaves these out in silence
        (lambda x, y: (x, y.where(y != 1, 3)), "Label 3 is out of range: the model has 3 outputs"),
        (lambda x, y: (x, y.float()), "Labels must be 13 integers, one a sample, not torch.float32"),
        (lambda x, y: (x, y * (1 + 0j)), "Labels must be 13 integers, one a sample, not torch.complex64"),
        (lambda x, y: (x, F.one_hot(y)), r"of shape \(13, 3\)"),
        (lambda x, y: (x, y.cfloat()), "13 integers, one a sample, not torch.complex64"),
        (lambda x, y: (x, y > 0), "13 integers, one a sample, not torch.bool"),
    ],
)
def test_evaluation_names_labels_that_cannot_be(change, sentence):
    batch = change(DATA.normalize(DATA.test_images), DATA.test_labels)
    with pytest.raises((TypeError, ValueError), match=sentence):
        pai.evaluate(network(), [batch])


def test_what_is_drawn_in_evaluation_mode_is_the_same_in_every_call():
    model = Net(lambda net, x: net.inner(F.dropout(x, 0.5)), inner=network())
    assert len({pai.evaluate(model, DATA.test_batches()) for _ in range(3)}) == 1


def test_negative_labels_are_refused_before_training():
    labels = DATA.train_labels.where(DATA.train_labels != 1, -100)
    with pytest.raises(ValueError, match="Label -100 is out of range: labels start at 0"):
        pai.train(network(), replace(DATA, train_labels=labels), **QUICK)


@pytest.mark.parametrize("change", [torch.Tensor.float, torch.Tensor.bool, lambda y: y + 0j, lambda y: y[1:]])
def test_labels_that_are_no_integers_are_refused_wherever_they_count(change):
    labels = change(DATA.train_labels)
    odd = replace(DATA, train_labels=labels)
    sentence = "Labels must be 40 integers, one a sample, not torch"
    batch = pai.Batch(DATA.normalize(DATA.train_images), labels)
    calls = [
        lambda: pai.train(network(), odd, **QUICK),
        lambda: pai.warm_up(network(), odd, 1, 16),
        lambda: pai.gradient(network(), batch),
        lambda: pai.hutchinson_diag(network(), batch, 1),
        lambda: pai.prune(network(), batch, "snip", 0.5),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_labels_are_refused():
    labels = torch.nested.nested_tensor([torch.arange(2), torch.arange(1)])
    with pytest.raises(ValueError, match="A tensor of the batch is of layout"):
        pai.gradient(network(), (DATA.normalize(DATA.train_images[:2]), labels))


# --- seeds and counts


WITH_SEEDS = {
    "random_stream": lambda seed: pai.random_stream(seed, "order"),
    "build_model": lambda seed: pai.build_model("resnet8", 3, in_channels=1, width=2, seed=seed),
    "train": lambda seed: pai.train(network(), DATA, **{**QUICK, "seed": seed}),
    "warm_up": lambda seed: pai.warm_up(network(), DATA, 1, 16, seed),
    "warm_up without norms": lambda seed: pai.warm_up(nn.Linear(2, 2), DATA, 1, 16, seed),
    "scoring_batch": lambda seed: DATA.scoring_batch(1, seed),
    "split": lambda seed: DATA.split(0.5, seed),
}


@pytest.mark.parametrize("seed", [1.0, True, -1, 2**63, None, "1", 1j])
@pytest.mark.parametrize("name", WITH_SEEDS)
def test_a_seed_is_a_whole_number(name, seed):
    with pytest.raises(
        (TypeError, ValueError), match=r"seed=.*: it must be (a whole number|at least 0|below \d+)\.$"
    ):
        WITH_SEEDS[name](seed)


@pytest.mark.parametrize("name", WITH_SEEDS)
def test_a_seed_of_numpys_is_the_same_seed(name):
    one, other = WITH_SEEDS[name](3), WITH_SEEDS[name](np.int64(3))
    if name == "random_stream":
        one, other = (stream.get_state() for stream in (one, other))
    if isinstance(one, nn.Module):
        one, other = values(one), values(other)
        assert equal(one, other)
    elif name in ("scoring_batch", "random_stream"):
        assert all(map(torch.equal, one, other))
    elif name != "split":
        assert one == other


COUNTS = {
    "samples_per_class": DATA.scoring_batch,
    "batch_size": DATA.test_batches,
    "updates": lambda count: pai.warm_up(network(), DATA, count),
    "epochs": lambda count: pai.train(network(), DATA, **{**QUICK, "epochs": count}),
    "lr_warmup": lambda count: pai.train(network(), DATA, **QUICK, lr_warmup=count),
    "width": lambda count: pai.build_model("resnet8", 3, width=count),
    "probes": lambda count: pai.hutchinson_diag(network(), DATA.scoring_batch(1), count),
    "group": lambda count: pai.fisher_diag(network(), DATA.scoring_batch(1), count),
    "chunk": lambda count: pai.gradient(network(), DATA.scoring_batch(1), chunk=count),
    "rounds": lambda count: pai.prune(network(), DATA.scoring_batch(1), "snip", 0.5, rounds=count),
    "networks": pai.Shared,
}


@pytest.mark.parametrize("count", [2.0, True, -1, "2"])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number(name, count):
    with pytest.raises((TypeError, ValueError), match=f"{name}={count!r}: it must be (a whole number|at least)"):
        COUNTS[name](count)


@pytest.mark.parametrize("temperature", [True, "2", 0, -1.0, math.inf, math.nan, torch.tensor(2.0)])
def test_a_temperature_is_a_positive_number(temperature):
    with pytest.raises(ValueError, match=r"temperature=.*: it must be (a finite number )?above 0"):
        pai.gradient(network(), DATA.scoring_batch(1), temperature=temperature)


# --- models that cannot be scored


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (nn.DataParallel, "wrapped in DataParallel: use what it wraps, its .module"),
        (lambda m: nn.Sequential(nn.DataParallel(m[:-1]), m[-1]), "The module '0' is wrapped in DataParallel"),
        (lambda m: torch.compile(m, backend="eager"), "The model is compiled"),
        (lambda m: nn.Sequential(torch.compile(m[:-1], backend="eager"), m[-1]), "The module '0' is compiled"),
        (lambda m: nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, 3)), "of a lazy module"),
        (lambda m: m.to(torch.complex64), "'0.weight' is torch.complex64: only real weights can be scored"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")  # PyTorch's, of what is refused here
def test_a_model_that_cannot_be_scored_is_told_with_the_way_out(wrap, sentence):
    model = wrap(network())
    for key in ("magnitude", "snip", "synflow"):
        with pytest.raises(ValueError, match=sentence):
            pai.prune(model, DATA.scoring_batch(1), key, 0.5)


def test_the_way_out_of_a_compiled_model():
    model = network()
    expected, batch = pai.prune(model, DATA.scoring_batch(2), "hts", 0.5), DATA.scoring_batch(2)
    assert (
        pai.jaccard(expected, pai.prune(torch.compile(model, backend="eager")._orig_mod, batch, "hts", 0.5)) == 1
    )


def test_names_may_come_from_a_generator():
    model, batch, names = network(), DATA.scoring_batch(2), ["0.weight"]
    first, second = (pai.prune(model, batch, "snip", 0.5, rounds=3, parameters=p) for p in (names, iter(names)))
    assert list(first) == list(second) == names
    assert torch.equal(first["0.weight"], second["0.weight"])


def test_the_noise_of_a_seed_is_the_same_in_every_precision():
    batch = DATA.scoring_batch(1)
    single, double = (pai.score(model, batch, "random") for model in (network(), network().double()))
    assert all(torch.equal(single[name].double(), double[name]) for name in single)


def test_one_criterion_is_no_list_of_criteria():
    with pytest.raises(TypeError, match=r"keys='snip': it must be a list of criteria, \['snip'\]"):
        pai.score_many(network(), DATA.scoring_batch(1), "snip")


# --- autocasts of the model's own, within others


def reduced(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        z = net.b(net.a(x.flatten(1)).relu()).relu()
    return net.head(z.float())


@torch.autocast("cpu", torch.bfloat16)
def body(net, x):
    return net.b(net.a(x.flatten(1)).relu()).relu()


def decorated(net, x):
    return net.head(body(net, x).float())


def held_context(net, x):
    with net.cast:  # made when caches were allowed
        z = net.b(net.a(x.flatten(1)).relu()).relu()
    return net.head(z.float())


def of_mixed_precision(function, inputs=64):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(inputs, 16), "b": nn.Linear(16, 16), "head": nn.Linear(16, 3)}
    return Net(function, cast=torch.autocast("cpu", torch.bfloat16), **parts)


MIXED = [reduced, decorated, held_context]


@pytest.mark.parametrize("within", [contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("function", MIXED)
def test_a_model_with_an_autocast_of_its_own_trains_on_its_weights(function, within):
    model = of_mixed_precision(function)
    twin = copy.deepcopy(model)
    with within():
        pai.evaluate(model, DATA.test_batches())  # without gradients
        pai.train(model, DATA, lr_drops=(), **{**QUICK, "epochs": 4, "lr": 0.2})
        shown = model(DATA.test_images.float())
    with within():  # without the casts of the last step
        assert torch.equal(shown, model(DATA.test_images.float()))
    by_hand(twin, DATA, {}, epochs=4, lr=0.2)
    assert all(torch.equal(value, values(twin)[name]) for name, value in values(model).items())


@pytest.mark.parametrize("function", MIXED)
def test_what_the_library_casts_is_not_left_in_the_autocast_of_a_caller(function):
    model, other = of_mixed_precision(function), of_mixed_precision(function)
    with torch.no_grad():
        other.a.weight.neg_()
    batch = DATA.scoring_batch(2)
    results = pai.gradient(model, batch), pai.evaluate(model, [batch]), pai.evaluate(other, [batch])
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            model(batch.inputs)
        for name, value in pai.gradient(model, batch).items():
            assert torch.equal(value, results[0][name])
        assert pai.evaluate(model, [batch]) == results[1]
        model(batch.inputs).sum().backward()  # of the caller's own
        assert model.a.weight.grad.any()
        with torch.no_grad():
            model.a.weight.neg_()
        assert pai.evaluate(model, [batch]) == results[2]


# --- what the model holds


def clamping(net, x):
    with torch.no_grad():
        net.a.weight.clamp_(min=0)
    return net.head(net.a(x.flatten(1)).relu())


def clamping_data(net, x):
    net.a.weight.data.clamp_(min=0)
    return net.head(net.a(x.flatten(1)).relu())


def assigning(net, x):
    if not hasattr(net, "done"):
        net.done = net.a.weight = nn.Parameter(net.a.weight.detach().clamp(min=0))
    return net.head(net.a(x.flatten(1)).relu())


def counting(net, x):
    net.head.calls.add_(1)  # a buffer
    return net.head(net.a(x.flatten(1)).relu())


def renormed(net, x):
    return net.head(net.table((x.flatten(1) > 0).long()).mean(1))


def two_layers(function):
    torch.manual_seed(0)
    model = Net(
        function,
        a=nn.Linear(64, 6),
        b=nn.Linear(6, 6),
        head=nn.Linear(6, 3),
        table=nn.Embedding(2, 6, max_norm=0.5),
    )
    model.head.register_buffer("calls", torch.zeros(()))
    return model


WRITERS = [clamping, clamping_data, assigning, counting, renormed]
NAMES = ["head.weight"]
CALLS = {
    "gradient": lambda model: pai.gradient(model, DATA.scoring_batch(2), parameters=NAMES),
    "fisher_diag": lambda model: pai.fisher_diag(model, DATA.scoring_batch(2), parameters=NAMES),
    "hutchinson_diag": lambda model: pai.hutchinson_diag(model, DATA.scoring_batch(2), parameters=NAMES),
    "prune": lambda model: pai.prune(model, DATA.scoring_batch(2), "snip", 0.5, rounds=2, parameters=NAMES),
    "synaptic_flow": lambda model: pai.synaptic_flow(model, DATA.scoring_batch(2), parameters=NAMES),
    "effective_sparsity": lambda model: pai.effective_sparsity(
        model, {"head.weight": torch.ones(3, 6).bool()}, DATA.scoring_batch(2)
    ),
    "evaluate": lambda model: pai.evaluate(model, DATA.test_batches()),
    "warm_up": lambda model: pai.warm_up(model, DATA, 2, 16),
}


def held(model):
    """All that modules hold, with the tensors' numbers, and what is in it."""
    return [
        {name: copy.copy(value) for name, value in vars(module).items() if name not in ("_parameters", "_buffers")}
        for module in model.modules()
    ]


def as_it_was(model, before, numbers, tensors):
    assert equal(values(model), numbers)
    assert [*model.parameters(), *model.buffers()] == tensors or all(
        now is then for now, then in zip([*model.parameters(), *model.buffers()], tensors, strict=True)
    )
    for now, then in zip(held(model), before, strict=True):
        assert list(now) == list(then)
        assert all(now[name] is then[name] or now[name] == then[name] for name in then)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("function", WRITERS)
def test_a_forward_pass_that_writes_leaves_the_users_weights(function, call):
    model = two_layers(function).train()
    model.b.eval()
    before, numbers, tensors = held(model), values(model), [*model.parameters(), *model.buffers()]
    if (function, call) == (renormed, "effective_sparsity"):  # no rule for what reads the norms
        with pytest.raises(ValueError, match="effective sparsity of this model cannot be told"):
            CALLS[call](model)
    else:
        CALLS[call](model)
    as_it_was(model, before, numbers, tensors)


def test_training_refused_leaves_what_its_look_at_the_model_wrote():
    model = two_layers(lambda net, x: clamping(net, x)[:, :2])
    numbers = values(model)
    with pytest.raises(ValueError, match="Label 2 is out of range"):
        pai.train(model, DATA, **QUICK)
    assert equal(values(model), numbers)


def in_an_attribute(net, x):
    if net.positions is None:
        net.positions = torch.linspace(0, 1, 64).sin()
    return net.positions


def in_a_dict(net, x):
    return net.caches["tables"].setdefault(x.shape[1], torch.linspace(0, 1, 64).sin())


def in_a_list(net, x):
    if not net.rows:
        net.rows.append(torch.linspace(0, 1, 64).sin())
    return net.rows[0]


def in_a_buffer(net, x):
    if "lazily" not in net._buffers:
        net.register_buffer("lazily", torch.linspace(0, 1, 64).sin(), persistent=False)
    return net.lazily


def in_a_new_attribute(net, x):
    if not hasattr(net, "fresh"):
        net.fresh = torch.linspace(0, 1, 64).sin()
    return net.fresh


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", [in_an_attribute, in_a_dict, in_a_list, in_a_buffer, in_a_new_attribute])
def test_what_a_model_makes_at_its_first_call_is_made_at_the_first_of_its_user(place, call):
    def function(net, x):
        return net.head(net.a(x.flatten(1) + place(net, x)).relu())

    model = two_layers(function)
    model.positions, model.caches, model.rows = None, {"tables": {}}, []
    caches, rows, before = model.caches, model.rows, held(model)
    numbers, tensors = values(model), [*model.parameters(), *model.buffers()]
    CALLS[call](model)
    as_it_was(model, before, numbers, tensors)
    assert model.caches is caches
    assert caches == {"tables": {}}
    assert model.rows is rows
    assert rows == []
    assert model(DATA.scoring_batch(1).inputs).dtype == torch.float32


class Merging(nn.Linear):
    """As loralib's layer: evaluation mode merges its weights, training mode takes them apart."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.randn(sizes[1], 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + x @ self.down.T @ self.up.T


class Deploying(nn.Sequential):
    """As RepVGG: evaluation mode puts one layer in the place of two."""

    def train(self, mode=True):
        super().train(mode)
        if not mode and len(self) == 2:
            one, two = self
            del self[1]
            self[0] = nn.Linear(one.in_features, two.out_features)
            self[0].weight.data = two.weight.data @ one.weight.data
            self[0].bias.data = two.weight.data @ one.bias.data + two.bias.data
        return self


OWN_MODES = {
    "merging": lambda: Merging(64, 6),
    "deploying": lambda: Deploying(nn.Linear(64, 5), nn.Linear(5, 6)),
    "frozen": lambda: Frozen(64, 6),
}


class Frozen(nn.Linear):
    """As a backbone that stays in evaluation mode."""

    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", OWN_MODES)
def test_a_module_that_does_more_when_its_mode_changes(kind, call, mode):
    model = two_layers(lambda net, x: net.head(net.a(x.flatten(1)).relu()))
    model.a = OWN_MODES[kind]()
    model.train(mode)
    model.b.train(not mode)
    before, numbers, tensors = held(model), values(model), [*model.parameters(), *model.buffers()]
    shown = model(DATA.scoring_batch(1).inputs)
    CALLS[call](model)
    as_it_was(model, before, numbers, tensors)
    assert torch.equal(model(DATA.scoring_batch(1).inputs), shown)


@pytest.mark.parametrize("mode", [True, False])
def test_training_gives_modes_back_by_the_modules_own_way(mode):
    model = two_layers(lambda net, x: net.head(net.b(net.a(x.flatten(1)).relu())))
    model.a, model.b = Merging(64, 6), Frozen(6, 6)
    model.train(mode)
    model.b.training = True  # by hand, against its own
    pai.train(model, DATA, **QUICK)
    assert [model.training, model.a.training, model.a.merged, model.b.training] == [mode, mode, not mode, True]
    shown = model(DATA.scoring_batch(1).inputs)
    torch.testing.assert_close(model.train(not mode)(DATA.scoring_batch(1).inputs), shown, rtol=1e-4, atol=1e-4)


def test_a_graph_of_the_user_outlives_calls_on_its_model():
    model = network()
    loss = F.cross_entropy(model(DATA.scoring_batch(1).inputs), torch.arange(3))
    for call in ("gradient", "evaluate", "synaptic_flow"):
        names = {"parameters": ["0.weight"]}
        batch = DATA.scoring_batch(1)
        pai.evaluate(model, [batch]) if call == "evaluate" else getattr(pai, call)(model, batch, **names)
    loss.backward()


def test_threads_leave_the_settings_of_the_process():
    before = torch.get_default_dtype(), flash_sdp_enabled(), torch.backends.cudnn.allow_tf32
    mask, batch = {"a.weight": torch.ones(6, 64).bool()}, DATA.scoring_batch(1)
    failures = []
    # Made before: what a thread makes itself is of the default dtype that another may have set.
    models = [two_layers(lambda net, x: net.head(net.a(x.flatten(1)).relu())) for _ in range(4)]

    def work(model):
        for _ in range(15):
            try:
                pai.synaptic_flow(model, batch, parameters=NAMES)
                pai.fisher_diag(model, batch, parameters=NAMES)
                pai.effective_sparsity(model, mask, batch)
                pai.build_model("resnet8", 3, width=1)
                pai.train(model, DATA, precision="bf16", **{**QUICK, "epochs": 1, "batch_size": 40})
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (torch.get_default_dtype(), flash_sdp_enabled(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("call", [pai.warm_up, pai.train])
def test_what_is_no_data_set_and_images_that_do_not_fit_are_told(call):
    with pytest.raises(TypeError, match="data is a Batch: it must be a Dataset"):
        call(network(), DATA.scoring_batch(1))
    if call is pai.train:
        with pytest.raises(ValueError, match="The model's forward pass fails for inputs of float32 of shape"):
            call(torch.nn.Linear(3, 4), DATA)
