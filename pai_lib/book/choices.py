"""Which values a notebook's parameters may have: those of the fields of `RunSpec` that they are named after.

Others, and those for which that is too much, say it at the end of their comment: ``[at least 0 and
below 1]``, or ``[two or more, above 0]`` of a list.
"""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data.loading import dataset_names, find_own
from ..experiments.spec import RunSpec, choices
from ..training.device import resolve_device
from .parameters import INJECTED, checked, comment_after, kind_of, text_of

FIELDS = {each.name: each for each in fields(RunSpec)}
_LIMITS = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}
_LIMIT = rf"({'|'.join(_LIMITS)}) (-?[\d.]+)"


def field_of(parameter: str) -> str | None:
    """Return the field of `RunSpec` that a parameter is named after, by the whole name, its end or its plural.

    >>> field_of("sparsities"), field_of("records_model"), field_of("hidden")
    ('sparsity', 'model', None)
    """
    for field in sorted(FIELDS, key=len, reverse=True):
        plurals = (f"{field}s", re.sub("y$", "ies", field), re.sub("on$", "a", field))
        if any(f"_{parameter}".endswith(f"_{form}") for form in (field, *plurals)):
            return field
    return None


def _values(parameter: str, value: Any) -> list[Any]:
    """Return the values of the field that are in a parameter's value: of a plural, each in its list."""
    field = field_of(parameter)
    alone = field is None or not isinstance(value, list) or FIELDS[field].type.startswith("tuple")
    return [value] if alone else value


def bounds_of(comment: str) -> str:
    """Return the bounds that end a parameter's comment, or an empty text.

    >>> bounds_of("fraction of the labels [at least 0 and at most 1]"), bounds_of("units [of the network]")
    ('at least 0 and at most 1', '')
    """
    found = re.search(rf"\[((two or more, )?{_LIMIT}( and {_LIMIT})?)\]$", comment)
    return found[1] if found else ""


def _check_bounds(name: str, value: Any, bounds: str) -> None:
    """Raise ValueError unless each number is within the bounds, and a list of values holds some, each once."""
    given, items = f"{name}={text_of(value)}", value if isinstance(value, list) else [value]
    if not items:
        raise ValueError(f"{given}: it must hold at least one value.")
    if bounds.startswith("two or more") and len(items) < 2:
        raise ValueError(f"{given}: it must hold two values or more.")
    if twice := [item for number, item in enumerate(items) if item in items[:number]]:
        raise ValueError(f"{given}: {text_of(twice[0])} stands there twice.")
    if any(isinstance(item, int) and abs(item) >= 2**63 for item in items):
        raise ValueError(f"{given}: it must be below 2**63.")
    limits = [(_LIMITS[word], float(limit)) for word, limit in re.findall(_LIMIT, bounds)]
    for item in items:
        if (
            limits
            and item is not None
            and not all(math.isfinite(item) and test(item, at) for test, at in limits)
        ):
            raise ValueError(f"{given}: it must be {bounds}.")


def check_values(
    values: Mapping[str, Any], where: str, comments: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError unless values are within their bounds, and `RunSpec` takes those named after its fields.

    Args:
        values: of all parameters of a notebook, each of its declared type.
        where: begins the sentence.
        comments: of parameters, with the bounds that they declare.
    """
    for name, value in values.items():
        field, bounds = field_of(name), bounds_of((comments or {}).get(name, ""))
        try:
            if bounds or (field and not FIELDS[field].type.startswith("tuple")):
                _check_bounds(name, value, bounds)
            if name == "device":
                resolve_device(value)
            for one in _values(name, value):
                if (
                    field and one is not None
                ):  # where a notebook allows None it says what that means
                    RunSpec(
                        **{
                            field: one,
                            **({"criterion": "dense"} if (field, one) == ("sparsity", 0) else {}),
                        }
                    )
        except ValueError as error:
            what = (
                ""
                if name in (field, "device") or str(error).startswith(name)
                else f"{name}={text_of(value)}: "
            )
            raise ValueError(f"{where}: {what}{error}") from None
    together = {
        name: value for name, value in values.items() if name in FIELDS and value is not None
    }
    try:
        RunSpec(**together | ({"criterion": "dense"} if together.get("sparsity") == 0 else {}))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def located(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the user's own data named by their whole path: a notebook runs in another folder."""

    def whole(name: str) -> str:
        own = None if not name or name in dataset_names() else find_own(name)
        return str(own) if own and Path(name).expanduser().resolve() == own else name

    return {
        name: whole(value) if field_of(name) == "dataset" else value
        for name, value in values.items()
    }


def allowed(parameter: str) -> str:
    """Return in words which values a parameter may have, or an empty text where only its type counts."""
    field = field_of(parameter)
    if field is None:
        return ""
    if names := choices(field):
        return ", ".join(names) + (", or data of your own" if field == "dataset" else "")
    try:
        values: dict[str, Any] = {field: (-1,) if FIELDS[field].type.startswith("tuple") else -1}
        RunSpec(**values)
    except ValueError as error:  # it says what would be right
        return re.sub(r"^it must (not )?be ", r"\1", str(error).partition(": ")[2]).rstrip(".")
    return ""


def check_parameters(namespace: Mapping[str, Any]) -> None:
    """Check a notebook's parameters from inside: call it as ``pai.check_parameters(globals())``.

    Papermill only warns about a name that the notebook does not have, and injects values of any
    type. What was declared and injected is read from the history of executed cells, ``In``: globals
    also hold whatever a reader made in JupyterLab before running the cell again.

    Raises:
        ValueError: for an unknown name, a wrong type, or a value that `RunSpec` refuses in a field
            of that name.
    """
    annotations, comments, injected = {}, {}, []
    for source in namespace.get("In", []):
        with contextlib.suppress(SyntaxError):
            nodes = ast.parse(source).body
            for node in nodes:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    with contextlib.suppress(ValueError):  # an annotation of the reader's own
                        kind_of(annotation := ast.unparse(node.annotation))
                        annotations[node.target.id] = annotation
                        comments[node.target.id] = comment_after(source, node)
            if source.startswith(INJECTED):  # the latest one counts: it may have been corrected
                targets = [
                    t for node in nodes if isinstance(node, ast.Assign) for t in node.targets
                ]
                injected = [target.id for target in targets if isinstance(target, ast.Name)]
    names = [name for name in (*annotations, *injected) if name in namespace]
    where = "parameters"
    check_values(
        checked({name: namespace[name] for name in names}, annotations, where), where, comments
    )
