"""Runs and their records: what is in one, when it is reused, and that none is ever half written."""

import json
import math
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pai_lib import provenance, runs
from pai_lib.criteria import CRITERIA
from pai_lib.data import Dataset, load_data
from pai_lib.masks import SparsityWarning, layer_density, prune
from pai_lib.models import build_model, prunable
from pai_lib.records import Record, Store
from pai_lib.runs import run
from pai_lib.spec import RunSpec
from pai_lib.training import random_stream, warm_up

SPEC = RunSpec(
    dataset="digits", model="resnet8", width=4, criterion="snip", sparsity=0.9, samples_per_class=2, warmup=2,
    epochs=1, batch_size=64, lr=0.1, train_fraction=0.2,
)  # fmt: skip
RESULT = {
    "parameters", "warmup_updates", "scoring_seconds", "density", "collapsed", "sparsity_reached",
    "effective_sparsity", "curves", "training_seconds", "test_accuracy", "test_loss", "peak_memory_bytes",
}  # fmt: skip
ROOT = Path(__file__).parents[1]


def quick(spec=SPEC, store=None, **options):
    return run(spec, store, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def record():
    return quick()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def untimed(record):
    """Return a record without what differs between two runs of one spec."""
    values = record.to_dict()
    values["result"] = {
        k: v for k, v in values["result"].items() if "seconds" not in k and k != "peak_memory_bytes"
    }
    values["provenance"] = {k: v for k, v in values["provenance"].items() if k not in ("started", "finished")}
    return values


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    names = "epochs batch_size lr momentum weight_decay lr_drops lr_drop_factor precision seed".split()
    assert given == {"progress": False, **{name: getattr(spec, name) for name in names}}


# --- the store


def test_a_record_is_written_and_read_back(store):
    record = quick(store=store)
    path = store.path(SPEC)
    assert path == store.root / "digits" / "resnet8" / f"{SPEC.id}.json"
    assert files(store.root) == [f"digits/resnet8/{SPEC.id}.json"]
    assert store.load(SPEC) == record
    assert store.records() == [record]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask  # others may read it


def test_a_record_is_reused_only_for_the_same_data(store, record, monkeypatch):
    store.save(record)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "build_model", lambda *args, **options: pytest.fail("it ran again"))
        assert quick(store=store) == record
        assert quick(store=store, data=load_data("digits")) == record
    whole = load_data("digits")
    x, y = (t.numpy() for t in (whole.train_images.permute(0, 2, 3, 1), whole.train_labels))
    other = Dataset.from_arrays("digits", x, y, x[:50], y[:50], augment=False)
    again = quick(store=store, data=other)
    assert again.data == {"fingerprint": other.fingerprint, "train": 287, "test": 50}
    assert store.records() == [again]


