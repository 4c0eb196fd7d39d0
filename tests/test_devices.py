"""Everything public gives the CPU's numbers on another device, and whatever PyTorch's defaults are.

The device is that of ``second_device.py``. A case is a function of inputs that live on one device; a public name
without a case fails the test that counts them.
"""

import copy
import functools
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SPEC
from own_models import MODELS, seeded
from PIL import Image
from second_device import DEVICE, READS, reads, second_device, to_cpu, to_second
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import pai_lib as pai
from pai_lib.experiments import run as runs
from pai_lib.experiments.mask_run import MaskWork
from pai_lib.pruning.ranking import scopes
from pai_lib.training.checkpoint import Checkpoint
from pai_lib.training.loop import TrainingStoppedError

# --- what is asked of each model


@functools.cache
def inputs_of(name):
    """What the cases take, on the CPU and in float32; each is given a copy."""
    model, batch = seeded(name)
    generator = torch.Generator().manual_seed(1)
    shapes = {name: model.get_parameter(name).shape for name in pai.prunable(model)}
    scores = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    masks = [
        {name: torch.rand(shape, generator=generator) < 0.6 for name, shape in shapes.items()} for _ in range(2)
    ]
    data = pai.load_data("digits").split(0.08)[0]
    data = replace(data, test_images=data.test_images[:70], test_labels=data.test_labels[:70])
    return {"model": model, "batch": batch, "mask": masks[0], "other": masks[1], "scores": scores, "data": data}


def on_cpu(name, path=None):
    tensors = copy.deepcopy(inputs_of(name))
    return SimpleNamespace(**tensors, on_cpu=inputs_of(name), device="cpu", path=path)


def on_second(name, path=None):
    tensors = copy.deepcopy(inputs_of(name))
    moved = {
        "model": to_second(tensors.pop("model")),
        "data": tensors.pop("data").to(DEVICE),
        **to_second(tensors),
    }
    return SimpleNamespace(**moved, on_cpu=inputs_of(name), device=DEVICE, path=path)


def of(function, **options):
    return lambda x: function(x.model, x.batch, **options)


