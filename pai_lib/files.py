"""Files: written whole or not at all, and YAML 1.2 read as its specification says."""

from __future__ import annotations

import contextlib
import os
import re
import typing
import uuid
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

# The core schema of YAML 1.2.2, section 10.3.2; and the merges of YAML 1.1, which everybody writes.
_CORE_SCHEMA = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
    "str": r"(?s:.*)",
}
_TAG = "tag:yaml.org,2002:"


def core_value(kind: str, text: str, start: str = "") -> Any:
    """Return a text as a kind of the core schema; ValueError, begun by `start`, for another.

    >>> core_value("int", "010"), core_value("float", "-.inf")
    (10, -inf)
    """
    if not re.fullmatch(_CORE_SCHEMA[kind], text):
        raise ValueError(f"{start}{text!r} is no {kind} of YAML 1.2.")
    if kind == "int":
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if kind == "float":
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2: 010 is ten, 1e-3 a number, `no`, 1:30 and dates are text; no key stands twice.

    A tag is one of the core schema, and its text is of that kind.
    """

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}
    yaml_constructors: typing.ClassVar[dict[str, Any]] = {}

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        event = self.peek_event()
        event.tag = f"{_TAG}str" if event.tag == "!" else event.tag
        return super().compose_scalar_node(anchor)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: list[Any] = []
        for key_node, _ in node.value:  # before merges: a mapping may override what it merges
            key = self.construct_object(key_node, deep=True)
            if key in seen or str(key) in seen:  # 1 and 1.0 are one key, 1 and "1" look like one
                raise ValueError(
                    f"line {node.start_mark.line + 1}: {str(key)!r} stands there twice."
                )
            seen += [key, str(key)]
        return node

    def construct_core(self, node: Any) -> Any:
        kind, start = node.tag.removeprefix(_TAG), f"line {node.start_mark.line + 1}: "
        if kind not in _CORE_SCHEMA:
            raise ValueError(f"{start}the tag {kind!r} is none of YAML 1.2: leave it out.")
        return core_value(kind, self.construct_scalar(node), start)


for _name, _pattern in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})$"), None)
for _name in ("seq", "map"):
    _Loader.add_constructor(f"{_TAG}{_name}", getattr(yaml.SafeLoader, f"construct_yaml_{_name}"))
_Loader.add_constructor(None, _Loader.construct_core)


def load_yaml(path: Path) -> Any:
    """Return what a YAML 1.2 file holds.

    Raises:
        ValueError: for a file that is not YAML or holds a key twice. It names file and line.
    """
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except RecursionError:
        reason = "it holds itself, or is nested too deep."
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).replace('in "<byte string>", ', "at ").split())
    raise ValueError(f"{path}: {reason}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, down to the disk. OSError names it and the reason."""
    if not path.name or "\0" in str(path):
        raise ValueError(f"{str(path)!r} is no name of a file.")
    # Of mkstemp's file nobody else could read what becomes of it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}: not written", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def whole_path(path: str | Path) -> Path:
    """A path from the root on, without ~ and links as far as that can be had."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def tensors_of(file: Any) -> dict[str, Tensor]:
    """All tensors of an open safetensors file, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def plain_copy(tensor: Tensor) -> Tensor:
    """A plain copy on the CPU: safetensors holds no two tensors that share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
