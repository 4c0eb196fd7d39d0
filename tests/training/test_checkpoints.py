"""Checkpoints: training goes on bit for bit; a file that does not fit is named, and not used."""

import json
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SPEC, untimed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pai_lib.curvature.parameters import prunable
from pai_lib.data.loading import load_data
from pai_lib.experiments import run as runs
from pai_lib.models import build_model
from pai_lib.pruning.files import load_mask, save_mask
from pai_lib.pruning.masks import apply_mask
from pai_lib.pruning.ranking import make_mask
from pai_lib.training.checkpoint import Checkpoint, CheckpointWarning, epochs_done
from pai_lib.training.loop import TrainingStoppedError, train, warm_up

KEY = {"id": "0" * 12}


@pytest.fixture(scope="module")
def data():
    return load_data("digits").split(0.2)[0]


def network():
    """Return a network with everything that has state: batch norm, dropout, channels-last kernels of 1 and 3."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def mask_of(model):
    generator = torch.Generator().manual_seed(1)
    return {n: torch.rand(model.get_parameter(n).shape, generator=generator) < 0.5 for n in prunable(model)}


def after(epochs):
    """Return a question that is answered with yes once so many epochs are done."""
    asked = iter([False] * epochs + [True])
    return lambda: next(asked)


def fit(data, checkpoint=None, stop=None, **options):
    model = network()
    warm_up(model, data, 2, 64)
    options = {"epochs": 5, "batch_size": 32, "lr": 0.05, "seed": 3, **options}
    curves = train(model, data, mask_of(model), progress=False, checkpoint=checkpoint, stop=stop, **options)
    return model.state_dict(), curves


@pytest.fixture(scope="module")
def whole_curves(data):
    """The curves of a training that nothing stops."""
    return fit(data)[1]


RECIPES = [
    {},
    {"momentum": 0.0},
    {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine", "lr_warmup": 2, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", RECIPES, ids=["momentum", "plain", "adamw"])
def test_training_goes_on_bit_for_bit(data, tmp_path, options):
    whole, curves = fit(data, **options)
    for epochs in ([2], [0], [1, 1, 2]):
        path = tmp_path / "run.safetensors"
        for count in epochs:
            with pytest.raises(TrainingStoppedError, match=r"stopped after \d of 5 epochs"):
                fit(data, Checkpoint(path, KEY), after(count), **options)
        assert epochs_done(path) == 0  # no run has written its result into it
        torch.rand(3)  # another process would be elsewhere in its random numbers
        state, resumed = fit(data, Checkpoint(path, KEY), **options)
        assert resumed == curves
        assert all(torch.equal(state[name], whole[name]) for name in whole | state)
        path.unlink()


class Shared(nn.Module):
    """Weights and buffers of several names, views of one storage, state that no state_dict holds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.b = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.c, self.d, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.b.weight = self.a.weight
        whole = torch.randn(3, 12, 12) / 4
        self.c.weight, self.d.weight = nn.Parameter(whole[0]), nn.Parameter(whole[1])
        self.e = nn.Parameter(self.c.weight.detach().T)  # memory in common, one row's another's column
        self.scalar = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("again", self.seen)
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.register_buffer("repeated", torch.ones(1).expand(12))

    def forward(self, x):
        if self.training:
            self.seen.add_(1)
            self.steps.add_(0.01)
        x = self.first(x.flatten(1)).relu() * self.repeated * self.scalar
        for layer in (self.a, self.b, self.c, self.d):
            x = layer(x).relu() + self.steps
        return self.head(F.linear(x, self.e))


@pytest.mark.parametrize("options", RECIPES, ids=["momentum", "plain", "adamw"])
def test_what_has_several_names_is_written_once_and_goes_on(data, tmp_path, options):
    options = {"epochs": 4, "batch_size": 32, "lr": 0.05, "progress": False, **options, "lr_warmup": 0}
    whole, path = Shared(), tmp_path / "run.safetensors"
    curves = train(whole, data, **options)
    with pytest.raises(TrainingStoppedError):
        train(Shared(), data, checkpoint=Checkpoint(path, KEY), stop=after(2), **options)
    with safe_open(path, "pt") as file:
        names = {name.removeprefix("training/model/") for name in file.keys()}  # noqa: SIM118
        assert names.isdisjoint({"b.weight", "again"})
        assert {"a.weight", "seen", "steps"} <= names
        assert file.get_tensor("training/model/repeated").numel() == 1
    model = Shared()
    assert train(model, data, checkpoint=Checkpoint(path, KEY), **options) == curves
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):
        assert torch.equal(tensor, tensors[name]), name
    assert model.b.weight is model.a.weight
    assert model.again is model.seen
    assert torch.equal(model.c.weight.T, model.e)


