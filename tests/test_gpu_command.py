"""``make gpu`` says what it lacks before it starts, and one part that fails stops no other."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


def told(folder):
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


def test_what_is_missing_is_said_before_anything_starts(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "NEEDED", [*gpu.NEEDED, "no_such_module"])
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--json", str(tmp_path / "out")])
    assert f"error: {sys.executable} lacks what this needs: no_such_module." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_it_says_so(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--json", str(tmp_path / "out")])
    assert "error: PyTorch finds no CUDA device here" in capsys.readouterr().err


def test_a_part_that_fails_stops_no_other(gpu, monkeypatch, tmp_path, capsys):
    def raising(work):
        raise RuntimeError("it broke")

    def failing(work):
        assert work.call("-c", "print('in order'); raise SystemExit(3)") is False
        return {"rows": [1]}

    def endless(work):
        work.call("-c", "import time; time.sleep(600)")
        return {}

    parts = {"raising": raising, "failing": failing, "endless": endless}
    parts["fine"] = lambda work: {"missed": ["seconds"] * work.call("-c", "")}
    monkeypatch.setattr(gpu, "PARTS", {name: (part, 0.2) for name, part in parts.items()})
    start = time.monotonic()
    assert gpu.main(["--device", "cpu", "--seconds", "40", "--json", str(tmp_path), "--only", *parts]) == 1
    assert time.monotonic() - start < 120
    results = told(tmp_path)
    assert [each["status"] for each in results["gpu"]] == ["failed", "failed", "failed", "passed"]
    assert results["raising"]["reasons"] == ["RuntimeError: it broke"]
    assert results["failing"]["reasons"][0].startswith("exit code 3: python3 -c")
    assert results["failing"]["rows"] == [1]
    assert results["failing"]["output"][-1] == "in order"
    assert "the time of its part was up" in results["endless"]["reasons"][0]
    assert results["endless"]["seconds"] < 60
    out = capsys.readouterr().out
    assert "target missed: seconds" in out
    assert "1 passed or skipped, 3 failed" in out


def test_without_images_there_are_no_runs(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("PAI_DATA", str(tmp_path / "empty"))
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path), "--only", "sweep"]) == 0
    result = told(tmp_path)["sweep"]
    assert result["status"] == "skipped"
    assert result["skipped"].startswith(f"cifar10 is not in {tmp_path / 'empty'}: put cifar10.npz there")


def test_without_papermill_there_are_no_notebooks(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "NOTEBOOK_NEEDS", ("no_papermill",))
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path), "--only", "notebooks"]) == 0
    assert told(tmp_path)["notebooks"]["skipped"] == "no_papermill not installed"
