"""Which values a notebook's parameters may have: those of the fields of `RunSpec` that they are named after."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .data import dataset_names, find_own
from .parameters import INJECTED, checked, kind_of, text_of
from .runs import resolve_device
from .spec import RunSpec, choices

FIELDS = {each.name: each for each in fields(RunSpec)}


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


def check_values(values: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless `RunSpec` takes the values of all parameters that are named after its fields.

    Args:
        values: of all parameters of a notebook, each of its declared type.
        where: begins the sentence.
    """
    for name, value in values.items():
        field = field_of(name)
        try:
            if name == "device":
                resolve_device(value)
            for one in _values(name, value):
                if field and one is not None:  # where a notebook allows None it says what that means
                    RunSpec(**{field: one, **({"criterion": "dense"} if (field, one) == ("sparsity", 0) else {})})
        except ValueError as error:
            what = "" if name in (field, "device") else f"{name}={text_of(value)}: "
            raise ValueError(f"{where}: {what}{error}") from None
    together = {name: value for name, value in values.items() if name in FIELDS and value is not None}
    try:
        RunSpec(**together | ({"criterion": "dense"} if together.get("sparsity") == 0 else {}))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def located(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the user's own data named by their whole path: a notebook runs in another folder."""

    def whole(name: str) -> str:
        own = None if not name or name in dataset_names() else find_own(name)
        return str(own) if own and Path(name).expanduser().resolve() == own else name

    return {name: whole(value) if field_of(name) == "dataset" else value for name, value in values.items()}


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

    Papermill only warns about a name that the notebook does not have, and injects values of any type.
    What was declared and injected is read from the history of executed cells, ``In``: globals also hold
    whatever a reader made in JupyterLab before running the cell again.

    Raises:
        ValueError: for an unknown name, a wrong type, or a value that `RunSpec` refuses in a field of that name.
    """
    annotations, injected = {}, []
    for source in namespace.get("In", []):
        with contextlib.suppress(SyntaxError):
            nodes = ast.parse(source).body
            for node in nodes:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    with contextlib.suppress(ValueError):  # an annotation of the reader's own
                        kind_of(annotation := ast.unparse(node.annotation))
                        annotations[node.target.id] = annotation
            if source.startswith(INJECTED):  # the latest one counts: it may have been corrected
                targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
                injected = [target.id for target in targets if isinstance(target, ast.Name)]
    names = [name for name in (*annotations, *injected) if name in namespace]
    check_values(checked({name: namespace[name] for name in names}, annotations, "parameters"), "parameters")