def test_the_count_of_steps_is_not_rounded_to_a_scalars_type(tmp_path):
    model = nn.ParameterDict({"scale": nn.Parameter(torch.ones((), dtype=torch.bfloat16))})
    optimizer, order = torch.optim.AdamW(model.parameters()), torch.Generator()
    model["scale"].grad = torch.ones((), dtype=torch.bfloat16)
    optimizer.step()
    optimizer.state[model["scale"]]["step"].fill_(301)  # bf16 has 8 bits
    Checkpoint(tmp_path / "c", KEY).keep(model, optimizer, order, epoch=1)
    Checkpoint(tmp_path / "c", KEY).restore(model, optimizer, order)
    assert float(optimizer.state[model["scale"]]["step"]) == 301


def test_another_network_is_not_filled(data, tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        fit(data, Checkpoint(path, KEY), after(1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.clone()
    with pytest.raises(ValueError, match=f"checkpoint {path} is of a network with other names or shapes"):
        train(model, data, epochs=2, progress=False, checkpoint=Checkpoint(path, KEY))
    assert torch.equal(model[1].weight, before)


def test_a_run_on_the_cpu_leaves_the_gpu_alone(data, whole_curves, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *args: pytest.fail("the GPU was asked"))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *args: pytest.fail("the GPU was changed"))
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        fit(data, Checkpoint(path, KEY), after(1))
    assert fit(data, Checkpoint(path, KEY))[1] == whole_curves


def test_it_is_written_when_it_is_due(data, tmp_path):
    path = tmp_path / "new folder" / "run.safetensors"
    fit(data, Checkpoint(path, KEY, interval=3600.0))
    assert not path.exists()
    fit(data, Checkpoint(None, KEY, interval=0.0))
    fit(data, Checkpoint(path, KEY, interval=0.0))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        training = json.loads(file.metadata()["checkpoint"])["training"]
    assert training["epoch"] == 4  # before the last epoch
    assert [len(curve) for curve in training["curves"].values()] == [4, 4, 4]
    assert training["seconds"] > 0


def spoil(path, how):
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "header":
        path.write_bytes(whole[:5000].replace(b"{", b"[") + whole[5000:])
    elif how == "other file":
        save_file({"a": torch.zeros(1)}, path)


@pytest.mark.parametrize("how", ["truncated", "empty", "header", "other file", "other key"])
def test_a_file_that_does_not_fit_is_named_and_not_used(data, whole_curves, tmp_path, how):
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        fit(data, Checkpoint(path, KEY), after(2))
    spoil(path, how)
    with pytest.warns(CheckpointWarning, match=f"The checkpoint {path} is not used: .") as told:
        checkpoint = Checkpoint(path, {"id": "1" * 12} if how == "other key" else KEY)
    assert len(told) == 1
    assert (checkpoint.values, checkpoint.tensors, checkpoint.training) == ({}, {}, {})
    assert epochs_done(path) == 0
    assert fit(data, checkpoint)[1] == whole_curves


def test_what_cannot_be_written_is_told_and_training_goes_on(data, whole_curves, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        fit(data, Checkpoint(path, KEY), after(2))
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(CheckpointWarning, match=f"could not be written: .*No space left on device.*{path}"):
        curves = fit(data, Checkpoint(path, KEY, interval=0.0))[1]
    assert curves == whole_curves
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# --- whole runs

LONG = replace(SPEC, epochs=4)
SPECS = {
    "masked": LONG,
    "dense": replace(LONG, criterion="dense", sparsity=0),
    "reinit": replace(LONG, control="reinit"),
    "trained": replace(LONG, when="trained", criterion="magnitude"),
    "all collapsed": replace(LONG, criterion="magnitude", sparsity=0.995),
}


def perform(spec, path=None, stop=None):
    return runs.perform(spec, load_data("digits"), torch.device("cpu"), checkpoint=path, stop=stop)


def without_resumed(record):
    values = untimed(record)
    return {**values, "provenance": {k: v for k, v in values["provenance"].items() if k != "resumed"}}


@pytest.mark.parametrize("name", SPECS)
def test_a_run_goes_on_to_the_same_record(tmp_path, monkeypatch, name):
    spec, path = SPECS[name], tmp_path / "run.safetensors"
    whole = perform(spec)
    assert "resumed" not in whole.provenance
    epochs = spec.epochs * (2 if spec.when == "trained" else 1)
    done, resumed = 0, []
    for count in (0, 1, 2, 3)[: 4 if spec.when == "trained" else 3]:
        with pytest.raises(TrainingStoppedError):
            perform(spec, path, after(count))
        done += count
        assert epochs_done(path) == done
        resumed.append(done)
    for part in ("warm_up", "score", "prune"):  # nothing is done again that would come before
        if done >= spec.epochs or part == "warm_up" or spec.when == "init":
            monkeypatch.setattr(runs, part, lambda *args, **options: pytest.fail("it was done again"))
    record = perform(spec, path)
    assert without_resumed(record) == without_resumed(whole)
    assert [piece["epoch"] for piece in record.provenance["resumed"]] == resumed
    assert all(piece["torch"] == torch.__version__ for piece in record.provenance["resumed"])
    assert len(record.result["curves"]["loss"]) == spec.epochs
    assert done < epochs


def test_seconds_add_up(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        perform(LONG, path, after(3))
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["checkpoint"])
    first = header["training"]["seconds"]
    assert first > 0
    record = perform(LONG, path)
    assert record.result["training_seconds"] > first
    assert record.result["scoring_seconds"] == header["values"]["result"]["scoring_seconds"]
    assert record.provenance["started"] == header["values"]["started"]


def test_another_version_of_torch_is_recorded(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.0.0+old")
        with pytest.raises(TrainingStoppedError):
            perform(LONG, path, after(1))
    record = perform(LONG, path)
    assert record.provenance["torch"] == torch.__version__
    (piece,) = record.provenance["resumed"]
    assert (piece["torch"], piece["epoch"]) == ("2.0.0+old", 1)
    assert piece.keys() == {"git", "torch", "device", "threads", "epoch", "when"}


@pytest.mark.parametrize("other", ["spec", "data", "network"])
def test_the_checkpoint_of_another_run_is_not_used(tmp_path, monkeypatch, other):
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        perform(LONG, path, after(1))
    spec = replace(LONG, lr=0.2) if other == "spec" else LONG
    if other == "data":
        whole = replace(load_data("digits"), fingerprint="changed")
        monkeypatch.setitem(globals(), "load_data", lambda name: whole)
    if other == "network":
        monkeypatch.setattr(
            runs, "build_model", lambda *args, **options: build_model(*args, **options | {"width": 2})
        )
    with pytest.warns(CheckpointWarning, match="is not used: it belongs to"):
        record = perform(spec, path)
    assert "resumed" not in record.provenance
    assert len(record.result["curves"]["loss"]) == LONG.epochs


# --- masks


def test_a_mask_comes_back_as_it_was(tmp_path):
    mask = make_mask(
        {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0) + 0.5}, 0.5
    )  # parts of one storage
    path = tmp_path / "new" / "mask.safetensors"
    save_mask(mask, str(path), criterion="snip", sparsity=0.5)
    again = load_mask(path)
    assert list(again) == list(mask)
    assert all(torch.equal(again[name], mask[name]) and again[name].dtype == torch.bool for name in mask)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"criterion": "snip", "sparsity": "0.5"}
    assert [each.name for each in path.parent.iterdir()] == ["mask.safetensors"]
    save_mask({"a": mask["a"].T}, path)  # it replaces, and a transposed tensor is written as it reads
    assert torch.equal(load_mask(path)["a"], mask["a"].T)


def test_a_loaded_mask_fits_its_model_only(tmp_path):
    model = network()
    save_mask(mask_of(model), tmp_path / "mask")
    mask = load_mask(tmp_path / "mask")
    apply_mask(model, mask)
    assert all(not model.get_parameter(name)[~kept].any() for name, kept in mask.items())
    with pytest.raises(ValueError, match=r"The mask has '0\.weight', which the model has not"):
        apply_mask(nn.Linear(2, 2), mask)
    with pytest.raises(
        ValueError, match=r"'0.weight' must be a bool tensor of shape \(3, 1, 3, 3\), not torch.bool"
    ):
        apply_mask(nn.Sequential(nn.Conv2d(1, 3, 3)), {"0.weight": mask["0.weight"]})


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ({"a": torch.ones(2)}, "This mask is no mask: 'a' must be a bool tensor, not torch.float32"),
        ({"a": [True]}, "This mask is no mask: 'a' must be a bool tensor, not list"),
        ({}, "This mask is no mask: there is no tensor in it"),
    ],
)
def test_what_is_no_mask_is_not_written(tmp_path, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        save_mask(mask, tmp_path / "mask")
    assert not list(tmp_path.iterdir())


def test_what_is_no_mask_is_not_read(tmp_path):
    path = tmp_path / "mask"
    with pytest.raises(FileNotFoundError):
        load_mask(path)
    for content in (b"", b"not safetensors at all", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="mask is not a safetensors file"):
            load_mask(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"mask: what it holds is no mask: 'w' must be a bool tensor, not"):
        load_mask(path)


def test_a_mask_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "mask"
    save_mask({"a": torch.tensor([True])}, path)
    before = path.read_bytes()

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_mask({"a": torch.tensor([False])}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("header", ["[]", '{"key": 1}', "no"])
def test_an_unsound_header_is_named_and_not_used(tmp_path, header):
    path = tmp_path / "run.safetensors"
    save_file({"a": torch.ones(1)}, path, {"checkpoint": header})
    with pytest.warns(CheckpointWarning, match="is not used"):
        assert not Checkpoint(path, KEY).training


def test_a_checkpoint_that_lacks_a_tensor_is_not_used(data, tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingStoppedError):
        fit(data, Checkpoint(path, KEY), after(1))
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    tensors.pop(next(name for name in tensors if "optimizer" in name))
    save_file(tensors, path, header)
    with pytest.warns(CheckpointWarning, match="a part of it is missing"):
        assert not Checkpoint(path, KEY).training
