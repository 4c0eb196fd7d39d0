"""Fields of a specification as options of the command line: their names, values and errors."""

from __future__ import annotations

import argparse
import re
from dataclasses import Field
from typing import Any

from ..files import core_value
from .spec import FIELDS, is_list


def flag(name: str) -> str:
    """The option of a field.

    >>> flag("samples_per_class")
    '--samples-per-class'
    """
    return f"--{name.replace('_', '-')}"


def text_of(value: Any) -> str:
    """Return a default as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def read(field: Field[Any], text: str) -> Any:
    """Return an option's text as its field's type; ``none`` is None, or no number in a list."""
    kind, several = field.metadata["kind"], is_list(field.name)
    ending = " or none" if field.default is None else ""
    if text.lower() == "none" and (ending or several):
        return () if several else None
    try:
        parts = text.replace(" ", "").split(",") if several else [text.strip()]
        values = [core_value(kind.__name__, part) for part in parts]  # as in campaign files
        return tuple(values) if several else values[0]
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        wanted = "numbers with commas between them" if several else wanted
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}{ending}") from None


def in_options(sentence: str) -> str:
    """A sentence about fields as one about options.

    >>> in_options("lr_drops=(0.5, 2.0): each is a fraction; criterion='snip' may stay.")
    '--lr-drops 0.5,2.0: each is a fraction; --criterion snip may stay.'
    """
    value = r"""(\(.*?\)|"[^"]*"|'[^']*'|[\w.+-]*\w)"""

    def option(match: re.Match[str]) -> str:
        words = re.findall(r"""[^\s(),"']+""", match[2])
        return f"{flag(match[1])} {','.join(words)}"

    start = r"(?<![\w/\\'\"-])"  # not within a path or a name
    return re.sub(rf"{start}({'|'.join(FIELDS)})={value}", option, sentence)
