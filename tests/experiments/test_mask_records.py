"""Records of masks: each mask is that of a run, kept apart from runs, made once, and named where it cannot be."""

import json
import re
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, files, quick
from test_cluster import Dask, swept

import pai_lib as pai
from pai_lib import cli
from pai_lib.analysis.frames import masks_frame
from pai_lib.experiments import mask_run
from pai_lib.experiments import run as runs
from pai_lib.experiments import sweep as engine
from pai_lib.experiments.campaign import Estimate, read_campaign
from pai_lib.experiments.mask_spec import MaskSpec
from pai_lib.experiments.records import MaskRecord, RecordWarning, Store
from pai_lib.experiments.spec import RunSpec
from pai_lib.experiments.sweep import sweep

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SPEC = MaskSpec(
    dataset="digits", model="resnet8", width=2, warmup=2, batch_size=64, samples_per_class=2, probes=2,
    criteria=("fisher_diag", "snip"), sparsities=(0.5, 0.9),
)  # fmt: skip


def masks(spec=SPEC, store=None, **options):
    return pai.run_masks(spec, store, device="cpu", progress=False, **options)


def settled(record):
    """What is the same whenever it was made."""
    values = record.to_dict()
    result = {name: value for name, value in values["result"].items() if "seconds" not in name}
    result["masks"] = [{**mask, "seconds": None} for mask in result["masks"]]
    return values["spec"], {**result, "peak_memory_bytes": None}, values["data"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture(scope="module")
def record():
    return masks()


# --- what is recorded


@pytest.mark.parametrize(
    ("warmup", "criteria"),
    [(3, ("exact_taylor", "fbss", "grasp", "hts", "random", "snip", "synflow")), (0, ("scaled_noise", "snip"))],
)
def test_each_mask_is_that_of_a_run_of_the_same_fields(monkeypatch, warmup, criteria):
    monkeypatch.setattr(runs, "train", lambda *args, **options: {})  # it comes after the mask
    monkeypatch.setattr(runs, "evaluate", lambda *args: (0.5, 1.0))
    spec = replace(SPEC, width=4, seed=1, warmup=warmup, group=3, criteria=criteria)
    result, shared = masks(spec).result, pai.Shared()
    assert result["warmup_updates"] == warmup
    found = {(mask["criterion"], mask["sparsity"]): mask for mask in result["masks"]}
    assert len(found) == len(result["masks"]) == 2 * len(criteria)
    for (key, sparsity), mask in found.items():
        if (sparsity == 0.9) == (key != "snip"):  # one a criterion
            run = quick(spec.as_run(key, sparsity), shared=shared).result
            layers = zip(result["layers"].items(), mask["kept"], strict=True)
            assert {layer: kept / size for (layer, size), kept in layers} == pytest.approx(run["density"])
            assert mask["effective_sparsity"] == run["effective_sparsity"]


def test_as_many_weights_are_kept_as_the_sparsity_says(record):
    model = pai.build_model("resnet8", 10, in_channels=1, width=2)
    sizes = {name: model.get_parameter(name).numel() for name in pai.prunable(model)}
    assert record.result["layers"] == sizes
    assert record.result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    for mask in record.result["masks"]:
        assert sum(mask["kept"]) == int((1 - mask["sparsity"]) * sum(sizes.values()))
        assert all(0 <= kept <= size for kept, size in zip(mask["kept"], sizes.values(), strict=True))
        assert 1 >= mask["effective_sparsity"] >= 1 - sum(mask["kept"]) / sum(sizes.values())


@pytest.mark.parametrize("reference", ["exact", "mc"])
def test_masks_are_compared_with_that_of_the_reference(reference):
    spec = replace(SPEC, reference=reference, warmup=0)
    data = pai.load_data("digits")
    model, batch = pai.build_model("resnet8", 10, in_channels=1, width=2, seed=0), data.scoring_batch(2, 0)
    scores = pai.exact_diag(model, batch)
    if reference == "mc":
        scores = pai.ggn_diag(model, batch, "mc", generator=pai.random_stream(0, "reference"))
    for mask in masks(spec).result["masks"]:
        own = pai.prune(model, batch, mask["criterion"], mask["sparsity"])
        assert mask["shared"] == pai.shared_fraction(own, pai.make_mask(scores, mask["sparsity"]))
    exact = masks(replace(spec, criteria=["exact_diag"])).result["masks"]
    assert {mask["shared"] == 1 for mask in exact} == {reference == "exact"}


def test_seconds_are_those_of_a_mask_alone(monkeypatch):
    """The clock stands still but for what is scored: 1 for the gradient, 10 for the Fisher diagonal."""
    from pai_lib.experiments import shared
    from pai_lib.pruning import scoring

    now = [0.0]
    monkeypatch.setattr(shared.time, "perf_counter", lambda: now[0])
    for name, spent in (("gradient", 1.0), ("fisher_diag", 10.0), ("exact_diag", 100.0)):
        plain = getattr(scoring, name)

        def slow(*args, plain=plain, spent=spent, **options):
            now[0] += spent
            return plain(*args, **options)

        monkeypatch.setattr(scoring, name, slow)
    criteria = ("exact_diag", "exact_taylor", "fisher_diag", "fts", "grad_norm", "magnitude", "snip")
    result = masks(replace(SPEC, criteria=criteria)).result
    seconds = {mask["criterion"]: mask["seconds"] for mask in result["masks"]}
    assert seconds == dict(zip(criteria, (100, 101, 10, 11, 1, 0, 1), strict=True))
    assert result["seconds"] == 111


# --- specs


def test_the_fields_that_runs_have_are_theirs():
    defaults = {option.name: option.default for option in fields(RunSpec)}
    own = {"criteria", "sparsities", "reference"}
    assert {option.name for option in fields(MaskSpec)} - own <= defaults.keys()
    for option in fields(MaskSpec):
        assert option.name in own or option.default == defaults[option.name]
    run = SPEC.as_run("snip", 0.9)
    assert all(getattr(run, name) == getattr(SPEC, name) for name in defaults.keys() & SPEC.to_dict().keys())
    assert (run.criterion, run.sparsity, run.scope, run.variant) == ("snip", 0.9, "global", "cited")


def test_ids_are_frozen_and_cover_every_field():
    base = MaskSpec(criteria=["snip"])
    assert base.id == "09c037405270"
    others = {
        "dataset": "digits", "model": "vgg16", "width": 16, "image_size": 64, "seed": 1, "warmup": 0,
        "batch_size": 64, "samples_per_class": 1, "group": 2, "probes": 1, "criteria": ["hts"],
        "sparsities": [0.5], "reference": "mc",
    }  # fmt: skip
    assert others.keys() == {option.name for option in fields(MaskSpec)}
    specs = [base, *(replace(base, **{name: value}) for name, value in others.items())]
    assert len({spec.id for spec in specs}) == len(specs)
    assert all(MaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec for spec in specs)
    assert base.id not in {RunSpec().id, RunSpec(criterion="snip").id}  # whose locks would be the same


def test_the_order_of_a_list_makes_no_other_record():
    turned = replace(SPEC, criteria=["snip", "fisher_diag"], sparsities=[0.9, 0.5])
    assert turned == SPEC
    assert turned.id == SPEC.id


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"criteria": []}, "criteria=[]: it must be a list of at least one value."),
        ({"criteria": "snip"}, "criteria='snip': it must be a list of at least one value."),
        ({"criteria": ["snap"]}, "Unknown criterion 'snap': did you mean 'snip'?"),
        ({"criteria": ["snip", 3]}, "criterion=3: it must be of type str, not int."),
        ({"criteria": ["snip", "dense"]}, "criteria: 'dense' has no mask; leave it out."),
        ({"criteria": ["snip", "snip"]}, "criteria=('snip', 'snip'): it holds a value twice."),
        ({"sparsities": 0.9}, "sparsities=0.9: it must be a list of at least one value."),
        ({"sparsities": [0.9, 1]}, "sparsity=1.0: it must be at least 0 and below 1"),
        ({"sparsities": [0.9, "x"]}, "sparsity='x': it must be of type float, not str."),
        ({"sparsities": [0.5, 0.5]}, "sparsities=(0.5, 0.5): it holds a value twice."),
        ({"reference": "exakt"}, "Unknown reference 'exakt': did you mean 'exact'? Known: exact, mc."),
        ({"criteria": ["row_norm"], "probes": 1}, "probes=1 with 'row_norm': it must be at least 2."),
        ({"model": "resnet19"}, "Unknown model 'resnet19': did you mean 'resnet18'?"),
        ({"width": 0}, "width=0: it must be at least 1."),
        ({"warmup": -1}, "warmup=-1: it must be at least 0."),
        ({"seed": True}, "seed=True: it must be of type int, not bool."),
    ],
)
def test_wrong_fields_are_one_sentence_with_the_value(values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        replace(SPEC, **values)
    assert "\n" not in str(error.value)


def test_what_cannot_be_scored_is_refused_before_work(store, monkeypatch):
    curved = MaskSpec(
        dataset="digits32", model="vit_cifar", width=12, criteria=["snip"], samples_per_class=1, warmup=0
    )
    monkeypatch.setattr(mask_run.MaskWork, "record", lambda *args: pytest.fail("work began"))
    for spec in (curved, replace(curved, criteria=["exact_diag"], reference="mc")):
        with pytest.raises(ValueError, match="the Hessian diagonal may not be the Gauss-Newton diagonal"):
            masks(spec, store)
        with pytest.raises(ValueError, match=f"^{spec.id}: .*use ggn_diag and call it that"):
            sweep([spec], store, device="cpu")
    with pytest.raises(ValueError, match="VGG needs 32×32 or more"):
        masks(replace(SPEC, model="vgg11"))
    monkeypatch.undo()
    (mask,) = masks(replace(curved, reference="mc", sparsities=[0.5])).result["masks"]
    assert 0 < mask["shared"] < 1


# --- the store


def test_they_are_kept_apart_from_runs(store, record):
    path = store.save(record)
    assert files(store.root) == [f"masks/digits/resnet8/{SPEC.id}.json"]
    assert store.load(SPEC) == store.find(SPEC, record.data["fingerprint"]) == record
    assert store.mask_records() == [record]
    assert store.records() == []
    assert store.frame().empty
    assert cli.main(["export", str(store.root / "x.csv"), "--results", str(store.root)]) == 2
    run = quick(TINY, store)
    assert store.records() == [run]
    assert store.mask_records() == [record]
    store.path(TINY).rename(path)
    with pytest.warns(
        RecordWarning, match=r"is not a readable record: it records runs, not masks\. It is left out"
    ):
        assert store.mask_records() == []


def test_a_record_is_made_once(store, monkeypatch):
    first = masks(store=store)
    assert settled(first) == settled(masks())
    monkeypatch.setattr(mask_run.MaskWork, "record", lambda *args: pytest.fail("it ran again"))
    assert masks(store=store) == first
    assert sweep([SPEC], store, device="cpu")["reused"] == 1


def test_an_edited_one_is_told_and_set_aside(store, record):
    path = store.save(record)
    path.write_text(path.read_text("utf-8").replace('"effective_sparsity": 0.', '"effective_sparsity": 1.', 1))
    with pytest.warns(RecordWarning, match="its digest does not fit its content: it was edited. It is left out"):
        assert store.mask_records() == []
    with pytest.warns(RecordWarning) as told:
        assert settled(masks(store=store)) == settled(record)
    assert re.search(r"set aside as .*\.unreadable\.", str(told[-1].message))
    assert len(store.mask_records()) == 1


def test_one_of_other_data_is_told_and_set_aside(store, record):
    path = store.save(replace(record, data={**record.data, "fingerprint": "e" * 64}))
    with pytest.warns(RecordWarning) as told:
        masks(store=store)
    assert f"{SPEC.id}.json was made with other data than those that are here" in str(told[0].message)
    assert path.with_name(f"{path.name}.data-{'e' * 12}").is_file()
    assert store.mask_records() == [store.load(SPEC)]


def test_own_data_are_known_by_what_they_hold(store, tmp_path):
    import numpy as np

    digits = pai.load_data("digits")
    arrays = [digits.train_images[:60], digits.train_labels[:60], digits.test_images, digits.test_labels]
    arrays = [a.permute(0, 2, 3, 1).numpy() if a.ndim == 4 else a.numpy() for a in arrays]
    for name in ("one.npz", "copy.npz"):
        np.savez(tmp_path / name, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    own, copy = (replace(SPEC, dataset=str(tmp_path / name)) for name in ("one.npz", "copy.npz"))
    first = masks(own, store)
    assert masks(copy, store) == first
    assert files(store.root) == [f"masks/one.npz/resnet8/{first.spec.id}.json"]
    (tmp_path / "one.npz").unlink()
    assert store.mask_records() == [first]


# --- campaigns and sweeps

FILE = """
kind: masks
base: {dataset: digits, model: resnet8, width: 2, batch_size: 64, samples_per_class: 2, sparsities: [0.5, 0.9]}
grid:
  seed: [0, 1]
  criteria: [[snip, fisher_diag], [magnitude]]
"""


def test_a_campaign_of_masks_says_so(tmp_path):
    path = tmp_path / "masks.yaml"
    path.write_text(FILE)
    specs = read_campaign(path)
    assert [(spec.seed, spec.criteria) for spec in specs] == [
        (0, ("fisher_diag", "snip")), (0, ("magnitude",)), (1, ("fisher_diag", "snip")), (1, ("magnitude",)),
    ]  # fmt: skip
    assert {type(spec) for spec in specs} == {MaskSpec}
    path.write_text("kind: runs\nbase: {dataset: digits, model: resnet8}\n")
    assert read_campaign(path) == [RunSpec(dataset="digits", model="resnet8")]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("masks", "mask", "Unknown kind 'mask': did you mean 'masks'? Known: runs, masks."),
        ("masks", "[masks]", "Unknown kind ['masks']: "),
        ("seed", "sed", "RunSpec has no field 'sed'"),
        (
            "[magnitude]",
            "[fisher_diag, snip]",
            "means the same run as grid {seed: 0, criteria: ['snip', 'fisher_d",
        ),
        ("[magnitude]", "magnitude", "criteria='magnitude': it must be a list of at least one value."),
        ("base: {", "base: {epochs: 3, ", "MaskSpec has no field 'epochs': "),
        ("kind: masks", "", "RunSpec has no field 'sparsities': did you mean 'sparsity'?"),
    ],
)
def test_a_mistake_in_one_is_one_sentence(tmp_path, old, new, sentence, capsys):
    path = tmp_path / "masks.yaml"
    path.write_text(FILE.replace(old, new))
    if sentence.startswith("RunSpec has no field 'sed'"):
        sentence = "MaskSpec has no field 'sed': did you mean 'seed'?"
    (tmp_path / "results").mkdir()
    assert cli.main(["sweep", str(path), "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pai: error: {path}: ")
    assert sentence in error
    assert list((tmp_path / "results").iterdir()) == []


def test_the_command_lists_and_does_them(tmp_path, capsys):
    path, root = tmp_path / "masks.yaml", tmp_path / "results"
    root.mkdir()
    path.write_text(FILE.replace("[0, 1]", "[5]"))
    words = ["sweep", str(path), "--results", str(root), "--device", "cpu"]
    assert cli.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("  criteria=('fisher_diag', 'snip')  to do")
    assert out[-1] == "2 runs: 2 to do."
    assert cli.main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.search(r"criteria=\('magnitude',\)  2 masks, 0 of them cut  \d+\.\d s", out[1])
    assert out[-1] == "2 runs: 2 done, 0 reused, 0 failed, 0 left."
    store = Store(root)
    assert {record.spec for record in store.mask_records()} == set(read_campaign(path))
    assert Estimate(store, CPU).seconds(replace(read_campaign(path)[0], seed=7)) is not None
    assert Estimate(store, CPU).seconds(replace(SPEC, seed=7)) is None  # another warm-up
    assert cli.main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out == "2 runs: 0 done, 2 reused, 0 failed, 0 left.\n"


def test_two_sweeps_share_the_work(store, monkeypatch):
    """While one is at the first spec, the other does the second and waits; none is done twice."""
    specs, made, begun, done = [SPEC, replace(SPEC, seed=1)], [], threading.Event(), threading.Event()
    plain = mask_run.MaskWork.record

    def record(work, path=None):
        made.append(work.spec.seed)
        if work.spec.seed == 0:
            begun.set()
            assert done.wait(60)
        found = plain(work)
        if work.spec.seed == 1:
            done.set()
        return found

    monkeypatch.setattr(mask_run.MaskWork, "record", record)
    counts = []
    first = threading.Thread(target=lambda: counts.append(sweep(specs, store, device="cpu")))
    first.start()
    assert begun.wait(60)
    counts.append(sweep(specs, Store(store.root), device="cpu"))
    first.join()
    assert sorted(made) == [0, 1]
    assert [(each["done"], each["reused"]) for each in counts] == [(1, 1), (1, 1)]
    assert {record.spec for record in store.mask_records()} == set(specs)


def test_a_stop_ends_after_the_criterion_and_keeps_nothing(store, monkeypatch):
    made = []
    plain = mask_run.prune
    monkeypatch.setattr(mask_run, "prune", lambda *args, **options: made.append(1) or plain(*args, **options))
    monkeypatch.setattr(engine._Stop, "__call__", lambda self: len(made) >= len(SPEC.sparsities))
    assert sweep([SPEC, replace(SPEC, seed=1)], store, device="cpu")["left"] == 2
    assert len(made) == len(SPEC.sparsities)
    assert files(store.root) == []


def test_exhausted_memory_is_recorded_and_made_again_on_request(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mask_run, "score", lambda *args, **options: (_ for _ in ()).throw(MemoryError("no room")))
        assert sweep([SPEC], store, device="cpu")["failed"] == 1
    record = store.load(SPEC)
    assert isinstance(record, MaskRecord)
    assert record.failure["reason"] == "MemoryError: no room"
    assert masks_frame([record]).empty
    assert sweep([SPEC], store, device="cpu", retry_failed=True)["done"] == 1
    assert store.load(SPEC).provenance["retried"][0]["reason"] == "MemoryError: no room"


def test_workers_of_a_cluster_make_them(store, record, monkeypatch):
    assert swept(monkeypatch, store, Dask(), [SPEC, replace(SPEC, seed=1)])["done"] == 2
    assert settled(store.load(SPEC)) == settled(record)


def test_no_two_records_of_the_projects_campaign_make_the_same_mask():
    made = [
        replace(spec, criteria=[key], sparsities=[sparsity], reference="mc")
        for spec in read_campaign(ROOT / "campaigns" / "masks.yaml")
        for key in spec.criteria
        for sparsity in spec.sparsities
    ]
    assert len(made) == len(set(made)) > 4000
    assert {key for spec in made for key in spec.criteria} == set(pai.CRITERIA)


# --- the table


def test_the_table_has_a_row_a_mask(record):
    other = replace(record, spec=replace(SPEC, seed=3))
    frame = masks_frame([record, other])
    assert len(frame) == 8
    assert list(frame["seed"]) == [0] * 4 + [3] * 4
    assert list(frame["id"].unique()) == [record.spec.id, other.spec.id]
    for row, mask in zip(frame.to_dict("records"), record.result["masks"], strict=False):
        assert {name: row[name] for name in mask if name != "kept"} == {
            k: v for k, v in mask.items() if k != "kept"
        }
        sizes = record.result["layers"]
        assert {name: round(row["density"][name] * size) for name, size in sizes.items()} == dict(
            zip(sizes, mask["kept"], strict=True)
        )
        assert row["empty"] == mask["kept"].count(0)
        assert row["cut"] == (mask["effective_sparsity"] == 1)
        assert (row["dataset"], row["width"], row["reference"], row["device"]) == (
            "digits", 2, "exact", record.provenance["device"],
        )  # fmt: skip
    assert list(masks_frame([]).columns) == list(frame.columns)


def test_cut_masks_and_empty_layers_are_told(record):
    whole = record.result["masks"][0]
    cut = {**whole, "kept": [0, *whole["kept"][1:]], "effective_sparsity": 1.0}
    row = masks_frame([replace(record, result={**record.result, "masks": [cut]})]).iloc[0]
    assert row["cut"]
    assert row["empty"] == 1 + whole["kept"][1:].count(0)
