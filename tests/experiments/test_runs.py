"""Runs: what their records hold, when they are reused, controls, training before pruning, provenance."""

import json
import math
import os
import random
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SPEC, files, quick, untimed
from PIL import Image

from pai_lib.curvature.parameters import prunable
from pai_lib.data.loading import Dataset, load_data
from pai_lib.draws import random_stream
from pai_lib.experiments import provenance
from pai_lib.experiments import run as runs
from pai_lib.experiments.mask_run import run_masks
from pai_lib.experiments.mask_spec import MaskSpec
from pai_lib.experiments.records import RecordWarning, Store
from pai_lib.experiments.run import run
from pai_lib.models import build_model
from pai_lib.pruning import scoring
from pai_lib.pruning.criteria import CRITERIA, criterion
from pai_lib.pruning.masks import layer_density, prune
from pai_lib.pruning.profiles import PROFILES, profile
from pai_lib.pruning.ranking import SparsityWarning
from pai_lib.training.checkpoint import CheckpointWarning
from pai_lib.training.loop import TrainingStoppedError, warm_up

RESULT = {
    "parameters", "warmup_updates", "scoring_seconds", "density", "collapsed", "sparsity_reached",
    "effective_sparsity", "curves", "training_seconds", "test_accuracy", "test_loss", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def record():
    return quick()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


# --- what a record holds


def test_a_record_holds_everything(record):
    values = record.to_dict()
    assert list(values) == ["schema", "id", "spec", "result", "failure", "data", "provenance"]
    assert (values["schema"], values["id"], values["failure"]) == (1, SPEC.id, None)
    assert set(values["result"]) == RESULT
    digits = load_data("digits")
    assert values["data"] == {"fingerprint": digits.fingerprint, "train": 287, "test": 360}
    made = values["provenance"]
    assert made["device"].startswith("CPU")
    assert made["precision"] == "float32"
    assert made["pai_lib"] == provenance.version("pai-lib")
    assert pd.Timestamp(made["started"]) <= pd.Timestamp(made["finished"])
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_the_numbers_of_a_record_agree(record):
    result = record.result
    model = build_model("resnet8", 10, in_channels=1, width=4)
    sizes = {name: model.get_parameter(name).numel() for name in prunable(model)}
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    assert list(result["density"]) == list(sizes)
    kept = sum(result["density"][name] * size for name, size in sizes.items())
    assert round(kept) == int((1 - 0.9) * sum(sizes.values()))
    assert result["sparsity_reached"] == pytest.approx(1 - kept / sum(sizes.values()))
    assert result["effective_sparsity"] >= result["sparsity_reached"]
    assert result["collapsed"] == [name for name, density in result["density"].items() if density == 0]
    assert {len(curve) for curve in result["curves"].values()} == {SPEC.epochs}
    assert (result["test_accuracy"] * 360) % 1 == pytest.approx(0, abs=1e-9)
    assert result["warmup_updates"] == 2


def test_the_mask_is_the_librarys_own(record):
    part, _ = load_data("digits").split(0.2)
    model = build_model("resnet8", 10, in_channels=1, width=4)
    warm_up(model, part, 2, 64, 0)
    mask = prune(model, part.scoring_batch(2), "snip", 0.9, generator=random_stream(0, "scores"))
    assert record.result["density"] == layer_density(mask)


def test_the_same_spec_gives_the_same_result(record):
    torch.manual_seed(123)
    assert untimed(quick()) == untimed(record)
    assert quick(replace(SPEC, seed=1)).result["curves"] != record.result["curves"]


def test_the_spec_is_what_training_gets(monkeypatch):
    given = {}
    monkeypatch.setattr(runs, "train", lambda *args, **options: given.update(options) or {})
    spec = replace(SPEC, epochs=7, momentum=0.5, weight_decay=0.1, lr_drops=(0.1,), lr_drop_factor=0.3, seed=5)
    quick(spec)
    names = (
        "epochs batch_size lr momentum weight_decay lr_drops lr_drop_factor optimizer schedule lr_warmup "
        "label_smoothing precision seed"
    ).split()
    assert given.pop("checkpoint").path is None
    control = {"progress": False, "stop": None}
    assert given == {**control, **{name: getattr(spec, name) for name in names}}


# --- the user's own settings


@pytest.fixture
def settings():
    """Put the global settings of PyTorch back."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)


KINDS = {
    "snip": {},
    "random": {"criterion": "random"},
    "hts": {"criterion": "hts", "group": 2},
    "noise": {"criterion": "weight_noise"},
    "synflow": {"criterion": "synflow", "rounds": 2},
    "exact": {"criterion": "exact_taylor", "scope": "layer", "sparsity": 0.5},
    "reinit": {"control": "reinit"},
    "trained": {"when": "trained", "control": "shuffle"},
    "dense": {"criterion": "dense", "sparsity": 0},
}


def _no_default():
    """Nothing that PyTorch takes where it is not told: bad numbers, and a device that computes none."""
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    torch.manual_seed(1)
    torch.set_grad_enabled(False)


DEFAULTS = {"float64": lambda: torch.set_default_dtype(torch.float64), "all": _no_default}


@cache
def of_kind(kind):
    return untimed(quick(replace(SPEC, width=2, train_fraction=0.1, **KINDS[kind])))


@pytest.mark.parametrize("change", DEFAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_same_whatever_the_defaults_of_pytorch_are(settings, kind, change):
    expected = of_kind(kind)
    DEFAULTS[change]()
    assert of_kind.__wrapped__(kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_the_random_state_of_its_user_alone(kind):
    torch.manual_seed(5)
    random.seed(5)
    before, numbers = torch.get_rng_state(), random.getstate()
    of_kind.__wrapped__(kind)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == numbers


# --- memory


def test_peak_memory_is_that_of_the_run(tmp_path):
    """In a process of its own: of a run after a larger one, and after a block that was freed, as of the first."""
    code = """
        import torch
        from conftest import SPEC
        from dataclasses import replace
        from pai_lib.data.loading import load_data
        from pai_lib.experiments.run import perform

        def peak(**fields):
            spec = replace(SPEC, **{"width": 2, "train_fraction": 0.1, **fields})
            record = perform(spec, load_data("digits"), torch.device("cpu"))
            return record.result["peak_memory_bytes"] // 2**20

        first, large = peak(), peak(width=48, train_fraction=1.0, batch_size=1400)
        block = torch.ones(100 * 2**20)
        held = peak()
        del block
        print(first, large, held, peak())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    first, large, held, last = map(
        int, subprocess.run(command, env=here, capture_output=True, check=True).stdout.split()
    )
    assert large > first + 100
    assert abs(held - first - 400) < 80
    assert abs(last - first) < 80


def test_peak_memory_that_the_system_does_not_tell_is_not_claimed(monkeypatch, store):
    monkeypatch.setattr(runs, "reset_peak_memory", lambda device: False)
    record = quick(store=store)
    assert record.result["peak_memory_bytes"] is None
    assert store.load(SPEC) == record
    assert "peak_memory_bytes" not in store.frame().dropna(axis=1)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
        assert not provenance.reset_peak_memory(torch.device("cpu"))


# --- reuse


def test_a_record_is_reused_only_for_the_same_data(store, record, monkeypatch):
    store.save(record)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "build_model", lambda *args, **options: pytest.fail("it ran again"))
        assert quick(store=store) == record
        assert quick(store=store, data=load_data("digits")) == record


