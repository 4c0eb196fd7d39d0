"""The benchmarks run at toy size, and what they print follows from what they measured."""

import importlib
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(name):
        file = tmp_path / "result.json"
        importlib.import_module(name).main(["--smoke", "--json", str(file)])
        return json.loads(file.read_text()), capsys.readouterr().out

    return run


def test_curvature_benchmark(measured):
    result, table = measured("curvature")
    rows = result["rows"]
    assert table.count("\n| ") == len(rows) + len(result["linearity"]) + 2  # and two headings
    for row in rows:
        if row["problem"]:
            assert "not installed" in row["problem"] or row["key"] == "memory"
            assert row["values"] == []
            continue
        assert row["median"] == statistics.median(row["values"])
        assert f"| {row['quantity']} | {row['median']:.3g} {row['unit']}" in table
        if row["disagreement"] is not None:
            assert row["disagreement"] <= 1e-3
        if row["target"]:
            sign, bound = row["target"]
            assert row["met"] is (row["median"] <= bound if sign == "≤" else row["median"] >= bound)
    by_key = {row["key"]: row for row in rows}
    spent = by_key["fisher/gradient"]["seconds"]
    assert by_key["fisher/gradient"]["values"] == [
        pytest.approx(a / b) for a, b in zip(spent["fisher"], spent["gradient"], strict=True)
    ]
    assert by_key["loop/fisher"]["disagreement"] is not None
    assert by_key["paper/exact"]["disagreement"] is not None
    for fit in result["linearity"]:
        assert len(fit["x"]) == len(fit["seconds"])
        assert fit["r2"] <= 1


def test_estimators_benchmark(measured):
    result, table = measured("estimators")
    rows = {(row["estimator"], row["draws"], row["group"], row["temperature"]): row for row in result["rows"]}
    assert len(table.splitlines()) == len(result["rows"]) + 2
    assert all(row["error"] > 0 for key, row in rows.items() if key[0] != "exact")
    assert rows["Hutchinson", 3, None, 1.0]["error"] < rows["Hutchinson", 1, None, 1.0]["error"]


def test_training_benchmark(measured):
    result, table = measured("training")
    rows = {row["key"]: row for row in result["rows"]}
    epochs = {name: np.array(values[1:]) for name, values in result["epochs"]["4"].items()}
    assert set(epochs) == {"plain", "float32", "bf16"}
    assert table.count("\n| ") == len(rows) + 1
    for column, key in enumerate(("plain/bf16/4/0", "plain/bf16/4/1")):
        assert rows[key]["values"] == pytest.approx(list(epochs["plain"][:, column] / epochs["bf16"][:, column]))
    assert rows["bf16/4"]["values"] == pytest.approx(list(40 / epochs["bf16"][:, 0]))
    assert rows["plain/bf16/4/0"]["target"] == ["≥", 1.8]


def test_sweep_benchmark(measured):
    result, table = measured("sweep")
    assert len(table.splitlines()) == 6
    assert result["listing"]["records"] == 20
    assert result["overhead"]["runs"] == 3
    spent = result["overhead"]["seconds a run"] + result["checkpoints"][-1]["seconds"] / 2
    assert result["percent of a 30-second run"] == pytest.approx(100 * spent / 30)


@pytest.mark.parametrize("option", [("--samples", "0"), ("--width", "1"), ("--only", "nothing")])
def test_bad_options_are_refused(option, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(SystemExit):
        importlib.import_module("curvature").main(list(option))
    assert "error: " in capsys.readouterr().err


def test_the_readme_shows_the_committed_measurements():
    rows = json.loads((BENCHMARKS / "curvature-cpu.json").read_text())["rows"]
    readme = (BENCHMARKS.parent / "README.md").read_text("utf-8")
    for row in rows:
        assert f"| {row['quantity']} | {row['median']:.3g} {row['unit']}" in readme
        if row["met"] is not None:
            assert (
                f"{row['target'][0]} {row['target'][1]:g} {row['unit']} | {'yes' if row['met'] else 'no'} |"
                in readme
            )
