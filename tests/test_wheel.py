"""The wheel builds, holds the library and nothing else, and installs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pai_lib

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_its_contents(wheel):
    assert wheel.name == f"pai_lib-{pai_lib.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert {name.rpartition("/")[2] for name in about} == {
        "METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"
    }  # fmt: skip
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pai_lib").rglob("*.py")}

    assert names - about == sources | {"pai_lib/py.typed"}


def test_it_installs_and_runs_outside_of_the_project(wheel, tmp_path):
    subprocess.run([*PIP, "install", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    program = "import sys, pai_lib; from pai_lib import cli; print(pai_lib.__file__); cli.main(['criteria'])"
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert Path(told[0]) == tmp_path / "installed" / "pai_lib" / "__init__.py"
    assert any(line.startswith("hutchinson_diag ") for line in told)
