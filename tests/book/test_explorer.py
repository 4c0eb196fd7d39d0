"""The records as a page and as a CSV file: exactly those of the store, failed runs too."""

import importlib.util
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import files
from synthetic_records import FAILURE, PLAIN, record_of, write_records

from pai_lib import cli
from pai_lib.analysis.frames import full_frame, records_csv
from pai_lib.experiments.records import Record, Store
from pai_lib.experiments.spec import RunSpec

figures = pytest.importorskip("pai_lib.analysis.figures")
pytest.importorskip("sphinx")

REPO = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("records_page", REPO / "book" / "_ext" / "records_page.py")
records_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(records_page)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("some") / "results", seeds=3)


@pytest.fixture(scope="module")
def page(store):
    """What the page's scripts read: plain JSON."""
    return json.loads(json.dumps(records_page.page_data(store.root)[0], allow_nan=False))


def test_the_page_has_every_record_and_failed_runs_say_why(store, page):
    records = store.records()
    names = [column["key"] for column in page["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in page["rows"]]
    assert [row["id"] for row in rows] == [record.spec.id for record in records]
    assert sum(record.failure is not None for record in records) > 0
    for row, record in zip(rows, records, strict=True):
        assert row["test_accuracy"] == record.result.get("test_accuracy")
        assert row["failure"] == (record.failure["reason"] if record.failure else None)
        assert row["collapsed"] == len(record.result.get("collapsed", []))
        assert (row["git"], row["device"]) == (record.provenance["git"], record.provenance["device"])
        assert row["lr_drops"] == ", ".join(map(str, record.spec.lr_drops))  # runs differ in it
        shared = (record.spec.to_dict().keys() & row.keys()) - {"lr_drops"}
        assert len(shared) == 15
        assert {name: row[name] for name in shared} == {name: record.spec.to_dict()[name] for name in shared}


def test_the_figure_has_the_means_of_the_plain_runs(store, page):
    """Against pandas' own grouping of the records that share a protocol, written without the library."""
    frame = store.frame()
    chosen = max(page["groups"], key=lambda group: len(group["rows"]))
    assert (chosen["dataset"], chosen["model"], chosen["warmup"]) == ("cifar10", "resnet18", 98)
    by_hand = frame.query(
        "dataset == 'cifar10' and model == 'resnet18' and warmup == 98 and lr == 0.1 and control == 'none' and "
        "variant == 'cited' and when == 'init' and scope == 'global' and temperature.isna()"
    )
    by_hand = by_hand[by_hand["lr_drops"] == (0.5, 0.75)]
    assert sorted(chosen["rows"]) == sorted(by_hand.index)
    means = by_hand.groupby(["criterion", "sparsity"])["test_accuracy"].agg(["mean", "std", "count"])
    means = means[means["count"] > 0]
    assert len(chosen["points"]) == len(means)
    for point in chosen["points"]:
        mean, deviation, count = means.loc[(point["criterion"], point["sparsity"])]
        assert (point["mean"], point["n"]) == (mean, count)
        assert point["sd"] == (None if count == 1 else deviation)
        assert len(point["seeds"]) == point["n"]
    emptied = next(p for p in chosen["points"] if (p["criterion"], p["sparsity"]) == ("synflow", 0.99))
    assert emptied["seeds"] == [0, 1]  # the third one failed
    assert emptied["n"] == 2
    assert chosen["failed"] == 1


def test_protocols_are_apart_and_named_apart(page):
    names = [(g["dataset"], g["model"], g["protocol"], g["warmup"]) for g in page["groups"]]
    assert len(set(names)) == len(names) == 6  # two warm-ups, vgg19, cifar100, a learning rate, other drops
    rows = [row for group in page["groups"] for row in group["rows"]]
    assert len(set(rows)) == len(rows)
    drops = [protocol for dataset, model, protocol, _ in names if (dataset, model) == ("cifar10", "resnet18")]
    assert sum("lr drops (0.5,)" in protocol for protocol in drops) == 1
    with_and_without = [g["protocol"] for g in page["groups"] if len(g["points"]) > 50]
    assert len(with_and_without) == 2
    assert len(set(with_and_without)) == 1  # the warm-up is chosen beside the protocol
    assert all("its own width" in g["protocol"] for g in page["groups"] if g["dataset"] == "cifar100")


def test_colours_and_markers_are_those_of_the_other_figures(page):
    styles = figures.criterion_styles()
    assert [c["key"] for c in page["criteria"]] == list(styles)
    assert {c["key"]: c["color"] for c in page["criteria"]} == {key: s["color"] for key, s in styles.items()}
    looks = {(c["color"], c["marker"]) for c in page["criteria"]}
    assert len(looks) == len(styles)


def test_outlines_point_up_on_a_screen():
    heights = [float(y) for _, y in re.findall(r"(-?[\d.e-]+) (-?[\d.e-]+)", records_page.outline("^"))]
    assert sum(height < 0 for height in heights) < sum(height > 0 for height in heights)  # one tip, at the top
    assert records_page.outline("s").count("L") >= 3


@pytest.mark.parametrize("exists", [True, False])
def test_without_records_there_is_an_empty_page(tmp_path, exists):
    if exists:
        (tmp_path / "results").mkdir()
    data, records = records_page.page_data(tmp_path / "results")
    assert (data["rows"], data["groups"], data["unreadable"], records) == ([], [], [], [])
    assert len(data["criteria"]) > 10


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    store = Store(tmp_path / "results")
    store.save(record_of(PLAIN))
    (store.root / "cifar10" / "resnet18" / "bad.json").write_text("{")
    data, records = records_page.page_data(store.root)
    assert len(data["rows"]) == len(records) == 1
    (sentence,) = data["unreadable"]
    assert sentence.startswith("cifar10/resnet18/bad.json is not a readable record")
    assert str(tmp_path) not in json.dumps(data)


def test_only_failed_runs_make_a_table_and_no_curve(tmp_path):
    store = Store(tmp_path / "results")
    store.save(record_of(PLAIN, failed=True))
    data, _ = records_page.page_data(store.root)
    assert len(data["rows"]) == 1
    assert [(group["points"], group["failed"]) for group in data["groups"]] == [([], 1)]


def test_files_beside_the_page(tmp_path, store):
    """What an earlier build left is replaced; each record is there byte by byte."""
    source, built = tmp_path / "source", tmp_path / "built"
    (source / "book").mkdir(parents=True)
    (source / "results").symlink_to(store.root)
    app = SimpleNamespace(srcdir=str(source), outdir=str(built), builder=SimpleNamespace(format="html"))
    records_page.write_data(app)
    assert not built.exists()  # a book without this page
    (source / "book" / "records.md").touch()
    folder = built / "_static" / "records-data"
    (folder / "old").mkdir(parents=True)
    records_page.write_data(app)
    assert sorted({*files(folder)} - {"data.js", "records.csv"}) == files(store.root)
    for name in files(store.root)[:3]:
        assert (folder / name).read_bytes() == (store.root / name).read_bytes()
    start, _, content = (folder / "data.js").read_text("utf-8").partition(" = ")
    assert start == "window.RECORDS"
    assert len(json.loads(content.removesuffix(";\n"))["rows"]) == len(store.records())
    assert (folder / "records.csv").read_bytes() == records_csv(store.records())


# --- the CSV file


def test_csv_is_read_back_to_the_last_digit(store):
    records = store.records()
    frame = full_frame(records)
    back = pd.read_csv(io.BytesIO(records_csv(records)), dtype=str)
    assert list(back.columns) == list(frame.columns)
    assert len(back) == len(records)
    for name in set(frame.columns) - {"lr_drops"}:
        assert back[name].isna().tolist() == frame[name].isna().tolist(), name
        values = frame[name].dropna()
        kind = float if pd.api.types.is_numeric_dtype(values) and values.dtype != bool else str
        assert back[name].dropna().map(kind).tolist() == values.map(kind).tolist(), name
    drops = [tuple(map(float, str(text).split(","))) for text in back["lr_drops"]]
    assert drops == list(frame["lr_drops"])
    text = records_csv(records).decode()
    assert ",16," in text  # not 16.0, though other rows have no width
    assert set(back["failure"].dropna()) == {FAILURE["reason"]}
    assert set(back["failure_where"].dropna()) == {FAILURE["where"]}


def call(capsys, *words):
    code = cli.main([*map(str, words)])
    return code, *capsys.readouterr()


def test_export(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    records = store.records()
    failed = sum(record.failure is not None for record in records)
    said = f"all.csv: {len(records)} records, {failed} of failed runs\n"
    assert call(capsys, "export", "all.csv", "--results", store.root) == (0, said, "")
    assert Path("all.csv").read_bytes() == records_csv(records)

    Path("all.csv").write_text("mine")
    code, out, err = call(capsys, "export", "all.csv", "--results", store.root)
    assert (code, out) == (2, "")
    assert err == "pai: error: all.csv is there already: give another name, or --overwrite to replace it\n"
    assert Path("all.csv").read_text() == "mine"
    assert call(capsys, "export", "all.csv", "--results", store.root, "--overwrite")[:2] == (0, said)
    assert Path("all.csv").read_bytes() == records_csv(records)

    code, _, err = call(capsys, "export", "none.csv", "--results", "nowhere")
    assert code == 2
    assert err == "pai: error: --results nowhere: there is no such folder; make it first, or correct its name\n"
    assert files(tmp_path) == ["all.csv"]


def test_an_export_that_fails_leaves_nothing(store, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = call(capsys, "export", tmp_path / "all.csv", "--results", store.root)
    assert code == 2
    assert "No space left on device" in err
    assert files(tmp_path) == []


def test_fractions_in_the_csv_are_whole_to_the_last_digit():
    spec = RunSpec(dataset="digits", lr_drops=(1 / 3, 2 / 3))
    record = Record(spec, {}, None, {"fingerprint": "f" * 64}, {"device": "CPU"})
    back = pd.read_csv(io.BytesIO(records_csv([record])))
    assert [float(drop) for drop in back["lr_drops"][0].split(",")] == [1 / 3, 2 / 3]
