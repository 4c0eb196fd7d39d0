"""The mutation tests know which lines a test executes, and have something to change in each file of the core."""

import json
import subprocess
import sys
from pathlib import Path

import mutants

ROOT = Path(__file__).parents[1]
RECORD = (
    "import sys; from pathlib import Path; import mutants; mutants.record({root}, sys.argv[1], Path(sys.argv[2]))"
)


def test_the_lines_that_tests_execute_are_those_of_the_core(tmp_path):
    path = tmp_path / "lines.json"
    script = RECORD.format(root=f"Path({str(ROOT)!r})")
    command = [sys.executable, "-c", script, "pai_lib/curvature/diagonals.py", str(path)]  # its doctests
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = json.loads(path.read_text())
    assert tests
    modules = {module for test in tests.values() for module in test["lines"]}
    assert {"curvature/diagonals", "curvature/graph"} <= modules <= set(mutants.CORE)


def test_every_module_of_the_core_has_mutants():
    for name in mutants.CORE:
        source = (ROOT / "pai_lib" / f"{name}.py").read_text("utf-8")
        found = mutants.mutants_of(name, source)
        assert found
        assert all(mutant.apply(source) != source for mutant in found)
