"""How far a long call, or a notebook's loop, has come: a bar for who waits, or a line in a file."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from .files import write_whole

PROGRESS_FILE = "PAI_PROGRESS"  # names the file, in the kernel of a notebook that `pai book` runs
DELAY = 5.0  # seconds after which a call is long

T = TypeVar("T")
_open: ContextVar[Bar | None] = ContextVar("bar", default=None)  # of this thread


class Bar(contextlib.AbstractContextManager[Any]):
    """The bar of a call: it appears on stderr (terminal or notebook) once the call takes long.

    One a call: within another that is open this one shows nothing. The outermost loop over `steps`
    makes its length; loops within that stand in words behind it.

    >>> with Bar("scoring"):
    ...     sum(step for step in steps(range(4), "probe"))
    6
    """

    def __init__(self, call: str, show: bool = True):
        self.call, self.show = call, show
        self.start, self.loops = time.monotonic(), list[list[Any]]()
        self.bar: Any = None
        _open.set(_open.get() or self)

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        if _open.get() is self:
            _open.set(None)
            self.clear()

    def clear(self) -> None:
        """Wipe it off the screen until a loop shows it again."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def tell(self) -> None:
        """Show how far the loops are, if it is time."""
        if not self.show or time.monotonic() - self.start < DELAY:
            return
        (unit, done, total), *inner = self.loops
        if self.bar is None:  # not before, for then each short call would start the thread of a bar
            options = {"unit": unit, "initial": done, "leave": False, "miniters": 0}
            self.bar = tqdm(desc=self.call, total=total, disable=_hidden(), **options)
        behind = ", ".join(f"{unit} {done} of {total}" for unit, done, total in inner)
        self.bar.set_postfix_str(behind, refresh=False)
        self.bar.update(done - self.bar.n)


def steps(items: Sequence[T], unit: str) -> Iterator[T]:
    """Iterate over `items` and show in the open bar, if there is one, how many of them are done."""
    bar = _open.get()
    if bar is None or len(items) < 2:
        yield from items
        return
    loop: list[Any] = [unit, 0, len(items)]
    bar.loops.append(loop)
    try:
        for item in items:
            yield item
            loop[1] += 1
            bar.tell()
    finally:
        bar.loops = [other for other in bar.loops if other is not loop]
        if not bar.loops:
            bar.clear()


def _hidden() -> bool | None:
    """Say tqdm's `disable`: bars are for a terminal (None: it looks) and who runs a notebook."""
    if os.environ.get("TQDM_DISABLE"):  # tqdm's own switch, as where outputs are compared
        return True
    by_hand = hasattr(builtins, "get_ipython") and not os.environ.get(PROGRESS_FILE)
    return False if by_hand else None


def with_progress(items: Sequence[Any], unit: str) -> Iterator[Any]:
    """Iterate over `items` and show how many are done, in a bar or to the process that runs this.

    >>> list(with_progress([], "run"))
    []
    """
    path = os.environ.get(PROGRESS_FILE)
    if not path:  # by hand, where a notebook shows a bar, and a terminal
        yield from tqdm(items, unit=unit, leave=False, disable=_hidden())
        return
    start = time.perf_counter()
    for done, item in enumerate(items):
        spent = time.perf_counter() - start
        left = spent / done * (len(items) - done) if done else None
        state = {"unit": unit, "number": done + 1, "of": len(items), "left": left}
        write_whole(Path(path), json.dumps(state).encode())
        yield item
    Path(path).unlink(missing_ok=True)
