"""The benchmarks run at toy size, and what they print follows from what they measured."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def measured(script, folder, *options):
    file = folder / "result.json"
    command = [sys.executable, str(BENCHMARKS / script), "--smoke", "--json", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_curvature_benchmark(tmp_path):
    result, table = measured("curvature.py", tmp_path)
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


def test_estimators_benchmark(tmp_path):
    result, table = measured("estimators.py", tmp_path)
    rows = {(row["estimator"], row["draws"], row["group"], row["temperature"]): row for row in result["rows"]}
    assert len(table.splitlines()) == len(result["rows"]) + 2
    assert all(row["error"] > 0 for key, row in rows.items() if key[0] != "exact")
    assert rows["Hutchinson", 3, None, 1.0]["error"] < rows["Hutchinson", 1, None, 1.0]["error"]


@pytest.mark.parametrize("option", [("--samples", "0"), ("--width", "1"), ("--only", "nothing")])
def test_bad_options_are_refused(option):
    command = [sys.executable, str(BENCHMARKS / "curvature.py"), *option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error" in done.stderr
