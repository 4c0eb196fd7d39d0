"""Warm-up, masked training and evaluation, each against a plain loop written out here."""

import copy
import functools
import math
import pickle
import platform
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pai_lib.curvature.parameters import prunable
from pai_lib.data.batch import Batch
from pai_lib.data.loading import Dataset
from pai_lib.models import build_model
from pai_lib.training.loop import (
    OPTIMIZERS,
    PRECISIONS,
    TrainingDivergedError,
    evaluate,
    learning_rate,
    random_stream,
    train,
    warm_up,
)
from pai_lib.training.products import WideProducts


@pytest.fixture(scope="module")
def data():
    """Return 60 + 20 random images of 3 classes, whose brightness tells the class."""
    rng = np.random.default_rng(0)

    def part(count):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 8, 8, 3)) + 60 * labels[:, None, None, None]
        return images.astype(np.uint8), labels

    return Dataset.from_arrays("noise", *part(60), *part(20), augment=True)


def small(seed=0):
    """Return a network with batch norm, dropout, a shared seed and a buffer of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 6, 3, 2),
        nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    model.register_buffer("other", torch.arange(3.0))
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first | second)


# --- warm-up


def is_statistic(name):
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def test_warm_up_changes_statistics_and_nothing_else(data):
    model = small()
    model.train()
    model[6].eval()  # an odd mode that somebody chose
    modes = [m.training for m in model.modules()]
    before, generator = state(model), torch.get_rng_state()
    assert warm_up(model, data, updates=3, batch_size=20) == 3
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)  # dropout drew nothing
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, value in state(model).items():
        assert torch.equal(value, before[name]) != is_statistic(name)
    assert int(model[1].num_batches_tracked) == 3


def test_warm_up_is_a_plain_loop(data):
    model, reference = small(), small()
    warm_up(model, data, updates=5, batch_size=25, seed=4)  # 25 + 25 + 10 images, then a second epoch
    order, done = random_stream(4, "warm-up"), 0
    reference.eval()
    reference[1].train()
    reference[5].train()
    while done < 5:
        for batch in data.epoch(25, order, augment=False):
            if done < 5:
                with torch.no_grad():
                    reference(batch.inputs)
                done += 1
    assert equal(state(model), state(reference))


def test_statistics_reach_those_of_the_data(data):
    """With whole-data batches the mean after n updates is exactly (1 − 0.9ⁿ) times the data's."""
    norm = nn.BatchNorm2d(3)
    warm_up(nn.Sequential(norm), data, updates=7, batch_size=1000)
    inputs = data.normalize(data.train_images)
    mean, var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, (1 - 0.9**7) * mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(norm.running_var, 0.9**7 + (1 - 0.9**7) * var, atol=1e-6, rtol=1e-5)

    shifted = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    warm_up(shifted, data, updates=98, batch_size=1000)
    with torch.no_grad():
        hidden = shifted[0](inputs)
    torch.testing.assert_close(shifted[1].running_mean, hidden.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(shifted[1].running_var, hidden.var((0, 2, 3)), atol=1e-4, rtol=1e-3)


def test_nothing_to_warm_up(data):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    assert warm_up(plain, data, updates=3) == 0
    assert warm_up(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), data, updates=3) == 0
    model = small()
    before = state(model)
    assert warm_up(model, data, updates=0) == 0
    assert equal(state(model), before)


def test_warm_up_refuses_a_wrong_batch_size_and_gives_modes_back(data):
    model = small().train()
    with pytest.raises(ValueError, match="batch_size=0: it must be at least 1"):
        warm_up(model, data, updates=1, batch_size=0)
    assert all(m.training for m in model.modules())


# --- training


def reference_training(model, data, mask, epochs, batch_size, seed, lr, drops, factor):
    """SGD with momentum and weight decay from their definitions; weights times the mask after each step."""
    parameters = dict(model.named_parameters())
    velocity = {}
    order = random_stream(seed, "order")
    with torch.no_grad():
        for name, kept in mask.items():
            parameters[name].mul_(kept)
    model.train()
    losses = []
    for epoch in range(epochs):
        rate = lr * factor ** sum(epoch >= drop for drop in drops)
        total = 0.0
        for inputs, labels in data.epoch(batch_size, order):
            loss = F.cross_entropy(model(inputs), labels)
            total += float(loss.detach()) * len(labels) / len(data.train_labels)
            grads = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for (name, p), g in zip(parameters.items(), grads, strict=True):
                    g = g + 5e-4 * p
                    velocity[name] = 0.9 * velocity[name] + g if name in velocity else g
                    p -= rate * velocity[name]
                    if name in mask:
                        p.mul_(mask[name])
        losses.append(total)
    return losses


