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

_CORE = {  # the core schema of YAML 1.2.2, section 10.3.2; with the merges of YAML 1.1, which everybody writes
    "null": (r"null|Null|NULL|~|", "nN~\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2, in which 010 is ten, 1e-3 a number, and `no`, 1:30 and dates are text; no key stands twice."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}
    bool_values: typing.ClassVar[dict] = {"true": True, "false": False}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: list[Any] = []
        for key, _ in node.value:  # before merges: a mapping may override what it merges
            value = (
                key.value if key.tag.endswith(":merge") else self.construct_object(key, deep=True)
            )
            if value in seen or str(value) in map(
                str, seen
            ):  # 1 and 1.0 are one key, 1 and "1" look like one
                raise ValueError(
                    f"line {node.start_mark.line + 1}: {str(value)!r} stands there twice."
                )
            seen.append(value)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


for _tag, (_pattern, _first) in _CORE.items():
    _whole = re.compile(rf"(?:{_pattern})$")
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", _whole, ["" if c == "\0" else c for c in _first]
    )


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


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
        raise ValueError(
            " ".join(str(error).replace('in "<byte string>", ', "at ").split())
        ) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and down to the disk. OSError names the file and the reason."""
    temporary = path.with_name(
        f".{path.stem}.{uuid.uuid4().hex}.tmp"
    )  # mkstemp would hide it from others
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"{error.strerror or error}: not written", str(path)
            ) from error
        raise


def plain_copy(tensor: Tensor) -> Tensor:
    """A plain copy on the CPU: the format holds no two tensors that share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
