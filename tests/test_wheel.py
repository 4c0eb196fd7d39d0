"""The wheel builds, holds the library and what notebooks read of a checkout, and installs."""

import os
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
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

    read = (".checkpoints" not in path.parts and path for path in (ROOT / "results").rglob("*.*"))
    read = [*filter(None, read), *(ROOT / "campaigns").iterdir(), *(ROOT / "benchmarks").glob("*.json")]
    committed = {f"pai_lib/committed/{path.relative_to(ROOT).as_posix()}" for path in read if path.is_file()}
    own = {name for name in committed if fnmatch(name, "*/results/trials/*/*.py")}  # as .gitignore has it

    assert names - about == sources | {"pai_lib/py.typed"} | (committed - own)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return what runs a program in an empty folder against the wheel's library, and its lines."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--target", place, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(place), "MPLBACKEND": "agg"}

    def run(program):
        options = {"cwd": tmp_path_factory.mktemp("empty"), "env": environment, "text": True}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, **options)
        assert done.returncode == 0, done.stderr
        first, *rest = done.stdout.splitlines()
        assert Path(first) == place / "pai_lib" / "__init__.py"
        assert list(options["cwd"].iterdir()) == []
        return rest

    return run


def test_it_runs_outside_of_the_project(installed):
    program = "import pai_lib; from pai_lib import cli; print(pai_lib.__file__); cli.main(['criteria'])"
    assert any(line.startswith("hutchinson_diag ") for line in installed(program))


BEGIN = """
import ast, json, pathlib, pai_lib
told = []
print(pai_lib.__file__)
for path in sorted(pathlib.Path({folder!r}).glob("*.ipynb")):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    parameters, first, *rest = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {{"In": [parameters]}}
    exec(parameters, names)
    checks = first.partition("pai.check_parameters(globals())")
    exec("".join(checks[:2]), names)
    if path.stem in {whole!r}:
        exec(checks[2], names)
    for source in (checks[2], *rest):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), names)
    told.append(path.stem)
print(*told)
"""


def test_every_notebook_begins_with_it_alone(installed):
    """The import, the check of the parameters, and later imports; the whole cell where it trains nothing."""
    pytest.importorskip("seaborn")
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    whole = ("cost", "not_trained", "signal_or_noise")
    told = installed(BEGIN.format(folder=str(ROOT / "notebooks"), whole=whole))
    assert told[-1].split() == notebooks


READ = """
import pai_lib as pai
from pai_lib.analysis import frames, illustrations, protocols
from pai_lib.experiments.records import default_results
from pai_lib.experiments.trial import read_protocol
print(pai.__file__)
results = default_results()
print(len(pai.Store(results).frame()), len(frames.masks_frame(pai.Store(results).mask_records())))
print(len(protocols.committed_runs("cifar10", "resnet18")))
print([len(illustrations.benchmarks(f"{name}-cpu.json")) for name in ("curvature", "estimators")])
print(read_protocol("digits-trial", 0.98).name, (results / "data.yaml").is_file())
print((results / "trials" / "ideas.py").is_file(), len(list((results / "published").iterdir())))
print(len(list((results.parent / "campaigns").glob("*.yaml"))))
"""


def test_what_notebooks_read_of_a_checkout_is_in_it(installed):
    here = subprocess.run([sys.executable, "-c", READ], cwd=ROOT, check=True, capture_output=True, text=True)
    assert installed(READ) == here.stdout.splitlines()[1:]