def test_a_failure_while_writing_leaves_nothing(store, record, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                store.save(record)
        assert files(store.root) == []
    store.save(record)
    before = store.path(SPEC).read_bytes()
    changed = replace(record, provenance={})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            store.save(changed)
    assert files(store.root) == [f"digits/resnet8/{SPEC.id}.json"]
    assert store.path(SPEC).read_bytes() == before
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(replace(record, result={"test_loss": math.nan}))
    assert store.path(SPEC).read_bytes() == before


def test_a_record_is_never_overwritten_by_another_spec(store, record, monkeypatch):
    path = store.save(record)
    before = path.read_bytes()
    other = replace(record, spec=replace(SPEC, seed=9))
    monkeypatch.setattr(Store, "path", lambda self, spec: path)
    with pytest.raises(ValueError, match="holds the record of another spec: it is not overwritten"):
        store.save(other)
    assert path.read_bytes() == before


def without(values, name):
    return {k: v for k, v in values.items() if k != name}


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (lambda v: v | {"id": "0" * 12}, "its id is '000000000000', but its spec's is"),
        (lambda v: v | {"spec": v["spec"] | {"seed": 3}}, "it was edited"),
        (lambda v: v | {"spec": v["spec"] | {"sede": 3}}, "RunSpec has no field 'sede': did you mean 'seed'?"),
        (lambda v: v | {"spec": without(v["spec"], "dataset")}, "dataset=None"),
        (lambda v: v | {"spec": [1]}, "it has no sound 'spec'"),
        (lambda v: v | {"schema": 2}, "schema 2: this version reads schema 1."),
        (lambda v: without(v, "schema"), "schema None"),
        (lambda v: without(v, "result"), "it has no sound 'result'"),
        (lambda v: [v], "schema 'list'"),
        (lambda v: "{", "Expecting"),
    ],
)
def test_a_tampered_record_is_an_error_that_names_the_file(store, record, tamper, sentence):
    path = store.save(record)
    changed = tamper(record.to_dict())
    text = changed if isinstance(changed, str) else json.dumps(changed)
    path.write_text(text)
    for call in (lambda: store.load(SPEC), store.records, lambda: quick(store=store), lambda: store.save(record)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            call()
        assert str(error.value).startswith(f"{path} is not a readable record: ")
        assert sentence in str(error.value)
    assert path.read_text() == text


def test_older_records_need_not_know_newer_fields():
    assert RunSpec.from_record({"dataset": "digits", "model": "resnet8"}) == RunSpec(
        dataset="digits", model="resnet8"
    )


# --- the table


def test_the_frame_has_a_row_a_record(store, record):
    failed = replace(record, spec=replace(SPEC, seed=1), failure={"reason": "NaN", "where": "epoch 1"}, result={})
    for each in (record, failed):
        store.save(each)
    frame = store.frame().set_index("id")
    assert len(frame) == 2
    row = frame.loc[SPEC.id]
    assert (row["dataset"], row["criterion"], row["sparsity"]) == ("digits", "snip", 0.9)
    assert row["test_accuracy"] == record.result["test_accuracy"]
    assert row["collapsed"] == len(record.result["collapsed"])
    assert row["train_images"] == 287
    assert pd.isna(row["failure"])
    assert frame.loc[failed.spec.id, "failure"] == "NaN"
    assert math.isnan(frame.loc[failed.spec.id, "test_accuracy"])
    assert frame.groupby("lr_drops").ngroups == 1  # values can be grouped by


def test_the_frame_has_its_columns_whatever_was_recorded(store, record):
    columns = ["id", *SPEC.to_dict(), "test_accuracy", "test_loss", "collapsed", "train_images", "failure"]
    assert list(store.frame().columns) == columns
    assert store.frame().empty
    store.save(replace(record, failure={"reason": "NaN", "where": "epoch 1"}, result={}))
    assert list(store.frame().columns) == columns


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
    record = quick(replace(SPEC, criterion=key, rounds=2, probes=1, width=2, train_fraction=0.1))
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


# --- the committed records


def test_committed_records_are_sound():
    store = Store(ROOT / "results")
    found = store.records()
    assert found
    assert len(found) == len(list((ROOT / "results").rglob("*.json")))
    for record in found:
        path = store.path(record.spec)
        assert path.is_file()
        assert Record.from_dict(json.loads(path.read_text("utf-8"))) == record
        result = record.result
        assert (record.failure is None) == ("test_accuracy" in result)
        if record.failure is None:
            assert 0 <= result["test_accuracy"] <= 1
            assert {len(curve) for curve in result["curves"].values()} == {record.spec.epochs}
        if "density" in result:
            channels = 1 if record.spec.dataset == "digits" else 3
            with torch.device("meta"):
                model = build_model(record.spec.model, 10, in_channels=channels, width=record.spec.width)
            sizes = {name: model.get_parameter(name).numel() for name in prunable(model)}
            kept = sum(result["density"][name] * size for name, size in sizes.items())
            assert list(result["density"]) == list(sizes)
            assert kept == pytest.approx(sum(sizes.values()) * (1 - result["sparsity_reached"]), abs=0.5)
            slack = len(sizes) if record.spec.scope != "global" else 1  # each ranking rounds down
            assert abs(kept - sum(sizes.values()) * (1 - record.spec.sparsity)) <= slack + 0.5
            assert result["collapsed"] == [name for name, density in result["density"].items() if density == 0]
            assert result["effective_sparsity"] >= result["sparsity_reached"] - 1e-9
