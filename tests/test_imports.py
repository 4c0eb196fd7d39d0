"""The library imports on Windows, which has neither ``fcntl`` nor ``resource``."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.modules[{name!r}] = None  # importing it raises ImportError
{code}
"""
CODE = "import pai_lib\nfrom pai_lib import cli\nassert cli.main(['criteria']) == 0"


@pytest.mark.parametrize("name", ["fcntl", "resource", "pwd", "grp", "termios"])
def test_it_imports_without_what_only_unix_has(name):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name, code=CODE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
