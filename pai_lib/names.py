"""Names and numbers that a user gives: what is wrong with one, and which was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
import typing
from collections.abc import Callable, Iterable
from typing import Any

P = typing.ParamSpec("P")
R = typing.TypeVar("R")
MOST = 20  # names that one sentence lists


def closest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None if none is like it."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)), None)


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the known name most like `name`, then up to 20 of all.

    >>> nearest("snap", ["magnitude", "snip"])
    "did you mean 'snip'? Known: magnitude, snip."
    """
    known = list(known)
    close = closest(name, known)
    names = ", ".join(known[:MOST]) + (", …" if known[MOST:] else "") or "none"
    return f"did you mean {close!r}? Known: {names}." if close else f"known: {names}."


def count_of(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`; raise TypeError or ValueError naming another.

    >>> count_of("chunk", 2.5)
    Traceback (most recent call last):
    TypeError: chunk=2.5: it must be a whole number.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: it must be a whole number.") from None
    if number < least:
        raise ValueError(f"{name}={number}: it must be at least {least}.")
    return number


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
