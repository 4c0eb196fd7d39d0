"""What a mask leaves of a model: paths from input to output, and multiply-adds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher

from ..curvature.calls import (
    ByParameter,
    called,
    evaluation_mode,
    fails_in_a_sentence,
    plain_attention,
    substituted,
)
from ..curvature.graph import find_uses
from ..curvature.parameters import resolve_parameters
from ..curvature.problem import problem_at
from ..data.batch import Batch, as_batch, each_of, of_each
from .flow import Value, ones
from .masks import check_mask
from .ranking import count_kept, host_numbers
from .tape import Tape, flow_to


def effective_sparsity(model: nn.Module, mask: ByParameter, batch: Batch) -> float:
    """Sparsity that also counts kept weights on no path to the output (Vysogorets & Kempe, 2023).

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
        evaluation_mode(model, on_copies=True),
        torch.inference_mode(False),
        torch.enable_grad(),
        plain_attention(),
    ):
        passes = _ForwardPass(model, batch)
        whole = passes.used({name: torch.ones_like(kept) for name, kept in mask.items()})
        for name, all_reached in host_numbers(_every_unit, whole).items():
            if not all_reached:
                why = "it is a shift there, is not used, or an operation stops it"
                raise ValueError(f"Flow does not pass {name!r} even in the whole network: {why}.")
        on_path = count_kept(passes.used(mask))
    return 1 - on_path / sum(kept.numel() for kept in mask.values())


def _every_unit(reached: Tensor) -> Tensor:
    return reached.reshape(len(reached) if reached.ndim else 1, -1).any(1).all()


class _ForwardPass:
    """One forward pass of one sample, and the paths that lead through it under a mask."""

    def __init__(self, model: nn.Module, batch: Batch):
        self.state = {name: _copy(p) for name, p in model.named_parameters()}
        buffers = {name: _copy(buffer).detach() for name, buffer in model.named_buffers()}
        floating = [tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()]
        device = next(iter(self.state.values())).device

        def first(tensor: Tensor) -> Tensor:
            if len(tensor) == 0:
                raise ValueError("The batch is empty: at least one sample is needed.")
            if not tensor.is_floating_point():
                return tensor[:1].clone().to(device)
            # Recurrent layers run as their single operations where their input asks for a gradient.
            return _copy(tensor[:1].to(device, floating[0])) * 1

        inputs = of_each(batch.inputs, first)
        self.inputs = each_of(inputs)
        self.tape = Tape([*self.inputs, *self.state.values()])
        plain = torch.autocast(device.type, enabled=False)
        within = substituted(model, {**self.state, **buffers})
        with fails_in_a_sentence(inputs), within, plain, enable_python_dispatcher(), self.tape:
            self.output = called(model, inputs)
        if not isinstance(self.output, Tensor):
            kind = type(self.output).__name__
            raise ValueError(f"The model must return a tensor of logits, not {kind}.")

    def used(self, mask: ByParameter) -> ByParameter:
        """Return which kept weights are on a path."""
        kept = {n: mask[n].to(self.state[n].device, torch.float32).requires_grad_() for n in mask}
        sources = [Value(tensor, flow=ones(tensor.shape, tensor)) for tensor in self.inputs]
        for name, tensor in self.state.items():
            sources.append(Value(tensor, kept.get(name, ones(tensor.shape, tensor))))
        try:
            flow = flow_to(self.output, self.tape, sources)
        except ValueError as error:
            message = f"The effective sparsity of this model cannot be told: {error}."
            raise ValueError(message) from None
        if flow is None or not flow.requires_grad:
            return {name: torch.zeros_like(mask[name]) for name in mask}
        grads = torch.autograd.grad(flow.sum(), list(kept.values()), materialize_grads=True)
        on_path = (part * grad > 0 for part, grad in zip(kept.values(), grads, strict=True))
        return dict(zip(mask, on_path, strict=True))


def _copy(tensor: Tensor) -> Tensor:
    """A copy with memory of its own."""
    copy = tensor.detach().clone()
    if copy.layout == torch.strided:
        copy = copy.contiguous()
    return copy.requires_grad_(copy.is_floating_point())


def flops_left(model: nn.Module, mask: ByParameter, batch: Batch) -> float:
    """Fraction of the masked layers' multiply-adds that is left: one a weight and output position.

    What hardware could save at most if it skipped every removed weight; only the batch's input
    shape matters. Early layers of a convolutional network have few weights and many positions, so
    it is not the density.
    """
    check_mask(model, mask)
    label = torch.zeros(1, dtype=torch.int64, device="cpu")
    first = Batch(of_each(as_batch(batch).inputs, lambda tensor: tensor[:1]), label)
    with problem_at(model, first, 1.0, list(mask)) as problem:
        uses = find_uses(problem.logits(slice(0, 1)), problem.theta)
        problem.reached.update(uses)
        problem.check_reached()
    left = whole = 0
    for name, use in uses.items():
        # Of the layer's output: 1×channels×… or …×channels.
        shape = use.edge.node._input_metadata[0].shape
        positions = math.prod(shape) // shape[use.channel_axis]
        left += positions * int(mask[name].sum())
        whole += positions * mask[name].numel()
    return left / whole
