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
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2: 010 is ten, 1e-3 a number, `no`, 1:30 and dates are text; no key stands twice."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}
    bool_values: typing.ClassVar[dict[str, Any]] = {"true": True, "false": False}

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

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


for _name, _pattern in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), None
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:merge", _Loader.construct_yaml_str)


def load_yaml(path: Path) -> Any:
    """Return what a YAML 1.2 file holds.

    Raises:
        ValueError: for a file that is not YAML or holds a key twice. It names the line, not the
            file.
    """
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except RecursionError:
        raise ValueError("it holds itself, or is nested too deep.") from None
    except KeyError as error:
        raise ValueError(f"{error} is not of the kind that its tag names.") from None
    except yaml.YAMLError as error:
        sentence = str(error).replace('in "<byte string>", ', "at ")
        raise ValueError(" ".join(sentence.split())) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, down to the disk. OSError names it and the reason."""
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


def plain_copy(tensor: Tensor) -> Tensor:
    """A plain copy on the CPU: safetensors holds no two tensors that share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
