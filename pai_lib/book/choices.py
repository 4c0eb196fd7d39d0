"""Which values a notebook's parameters may have: those of `RunSpec`'s fields of that name.

Others, and those for which that is too much, say it at the end of their comment: ``[at least 0 and
below 1]``, or ``[two or more, above 0]`` of a list.
"""

import ast
import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.loading import dataset_names, find_own
from ..experiments import spec
from ..experiments.spec import FIELDS, RunSpec, is_list
from ..experiments.trial import protocol_file
from ..files import whole_path
from ..names import LIMIT, within
from ..training.device import resolve_device
from .parameters import INJECTED, checked, comment_of, kind_of, text_of

PLACES = {"file": Path.is_file, "records": Path.is_dir}  # parameters that hold a path, or nothing


def field_of(parameter: str) -> str | None:
    """Return the field of `RunSpec` that a parameter, its end or its singular is called.

    >>> field_of("sparsities"), field_of("records_model"), field_of("hidden")
    ('sparsity', 'model', None)
    """
    for field in sorted(FIELDS, key=len, reverse=True):
        plurals = (f"{field}s", re.sub("y$", "ies", field), re.sub("on$", "a", field))
        if f"_{parameter}".endswith(tuple(f"_{form}" for form in (field, *plurals))):
            return field
    return None


def bounds_of(comment: str) -> str:
    """Return the bounds that end a parameter's comment, or an empty text.

    >>> bounds_of("part of the labels [at least 0 and at most 1]"), bounds_of("units [of a layer]")
    ('at least 0 and at most 1', '')
    """
    match = re.search(rf"\[((two or more, )?{LIMIT}( and {LIMIT})?)\]$", comment)
    return match[1] if match else ""


def _check_bounds(name: str, value: Any, bounds: str) -> None:
    """Raise ValueError unless numbers are within bounds, and a list has some values, each once."""
    start, items = f"{name}={text_of(value)}: ", value if isinstance(value, list) else [value]
    if not items:
        raise ValueError(f"{start}it must hold at least one value.")
    if bounds.startswith("two or more") and len(items) < 2:
        raise ValueError(f"{start}it must hold two values or more.")
    for number, item in enumerate(items):
        if item in items[:number]:
            raise ValueError(f"{start}{text_of(item)} stands there twice.")
        if isinstance(item, int) and abs(item) >= 2**63:
            raise ValueError(f"{start}it must be below 2**63.")
        if bounds and item is not None and not (math.isfinite(item) and within(item, bounds)):
            raise ValueError(f"{start}it must be {bounds}.")


def check_values(
    values: Mapping[str, Any], where: str, comments: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError for values out of bounds, or that `RunSpec` does not take in its fields.

    Args:
        values: of all parameters of a notebook, each of its declared type.
        where: begins the sentence.
        comments: of parameters, with the bounds that they declare.
    """
    try:
        for name, value in values.items():
            _check_value(name, value, bounds_of((comments or {}).get(name, "")))
        fields = {name: values[name] for name in FIELDS if values.get(name) is not None}
        if fields.get("sparsity") == 0:
            fields["criterion"] = "dense"
        RunSpec(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_value(name: str, value: Any, bounds: str) -> None:
    field = field_of(name)
    if name == "device":
        resolve_device(value)
    if name == "protocol":
        protocol_file(value)
    if name in PLACES and value and not PLACES[name](Path(value)):
        raise ValueError(
            f"{name}={value}: there is no such {'file' if name == 'file' else 'folder'}."
        )
    if bounds or (field and not is_list(field)):
        _check_bounds(name, value, bounds)
    if field is None or value is None:  # where a notebook allows None it says what that means
        return
    try:
        for item in value if isinstance(value, list) and not is_list(field) else [value]:
            spec.field_value(field, item)
            spec.check_name(field, item)
    except ValueError as error:
        raise ValueError(error if name == field else f"{name}={text_of(value)}: {error}") from None


def located(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with files of one's own by their whole path: a notebook runs elsewhere."""
    result = dict(values)
    for name, value in values.items():
        path = whole_path(str(value))
        own = field_of(name) == "dataset" and value not in dataset_names()
        if value and (name in PLACES or (own and find_own(value) == path)):
            result[name] = str(path)
    return result


def allowed(parameter: str) -> str:
    """Return in words which values a parameter may have, or nothing where only its type counts."""
    field = field_of(parameter)
    if field is None:
        return ""
    if names := spec.choices(field):
        return ", ".join(names) + (", or data of your own" if field == "dataset" else "")
    return str(FIELDS[field].metadata.get("bounds", ""))


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
        try:
            nodes = ast.parse(source).body
        except SyntaxError:
            continue
        for node in nodes:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                annotation = ast.unparse(node.annotation)
                with contextlib.suppress(ValueError):  # an annotation of the reader's own
                    kind_of(annotation)
                    annotations[node.target.id] = annotation
                    comments[node.target.id] = comment_of(source, node)
        if source.startswith(INJECTED):  # the latest one counts: it may have been corrected
            targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
            injected = [target.id for target in targets if isinstance(target, ast.Name)]
    values = {name: namespace[name] for name in (*annotations, *injected) if name in namespace}
    check_values(checked(values, annotations, "parameters"), "parameters", comments)