def without_dropout(seed=0):
    model = small(seed)
    model[3] = nn.Identity()
    return model


def half_mask(model):
    generator = torch.Generator().manual_seed(1)
    shapes = {name: model.get_parameter(name).shape for name in prunable(model)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


@pytest.mark.parametrize("masked", [True, False])
def test_training_is_a_plain_loop(data, masked):
    model, reference = without_dropout(), without_dropout()
    mask = half_mask(model) if masked else None
    curves = train(model, data, mask, epochs=4, batch_size=16, lr=0.05, seed=3, progress=False)
    losses = reference_training(reference, data, mask or {}, 4, 16, 3, 0.05, (2, 3), 0.2)
    assert curves["loss"] == pytest.approx(losses, rel=1e-4)
    assert curves["lr"] == pytest.approx([0.05, 0.05, 0.01, 0.002])
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=2e-5, rtol=1e-3)


def test_adamw_with_cosine_warm_up_and_label_smoothing_is_a_plain_loop(data):
    model, reference = without_dropout(), without_dropout()
    model[4].bias = reference[4].bias = None  # before a norm its gradient is rounding, which AdamW would blow up
    mask, smoothing, order = half_mask(model), 0.2, random_stream(3, "order")
    parameters = dict(reference.named_parameters())
    first, second = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
    with torch.no_grad():
        for name, kept in mask.items():
            parameters[name].mul_(kept)
    reference.train()
    step, losses = 0, []
    for rate in (0.01, 0.02, 0.02 * (1 + math.cos(math.pi / 2)) / 2):  # one epoch of warm-up, half a cosine
        losses.append(0.0)
        for inputs, labels in data.epoch(16, order):
            p = reference(inputs).log_softmax(1)
            wanted = (1 - smoothing) * F.one_hot(labels, 3) + smoothing / 3
            loss = -(wanted * p).sum(1).mean()
            losses[-1] += float(loss.detach()) * len(labels) / 60
            grads = torch.autograd.grad(loss, list(parameters.values()))
            step += 1
            with torch.no_grad():
                for (name, p), g in zip(parameters.items(), grads, strict=True):
                    p.mul_(1 - rate * 0.1)  # the decay is no part of the gradient
                    first[name] = 0.8 * first[name] + 0.2 * g
                    second[name] = 0.999 * second[name] + 0.001 * g**2
                    unbiased = first[name] / (1 - 0.8**step), second[name] / (1 - 0.999**step)
                    p -= rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
                    if name in mask:
                        p.mul_(mask[name])
    recipe = {"optimizer": "adamw", "schedule": "cosine", "lr_warmup": 1, "label_smoothing": smoothing}
    recipe |= {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.1}
    curves = train(model, data, mask, epochs=3, batch_size=16, seed=3, progress=False, **recipe)
    assert curves["lr"] == pytest.approx([0.01, 0.02, 0.01])
    assert curves["loss"] == pytest.approx(losses, rel=1e-4)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_removed_weights_are_exactly_zero_and_others_train(data, optimizer, precision):
    model = without_dropout()
    before, mask = state(model), half_mask(model)
    recipe = {"optimizer": optimizer, "precision": precision, "weight_decay": 0.1}
    train(model, data, mask, epochs=3, batch_size=16, lr=0.1, progress=False, **recipe)
    for name, kept in mask.items():
        weight = model.get_parameter(name)
        assert int(torch.count_nonzero(weight[~kept])) == 0
        assert bool((weight[kept] != before[name][kept]).all())


def test_a_layer_that_is_pruned_away_does_not_break_training(data):
    model = without_dropout()
    mask = {name: torch.zeros_like(kept) for name, kept in half_mask(model).items()}
    curves = train(model, data, mask, epochs=2, progress=False)
    assert all(map(math.isfinite, curves["loss"]))
    assert all(int(torch.count_nonzero(model.get_parameter(name))) == 0 for name in mask)