def state(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def changed(function):
    """A case that looks at the model afterwards."""

    def case(x):
        return function(x), state(x.model)

    return case


def images_only(case):
    """Data sets here are images of digits, for one of the models."""
    case.models = ("convolutional",)
    return case


def loaded(x):
    pai.save_mask(x.mask, x.path / "mask")
    mask = pai.load_mask(x.path / "mask")  # on the CPU, wherever the model is
    pai.apply_mask(x.model, mask)
    return mask, state(x.model), pai.effective_sparsity(x.model, mask, x.batch), pai.sparsity_of(mask)


def pruned(x, mask):
    model = pai.to_torch_prune(copy.deepcopy(x.model), mask)
    return state(model), model(x.batch.inputs)


def across(function):
    """Of two on one device, and of one that was read from a file with one of the device."""
    return lambda x: (
        function(x.mask, x.other),
        function(x.mask, x.on_cpu["other"]),
        function(x.on_cpu["mask"], x.other),
    )


def read_twice(data):
    epoch = list(data.epoch(40, pai.random_stream(3, "order"), augment=True))
    part, held = data.split(0.5)
    return epoch, list(data.test_batches(30)), part.train_images, held, data.scoring_batch(1, 2)


def streamed(x):
    """Photographs are read by file, whatever the device of their labels."""
    for part in ("train", "val"):
        for label in range(2):
            (folder := x.path / "imagenet" / part / str(label)).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                pixels = np.random.default_rng(10 * label + i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    data = replace(pai.load_data("imagenet", x.path, 8).to(x.device), workers=0)
    return list(data.epoch(2, pai.random_stream(0, "order"))), data.scoring_batch(1), list(data.test_batches(3))


CASES = {
    "Batch": lambda x: pai.Batch(*x.on_cpu["batch"]).to(x.device),
    "Dataset": images_only(lambda x: read_twice(x.on_cpu["data"].to(x.device))),
    "ImageStream": images_only(streamed),
    "apply_mask": changed(lambda x: pai.apply_mask(x.model, x.mask)),
    "collapsed_layers": lambda x: pai.collapsed_layers({**x.mask, "empty": x.mask[min(x.mask)] & False}),
    "effective_sparsity": lambda x: pai.effective_sparsity(x.model, x.mask, x.batch),
    "evaluate": images_only(changed(lambda x: pai.evaluate(x.model, x.data.test_batches(30)))),
    "exact_diag": of(pai.exact_diag, chunk=4),
    "fisher_diag": lambda x: [pai.fisher_diag(x.model, x.batch, group, chunk=4) for group in (1, 2, 4, None)],
    "flops_left": lambda x: pai.flops_left(x.model, x.mask, x.batch),
    "ggn_diag": lambda x: [pai.ggn_diag(x.model, x.batch, mode, chunk=4) for mode in ("exact", "mc")],
    "gradient": of(pai.gradient, parameters="all", chunk=4, temperature=2.0),
    "hessian_row_norm": of(pai.hessian_row_norm, probes=2, group=4),
    "hessian_vector_product": lambda x: pai.hessian_vector_product(x.model, x.batch, x.scores, chunk=4),
    "hutchinson_diag": lambda x: [
        pai.hutchinson_diag(x.model, x.batch, 2, 3, distribution=d, standard_error=e, chunk=2)
        for d in ("rademacher", "normal") for e in (False, True)
    ],
    "invert_scores": lambda x: pai.invert_scores(x.scores),
    "jaccard": across(pai.jaccard),
    "layer_density": lambda x: pai.layer_density(x.mask),
    "load_mask": changed(loaded),
    "make_mask": lambda x: [pai.make_mask(x.scores, 0.7, scope) for scope in scopes()],
    "prunable": lambda x: pai.prunable(x.model),
    "random_stream": lambda x: pai.random_stream(0, "here").get_state(),
    "rank_correlation": lambda x: [
        pai.rank_correlation(x.scores, {n: v**2 for n, v in x.scores.items()}),
        pai.rank_correlation(x.scores, x.on_cpu["scores"]),
    ],
    "save_mask": lambda x: pai.save_mask(x.mask, x.path / "again") or (x.path / "again").read_bytes(),
    "shared_fraction": across(pai.shared_fraction),
    "shuffle_within_layers": lambda x: [
        pai.shuffle_within_layers(x.mask, generator) for generator in (None, pai.random_stream(1, "shuffle"))
    ],
    "sparsity_of": lambda x: pai.sparsity_of(x.mask),
    "synaptic_flow": of(pai.synaptic_flow),
    "to_torch_prune": lambda x: [pruned(x, x.mask), pruned(x, x.on_cpu["mask"])],
    "train": images_only(
        changed(lambda x: pai.train(x.model, x.data, x.mask, epochs=2, batch_size=32, progress=False))
    ),
    "warm_up": images_only(changed(lambda x: pai.warm_up(x.model, x.data, 3, 32))),
}  # fmt: skip

# Shown below, criterion by criterion and run by run.
BELOW = {"CRITERIA", "Shared", "prune", "run", "run_masks", "score", "score_many"}
# They neither take nor give a tensor, or give one that is made on the CPU.
WITHOUT = set(
    """
    Criterion MaskRecord MaskSpec Record RunSpec SparsityWarning Store TiedScoresWarning build_model
    check_data check_parameters criterion criterion_label dataset_names load_data model_names profile
    records_frame resolve_device
    """.split()
)
RULES = [(rule.key, variant) for rule in pai.CRITERIA.values() for variant in rule.variants]


def test_every_public_name_has_a_case():
    assert sorted(pai.__all__) == sorted([*CASES, *BELOW, *WITHOUT])


def outcome(function, *inputs, **options):
    """What a case gives, or the sentence with which it refuses."""
    try:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention is each device's own
            return to_cpu(function(*inputs, **options))
    except (ValueError, TypeError) as error:
        return str(error)


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
    else:
        assert found == expected


def of_each_model(cases):
    names = [(case, model) for case in cases for model in getattr(cases[case], "models", MODELS)]
    return pytest.mark.parametrize(("case", "model"), names)


def every_criterion(x):
    """Scores and masks of every criterion and variant; quantities in common are computed once."""
    known, found = {}, {}

    def remember(key, compute):
        if key not in known:
            known[key] = compute()
        return known[key]

    for key, variant in RULES:
        options = {"variant": variant, "probes": 2, "chunk": 4}
        scores = outcome(pai.score_many, x.model, x.batch, [key], remember=remember, **options)
        rounds = {"rounds": 2} if pai.CRITERIA[key].rounds > 1 else {"remember": remember}
        mask = outcome(pai.prune, x.model, x.batch, key, 0.6, **rounds, **options)
        found[key, variant] = scores, mask
    return found, state(x.model)


EVERY = {**CASES, "every criterion": every_criterion}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of ties in scores so few
@of_each_model(EVERY)
def test_a_second_device_gives_the_same(case, model, tmp_path):
    expected = outcome(EVERY[case], on_cpu(model, tmp_path))
    with second_device():
        assert_same(outcome(EVERY[case], on_second(model, tmp_path)), expected)


DEFAULTS = {"dtype": (torch.set_default_dtype, torch.float64, torch.float32)}
DEFAULTS["device"] = (torch.set_default_device, "meta", None)


@pytest.mark.filterwarnings("ignore::UserWarning")
# (A model is built where the default device is.)
@pytest.mark.parametrize(("case", "default"), [*itertools.product(EVERY, DEFAULTS), ("build_model", "dtype")])
def test_the_defaults_of_pytorch_do_not_matter(case, default, tmp_path):
    function = EVERY.get(case, lambda x: state(pai.build_model("vit_cifar", 10, width=12)))
    model = getattr(function, "models", ("transformer",))[0]
    expected, again = outcome(function, on_cpu(model, tmp_path)), on_cpu(model, tmp_path)
    change, other, usual = DEFAULTS[default]
    change(other)
    try:
        found = outcome(function, again)
    finally:
        change(usual)
    assert_same(found, expected)


# --- runs

LONGER = replace(SPEC, width=2, train_fraction=0.08, epochs=2, criterion="fts", samples_per_class=1)
RUNS = {
    "dense": replace(LONGER, criterion="dense", sparsity=0),
    "masked": LONGER,
    "exact": replace(LONGER, criterion="exact_taylor", optimizer="adamw", lr=0.01),
    "trained": replace(LONGER, criterion="magnitude", when="trained"),
    "erk": replace(LONGER, criterion="random", scope="erk"),
    "layer": replace(LONGER, criterion="snip", scope="layer", sparsity=0.7, label_smoothing=0.1),
    "rounds": replace(LONGER, criterion="synflow", rounds=3),
    **{control: replace(LONGER, criterion="snip", control=control) for control in ("invert", "shuffle", "reinit")},
}


def result_of(spec, device, **options):
    """All of a record that is not time or memory."""
    data = replace(pai.load_data("digits"), test_images=pai.load_data("digits").test_images[:60])
    data = replace(data, test_labels=data.test_labels[:60])
    record = runs.perform(spec, data, torch.device(device), **options)
    values = {k: v for k, v in record.result.items() if "seconds" not in k and k != "peak_memory_bytes"}
    return values, record.failure, record.data


@pytest.mark.filterwarnings("ignore::pai_lib.TiedScoresWarning")  # so narrow a network is dead in places
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_on_a_second_device(name):
    expected = result_of(RUNS[name], "cpu")
    with second_device():
        assert result_of(RUNS[name], DEVICE, shared=pai.Shared()) == expected


@pytest.mark.parametrize("reference", ["exact", "mc"])
def test_masks_are_the_same_on_a_second_device(reference):
    criteria = ("fts", "hutchinson_pruning", "random")
    spec = pai.MaskSpec(
        "digits", "resnet8", width=2, warmup=2, batch_size=64, samples_per_class=1, probes=2, criteria=criteria,
        sparsities=(0.9,), reference=reference,
    )  # fmt: skip

    def made(device):
        record = MaskWork(spec, pai.load_data("digits"), torch.device(device)).record()
        return [{**mask, "seconds": None} for mask in record.result["masks"]], record.data

    expected = made("cpu")
    with second_device():
        assert made(DEVICE) == expected


@pytest.mark.parametrize("name", ["masked", "trained"])
def test_a_run_goes_on_there(name, tmp_path):
    expected, asked = result_of(RUNS[name], "cpu"), iter([False, True])
    path = tmp_path / "run.safetensors"
    with second_device():
        with pytest.raises(TrainingStoppedError):
            result_of(RUNS[name], DEVICE, checkpoint=path, stop=lambda: next(asked))
        assert result_of(RUNS[name], DEVICE, checkpoint=path) == expected


def test_a_checkpoint_has_the_random_state_of_its_device(tmp_path):
    path = tmp_path / "run.safetensors"

    def fit(**options):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 10)]
        model = to_second(nn.Sequential(*layers))
        return pai.train(model, on_second("convolutional").data, epochs=3, progress=False, **options)

    asked = iter([False, True])
    with second_device():
        start = torch.second.get_rng_state(DEVICE)
        whole = fit()
        torch.second.set_rng_state(start, DEVICE)
        with pytest.raises(TrainingStoppedError):
            fit(checkpoint=Checkpoint(path, {}), stop=lambda: next(asked))
        torch.rand(3, device=DEVICE)  # another process would be elsewhere
        assert fit(checkpoint=Checkpoint(path, {})) == whole