def test_other_data_set_the_old_record_aside(store, record):
    path = store.save(record)
    before = path.read_bytes()
    images = load_data("digits").train_images.permute(0, 2, 3, 1).numpy()
    labels = load_data("digits").train_labels.numpy()
    other = Dataset.from_arrays("digits", images, labels, images[:50], labels[:50], augment=False)
    with pytest.warns(RecordWarning) as told:
        again = quick(store=store, data=other)
    aside = path.with_name(f"{path.name}.data-{record.data['fingerprint'][:12]}")
    assert aside.read_bytes() == before
    assert [str(each.message) for each in told][-1] == f"{path} is set aside as {aside.name}."
    assert again.data == {"fingerprint": other.fingerprint, "train": 287, "test": 50}
    assert store.records() == [again]
    with pytest.warns(RecordWarning) as told:
        assert untimed(quick(store=store)) == untimed(record)
    assert "was made with other data than those that are here now. It is not used." in str(told[0].message)
    assert len(files(store.root)) == 3  # nothing was lost


@pytest.fixture
def own_names():
    """Criteria and profiles that a test registers are gone after it."""
    before = dict(CRITERIA), dict(PROFILES)
    yield
    for registry, kept in zip((CRITERIA, PROFILES), before, strict=True):
        registry.clear()
        registry.update(kept)