def test_training_learns_and_tells_accuracy(data):
    model = build_model("resnet8", 3, width=8)
    curves = train(model, data, epochs=25, batch_size=20, lr=0.05, progress=False)
    assert sorted(curves) == ["accuracy", "loss", "lr"]
    assert {len(curve) for curve in curves.values()} == {25}
    assert curves["loss"][-1] < curves["loss"][0] / 2
    assert curves["accuracy"][-1] > 0.8
    assert all(0 <= value <= 1 for value in curves["accuracy"])
    assert model.training


def test_the_papers_schedule():
    rates = [learning_rate(epoch, 160, 0.03, (0.5, 0.75), 0.2) for epoch in range(160)]
    assert rates == [0.03] * 80 + [0.006] * 40 + [0.0012] * 40
    published = [learning_rate(epoch, 160, 0.01, (0.375, 0.75), 0.2) for epoch in (59, 60, 119, 120)]
    assert published == [0.01, 0.002, 0.002, 0.0004]


def test_cosine_and_warm_up():
    half = [learning_rate(epoch, 100, 0.1, schedule="cosine") for epoch in (0, 25, 50, 75)]
    assert half == pytest.approx([0.1 * (1 + c) / 2 for c in (1, math.sqrt(0.5), 0, -math.sqrt(0.5))])
    rates = [learning_rate(epoch, 100, 0.1, schedule="cosine", warmup=9) for epoch in range(100)]
    assert rates[:10] == pytest.approx([0.01 * i for i in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-4
    steps = [learning_rate(epoch, 90, 0.1, (1 / 3, 2 / 3), 0.1, warmup=4) for epoch in (0, 3, 4, 29, 30, 60)]
    assert steps == pytest.approx([0.02, 0.08, 0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 12])
def test_the_first_epoch_has_the_first_rate(epochs):
    rates = [learning_rate(epoch, epochs, 0.03, (0.25, 0.5, 0.75), 0.2) for epoch in range(epochs)]
    assert rates[0] == 0.03
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(epochs - 1, epochs, 0.03, (), 0.2) == 0.03


def trained(data, **options):
    torch.manual_seed(9)
    model = build_model("resnet8", 3, width=4, seed=1)
    curves = train(model, data, epochs=2, batch_size=16, progress=False, **options)
    return state(model), curves


def test_one_seed_is_one_result_bit_for_bit(data):
    first, curves = trained(data)
    torch.rand(7)
    again, others = trained(data)
    assert equal(first, again)
    assert curves == others
    assert not equal(first, trained(data, seed=1)[0])


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), [(4, 6, 9, 9), (8, 6, 3, 3), (8,)]),
        (lambda x, w, b: F.conv2d(x, w, b, groups=3), [(4, 6, 5, 5), (6, 2, 1, 1), (6,)]),
        (lambda x, w, b: F.conv1d(x, w, b), [(4, 6, 9), (8, 6, 3), (8,)]),
        (F.linear, [(5, 7), (3, 7), (3,)]),
        (lambda x, w, b: torch.baddbmm(b, x, w), [(2, 5, 7), (2, 7, 3), (2, 5, 3)]),
        (lambda x, w, b: x @ w + b, [(2, 5, 7), (2, 7, 3), (3,)]),
    ],
)
def test_wide_products_are_exact_but_for_one_rounding(product, shapes):
    generator = torch.Generator().manual_seed(0)
    narrow = [torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in narrow]
    with WideProducts():
        result = product(*narrow)
        result.float().square().sum().backward()
    truth = product(*exact)
    # The bias may be added after a first rounding: to a sum no larger than the largest here.
    assert result.dtype is torch.bfloat16
    assert (result - truth).abs().max() <= 2**-8 * truth.abs().max()
    (truth + (result - truth).detach()).square().sum().backward()  # at the rounded result
    for tensor, other in zip(narrow, exact, strict=True):
        assert (tensor.grad - other.grad).abs().max() <= 2**-7 * other.grad.abs().max()


def test_wide_products_leave_other_precisions_alone():
    x, w = torch.randn(5, 7), torch.randn(7, 3, dtype=torch.float64)
    with WideProducts():
        assert torch.equal(x.double() @ w, x.double().mm(w))
        assert (x @ w.float()).dtype is torch.float32
        assert (x.bfloat16() * 2).dtype is torch.bfloat16