# --- a model on both devices


class Split(nn.Module):
    """Each layer is where its weights are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.head = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 10)

    def forward(self, x):
        x = self.first(x.flatten(1).to(self.first.weight.device)).relu()
        x = self.middle(x.to(self.middle.weight.device)).relu()
        return self.head(x.to(self.head.weight.device))


SPLIT_CASES = {
    **{
        key: lambda model, data, mask, key=key: pai.score(model, data.scoring_batch(2), key)
        for key in "random snip grasp synflow fts fbss hts exact_taylor scaled_noise".split()
    },
    "prune": lambda model, data, mask: pai.prune(model, data.scoring_batch(2), "snip", 0.5),
    "standard error": lambda model, data, mask: pai.hutchinson_diag(
        model, data.scoring_batch(2), standard_error=True
    ),
    "effective sparsity": lambda model, data, mask: pai.effective_sparsity(model, mask, data.scoring_batch(1)),
    "flops": lambda model, data, mask: pai.flops_left(model, mask, data.scoring_batch(1)),
    "train": lambda model, data, mask: pai.train(model, data, mask, epochs=1, batch_size=64, progress=False),
    "evaluate": lambda model, data, mask: pai.evaluate(model, data.test_batches()),
}


@pytest.mark.parametrize("moved", [["first"], ["middle"], ["head"], ["first", "middle"], ["middle", "head"]])
@pytest.mark.parametrize("case", SPLIT_CASES)
def test_a_model_may_be_on_several_devices(case, moved):
    data = inputs_of("convolutional")["data"]
    generator = torch.Generator().manual_seed(0)
    mask = {
        name: torch.rand(6, size, generator=generator) < 0.4
        for name, size in (("first.weight", 64), ("middle.weight", 6))
    }
    expected = SPLIT_CASES[case](Split(), data, mask)
    with second_device():
        model = Split()
        for name in moved:
            setattr(model, name, to_second(getattr(model, name)))
        assert_same(to_cpu(SPLIT_CASES[case](model, data, mask)), expected)


def test_a_model_is_not_trained_on_data_elsewhere():
    data = inputs_of("convolutional")["data"]
    with second_device():
        model = to_second(Split())
        for call in (lambda: pai.train(model, data, epochs=1), lambda: pai.warm_up(model, data, 1)):
            with pytest.raises(ValueError, match=f"The model is on {DEVICE}.* and the data on cpu: move one"):
                call()


# --- how often the host waits


def test_the_host_does_not_wait_inside_an_epoch():
    with second_device():

        def waits(**options):
            x = on_second("convolutional")
            return reads(pai.train, x.model, x.data, x.mask, progress=False, **{"epochs": 1, **options})

        once = waits(batch_size=64)
        assert waits(batch_size=16) == once
        assert waits(batch_size=16, epochs=3) == once + 2 * A_LINE_OF_THE_CURVES


A_LINE_OF_THE_CURVES = 2  # loss and accuracy
A_SCORE = 40  # what scoring may read: checks of the batch and of how the model treats its samples


# One of each quantity, on the model of which most are known; the transformer's rows have to be told apart.
COUNTED = [
    (key, "depthwise") for key in "random synflow snip grasp fts fbss hts exact_taylor scaled_noise".split()
]


@pytest.mark.parametrize(("key", "model"), [*COUNTED, ("fts", "transformer"), ("snip", "convolutional")])
def test_the_host_does_not_wait_for_a_sample_or_a_chunk(key, model):
    with second_device():

        def waits(samples, chunk):
            x = on_second(model)
            batch = pai.Batch(*(torch.cat([part] * 2)[:samples] for part in x.batch))
            return reads(pai.score, x.model, batch, key, chunk=chunk, probes=2)

        once = waits(6, 3)  # in pieces: where a batch is split, one more check is read
        assert once <= A_SCORE
        assert waits(12, 3) == once
        assert waits(12, 6) == once
        assert waits(12, 12) <= once


# --- the device itself


def test_the_device_refuses_what_cuda_would():
    with second_device():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        index = torch.tensor([0, 1])
        for refused in (
            lambda: there + here,
            lambda: there.index_fill_(0, torch.tensor(1), 0.0),
            lambda: there.index_select(0, index),
            lambda: torch.where(here > 0, there, there),
            lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
            lambda: torch._foreach_mul_([there], [here]),
        ):
            with pytest.raises(RuntimeError, match=r"generator of the CPU|a CPU tensor"):
                refused()
        assert (there + torch.tensor(1.0)).device == DEVICE
        assert there[index].device == DEVICE
        for waits in (lambda: float(there[0]), lambda: there.cpu(), lambda: there[there > 0], there.nonzero):
            before = READS.total()
            waits()
            assert READS.total() == before + 1
        before = READS.total()
        there.copy_(here)
        there.add_(1).to(torch.float64)
        torch.tensor([1, 2], device=DEVICE)
        assert READS.total() == before
        assert there.cpu().tolist() == [2.0, 2.0, 2.0]
