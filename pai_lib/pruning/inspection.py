"""What a mask leaves of a model: paths from input to output, and multiply-adds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..curvature.calls import (
    ByParameter,
    called,
    evaluation_mode,
    failing_in_a_sentence,
    substituted,
)
from ..curvature.graph import find_uses
from ..curvature.parameters import resolve_parameters
from ..curvature.problem import problem_at
from ..data.batch import Batch, as_batch, each_of, of_each
from .flow import Value, results
from .masks import check_mask
from .ranking import count_kept, host_numbers
from .tape import Call, Operand, Tape


def effective_sparsity(model: nn.Module, mask: ByParameter, batch: Batch) -> float:
    """Sparsity counting also the weights that no path from input to output uses (Vysogorets & Kempe, 2023).

    A kept weight is on a path if the input reaches it and it reaches an output. What a parameter
    outside the mask does follows from the operations of one forward pass, whatever its name: as a
    factor it lets everything pass; what is added, joined or written in (bias, token, position,
    running mean) is 0 and lets nothing pass. Other constants let pass where they are not zero.
    Activations and norms pass unit by unit, a maximum and a softmax from all their inputs, a
    product of two activations where both are reached: attention passes from its values, and from
    queries and keys where both are alive. Of token numbers any may occur; of other inputs only the
    shape matters.

    Raises:
        ValueError: if the mask or the batch does not fit, or the model is wrapped; if an operation
            has no rule here, or which entries it takes depends on the input; if a masked parameter
            is on no path even in the whole network, as a bias.
    """
    check_mask(model, mask)
    resolve_parameters(model, mask)
    batch = as_batch(batch)
    with (
        evaluation_mode(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        passes = _ForwardPass(model, batch)
        whole = passes.used({name: torch.ones_like(kept) for name, kept in mask.items()})
        for name, all_reached in host_numbers(_every_unit, whole).items():
            if not all_reached:
                raise ValueError(
                    f"Flow does not pass {name!r} even in the whole network (it is a shift there, is not used, or "
                    "an operation stops it), so the effective sparsity of this model cannot be told."
                )
        on_path = count_kept(passes.used(mask))
    return 1 - on_path / sum(kept.numel() for kept in mask.values())


def _every_unit(reached: Tensor) -> Tensor:
    return reached.reshape(len(reached) if reached.ndim else 1, -1).any(1).all()


class _ForwardPass:
    """One forward pass of one sample, and the paths that lead through it under a mask."""

    def __init__(self, model: nn.Module, batch: Batch):
        self.state = {
            name: p.detach().requires_grad_(p.is_floating_point())
            for name, p in model.named_parameters()
        }
        floating = [tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()]
        device = next(iter(self.state.values())).device

        def first(tensor: Tensor) -> Tensor:
            if len(tensor) == 0:
                raise ValueError("The batch is empty: at least one sample is needed.")
            return (
                tensor[:1]
                .clone()
                .to(device, floating[0] if tensor.is_floating_point() else tensor.dtype)
            )

        inputs = of_each(batch.inputs, first)
        self.inputs = each_of(inputs)
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self.tape = Tape([*self.inputs, *self.state.values()])
        plain = torch.autocast(device.type, enabled=False)
        within = substituted(model, {**self.state, **buffers})
        with failing_in_a_sentence(inputs), within, plain, _WrittenOut(), self.tape:
            self.output = called(model, inputs)
        if not isinstance(self.output, Tensor):
            raise ValueError(
                f"The model must return a tensor of logits, not {type(self.output).__name__}."
            )

    def used(self, mask: ByParameter) -> ByParameter:
        """Return which kept weights are on a path."""
        kept = {
            name: mask[name].to(self.state[name].device, torch.float32).requires_grad_()
            for name in mask
        }
        sources = [Value(tensor, None, None, _ones(tensor)) for tensor in self.inputs]
        sources += [
            Value(t, None, kept[name] if name in kept else _ones(t))
            for name, t in self.state.items()
        ]
        try:
            flow = _find_flow(self.tape, sources, self.output)
        except ValueError as error:
            raise ValueError(
                f"The effective sparsity of this model cannot be told: {error}."
            ) from None
        names = list(kept)
        if flow is None or not flow.requires_grad:
            return {name: torch.zeros_like(mask[name]) for name in names}
        grads = torch.autograd.grad(flow.sum(), list(kept.values()), materialize_grads=True)
        return {
            name: (kept[name] * grad).detach() > 0 for name, grad in zip(names, grads, strict=True)
        }


class _WrittenOut(TorchFunctionMode):
    """Has recurrent layers run as their single operations, in no kernel of their own."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of PyTorch's."""
        if function.__name__ not in ("gru", "lstm", "rnn_relu", "rnn_tanh"):
            return function(*args, **(kwargs or {}))
        before = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            with enable_python_dispatcher():
                return function(*args, **(kwargs or {}))
        finally:
            torch.backends.mkldnn.enabled = before


