"""A file of the user's own criteria and profiles, known within a block and to nothing else."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..names import NameTakenError, nearest
from .criteria import CRITERIA, NEEDS
from .profiles import PROFILES


@dataclass(frozen=True)
class OwnFile:
    """A file's name, for sentences, and its text, which workers elsewhere need not find."""

    name: str
    text: str

    @classmethod
    def read(cls, path: str | Path) -> OwnFile:
        """The file of this path."""
        try:
            text = Path(path).read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}.") from None
        if "\0" in text:
            raise ValueError(f"{path} holds a null byte: it is no file of Python.")
        return cls(str(path), text)

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def title(self) -> str:
        """The name of the file's trial: no other text has it."""
        return f"{Path(self.name).stem}-{self.digest[:12]}"

    def at(self, function: Callable[..., Any]) -> str:
        """Where a function of the file begins: the start of a sentence about it."""
        code = getattr(function, "__code__", None)
        return f"{self.name}, line {code.co_firstlineno}" if code else self.name

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Raise what the file's own lines raise as a ValueError that names the last of them."""
        try:
            yield
        except (Exception, SystemExit) as error:
            line, at = 0, error.__traceback__
            while at:
                line = at.tb_lineno if at.tb_frame.f_code.co_filename == self.name else line
                at = at.tb_next
            if isinstance(error, SyntaxError) and error.filename in (self.name, None):
                line, error.filename = error.lineno or 0, None  # the sentence has both
                error.lineno = None
            if not line:
                raise
            taken = isinstance(error, NameTakenError)
            reason = str(error) if taken else f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.name}, line {line}: {reason}") from error


@dataclass(frozen=True)
class Own:
    """What a file that is known has registered."""

    file: OwnFile
    criteria: tuple[str, ...]
    profiles: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return self.criteria + self.profiles


MODULE = "pai_own_file"  # its name while it is known: a user may have imported an ``own``
KNOWN: list[OwnFile] = []
"""The files that are known now; records made meanwhile hold their texts, and workers load them."""


@contextmanager
def known(file: OwnFile) -> Iterator[Own]:
    """Know the criteria and profiles of a file within the block.

    The file is executed as a program of its own; what it imports is not part of its digest.

    Raises:
        ValueError: naming the line, for an error in the file, no function, a name that exists or
            cannot be a file's, and an argument that is no quantity of ``criteria.py``.
    """
    criteria, profiles, path = dict(CRITERIA), dict(PROFILES), list(sys.path)
    try:
        with file.blamed():
            sys.modules[MODULE] = module = ModuleType(MODULE)  # where dataclasses look
            module.__file__ = file.name
            sys.path.insert(0, str(Path(file.name).parent))  # of what it imports, as of a program's
            exec(compile(file.text, file.name, "exec", dont_inherit=True), vars(module))
        own = Own(file, _new(file, CRITERIA, criteria), _new(file, PROFILES, profiles))
        if not own.keys:
            way = "decorate one with @pai.criterion(…) or @pai.profile(…)"
            raise ValueError(f"{file.name} registers no function: {way}.")
        for key in own.criteria:
            _check_criterion(file, key)
        KNOWN.append(file)
        yield own
    finally:
        CRITERIA.clear()
        CRITERIA.update(criteria)
        PROFILES.clear()
        PROFILES.update(profiles)
        sys.path[:] = path
        sys.modules.pop(MODULE, None)
        if KNOWN and KNOWN[-1] is file:
            KNOWN.pop()


def _new(file: OwnFile, registry: dict[str, Any], before: dict[str, Any]) -> tuple[str, ...]:
    """Names that the file has added to a registry, if they are sound and were free."""
    for key, entry in registry.items():
        if entry is before.get(key):
            continue
        at = file.at(getattr(entry, "function", entry))
        if key in before or key in ("dense", "global"):
            raise ValueError(f"{at}: the name {key!r} exists already: give another.")
        if not key.isidentifier():
            raise ValueError(f"{at}: {key!r} names files, too: use letters, digits and '_'.")
    return tuple(key for key in registry if key not in before)


def _check_criterion(file: OwnFile, key: str) -> None:
    rule = CRITERIA[key]
    at = file.at(rule.function)
    for need in rule.needs:
        if need not in NEEDS:
            raise ValueError(f"{at}: {key} asks for {need!r}: {nearest(need, NEEDS)}")
    for other in CRITERIA.values():
        if other.label == rule.label and other.key != key:
            raise ValueError(f"{at}: the label {rule.label!r} is that of {other.key!r}.")