def largest():
    @criterion("mine", "Mine", "My criterion", "", "")
    def mine(weight):
        return weight.abs()


def smallest():
    @criterion("mine", "Mine", "My criterion", "", "")
    def mine(weight):
        return -weight.abs()


def even():
    @profile("mine")
    def mine(shapes, density):
        return dict.fromkeys(shapes, density)


def by_hand():
    @profile("mine")
    def mine(shapes, density):
        return {name: density for name in shapes}


MINE_OF = {
    "criterion mine": (largest, smallest, {"criterion": "mine"}),
    "profile mine": (even, by_hand, {"scope": "mine", "criterion": "magnitude"}),
}


@pytest.mark.parametrize("name", MINE_OF)
def test_other_code_of_ones_own_sets_the_old_record_aside(store, own_names, name):
    first, second, settings = MINE_OF[name]
    first()
    spec = replace(SPEC, **settings)
    old = quick(spec, store)
    first()  # the same text again
    assert quick(spec, store) == old
    assert set(old.provenance["code"]) == {name}
    second()
    with pytest.warns(RecordWarning) as told:
        new = quick(spec, store)
    path = store.path(old.spec)
    aside = f"{path.name}.code-{old.provenance['code'][name][:12]}"
    assert [str(each.message) for each in told][-2:] == [
        f"{path} was made by another {name} than the one that is here now. It is not used.",
        f"{path} is set aside as {aside}.",
    ]
    assert store.records() == [new]
    assert (new.result["density"] != old.result["density"]) == (name == "criterion mine")
    assert quick(spec, store) == new
    assert path.with_name(aside).is_file()  # nothing was lost


def test_other_code_of_ones_own_does_not_use_masks_of_the_old(store, own_names):
    largest()
    network = {"dataset": "digits", "model": "resnet8", "width": 4, "warmup": 0}
    spec = MaskSpec(**network, criteria=("mine", "snip"), sparsities=(0.9,))
    old = run_masks(spec, store, device="cpu", progress=False)
    smallest()
    with pytest.warns(RecordWarning) as told:
        new = run_masks(spec, store, device="cpu", progress=False)
    assert "is set aside as" in str(told[-1].message)
    assert set(old.provenance["code"]) == set(new.provenance["code"]) == {"criterion mine"}
    assert store.mask_records() == [new]


def test_a_checkpoint_of_other_code_is_not_used(tmp_path, own_names):
    largest()
    spec = replace(SPEC, criterion="mine", epochs=2)
    path, whole = tmp_path / "checkpoint.safetensors", load_data("digits")
    stops = iter([False, True])
    with pytest.raises(TrainingStoppedError):
        runs.perform(spec, whole, torch.device("cpu"), checkpoint=path, stop=lambda: next(stops))
    smallest()
    with pytest.warns(CheckpointWarning, match="criterion mine"):
        again = runs.perform(spec, whole, torch.device("cpu"), checkpoint=path)
    assert untimed(again)["result"] == untimed(runs.perform(spec, whole, torch.device("cpu")))["result"]


def test_records_of_the_librarys_own_functions_name_no_code(record):
    assert "code" not in record.provenance


def test_data_that_a_record_would_take_for_others_are_refused(store):
    whole = load_data("digits")
    cases = {
        "a part of what its fingerprint is of": whole.split(0.2)[0],
        "data.augment=True: digits is otherwise": replace(whole, augment=True),
    }
    for sentence, data in cases.items():
        with pytest.raises(ValueError, match=sentence):
            quick(store=store, data=data)
    with pytest.raises(ValueError, match="image_size=16: data has 8 pixels"):
        run(replace(SPEC, image_size=16), store, data=whole)
    assert files(store.root) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "vit_cifar", "dataset": "digits32", "criterion": "exact_pruning"}, "not known to be piecewise"),
        ({"model": "resnet18", "image_size": 8, "batch_size": 1}, "more than 1 value per channel"),
    ],
)
def test_what_a_network_cannot_is_said_before_it_is_trained(changes, sentence, monkeypatch):
    monkeypatch.setattr(runs, "warm_up", lambda *args, **options: pytest.fail("it began"))
    spec = replace(SPEC, width=None, when="trained", **changes)
    with pytest.raises(ValueError, match=sentence):
        run(spec)


