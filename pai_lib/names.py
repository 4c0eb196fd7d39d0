"""Names and numbers that a user gives: what is wrong with one, and which was meant."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import math
import numbers
import operator
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

P = typing.ParamSpec("P")
R = typing.TypeVar("R")
MOST = 20  # names that one sentence lists
_LIMITS = {"at least": operator.ge, "above": operator.gt}
_LIMITS |= {"at most": operator.le, "below": operator.lt}
LIMIT = rf"({'|'.join(_LIMITS)}) (-?[\d.]+)"  # bounds are one or two of these, with words


def closest(name: object, names: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None if none is like it."""
    return next(iter(difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)), None)


def nearest(name: object, names: Iterable[str]) -> str:
    """Return the end of an error sentence: the known name most like `name`, then up to 20 of all.

    >>> nearest("snap", ["magnitude", "snip"])
    "did you mean 'snip'? Known: magnitude, snip."
    """
    names = list(names)
    close = closest(name, names)
    listed = ", ".join(names[:MOST]) + (", …" if names[MOST:] else "") or "none"
    return f"did you mean {close!r}? Known: {listed}." if close else f"known: {listed}."


class NameTakenError(ValueError):
    """A name that the library has given."""

    def __init__(self, name: str):
        super().__init__(f"the name {name!r} exists already: give another.")


def check_known(what: str, name: Any, names: Iterable[str]) -> None:
    """Raise ValueError unless a name is known.

    >>> check_known("criterion", "snap", ["magnitude", "snip"])
    Traceback (most recent call last):
    ValueError: Unknown criterion 'snap': did you mean 'snip'? Known: magnitude, snip.
    """
    names = list(names)
    if name not in names:
        raise ValueError(f"Unknown {what} {name!r}: {nearest(name, names)}")


def count_of(name: str, value: Any, least: int = 1, below: int = 2**63) -> int:
    """Return a whole number from `least` on; raise TypeError or ValueError naming another.

    >>> count_of("chunk", 2.5)
    Traceback (most recent call last):
    TypeError: chunk=2.5: it must be a whole number.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: it must be a whole number.")
    if not least <= number < below:
        bound = f"at least {least}" if number < least else f"below {below}"
        raise ValueError(f"{name}={number}: it must be {bound}.")
    return number


def within(number: float, bounds: str) -> bool:
    """Whether a number is within bounds in words.

    >>> within(0.5, "above 0 and at most 1"), within(0, "above 0 and at most 1")
    (True, False)
    """
    limits = re.findall(LIMIT, bounds)
    return all(_LIMITS[word](number, float(limit)) for word, limit in limits)


def check_number(name: str, value: Any, bounds: str) -> None:
    """Raise ValueError unless a value is a real, finite number within bounds in words.

    >>> check_number("lr", -1, "at least 0")
    Traceback (most recent call last):
    ValueError: lr=-1: it must be at least 0.
    """
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = float(value)
    kind = "" if math.isfinite(number) else "a finite number "
    if kind or not within(value, bounds):
        raise ValueError(f"{name}={value!r}: it must be {kind}{bounds}.")


def checked_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function answer a misspelt keyword with the nearest, before it does anything.

    Its keywords are those of its signature, and of the TypedDict behind ``**options: Unpack[...]``.

    >>> @checked_keywords
    ... def halve(number, *, digits=2): ...
    >>> halve(1, digit=3)
    Traceback (most recent call last):
    TypeError: halve() has no keyword 'digit': did you mean 'digits'? Known: number, digits.
    """
    keywords: list[str] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            keywords.append(parameter.name)
        elif parameter.kind is parameter.VAR_KEYWORD:
            for options in typing.get_args(parameter.annotation):
                keywords += options.__annotations__

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in keywords:
                sentence = f"has no keyword {name!r}: {nearest(name, keywords)}"
                raise TypeError(f"{function.__name__}() {sentence}")
        return function(*args, **kwargs)

    return checked
