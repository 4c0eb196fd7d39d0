"""The operations that a forward pass ran, in order, with what each tensor held and whose memory it looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Their results have a tensor's shape, not its numbers.
_MAKERS = set(
    """
    empty_like full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like zeros_like
    """.split()
)
# Random numbers: these replace what a tensor held, or have its shape alone.
_FILLS = set("bernoulli cauchy exponential geometric log_normal normal random uniform".split())
_DRAWS = set("rand_like randint_like randn_like".split())


class Operand(NamedTuple):
    """A tensor as an operation saw it: a window (size, stride, offset) on the memory of the tensor ``root``."""

    root: int
    window: tuple[tuple[int, ...], tuple[int, ...], int]
    contiguous: bool
    tensor: Tensor
    constant: Tensor | None  # where it is not zero, if no source and no random number is in it


class Call(NamedTuple):
    """One operation that ran: its functional form, its arguments by name, and what it wrote."""

    function: Any
    arguments: dict[str, Any]
    written: list[Operand]


class Tape(TorchDispatchMode):
    """Notes every operation that a source or a random number takes part in, below autograd and in order.

    What is computed of neither is a constant, of which the pattern is noted where it is used. Views
    leave no trace either: they are windows on the memory of their root.
    """

    def __init__(self, sources: Iterable[Tensor]):
        super().__init__()
        self.calls: list[Call] = []
        self.before: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # constants that were written into later: their patterns
        self.roots: dict[int, Tensor] = {}  # of every tensor seen
        self.kept: list[Tensor] = []  # so that no id is used twice
        self.live: set[int] = set()
        self.live = {id(self.root(tensor)) for tensor in sources}

    def root(self, tensor: Tensor) -> Tensor:
        """Return the tensor whose memory this one looks at."""
        if id(tensor) not in self.roots:
            self.kept.append(tensor)
            self.roots[id(tensor)] = tensor
        return self.roots[id(tensor)]

    def operand(self, tensor: Tensor) -> Operand:
        """Describe a tensor as it is now."""
        root = self.root(tensor)
        if tensor.element_size() != root.element_size():
            raise ValueError(
                f"A tensor of {root.dtype} is read as {tensor.dtype}: what passes there is not known."
            )
        offset = int(tensor.storage_offset() - root.storage_offset())
        constant = None if id(root) in self.live else pattern(tensor)
        window = (tuple(tensor.shape), tuple(tensor.stride()), offset)
        return Operand(id(root), window, tensor.is_contiguous(), tensor, constant)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note it."""
        arguments, schema = _by_name(function, args, kwargs or {}), function._schema.arguments
        written = _tensors(
            [arguments[a.name] for a in schema if a.alias_info and a.alias_info.is_write]
        )
        viewed = _tensors(
            [arguments[a.name] for a in schema if a.alias_info and not a.alias_info.is_write]
        )
        if torch.Tag.inplace_view in function.tags:
            written, viewed = [], written
        live = torch.Tag.nondeterministic_seeded in function.tags
        if name_of(function) not in _MAKERS | _DRAWS:
            live = live or any(id(self.root(tensor)) in self.live for tensor in _tensors(arguments))
        name = name_of(function)
        if name in _DRAWS or (written and name in _FILLS):
            arguments = {key: value for key, value in arguments.items() if key != "self"}
        noted = tree_map_only(Tensor, self.operand, arguments) if live and not viewed else {}
        for root in (self.root(tensor) for tensor in written if live):
            if id(root) not in self.live:
                self.before[id(root)] = (root, pattern(root))
                self.live.add(id(root))
        out = function(*args, **(kwargs or {}))
        if viewed and not written:
            for tensor in _tensors(out):
                self.kept.append(tensor)
                self.roots.setdefault(id(tensor), self.root(viewed[0]))
        elif live and (written or _tensors(out)):
            made = [
                tensor for tensor in _tensors(out) if not any(tensor is other for other in written)
            ]
            self.live |= {id(self.root(tensor)) for tensor in made}
            self.calls.append(
                Call(_functional(function), noted, list(map(self.operand, [*made, *written])))
            )
        return out


def pattern(tensor: Tensor) -> Tensor:
    """1 where a tensor is not zero, 0 where it is."""
    return (tensor.detach() != 0).to(torch.float32)


def name_of(function: Any) -> str:
    """Name of an operation, without the underscore of its in-place form; of an extension's with its namespace."""
    namespace, name = function._schema.name.split("::")
    return name.rstrip("_") if namespace == "aten" else f"{namespace}::{name}"


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _functional(function: Any) -> Any:
    packet = getattr(torch.ops.aten, name_of(function), None)
    return getattr(packet, function._overloadname, function)


def _by_name(function: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    schema = function._schema.arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **dict(zip((a.name for a in schema), args, strict=False)), **kwargs}
