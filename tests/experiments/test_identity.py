"""What makes two runs on one's own data the same run: what the data hold, not how their path is spelt."""

import hashlib
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, files, quick, untimed
from PIL import Image

from pai_lib import cli
from pai_lib.analysis.frames import full_frame, records_csv
from pai_lib.data import loading as data
from pai_lib.data.loading import load_data
from pai_lib.experiments import campaign as campaigns
from pai_lib.experiments import run as runs
from pai_lib.experiments import sweep as engine
from pai_lib.experiments.campaign import read_campaign, show_plan
from pai_lib.experiments.records import Record, RecordWarning, Store
from pai_lib.experiments.spec import RunSpec
from pai_lib.experiments.sweep import sweep

OWN = replace(TINY, samples_per_class=1, train_fraction=1.0, batch_size=8)


def write_arrays(path, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), np.arange(20) % 2
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def write_pictures(path):
    rng = np.random.default_rng(0)
    for number in range(20):
        place = path / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number}.png")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with mine.npz and the pictures in pets/, by all their names, and it is home and $PAI_DATA, too."""
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    write_arrays(home / "mine.npz")
    write_pictures(home / "pets")
    (tmp_path / "linked.npz").symlink_to(home / "mine.npz")
    (tmp_path / "beasts").symlink_to(home / "pets")
    (tmp_path / "way").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PAI_DATA", str(home))
    monkeypatch.chdir(home)
    return home


NAMES = ["mine.npz", "./mine.npz", "{}/mine.npz", "~/mine.npz", "mine", "below/../mine.npz", "{}/../linked.npz",
         "../way/mine.npz", "{}//mine.npz"]  # fmt: skip
FOLDERS = ["pets", "pets/", "./pets//", "{}/pets", "~/pets/", "../beasts", "{}/../way/pets/"]


@pytest.fixture(params=[NAMES, FOLDERS], ids=["file", "folder"])
def specs(request, home):
    """Return one run on one data set, as often as it has names."""
    return [replace(OWN, dataset=name.format(home)) for name in request.param]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def forbid(monkeypatch):
    for place in (runs, engine):
        monkeypatch.setattr(place, "perform", lambda *args, **options: pytest.fail("it ran again"))
    monkeypatch.setattr(runs, "build_model", lambda *args, **options: pytest.fail("it ran again"))


# --- one run, many names


def test_it_has_one_id_and_one_place(specs, store):
    assert len({spec.id for spec in specs}) == 1
    assert len({store.checkpoint(spec) for spec in specs}) == 1
    assert len({store.lock(spec).lock_file for spec in specs}) == 1
    store.save(quick(specs[0]))
    assert len({store.path(spec) for spec in specs}) == 1


def test_it_is_done_once(specs, store, monkeypatch):
    record = quick(specs[0], store)
    forbid(monkeypatch)
    for spec in specs:
        assert quick(spec, store) == store.load(spec) == store.find(spec, record.data["fingerprint"]) == record
    assert len(files(store.root)) == len(store.frame()) == 1
    counts = sweep(specs, store, device="cpu", quiet=True)
    assert (counts["reused"], counts["left"]) == (len(specs), 0)


def test_a_sweep_does_it_once(specs, store, capsys):
    counts = sweep(specs, store, device="cpu")
    assert (counts["done"], counts["reused"]) == (1, len(specs) - 1)
    assert len(files(store.root)) == 1
    show_plan(specs, store, torch.device("cpu"))
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(specs)} runs: {len(specs)} recorded."


def test_the_command_finds_it(specs, store, capsys):
    own = [("--" + name.replace("_", "-"), value) for name, value in OWN.to_dict().items()]
    told = []
    store.root.mkdir(exist_ok=True)
    for spec in specs:
        values = [(flag, spec.dataset if flag == "--dataset" else value) for flag, value in own]
        words = [str(word) for pair in values for word in pair if pair[1] is not None and pair[0] != "--lr-drops"]
        assert cli.main(["run", *words, "--device", "cpu", "--quiet", "--results", str(store.root)]) == 0
        told.append(capsys.readouterr().out)
    assert [line.rpartition(" ")[2] for line in told] == ["(new)\n"] + ["(reused)\n"] * (len(specs) - 1)
    assert len({line.split()[0] for line in told}) == 1
    assert len(files(store.root)) == 1


def test_a_campaign_that_names_it_twice_is_refused(specs, tmp_path):
    path = tmp_path / "campaign.yaml"
    plain = {name: value for name, value in OWN.to_dict().items() if name != "dataset"}
    for other in specs[1:]:
        path.write_text(json.dumps({"base": plain, "grid": {"dataset": [specs[0].dataset, other.dataset]}}))
        sentence = f"grid {{dataset: {other.dataset}}} means the same run as grid {{dataset: {specs[0].dataset}}}."
        with pytest.raises(ValueError, match=re.escape(sentence)):
            read_campaign(path)


