"""Everything that needs a GPU, in one command: tests, timings, notebooks, runs of the paper's protocol.

    python3 benchmarks/gpu.py --device cuda --json FOLDER [--seconds 540] [--quick] [--only PART ...]

It needs PyTorch and a few packages beside it, no net and no Jupyter: what is missing is named before anything
starts. Five parts follow one another, each within its share of the time: the tests marked `gpu`, the estimators
beside their peers, seconds of an epoch of ResNet-18 and of the vision transformer, every notebook with
`-p device cuda` where papermill is installed, and, with the time that is left, `campaigns/gpu-first.yaml`, whose
data are looked for in $PAI_DATA. A part writes `FOLDER/<part>.json`: its status, its numbers and the end of its
output. `FOLDER/gpu.json` has all statuses, and the exit code is 1 if one failed. `--device cpu --quick` does the
same at toy size, in about two minutes, to see that it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "torch torchvision numpy scipy pandas sklearn safetensors filelock tqdm yaml PIL pytest hypothesis".split()
)
NOTEBOOK_NEEDS = ("papermill", "ipykernel", "matplotlib", "seaborn")
MARGIN = 10  # seconds that a process gets to end and to write


class Work:
    """A device, a folder of results, and how long there is."""

    def __init__(self, device: str, folder: Path, quick: bool):
        self.device, self.folder, self.quick = device, folder, quick
        self.end = float("inf")  # of the part under way
        self.said: list[str] = []
        self.failed: list[str] = []

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def call(self, *arguments: str, **environment: str) -> bool:
        """Run Python with these arguments until the part's time is up; whether it succeeded."""
        command = " ".join(("python3", *arguments))
        print(f"  {command}", flush=True)
        self.said.append(f"$ {command}")
        if self.left <= 0:
            self.failed.append(f"there was no time left for {command}")
            return False
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": paths, **environment}, start_new_session=True,
        )  # fmt: skip
        reason = ""
        try:
            out, _ = process.communicate(timeout=self.left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            out, _ = process.communicate()
            reason = f"it was ended when the time of its part was up: {command}"
        self.said += out.splitlines()[-60:]
        if process.returncode and not reason:
            reason = f"exit code {process.returncode}: {command}"
        self.failed += [reason] * bool(reason)
        return not reason


def tests(work: Work) -> dict:
    """The tests marked `gpu`."""
    report = work.folder / "tests.xml"
    options = ("-m", "gpu", "-p", "no:cacheprovider", "--junitxml", str(report))
    work.call("-m", "pytest", "-q", *options, "tests/test_gpu.py", PAI_TEST_DEVICE=work.device)
    if not report.is_file():
        return {}
    cases = list(ElementTree.parse(report).iter("testcase"))
    report.unlink()
    failed = [case.get("name") for case in cases if {"failure", "error"} & {child.tag for child in case}]
    left_out = sum(case.find("skipped") is not None for case in cases)
    if left_out == len(cases):
        work.failed.append("every test was skipped")
    return {"tests": len(cases), "left out": left_out, "failed": failed}


def measured(work: Work, script: str, name: str, *options: str) -> dict:
    """Run a benchmark; return its machine and rows, and which targets were missed."""
    file = work.folder / f"{name}.json"
    smoke = ("--smoke",) if work.quick else ()
    work.call(f"benchmarks/{script}.py", "--device", work.device, *smoke, *options, "--json", str(file))
    if not file.is_file():
        return {}
    result = json.loads(file.read_text("utf-8"))
    file.unlink()
    missed = [row["quantity"] for row in result["rows"] if row["met"] is False and not work.quick]
    return {"missed": missed, **result}


def estimators(work: Work) -> dict:
    """Time and memory of the estimators."""
    return measured(work, "curvature", "curvature")


def training(work: Work) -> dict:
    """Seconds of an epoch of 50,000 images on a GPU, as they are and compiled."""
    found = {}
    for contender in ("bf16",) if work.quick else ("bf16", "bf16 compiled"):
        for model, width in (("resnet18", "64"), ("vit_cifar", "192")):
            options = ("--model", model, "--widths", width, "--only", contender)
            found[f"{model}, {contender}"] = measured(work, "training", "epoch", *options)
    return {"missed": [row for each in found.values() for row in each.get("missed", [])], "epochs": found}


def notebooks(work: Work) -> dict:
    """Every notebook that has a parameter `device`, on this one."""
    if missing := absent(NOTEBOOK_NEEDS):
        return {"skipped": f"{', '.join(missing)} not installed"}
    done = {}
    for source in sorted((ROOT / "notebooks").glob("criteria.ipynb" if work.quick else "*.ipynb")):
        cells = json.loads(source.read_text("utf-8"))["cells"]
        if not any(line.startswith("device:") for cell in cells for line in cell["source"]):
            continue
        start = time.monotonic()
        target, options = (
            work.folder / source.name,
            ("-k", "python3", "--cwd", "notebooks", "-p", "device", work.device),
        )
        fine = work.call("-m", "papermill", "--no-progress-bar", f"notebooks/{source.name}", str(target), *options)
        done[source.stem] = {"fine": fine, "seconds": round(time.monotonic() - start, 1)}
        target.unlink(missing_ok=True)
    return {"notebooks": done}


def sweep(work: Work) -> dict:
    """Runs of the paper's protocol, the most useful first; on toy data if it is quick."""
    campaign = "campaigns/digits.yaml" if work.quick else "campaigns/gpu-first.yaml"
    root = Path(os.environ.get("PAI_DATA") or "~/.cache/pai_lib").expanduser()
    if not work.quick and not ((root / "cifar10.npz").is_file() or (root / "cifar-10-batches-py").is_dir()):
        return {"skipped": f"cifar10 is not in {root}: put cifar10.npz there, or say in PAI_DATA where it is"}
    budget = min(work.left - 3 * MARGIN, 20.0 if work.quick else float("inf"))  # the epoch under way has to end
    if budget <= 0:
        return {"skipped": "there was no time left"}
    records = work.folder / "records"
    records.mkdir(parents=True, exist_ok=True)
    options = ("--device", work.device, "--budget", f"{budget:.0f}", "--results", str(records))
    work.call("-m", "pai_lib.cli", "sweep", campaign, *options)
    return {"records": [json.loads(path.read_text("utf-8")) for path in sorted(records.rglob("*.json"))]}


# Each with its share of the time at most; the last has what is left.
PARTS: dict[str, tuple[Callable[[Work], dict], float]] = {
    "tests": (tests, 0.3),
    "estimators": (estimators, 0.35),
    "training": (training, 0.3),
    "notebooks": (notebooks, 0.25),
    "sweep": (sweep, 1.0),
}


def absent(names: tuple[str, ...] | list[str]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def problem(device: str) -> str:
    """Why nothing can start, in one sentence; empty if it can."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this script is run where nothing was installed)
        return f"Python 3.11 or later is needed, and this is {platform.python_version()}."
    if missing := absent(NEEDED):
        return f"{sys.executable} lacks what this needs: {', '.join(missing)}."
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here: give --device cpu --quick to see that the script works."
    return ""


def do(name: str, work: Work, seconds: float) -> dict:
    """Do one part; whatever happens in it, the next can follow."""
    function, _ = PARTS[name]
    work.said, work.failed, start = [], [], time.monotonic()
    work.end = start + seconds
    try:
        found = function(work)
    except Exception as error:  # a part that fails does not stop the others
        found = {}
        work.failed.append(f"{type(error).__name__}: {error}")
    status = "failed" if work.failed else "skipped" if "skipped" in found else "passed"
    result = {"part": name, "status": status, "reasons": work.failed, "device": work.device, "quick": work.quick}
    result |= {"seconds": round(time.monotonic() - start, 1), "allowed": round(seconds, 1), **found}
    file = work.folder / f"{name}.json"
    file.write_text(json.dumps({**result, "output": work.said}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--seconds", type=float, default=540, help="in all, at most (default: 540)")
    parser.add_argument("--quick", action="store_true", help="toy size: the numbers mean nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    args = parser.parse_args(arguments)
    if why := problem(args.device):
        parser.error(why)
    end = time.monotonic() + args.seconds
    args.json.mkdir(parents=True, exist_ok=True)
    work, results = Work(args.device, args.json.resolve(), args.quick), []
    for name in args.only:
        print(f"{name}:", flush=True)
        share = args.seconds * (PARTS[name][1] if len(args.only) > 1 else 1.0)
        results.append(do(name, work, max(0.0, min(share, end - time.monotonic() - MARGIN))))
        lines = [*results[-1]["reasons"], *[f"target missed: {what}" for what in results[-1].get("missed", [])]]
        lines += [results[-1]["skipped"]] if "skipped" in results[-1] else []
        print("\n    ".join([f"  {results[-1]['status']} in {results[-1]['seconds']} s", *lines]), flush=True)
    summary = [{key: each[key] for key in ("part", "status", "reasons", "seconds")} for each in results]
    (args.json / "gpu.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
    failed = [each["part"] for each in results if each["status"] == "failed"]
    print(f"{len(results) - len(failed)} passed or skipped, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