def _ones(like: Tensor) -> Tensor:
    return torch.ones(like.shape, dtype=torch.float32, device=like.device)


class _Yes(torch.autograd.Function):
    """1 where a count of paths is positive, and so on the way back: it never overflows and never vanishes."""

    @staticmethod
    def forward(ctx: Any, count: Tensor) -> Tensor:
        return (count > 0).to(torch.float32, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(torch.float32)


class _Memory:
    """The patterns of the memory of each root, flat, so that views and writes in place need no rules."""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}
        self.parts: dict[int, list[Tensor | None]] = {}  # constant, free and flow

    def put(self, operand: Operand, value: Value) -> None:
        """Write the patterns of a tensor into its window."""
        size, stride, offset = operand.window
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        length = self.lengths.setdefault(operand.root, 0 if 0 in size else 1 + last)
        parts = self.parts.setdefault(operand.root, [None, None, None])
        for i, (old, new) in enumerate(zip(parts, value[1:], strict=True)):
            if old is None and new is None:
                continue
            new = (
                torch.zeros(size, dtype=torch.float32, device=value.tensor.device)
                if new is None
                else new
            )
            if operand.contiguous and math.prod(size) == length:
                parts[i] = new.reshape(-1)
            else:  # not as_strided_scatter, which goes back wrongly to what was there
                old = (
                    torch.zeros(length, dtype=torch.float32, device=new.device)
                    if old is None
                    else old
                )
                places = torch.arange(length, device=new.device).as_strided(size, stride, offset)
                parts[i] = old.index_put((places,), new)

    def get(self, operand: Operand) -> Value:
        """Read the patterns of a tensor through its window."""
        if operand.constant is not None:
            return Value(operand.tensor, operand.constant)
        if operand.root not in self.parts:
            raise ValueError(
                "a by-product of an operation, such as the variance of a norm, is used"
            )
        size, parts = operand.window[0], self.parts[operand.root]
        if operand.contiguous and math.prod(size) == self.lengths[operand.root]:
            return Value(
                operand.tensor, *(None if part is None else part.view(size) for part in parts)
            )
        return Value(
            operand.tensor,
            *(None if part is None else part.as_strided(*operand.window) for part in parts),
        )


def _find_flow(tape: Tape, sources: list[Value], output: Tensor) -> Tensor | None:
    """Where the input reaches the output, as a function of the patterns of what the forward pass started from."""
    memory = _Memory()
    for value in (*(Value(*constant) for constant in tape.before.values()), *sources):
        memory.put(tape.operand(value.tensor), value)
    for call in tape.calls:
        given = tree_map(
            lambda leaf: memory.get(leaf) if isinstance(leaf, Operand) else leaf,
            call.arguments,
            is_leaf=lambda leaf: isinstance(leaf, Operand),
        )
        _store(memory, call, *results(call.function, given))
    return memory.get(tape.operand(output)).flow


def _store(memory: _Memory, call: Call, constant: Any, flow: Any) -> None:
    """Write what an operation made; of a by-product of another shape nothing is known."""
    several = isinstance(constant, list | tuple) or isinstance(flow, list | tuple)
    for i, operand in enumerate(call.written):
        size = operand.window[0]
        if i and not several and size != call.written[0].window[0]:
            continue
        parts = [part[i] if isinstance(part, list | tuple) else part for part in (constant, flow)]
        here, into = (
            None if part is None else _Yes.apply(part.to(operand.tensor.device).expand(size))
            for part in parts
        )
        if here is not None and into is not None:
            here = here.detach()  # no input reaches the weights that it was made of
        value = (
            Value(operand.tensor, None, here)
            if into is None
            else Value(operand.tensor, here, None, into)
        )
        memory.put(operand, value)


def flops_left(model: nn.Module, mask: ByParameter, batch: Batch) -> float:
    """Fraction of the masked layers' multiply-adds that is left: a weight costs one an output position.

    What hardware could save at most if it skipped every removed weight; only the batch's input
    shape matters. Early layers of a convolutional network have few weights and many positions, so
    it is not the density.
    """
    check_mask(model, mask)
    inputs, labels = as_batch(batch)
    first = Batch(of_each(inputs, lambda tensor: tensor[:1]), labels[:1])
    with problem_at(model, first, 1.0, list(mask)) as problem:
        uses = find_uses(problem.logits(slice(0, 1)), problem.theta)
    left = whole = 0
    for name, use in uses.items():
        shape = use.edge.node._input_metadata[
            0
        ].shape  # 1×channels×… or …×channels, of the layer's output
        positions = math.prod(shape) // shape[use.channel_axis]
        left += positions * int(mask[name].sum())
        whole += positions * mask[name].numel()
    return left / whole