def test_its_estimate_serves_all_names(specs, store):
    quick(specs[0], store)
    estimate = campaigns.Estimate(store, None)
    assert all(estimate.seconds(replace(spec, seed=5)) is not None for spec in specs)


def test_seeds_under_several_names_are_of_one_data_set(specs, store):
    for seed, spec in enumerate(specs[:4]):
        quick(replace(spec, seed=seed), store)
    frame = store.frame()
    assert len(frame) == 4
    assert frame["dataset"].nunique() == frame["fingerprint"].nunique() == 1
    assert set(frame["dataset"]) <= {"mine.npz", "pets"}
    assert records_csv(store.records()).count(frame["dataset"][0].encode()) == 4


def test_a_copy_is_the_same_run_and_keeps_the_first_name(home, store, monkeypatch):
    record = quick(replace(OWN, dataset="mine.npz"), store)
    (home / "elsewhere").mkdir()
    shutil.copyfile(home / "mine.npz", home / "elsewhere" / "copy.npz")
    copy = replace(OWN, dataset="elsewhere/copy.npz")
    forbid(monkeypatch)
    assert quick(copy, store) == record
    assert store.path(copy) == store.root / "mine.npz" / "resnet8" / f"{copy.id}.json"
    assert list(store.frame()["dataset"]) == ["mine.npz"]


def test_records_of_two_machines_that_hold_the_same_run_are_told(home, store):
    path = store.save(quick(replace(OWN, dataset="mine.npz")))
    other = store.root / "copy.npz" / "resnet8" / path.name
    other.parent.mkdir(parents=True)
    shutil.copyfile(path, other)
    with pytest.warns(RecordWarning, match=re.escape(f"{path} records the same run as {other}. It is left out.")):
        assert len(store.records()) == 1


def test_a_failure_is_repeated_under_another_name(home, store):
    failing = replace(OWN, dataset="mine.npz", lr=1e12, epochs=4)
    assert sweep([failing], store, device="cpu")["failed"] == 1
    again = replace(failing, dataset="../linked.npz")
    assert sweep([again], store, device="cpu")["failed"] == 1
    assert "retried" not in store.load(failing).provenance
    assert sweep([again], store, device="cpu", retry_failed=True)["failed"] == 1
    assert len(store.load(failing).provenance["retried"]) == 1
    assert len(files(store.root)) == 1


# --- other data, another run


def test_changed_data_under_the_same_name_are_another_run_and_both_are_kept(home, store):
    spec = replace(OWN, dataset="mine.npz")
    first, name = quick(spec, store), spec.id
    write_arrays(home / "mine.npz", seed=1)
    second = quick(spec, store)
    assert second.data["fingerprint"] != first.data["fingerprint"]
    assert spec.id != name
    assert [record.spec.id for record in (first, second)] == [name, spec.id]
    assert len(store.records()) == len(files(store.root)) == 2
    write_arrays(home / "mine.npz", seed=0)
    assert quick(spec, store) == first
    assert sweep([spec], store, device="cpu")["reused"] == 1


def test_data_of_one_name_do_not_collide(home, store):
    write_arrays(home / "below" / "mine.npz", seed=1)
    specs = [replace(OWN, dataset=name) for name in ("mine.npz", "below/mine.npz")]
    counts = sweep(specs, store, device="cpu")
    assert counts["done"] == 2
    assert [store.load(spec).data["fingerprint"] for spec in specs] == [
        load_data(spec.dataset).fingerprint for spec in specs
    ]
    frame = full_frame(store.records())
    assert list(frame["dataset"]) == ["mine.npz"] * 2
    assert frame["fingerprint"].nunique() == frame["id"].nunique() == 2


