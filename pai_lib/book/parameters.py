"""Names and values that a user gives, checked; above all the parameters of a notebook.

They are declared in its first code cell and checked before and while it runs.

The cell has the tag ``parameters`` and holds annotated literals, ``hidden: int = 16  # units [at
least 1]``: the meaning and, where `RunSpec` has no field of that name to say it, the bounds.
"""

import ast
import contextlib
import json
import tokenize
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..files import core_value
from ..names import nearest

INJECTED = "# Parameters"  # first line of the cell that papermill injects
_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: ``name: annotation = default  # help``."""

    name: str
    annotation: str
    default: Any
    help: str


def kind_of(annotation: str) -> Any:
    """Return the type that an annotation names: bool, int, float, str, list of these, a union."""
    try:
        kind = eval(annotation, {"__builtins__": {}}, _TYPES)
    except Exception:
        kind = None
    if not isinstance(kind, type | types.GenericAlias | types.UnionType):
        kinds = "bool, int, float, str, list[...] or '... | None'"
        raise ValueError(f"annotation {annotation!r}: use {kinds}")
    return kind


def _fit(value: Any, kind: Any) -> Any:
    """Return `value` as a `kind` (an int may stand for a float), or raise TypeError."""
    if isinstance(kind, types.UnionType):
        for arm in typing.get_args(kind):
            with contextlib.suppress(TypeError):
                return _fit(value, arm)
    elif isinstance(value, list) and (kind is list or typing.get_origin(kind) is list):
        return [_fit(item, arm) for item in value for arm in typing.get_args(kind)] or list(value)
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:  # not isinstance: a bool is no int
        return value
    raise TypeError


def _read(text: str, kind: Any) -> Any:
    """Return the text of a command line as a `kind`, or raise ValueError.

    YAML only splits lists here: what is no string is read as in a file of parameters.
    """
    if isinstance(kind, types.UnionType):
        if types.NoneType in typing.get_args(kind) and text in ("null", "None", "~"):
            return None
        for arm in sorted(typing.get_args(kind), key=lambda arm: arm is str):  # it fits any text
            with contextlib.suppress(ValueError):
                return _read(text, arm)
    elif typing.get_origin(kind) is list:
        try:
            items = yaml.load(text, Loader=yaml.BaseLoader)
        except yaml.YAMLError:
            items = None
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return [_read(item, typing.get_args(kind)[0]) for item in items]
    elif kind in (bool, int, float, str):
        return core_value(kind.__name__, text)
    raise ValueError(text)


def text_of(value: Any) -> str:
    """Return `value` as `_read` takes it on a command line."""
    if isinstance(value, str):
        return value
    form: dict[str, Any] = {"default_flow_style": True, "width": 10**6, "allow_unicode": True}
    return yaml.safe_dump(value, **form).splitlines()[0]


def checked(
    values: Mapping[str, Any], annotations: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Return values as their declared types; ValueError for an unknown name or a wrong type."""
    result = {}
    for name, value in values.items():
        if name not in annotations:
            hint = nearest(name, annotations)
            raise ValueError(f"{where}: no parameter is named {name!r}; {hint}")
        try:
            result[name] = _fit(value, kind_of(annotations[name]))
        except TypeError:
            actual = f"{value!r} ({type(value).__name__})"
            raise ValueError(f"{where}: {name} must be {annotations[name]}, not {actual}") from None
    return result


def parse_overrides(pairs: Iterable[str], declared: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the values of ``name=value`` texts, read as the types that the notebook declares.

    >>> parse_overrides(["lr=1e-3"], {"lr": Parameter("lr", "float", 0.1, "step size")})
    {'lr': 0.001}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"-p {pair}: write name=value")
        if name in values:
            raise ValueError(f"-p {pair}: {name} is given twice, first as {text_of(values[name])}")
        if name not in declared:
            hint = nearest(name, declared)
            raise ValueError(f"-p {pair}: no parameter is named {name!r}; {hint}")
        annotation, default = declared[name].annotation, declared[name].default
        try:
            values[name] = _read(text, kind_of(annotation))
        except ValueError:
            right = f"{annotation}, for example {name}={text_of(default)}"
            raise ValueError(f"-p {pair}: {name} must be {right}") from None
    return values


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook: of its first code cell, tagged ``parameters``."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cell = next((cell for cell in cells if cell["cell_type"] == "code"), None)
    if cell is None or "parameters" not in cell["metadata"].get("tags", []):
        raise ValueError(f"{path.name}: the first code cell must have the tag 'parameters'")
    source, declared = "".join(cell["source"]), {}
    try:
        nodes = ast.parse(source).body
    except SyntaxError as error:
        line = f"{path.name}, parameters cell, line {error.lineno}"
        raise ValueError(f"{line}: {error.msg}") from None
    for node in nodes:
        line = f"{path.name}, parameters cell, line {node.lineno}"
        if not isinstance(node, ast.AnnAssign) or not node.simple or node.value is None:
            raise ValueError(f"{line}: write name: type = default  # help")
        name, annotation = ast.unparse(node.target), ast.unparse(node.annotation)
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"{line}: the default of {name} must be a literal") from None
        default = checked({name: default}, {name: annotation}, line)[name]
        declared[name] = Parameter(name, annotation, default, comment_of(source, node))
    return declared


def comment_of(source: str, node: ast.stmt) -> str:
    """Return the comments behind a statement of a cell, or within one of several lines."""
    lines = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    tokens = tokenize.generate_tokens(iter(lines).__next__)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(comment.lstrip("# ") for comment in comments)
