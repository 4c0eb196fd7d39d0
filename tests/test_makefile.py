"""What `make` offers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    assert targets[0] == re.search(r"^([a-z-]+):", text, re.MULTILINE)[1] == "book"  # what `make` alone does
    shown = subprocess.check_output(["make", "--no-print-directory", "help"], text=True, cwd=ROOT)
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert sorted(lines) == sorted(targets)