def test_too_few_probes_and_names_that_no_record_can_hold_are_refused_at_once():
    with pytest.raises(ValueError, match="probes=1 with 'row_norm': it must be at least 2"):
        replace(SPEC, criterion="row_norm", probes=1)
    with pytest.raises(ValueError, match=r"dataset=.*: it is not UTF-8, which records are: rename it"):
        replace(SPEC, dataset="caf\udce9")


def test_a_record_that_cannot_be_read_is_set_aside_when_its_run_is_done(store, record):
    path = store.save(record)
    path.write_text("{")
    with pytest.warns(RecordWarning) as told:
        again = quick(store=store)
    assert [f"{path} is" in str(each.message) for each in told] == [True] * 3  # before, under the lock, set aside
    assert path.with_name(f"{path.name}.unreadable").read_text() == "{"
    assert untimed(again) == untimed(record)
    assert store.load(SPEC) == again
    path.write_text("[")
    with pytest.warns(RecordWarning):
        quick(store=store)
    assert path.with_name(f"{path.name}.unreadable").read_text() == "{"
    assert path.with_name(f"{path.name}.unreadable-2").read_text() == "["


# --- controls and special runs


def test_shuffle_keeps_layer_densities(record):
    shuffled = quick(replace(SPEC, control="shuffle"))
    assert shuffled.result["density"] == record.result["density"]
    assert shuffled.result["curves"] != record.result["curves"]


def masked_weights(monkeypatch, spec):
    """Return the weights that training would start from and the mask it would use."""
    seen = {}

    def note(model, data, mask, **options):
        seen.update(weights={n: p.detach().clone() for n, p in model.state_dict().items()}, mask=mask)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", note)
        quick(spec)
    return seen["weights"], seen["mask"]


def test_reinit_keeps_the_mask_and_changes_the_weights(monkeypatch):
    weights, mask = masked_weights(monkeypatch, SPEC)
    fresh, same_mask = masked_weights(monkeypatch, replace(SPEC, control="reinit"))
    assert all(torch.equal(mask[name], same_mask[name]) for name in mask)
    for name, before in weights.items():
        redrawn = name in mask or name.startswith("head")
        assert torch.equal(before, fresh[name]) != redrawn  # norms keep what was warmed up


def test_invert_keeps_what_would_go_first(monkeypatch):
    _, mask = masked_weights(monkeypatch, replace(SPEC, sparsity=0.5))
    _, inverted = masked_weights(monkeypatch, replace(SPEC, sparsity=0.5, control="invert"))
    total = sum(kept.numel() for kept in mask.values())
    assert sum(int(kept.sum()) for kept in inverted.values()) == total // 2
    # SNIP has exact zeros only by accident: half and half, so the masks are complements but for ties
    assert sum(int((mask[name] & inverted[name]).sum()) for name in mask) < 0.02 * total


def test_a_dense_run_has_no_mask():
    record = quick(replace(SPEC, criterion="dense", sparsity=0))
    assert set(record.result) == RESULT - {"density", "collapsed", "sparsity_reached", "effective_sparsity"}
    assert 0 <= record.result["test_accuracy"] <= 1
    assert quick(replace(SPEC, criterion="dense", sparsity=0, samples_per_class=10**6)).failure is None


@pytest.mark.parametrize("key", CRITERIA)
def test_every_criterion_runs(key):
    record = quick(replace(SPEC, criterion=key, rounds=2, probes=2, width=2, train_fraction=0.1))
    assert set(record.result) == RESULT
    assert record.result["sparsity_reached"] == pytest.approx(0.9, abs=0.01)


def test_collapsed_layers_are_told_and_do_not_crash():
    record = quick(replace(SPEC, criterion="magnitude", sparsity=0.995))
    assert record.failure is None
    assert record.result["collapsed"]
    assert record.result["effective_sparsity"] == 1.0  # no path is left
    with pytest.warns(SparsityWarning, match="one is kept"):
        record = quick(replace(SPEC, sparsity=0.99999))
    assert len(record.result["collapsed"]) == len(record.result["density"]) - 1


