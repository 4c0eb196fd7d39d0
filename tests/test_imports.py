"""The library imports on Windows, which has neither ``fcntl`` nor ``resource``."""

import subprocess
import sys

UNIX = ("fcntl", "resource", "pwd", "grp", "termios")
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({UNIX}))  # importing one raises ImportError
import pai_lib
from pai_lib import cli
assert cli.main(["criteria"]) == 0
"""


def test_it_imports_without_what_only_unix_has():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