def test_own_data_are_not_a_registered_set_whatever_they_hold(home, store):
    """Registered sets have their own augmentation: digits are not mirrored."""
    digits = load_data("digits")
    arrays = [digits.train_images, digits.train_labels, digits.test_images, digits.test_labels]
    x, y, x_test, y_test = [a.permute(0, 2, 3, 1).numpy() if a.ndim == 4 else a.numpy() for a in arrays]
    np.savez(home / "digits.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    own = replace(TINY, dataset="./digits.npz")
    assert load_data(own.dataset).fingerprint == digits.fingerprint
    assert own.id != TINY.id


@pytest.mark.parametrize("size", [8, 16])
def test_pictures_of_another_size_are_other_data(home, size):
    spec = replace(OWN, dataset="pets", image_size=size)
    assert spec.id == replace(OWN, dataset=str(home / "pets"), image_size=size).id
    assert spec.id != replace(OWN, dataset="pets").id


# --- what a spec and a record know


def test_a_spec_that_was_told_reads_nothing(home, monkeypatch):
    spec = replace(OWN, dataset="mine.npz")
    told = spec.with_data(load_data("mine.npz").fingerprint)
    assert (told, hash(told), told.id, told.to_dict()) == (spec, hash(spec), spec.id, spec.to_dict())
    monkeypatch.setattr(data, "_load", lambda *args: pytest.fail("data were read"))
    assert pickle.loads(pickle.dumps(told)).id == told.id
    assert "_fingerprint" not in RunSpec.__dataclass_fields__
    assert TINY.with_data("f" * 64).id == TINY.id  # of a registered set the name counts


def test_a_record_outlives_its_data(home, store):
    record = quick(replace(OWN, dataset="mine.npz"), store)
    name = store.path(record.spec)
    assert name.is_file()
    (home / "mine.npz").unlink()
    (again,) = store.records()
    assert again == record
    assert store.path(again.spec) == name
    assert again.spec.id == name.stem == store.frame()["id"][0]
    assert again.spec.dataset == "mine.npz"
    assert json.loads(name.read_text())["spec"]["dataset"] == "mine.npz"
    with pytest.raises(ValueError, match=r"Unknown dataset 'mine\.npz'"):
        quick(replace(OWN, dataset="mine.npz"), store)
    with pytest.raises(ValueError, match=r"unknown dataset 'mine\.npz'"):
        sweep([replace(OWN, dataset="mine.npz")], store, device="cpu")


def test_a_record_of_another_seed_is_another(home, store):
    record = quick(replace(OWN, dataset="mine.npz"))
    other = replace(record, spec=replace(record.spec, seed=3))
    assert other.spec.id == replace(OWN, dataset="mine.npz", seed=3).id
    assert len({store.save(each) for each in (record, other)}) == 2


def by_path(spec):
    """The id that a run on one's own data had when it was known by the path as it was spelt."""
    differing = {name: value for name, value in spec.to_dict().items() if value != RunSpec().to_dict()[name]}
    return hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:12]


def test_registered_names_are_known_by_their_name(store):
    record = quick(TINY)
    other = replace(record, data={**record.data, "fingerprint": "e" * 64})
    assert record.spec.id == other.spec.id == TINY.id == by_path(TINY)
    assert isinstance(other, Record)


# --- pages


def test_the_page_of_records_links_to_each_by_the_name_in_its_row(home, store, tmp_path):
    page = pytest.importorskip("test_explorer").records_page
    for seed, name in enumerate(("mine.npz", "../linked.npz", "mine")):
        quick(replace(OWN, dataset=name, seed=seed), store)
    write_arrays(home / "below" / "mine.npz", seed=1)
    quick(replace(OWN, dataset="below/mine.npz"), store)
    source, built = tmp_path / "source", tmp_path / "built"
    (source / "book").mkdir(parents=True)
    (source / "book" / "records.md").touch()
    (source / "results").symlink_to(store.root)
    builder = type("Builder", (), {"format": "html"})
    page.write_data(type("App", (), {"srcdir": str(source), "outdir": str(built), "builder": builder}))
    folder = built / "_static" / "records-data"
    shown = json.loads((folder / "data.js").read_text("utf-8").partition(" = ")[2].removesuffix(";\n"))
    column = {each["key"]: number for number, each in enumerate(shown["columns"])}
    assert len(shown["rows"]) == 4
    for row in shown["rows"]:
        name = row[column["id"]]
        link = folder / row[column["dataset"]] / row[column["model"]] / f"{name}.json"
        assert json.loads(link.read_text("utf-8"))["id"] == name
    assert len(shown["groups"]) == 2  # one of three seeds, one of other data


def test_notes_are_those_of_the_records_that_are_shown(home, store):
    from pai_lib.analysis.frames import data_note

    page = pytest.importorskip("test_explorer").records_page
    record = quick(replace(OWN, dataset="mine.npz"), store)
    (store.root / "data.yaml").write_text(f"{record.data['fingerprint']}: noise\n")
    Path("results").mkdir()
    Path("results/data.yaml").write_text(f"{record.data['fingerprint']}: not these\n")
    assert data_note(record.data["fingerprint"], store.root) == " (noise)"
    (group,) = page.page_data(store.root)[0]["groups"]
    assert "20 training images, " in group["protocol"]
    assert group["data"] == " (noise)"
    untold = Store(store.root.with_name("other"))
    untold.save(record)
    assert data_note(record.data["fingerprint"], untold.root) == ""
    assert untimed(untold.records()[0]) == untimed(record)