def test_divergence_is_a_record_with_a_failure(store):
    spec = replace(SPEC, lr=1e9, epochs=3)
    record = quick(spec, store)
    assert record.failure["reason"].startswith("The training loss became ")
    assert record.failure["where"].startswith("epoch ")
    assert not {"test_accuracy", "test_loss", "curves"} & set(record.result)
    assert record.result["training_seconds"] > 0
    assert store.load(spec) == record
    assert store.frame().loc[0, "failure"] == record.failure["reason"]


def test_a_test_loss_that_is_not_finite_is_a_failure_too(store, monkeypatch):
    monkeypatch.setattr(runs, "evaluate", lambda model, batches: (0.1, math.inf))
    record = quick(store=store)
    assert record.failure == {"reason": "The test loss is inf.", "where": "test"}
    assert "test_accuracy" not in record.result
    assert store.load(SPEC) == record


# --- training before pruning


TRAINED = replace(SPEC, when="trained", criterion="magnitude", epochs=3, lr=0.05)


def test_a_trained_network_is_pruned_and_its_learning_rate_rewound(monkeypatch):
    calls = []
    plain = runs.train

    def note(model, data, mask, **options):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        curves = plain(model, data, mask, **options)
        calls.append((before, mask, options["seed"], {n: t.clone() for n, t in model.state_dict().items()}))
        return curves

    monkeypatch.setattr(runs, "train", note)
    dense = quick(replace(TRAINED, criterion="dense", sparsity=0, when="init"))
    record = quick(TRAINED)
    reference, first, second = calls
    assert record.result["dense_curves"] == dense.result["curves"]  # bit for bit the dense run's training
    assert all(torch.equal(first[3][name], value) for name, value in reference[3].items())
    assert first[1] is None
    assert all(torch.equal(second[0][name], value) for name, value in first[3].items())  # weights are not rewound
    weights = torch.cat([first[3][name].abs().flatten() for name in second[1]])
    kept = torch.cat([mask.flatten() for mask in second[1].values()])
    assert weights[kept].min() >= weights[~kept].max()  # the mask is that of the trained weights
    assert int(kept.sum()) == int((1 - 0.9) * len(kept))
    assert record.result["curves"]["lr"] == record.result["dense_curves"]["lr"]  # the learning rate is
    assert {len(c) for c in (*record.result["curves"].values(), *record.result["dense_curves"].values())} == {3}
    assert second[2] != first[2] == TRAINED.seed  # other batches
    assert set(record.result) == RESULT | {"dense_curves"}
    assert record.result["training_seconds"] > 0


@pytest.mark.parametrize(
    "options", [{"criterion": "hts"}, {"criterion": "synflow", "rounds": 3}, {"control": "reinit"}]
)
def test_any_criterion_and_control_after_training(options):
    record = quick(replace(TRAINED, epochs=1, **options))
    assert record.result["sparsity_reached"] == pytest.approx(0.9, abs=0.01)
    assert record.result["density"] != quick(replace(SPEC, **options)).result["density"]


def test_divergence_tells_in_which_training():
    assert quick(replace(TRAINED, lr=1e9)).failure["where"].startswith("dense training, epoch ")


@pytest.mark.parametrize("options", [{}, {"control": "invert"}, {"scope": "layer"}])
def test_a_network_whose_scores_are_not_finite_after_training_is_a_failure(options):
    diverged = replace(TRAINED, criterion="grasp", lr=1e3, epochs=1, batch_size=2000, **options)
    failure = quick(diverged).failure
    assert failure["where"] == "scoring"
    assert re.fullmatch(r"The scores of '.+' hold NaN or infinite values\.", failure["reason"])


def test_scores_that_are_not_finite_without_training_are_a_mistake(monkeypatch):
    infinite = replace(CRITERIA["magnitude"], function=lambda weight: weight / 0)
    monkeypatch.setitem(CRITERIA, "magnitude", infinite)
    with pytest.raises(ValueError, match="hold NaN or infinite values"):
        quick(replace(SPEC, criterion="magnitude"))


@pytest.mark.parametrize("key", ["snip", "fisher_pruning", "hts", "exact_taylor"])
def test_a_network_that_the_last_step_broke_has_no_scores_and_is_a_failure(key):
    record = quick(replace(TRAINED, criterion=key, lr=1e8, epochs=1, batch_size=2000))
    assert record.failure == {"reason": "The loss after training is nan.", "where": "dense training, epoch 1"}


