"""The operations that a forward pass ran, in order, and the patterns of the memory they work on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .flow import Pattern, Value, constant, has_rule, name_of, results

aten = torch.ops.aten
# Their results have a tensor's shape, not its numbers.
SHAPED_LIKE = set(
    """
    empty_like full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like
    rand_like randint_like randn_like zeros_like
    """.split()
)


class Call(NamedTuple):
    """An operation that ran: its functional form, its arguments by name, and what it wrote."""

    function: Any
    arguments: dict[str, Any]
    written: list[Tensor]


class Tape(TorchDispatchMode):
    """Notes every operation that a source or a random number takes part in, below autograd.

    What is computed of neither is a constant, of which the pattern is noted where it is used. Views
    leave no trace either: they look at memory that is noted already.
    """

    def __init__(self, sources: Iterable[Tensor]):
        super().__init__()
        self.calls: list[Call] = []
        self.overwritten: list[Value] = []  # constants, as they were before they were written into
        self.roots: dict[int, tuple[Tensor, Tensor]] = {}  # a tensor, and whose memory it looks at
        self.live = {self.memory(tensor) for tensor in sources}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note it."""
        kwargs, functional = kwargs or {}, _functional(function)
        with self:
            if (out := function.decompose(*args, **kwargs)) is not NotImplemented:
                return out
        arguments = {} if name_of(function) in SHAPED_LIKE else _by_name(function, args, kwargs)
        aliased = [a for a in function._schema.arguments if a.alias_info]
        written = [arguments[a.name] for a in aliased if a.alias_info.is_write]
        viewed = _tensors([arguments[a.name] for a in aliased if not a.alias_info.is_write])
        if viewed and not written:
            out = function(*args, **kwargs)
            for tensor in _tensors(out):
                self.roots.setdefault(id(tensor), (tensor, self.root(viewed[0])))
            return out
        operands = _tensors(arguments)
        live = any(self.memory(tensor) in self.live for tensor in operands)
        random = torch.Tag.nondeterministic_seeded in function.tags
        if not (live or random) or torch.Tag.inplace_view in function.tags:
            return function(*args, **kwargs)
        if functional in decomposition_table and not has_rule(functional, operands):
            with self:
                out = decomposition_table[functional](*args, **kwargs)
                return out if functional is function else args[0].copy_(out)
        noted = tree_map_only(Tensor, self.seen, arguments)
        for tensor in written:
            self.note_constant(tensor)
        out = function(*args, **kwargs)
        made = [tensor for tensor in _tensors(out) if all(tensor is not other for other in written)]
        made += written
        if made:
            self.live |= set(map(self.memory, made))
            self.calls.append(Call(functional, noted, list(map(self.alias, made))))
        return out

    def root(self, tensor: Tensor) -> Tensor:
        """Return the tensor whose memory this one looks at."""
        return self.roots.setdefault(id(tensor), (tensor, tensor))[1]

    def memory(self, tensor: Tensor) -> int:
        """Return what names the memory of a tensor."""
        return id(self.root(tensor))

    def alias(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is now: its shape may be changed in place."""
        alias = tensor.detach()
        self.roots[id(alias)] = (alias, self.root(tensor))
        return alias

    def seen(self, tensor: Tensor) -> Tensor | Value:
        """Return a tensor as an operation sees it, a constant with its pattern."""
        if self.memory(tensor) in self.live:
            return self.alias(tensor)
        return constant(tensor.detach())

    def note_constant(self, tensor: Tensor) -> None:
        """Keep the pattern of the whole memory of a constant, of which a part will be live."""
        if self.memory(tensor) not in self.live:
            self.overwritten.append(constant(self.root(tensor)))
            self.live.add(self.memory(tensor))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _functional(function: Any) -> Any:
    packet = getattr(aten, name_of(function), None)
    return getattr(packet, function._overloadname, function)


def _by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    schema = function._schema.arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **dict(zip((a.name for a in schema), args, strict=False)), **kwargs}


class _Yes(torch.autograd.Function):
    """1 where a count of paths is positive, and so on the way back: it never overflows."""

    @staticmethod
    def forward(ctx: Any, count: Tensor) -> Tensor:
        return (count > 0).to(torch.float32, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(torch.float32)


class _Memory:
    """The patterns of all memory, flat, so that views and writes in place need no rules."""

    def __init__(self, tape: Tape) -> None:
        self.root = tape.root
        self.parts: dict[tuple[int, int], list[Pattern]] = {}  # factor, addend and flow

    def put(self, value: Value) -> None:
        """Write the patterns of a tensor where it lies."""
        tensor, new = value.tensor, value.parts
        key, length, window = self.place(tensor)
        if window is None:
            self.parts[key] = [None if part is None else part.reshape(-1) for part in new]
            return
        places = torch.arange(length, device=tensor.device).as_strided(*window)
        zero = torch.zeros((), dtype=torch.float32, device=tensor.device)

        def written(old: Pattern, part: Pattern) -> Pattern:
            if old is None and part is None:
                return None
            flat = zero.expand(length) if old is None else old
            return flat.index_put((places,), zero if part is None else part)

        old = self.parts.get(key, [None] * len(new))
        self.parts[key] = [written(*pair) for pair in zip(old, new, strict=True)]

    def get(self, tensor: Tensor) -> Value:
        """Read the patterns of a tensor."""
        key, _, window = self.place(tensor)
        if key not in self.parts:  # by-products, as the variance of a norm; floats as complex
            raise ValueError(f"what a tensor of {tensor.dtype} holds is not known")

        def read(part: Pattern) -> Pattern:
            if part is None:
                return None
            return part.view(tensor.shape) if window is None else part.as_strided(*window)

        return Value(tensor, *map(read, self.parts[key]))

    def place(self, tensor: Tensor) -> tuple[tuple[int, int], int, Any]:
        """Return the key of a tensor's memory, its length, and which window, None for all of it."""
        root = self.root(tensor)
        if tensor.is_complex() != root.is_complex():  # its real part, or two floats as a number
            raise ValueError(f"what a {tensor.dtype} look at {root.dtype} holds is not known")
        key = id(root), tensor.element_size()
        steps = zip(root.shape, root.stride(), strict=True)
        length = 1 + sum((n - 1) * step for n, step in steps) if root.numel() else 0
        if tensor.is_contiguous() and tensor.numel() == length:
            return key, length, None
        offset = int(tensor.storage_offset() - root.storage_offset())
        return key, length, (tensor.shape, tensor.stride(), offset)


def flow_to(output: Tensor, tape: Tape, sources: list[Value]) -> Pattern:
    """Where the input reaches the output, as a function of the patterns of the sources."""
    memory = _Memory(tape)
    for value in (*tape.overwritten, *sources):
        memory.put(value)
    for call in tape.calls:
        arguments = tree_map_only(Tensor, memory.get, call.arguments)
        still, flow = results(call.function, arguments)
        for i, tensor in enumerate(call.written):
            if isinstance(still, list | tuple) or isinstance(flow, list | tuple):
                parts = [None if part is None else part[i] for part in (still, flow)]
                memory.put(_yes(tensor, *parts))
            elif tensor.shape == call.written[0].shape:  # another is a by-product
                memory.put(_yes(tensor, still, flow))
    return memory.get(output).flow


def _yes(tensor: Tensor, still: Pattern, flow: Pattern) -> Value:
    """Counts of paths as patterns; what no input reaches and is no constant is a parameter's."""

    def yes(count: Tensor) -> Tensor:
        return _Yes.apply(count.to(tensor.device).expand(tensor.shape))

    if flow is None:
        return Value(tensor, None if still is None else yes(still))
    if still is not None:
        still = yes(still).detach()  # no input reaches the weights that it was made of
    return Value(tensor, still, still, yes(flow))
