"""How far a loop in a notebook has come: a bar for who runs it there, a line in a file for who executes it."""

from __future__ import annotations

import builtins
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

PROGRESS_FILE = "PAI_PROGRESS"  # names the file; set in the kernel of a notebook that `pai book` executes


def with_progress(items: Sequence[Any], unit: str) -> Iterator[Any]:
    """Iterate over `items` and show how many of them are done, in a bar or for the process that executes this.

    >>> list(with_progress([], "run"))
    []
    """
    path = os.environ.get(PROGRESS_FILE)
    if not path:  # by hand, where a notebook shows a bar, and a terminal
        yield from tqdm(items, unit=unit, leave=False, disable=False if hasattr(builtins, "get_ipython") else None)
        return
    start = time.perf_counter()
    for done, item in enumerate(items):
        spent = time.perf_counter() - start
        left = spent / done * (len(items) - done) if done else None
        temporary = Path(f"{path}.part")
        temporary.write_text(json.dumps({"unit": unit, "number": done + 1, "of": len(items), "left": left}))
        os.replace(temporary, path)  # whoever reads it finds the whole of it
        yield item
    Path(path).unlink(missing_ok=True)