def test_scores_that_are_not_finite_for_another_reason_are_no_failure_of_training(monkeypatch):
    def fail(*args, **options):
        raise ValueError("The scores hold NaN or infinite values.")

    monkeypatch.setattr(runs, "prune", fail)
    with pytest.raises(ValueError, match="The scores hold NaN"):
        quick(TRAINED)


# --- parts that runs share


def alone_and_together(specs):
    """Return the records of runs by themselves, those of runs that share, and what these found."""
    device, digits, shared = torch.device("cpu"), load_data("digits"), runs.Shared()
    alone = [runs.perform(spec, digits, device) for spec in specs]
    together = []
    for spec in specs:
        together.append((runs.perform(spec, digits, device, shared=shared), shared.seconds))
    return alone, together


CHEAP = replace(SPEC, width=2, group=10, probes=2, train_fraction=0.1)


@pytest.mark.filterwarnings("ignore::pai_lib.TiedScoresWarning")  # so narrow a network is dead in places
def test_what_runs_share_changes_no_record():
    specs = []
    for key, rule in CRITERIA.items():
        spec = replace(CHEAP, criterion=key, rounds=2 if rule.rounds > 1 else None)
        specs += [replace(spec, sparsity=sparsity) for sparsity in (0.5, 0.9)]
        specs.append(replace(spec, rounds=3) if rule.rounds == 1 else replace(spec, rounds=1, control="invert"))
    alone, together = alone_and_together(specs)
    assert list(map(untimed, alone)) == [untimed(record) for record, _ in together]
    assert together[1][1] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"group": 5}, {"probes": 3}, {"temperature": 3.0}, {"samples_per_class": 1}, {"warmup": 1}, {"seed": 1},
        {"batch_size": 32}, {"width": 3}, {"train_fraction": 0.15}, {"model": "resnet20"}, {"when": "trained"},
        {"dataset": "digits32"}, {"lr": 0.01}, {"control": "shuffle"}, {"scope": "erk"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_nothing_is_shared_with_a_run_for_which_it_would_be_wrong(change):
    spec = replace(CHEAP, criterion="hts", **change)
    shared = runs.Shared()
    runs.perform(replace(CHEAP, criterion="hts"), load_data("digits"), torch.device("cpu"), shared=shared)
    data = load_data(spec.dataset)
    record = runs.perform(spec, data, torch.device("cpu"), shared=shared)
    assert untimed(record) == untimed(runs.perform(spec, data, torch.device("cpu")))


def test_what_is_known_is_not_computed_again(monkeypatch):
    shared, spec = runs.Shared(), replace(CHEAP, criterion="hts")
    runs.perform(spec, load_data("digits"), torch.device("cpu"), shared=shared)
    for place, name in ((runs, "warm_up"), (scoring, "hutchinson_diag"), (scoring, "gradient")):
        monkeypatch.setattr(place, name, lambda *args, **options: pytest.fail("it was computed again"))
    again = replace(spec, sparsity=0.5, epochs=2, control="shuffle", criterion="hutchinson_pruning")
    runs.perform(again, load_data("digits"), torch.device("cpu"), shared=shared)


def test_criteria_share_their_quantities(monkeypatch):
    counts = {}
    for name in ("fisher_diag", "hutchinson_diag", "exact_diag", "gradient"):
        plain = getattr(scoring, name)

        def counted(*args, name=name, plain=plain, **options):
            counts[name] = counts.get(name, 0) + 1
            return plain(*args, **options)

        monkeypatch.setattr(scoring, name, counted)
    keys = "hutchinson_diag hutchinson_pruning hts fisher_diag fisher_pruning fts exact_diag exact_taylor".split()
    specs = [replace(CHEAP, criterion=key, sparsity=sparsity) for key in keys for sparsity in (0.8, 0.9)]
    shared = runs.Shared()
    for spec in specs:
        runs.perform(spec, load_data("digits"), torch.device("cpu"), shared=shared)
    assert counts == {"hutchinson_diag": 1, "fisher_diag": 1, "exact_diag": 1, "gradient": 2}  # T = 200 and 1


def test_a_trained_network_is_shared_as_well():
    specs = [replace(TRAINED, epochs=2, sparsity=sparsity) for sparsity in (0.5, 0.9)]
    specs += [replace(specs[0], criterion="hts"), replace(specs[0], lr=0.01), replace(specs[0], when="init")]
    alone, together = alone_and_together(specs)
    assert list(map(untimed, alone)) == [untimed(record) for record, _ in together]
    first, second = (record.result["training_seconds"] for record, _ in together[:2])
    assert second > first / 4  # the seconds of what it found are counted


def test_few_networks_are_kept():
    shared = runs.Shared(networks=2)
    for seed in (0, 1, 2, 1):
        runs.perform(replace(SPEC, seed=seed), load_data("digits"), torch.device("cpu"), shared=shared)
    assert len(shared.parts) == 2


# --- errors before any work


@pytest.fixture
def no_work(monkeypatch):
    for name in ("build_model", "warm_up", "train"):
        monkeypatch.setattr(runs, name, lambda *args, **options: pytest.fail("work was done"))


def test_cuda_where_there_is_none(store, no_work, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match='device="cuda": PyTorch finds no CUDA device here; use device="cpu"'):
        run(SPEC, store, device="cuda")
    assert not store.root.exists()


@pytest.mark.parametrize("device", ["gpu", "meta", "cdua"])
def test_unknown_devices(store, no_work, device):
    with pytest.raises(ValueError, match=f'device="{device}": it must be "cpu" or "cuda"'):
        run(SPEC, store, device=device)


def test_more_scoring_samples_than_there_are(store, no_work):
    with pytest.raises(ValueError, match="samples_per_class=1000 must be 1 to 28"):
        quick(replace(SPEC, samples_per_class=1000), store)
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["cifer10", "", "/nowhere/at/all"])
def test_data_that_are_not_there(store, no_work, monkeypatch, name):
    monkeypatch.setattr(runs, "load_data", lambda *args, **options: pytest.fail("it was read"))
    for place in (None, store):
        with pytest.raises(ValueError, match=f"^Unknown dataset '{name}': .*nown: digits, "):
            quick(replace(SPEC, dataset=name), place)
    assert not store.root.exists()