@pytest.mark.parametrize(("instructions", "wide"), [("AVX2", True), ("AVX512", False), ("SVE256", False)])
def test_wide_products_are_for_bf16_on_processors_without_its_instructions(data, monkeypatch, instructions, wide):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    calls = []
    compute = WideProducts.__torch_dispatch__

    def counted(self, func, *rest):
        calls.append(func)
        return compute(self, func, *rest)

    monkeypatch.setattr(WideProducts, "__torch_dispatch__", counted)
    trained(data)
    assert not calls
    trained(data, precision="bf16")
    kinds = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default}
    assert kinds <= set(calls) if wide else not calls


def test_bf16_differs_slightly(data):
    full, curves = trained(data)
    half, others = trained(data, precision="bf16")
    assert all(value.dtype == full[name].dtype for name, value in half.items())  # the weights stay float32
    assert not equal(full, half)
    assert others["loss"] == pytest.approx(curves["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("precision", "fp16", "did you mean 'bf16'"),
        ("optimizer", "adam", "did you mean 'adamw'"),
        ("schedule", "", "known: steps, cosine"),
        ("schedule", ["steps"], "did you mean 'steps'"),
    ],
)
def test_unknown_choices(data, name, value, known):
    with pytest.raises(ValueError, match=re.escape(f"Unknown {name} {value!r}: {known}")):
        train(small(), data, **{name: value})


def test_compiling_changes_nothing_but_rounding(data, monkeypatch):
    plain, curves = trained(data)
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend="eager")
    )  # needs no C++ compiler
    compiled, others = trained(data, compile=True)
    assert others["loss"] == pytest.approx(curves["loss"], rel=1e-5)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_used_again():
    """Counted in page faults, in a process of its own; the first calls may still enlarge it."""
    code = """
import resource, torch
from pai_lib.training.device import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(4)][-1])
keep_freed_memory()
print([faults() for _ in range(4)][-1])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, output.split())
    assert before >= 64  # 128 MB in the largest pages there are
    assert after < 10


def test_a_mask_that_does_not_fit_is_refused_before_training(data):
    model = small()
    before = state(model)
    with pytest.raises(ValueError, match=r"did you mean '0.weight'"):
        train(model, data, {"0.wieght": torch.ones(6, 3, 3, 3, dtype=torch.bool)}, epochs=1, progress=False)
    assert equal(state(model), before)


def test_divergence_is_an_error_that_says_when(data):
    with pytest.raises(TrainingDivergedError, match="training loss became nan") as error:
        train(without_dropout(), data, epochs=20, lr=1e9, batch_size=8, momentum=0.99, progress=False)
    assert error.value.where.startswith("epoch ")
    assert pickle.loads(pickle.dumps(error.value)).where == error.value.where  # it may cross processes


# --- evaluation and randomness


class Table(nn.Module):
    """Logits that are the inputs."""

    def forward(self, x):
        return x


def test_evaluation_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    batches = [Batch(logits[:2], torch.tensor([0, 1])), Batch(logits[2:], torch.tensor([1]))]
    accuracy, loss = evaluate(Table(), batches)
    assert accuracy == pytest.approx(2 / 3)
    by_hand = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    assert loss == pytest.approx(sum(by_hand) / 3, rel=1e-6)


def test_evaluation_leaves_the_model_alone(data):
    model = small().train()
    model[1].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    first = evaluate(model, data.test_batches(7))
    assert first == pytest.approx(evaluate(model, data.test_batches(20)))  # no dropout, and any batch size
    assert equal(state(model), before)
    assert [m.training for m in model.modules()] == modes
    twin = copy.deepcopy(model).eval()
    batch = next(data.test_batches())
    assert first[0] == float((twin(batch.inputs).argmax(1) == batch.labels).double().mean())


def test_no_samples_to_evaluate_on():
    with pytest.raises(ValueError, match="no samples"):
        evaluate(Table(), [])


def test_streams_differ_by_seed_and_purpose():
    def draw(seed, purpose):
        return float(torch.rand((), generator=random_stream(seed, purpose)))

    assert draw(1, "order") == draw(1, "order")
    assert len({draw(seed, purpose) for seed in (0, 1, 42) for purpose in ("order", "scores")}) == 6


def test_warm_up_in_double_precision(data):
    single, double = small(), small().double()
    for model in (single, double):
        assert warm_up(model, data, updates=4, batch_size=20, seed=2) == 4
    assert double[5].running_mean.dtype == torch.float64
    for name, value in double.state_dict().items():
        torch.testing.assert_close(single.state_dict()[name].to(value), value, rtol=1e-4, atol=1e-6)