# --- a folder as the data set


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in range(2):
            place = tmp_path / "my-images" / part / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 128, (8, 8, 3)) + 120 * label
                Image.fromarray(image.astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "my-images"


def test_a_folder_of_images(store, folder, monkeypatch):
    spec = replace(SPEC, dataset=str(folder), epochs=3, train_fraction=1.0, batch_size=8)
    record = quick(spec, store)
    assert (record.data["train"], record.data["test"]) == (24, 8)
    assert store.path(spec).parent == store.root / "my-images" / "resnet8"
    assert quick(spec, store) == record
    assert store.frame().loc[0, "dataset"] == "my-images"
    monkeypatch.chdir(folder)
    assert store.path(replace(spec, dataset=".")).parent.parent.name == "my-images"  # not results/./
    (folder / "train").rename(folder / "gone")
    (folder / "test").rename(folder / "gone too")
    folder.rename(folder.with_name("elsewhere"))
    assert store.records() == [record]  # a record outlives its data


# --- provenance


def test_the_revision_of_a_folder(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "code").mkdir()
    (tmp_path / "installed").mkdir()
    (tmp_path / "code" / "a.py").write_text("")
    assert provenance.git_revision(tmp_path / "code") == ("unknown", None)
    git("init")
    git("add", "code")
    git("commit", "-m", "first")
    provenance.git_revision.cache_clear()
    revision, dirty = provenance.git_revision(tmp_path / "code")
    assert len(revision) == 12
    assert not dirty
    assert provenance.git_revision(tmp_path / "installed") == ("unknown", None)  # not git's, though inside
    (tmp_path / "code" / "a.py").write_text("1")
    provenance.git_revision.cache_clear()
    assert provenance.git_revision(tmp_path / "code") == (revision, True)


def test_versions_without_importing():
    assert provenance.version("torch") == torch.__version__.partition("+")[0]
    assert provenance.version("no-such-package") == "(not installed)"


def test_data_of_another_name_or_size_are_refused(store):
    small = load_data("digits", image_size=6)
    with pytest.raises(ValueError, match="data is resized: give the run image_size=6, too"):
        quick(store=store, data=small)
    with pytest.raises(ValueError, match="data is 'noise', and the run's data set 'digits'"):
        quick(store=store, data=replace(load_data("digits"), name="noise"))
    assert files(store.root) == []
