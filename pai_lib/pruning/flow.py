"""Which numbers of a forward pass lie on a path from the input to the output.

Each tensor gets patterns of its shape, 1 for yes and 0 for no: where the input reaches it
(``flow``), where it is not zero although no input reaches it (``constant``), and where it is a
parameter or a random number, of which only the role counts (``free``). The role follows from the
operation that ran: what is added to a flow, joined to one or written into one is a shift, and a
shift is 0; what multiplies is a scale, and a scale is not. Patterns are numbers that autograd
knows, so it finds the way back from the output. An operation without a rule is an error, no guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .tape import name_of

aten = torch.ops.aten
Pattern = Tensor | None  # None is 0 everywhere
Patterns = tuple[Any, Any]  # constant and flow, of one result or of a list of them
Rule = Callable[[Any, dict[str, Any]], Patterns]
BLOCKED = -1e4  # a score as low as this, as a rule -inf, tells a softmax to leave a position out


class Value(NamedTuple):
    """A tensor of the forward pass and its patterns."""

    tensor: Tensor
    constant: Pattern = None
    free: Pattern = None
    flow: Pattern = None

    @property
    def scale(self) -> Pattern:
        """Where it is not zero as a factor, without its flow."""
        return self.constant if self.flow is not None else _sum([self.constant, self.free])


def _sum(parts: Iterable[Pattern]) -> Pattern:
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None


def _ones(like: Tensor, shape: Iterable[int]) -> Tensor:
    return torch.ones(tuple(shape), dtype=torch.float32, device=like.device)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Value)


def _values(given: Any) -> list[Value]:
    return list(filter(_is_value, tree_leaves(given, is_leaf=_is_value)))


def _replaced(given: Any, change: Callable[[Value], Any]) -> Any:
    return tree_map(
        lambda leaf: change(leaf) if _is_value(leaf) else leaf, given, is_leaf=_is_value
    )


def _mapped(value: Value, change: Callable[[Tensor], Tensor]) -> Patterns:
    constant, flow = (None if part is None else change(part) for part in (value.scale, value.flow))
    return constant, flow


def _addends(values: list[Value]) -> list[Pattern]:
    """Constants of what is added, joined or written: beside a flow, what is free is a shift."""
    flows = any(value.flow is not None for value in values)
    return [value.constant if flows else value.scale for value in values]


# ---------------------------------------------------------------------------------------------------------
# Rules: an operation and its arguments by name to the constant and the flow of its results


def _same(function: Any, given: dict[str, Any]) -> Patterns:
    value = _values(given)[0]
    return value.scale, value.flow


def _copied(function: Any, given: dict[str, Any]) -> Patterns:
    return given["src"].scale, given["src"].flow


def _mapped_singly(function: Any, given: dict[str, Any]) -> Patterns:
    """A function of single numbers lets flow pass, and makes a constant of zero unless it maps zero to zero."""
    (value,) = _values(given)
    zero = torch.zeros((), dtype=value.tensor.dtype, device="cpu")
    if bool(tree_leaves(function(**_replaced(given, lambda _: zero)))[0] != 0):
        return _ones(value.tensor, value.tensor.shape), value.flow
    return value.scale, value.flow


def _added(function: Any, given: dict[str, Any]) -> Patterns:
    """Sums, maxima, comparisons: each operand passes."""
    values = _values(given)
    return _sum(_addends(values)), _sum(value.flow for value in values)


def _chosen(function: Any, given: dict[str, Any]) -> Patterns:
    """A constant condition chooses; of any other both sides pass, and it passes itself."""
    names = ("condition", "self", "other") if "condition" in given else ("mask", "value", "self")
    condition, yes, no = (given[name] for name in names)
    yes, no = (side if _is_value(side) else _number(side, condition.tensor) for side in (yes, no))
    constants = _addends([yes, no, condition])
    if condition.flow is not None or condition.free is not None:
        return _sum(constants), _sum([yes.flow, no.flow, condition.flow])
    true = condition.tensor.to(torch.float32)
    pairs = (constants[:2], (yes.flow, no.flow))
    constant, flow = (
        _sum([None if a is None else a * true, None if b is None else b * (1 - true)])
        for a, b in pairs
    )
    return constant, flow


def _number(number: float, like: Tensor) -> Value:
    return Value(like, _ones(like, ()) if number else None)


def _product(multiply: Callable[[Tensor, Tensor], Tensor], left: Value, right: Value) -> Patterns:
    """Of two flows the product has both where both are."""
    pairs = (
        (left.scale, right.scale),
        (left.flow, right.scale),
        (left.scale, right.flow),
        (left.flow, right.flow),
    )
    constant, *flows = (None if a is None or b is None else multiply(a, b) for a, b in pairs)
    return constant, _sum(flows)


def _multiplied(function: Any, given: dict[str, Any]) -> Patterns:
    left, right = given["self"], given["other"]
    return _product(torch.mul, left, right if _is_value(right) else _number(right, left.tensor))


def _divided(function: Any, given: dict[str, Any]) -> Patterns:
    """No divisor is zero."""
    left, right = given["self"], given["other"]
    return _product(torch.mul, left, right._replace(constant=_ones(right.tensor, ()), free=None))


_TIMES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "addcmul": torch.mul,
    "dot": torch.dot,
    "addbmm": lambda a, b: torch.bmm(a, b).sum(0),
    "addr": torch.outer,
}


def _contracted(function: Any, given: dict[str, Any]) -> Patterns:
    """Products of matrices and vectors; of three operands the first is added."""
    *addend, left, right = _values(given)
    constant, flow = _product(_TIMES.get(name_of(function), torch.matmul), left, right)
    terms = [*addend, Value(left.tensor, constant, None, flow)]
    return _sum(_addends(terms)), _sum(term.flow for term in terms)


def _convolved(function: Any, given: dict[str, Any]) -> Patterns:
    options = {name: value for name, value in given.items() if not _is_value(value)} | {
        "bias": None
    }
    constant, flow = _product(
        lambda x, weight: function(input=x, weight=weight, **options),
        given["input"],
        given["weight"],
    )
    terms = [Value(given["input"].tensor, constant, None, flow)]
    if given["bias"] is not None:
        across, into = _mapped(
            given["bias"], lambda part: part.view(-1, *[1] * len(given["stride"]))
        )
        terms.append(Value(given["bias"].tensor, None, across, into))
    return _sum(_addends(terms)), _sum(term.flow for term in terms)


def _normalised(function: Any, given: dict[str, Any]) -> Patterns:
    """Unit by unit, times the scale: what else the statistics mix does not count."""
    x, weight = given["input"], given["weight"]
    if weight is None:
        return x.scale, x.flow
    shape = (-1, *[1] * (x.tensor.ndim - 2))  # one scale a channel
    shape = tuple(weight.tensor.shape) if "normalized_shape" in given else shape
    scale, flow = _mapped(weight, lambda part: part.view(shape))
    return _product(torch.mul, x, Value(weight.tensor, scale, None, flow))


def _divided_by_norm(function: Any, given: dict[str, Any]) -> Patterns:
    """A root mean square is a divisor that the input reaches, as where it is written out."""
    x, dims = given["input"], [-1 - i for i in range(len(given["normalized_shape"]))]
    norm = None if x.flow is None else x.flow.sum(dims, keepdim=True)
    constant, flow = _product(torch.mul, x, Value(x.tensor, _ones(x.tensor, ()), None, norm))
    return _normalised(function, given | {"input": Value(x.tensor, constant, None, flow)})


def _gated(function: Any, given: dict[str, Any]) -> Patterns:
    """One half times the sigmoid of the other, which is never zero."""
    constant, flow = (
        (None, None) if part is None else part.chunk(2, given["dim"])
        for part in (given["self"].scale, given["self"].flow)
    )
    left = Value(given["self"].tensor, constant[0], None, flow[0])
    return _product(torch.mul, left, Value(left.tensor, _ones(left.tensor, ()), None, flow[1]))


_PLACES = ("index", "indices", "mask")  # arguments that say where, not what


def _moved(function: Any, given: dict[str, Any]) -> Patterns:
    """What moves, joins, repeats, sums up or averages entries does so with their patterns."""
    places = {name: value for name, value in given.items() if name in _PLACES}
    if any(value.flow is not None for value in _values(places)):
        raise ValueError(f"which entries {name_of(function)!r} takes depends on the input")
    places = _replaced(places, lambda value: value.tensor)
    rest = {
        name: None if name == "dtype" else value
        for name, value in given.items()
        if name not in _PLACES
    }
    values, number = _values(rest), rest.get("value")
    if isinstance(number, int | float):
        number = float(number != 0)

    def run(patterns: list[Pattern], number: Any) -> Any:
        if not number and all(part is None for part in patterns):
            return None
        left = iter(patterns)

        def next_of(value: Value) -> Tensor:
            return (
                torch.zeros_like(value.tensor, dtype=torch.float32)
                if (part := next(left)) is None
                else part
            )

        numbers = {"value": number} if isinstance(number, float) else {}
        return function(**_replaced(rest, next_of) | places | numbers)

    zero = 0.0 if isinstance(number, float) else None
    return run(_addends(values), number if zero == 0 else None), run(
        [value.flow for value in values], zero
    )


def _looked_up(function: Any, given: dict[str, Any]) -> Patterns:
    """Rows of a table; if the input says which, any may be it."""
    table, indices = given["weight" if "weight" in given else "self"], _values(given["indices"])
    places = len(
        tree_leaves(given["indices"], is_leaf=lambda leaf: leaf is None or _is_value(leaf))
    )
    index = indices[0]
    if (
        index.flow is None
        or table.flow is not None
        or places > 1
        or index.tensor.dtype == torch.bool
    ):
        return _moved(function, given)
    rows = index.flow.view(*index.tensor.shape, *[1] * (table.tensor.ndim - 1))
    return None, None if table.scale is None else rows * table.scale.sum(0)


def _scattered(function: Any, given: dict[str, Any]) -> Patterns:
    """A number written where the input says: any place along the dimension may be it."""
    index, target = given["index"], given["self"]
    if index.flow is None or _is_value(given.get("value", index)):
        return _moved(function, given)
    return target.constant, _sum(
        [target.flow, index.flow.sum(given["dim"], keepdim=True).expand(target.tensor.shape)]
    )


def _reduced(function: Any, given: dict[str, Any]) -> Patterns:
    """Sums, means, maxima, norms and variances, over some dimensions or all."""
    value, keep = given["self"], bool(given.get("keepdim"))
    dims = given.get("dim")
    dims = list(range(value.tensor.ndim)) if dims in (None, []) else dims
    if name_of(function) == "logsumexp":
        value = value._replace(constant=_ones(value.tensor, value.tensor.shape))
    return _mapped(value, lambda part: part.sum(dims, keepdim=keep))


def _ordered(function: Any, given: dict[str, Any]) -> Patterns:
    """Sorted along a dimension: each entry of the result may be any."""

    def spread(part: Tensor) -> Tensor:
        size = list(part.shape)
        size[given["dim"]] = given.get("k", size[given["dim"]])
        return part.sum(given["dim"], keepdim=True).expand(size)

    return _mapped(given["self"], spread)


def _softmax(function: Any, given: dict[str, Any]) -> Patterns:
    """Not zero wherever it may look, and every score there counts."""
    value = given["self"]
    seen = (value.tensor > BLOCKED).to(torch.float32)
    flow = (
        None if value.flow is None else (value.flow * seen).sum(given["dim"], keepdim=True) * seen
    )
    return seen, flow


def _pooled(function: Any, given: dict[str, Any]) -> Patterns:
    """Any entry of a window may be its maximum: a convolution with ones."""
    kernel, shape = (
        given["kernel_size"],
        function(**_replaced(given, lambda value: value.tensor))[0].shape,
    )
    n = len(kernel)
    stride, padding, dilation = (
        (given[name] or kernel) * (n if len(given[name]) == 1 else 1)
        for name in ("stride", "padding", "dilation")
    )
    size = given["self"].tensor.shape[-n:]
    ends = [
        (shape[i - n] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size[i] - padding[i]
        for i in range(n)
    ]
    edges = [edge for i in reversed(range(n)) for edge in (padding[i], max(0, ends[i]))]

    def pool(part: Tensor) -> Tensor:
        rows = F.pad(part.reshape(-1, 1, *size), edges)
        rows = aten.convolution(
            rows, _ones(rows, (1, 1, *kernel)), None, stride, [0] * n, dilation, False, [0] * n, 1
        )
        return rows[(..., *(slice(0, end) for end in shape[-n:]))].reshape(shape)

    return _mapped(given["self"], pool)


def _pooled_adaptively(function: Any, given: dict[str, Any]) -> Patterns:
    average = getattr(aten, f"_{name_of(function).replace('max', 'avg')}")
    return _mapped(given["self"], lambda part: average(part, given["output_size"]))


_RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _same: "_prelu_kernel _to_copy bernoulli clone native_dropout rrelu_with_noise",
        _copied: "copy",
        _mapped_singly: "hardswish log_sigmoid_forward",
        _added: """add atan2 bitwise_and bitwise_or bitwise_xor clamp clamp_max clamp_min eq fmax fmin ge gt hypot
            le logaddexp logical_and logical_or logical_xor lt maximum minimum ne rsub sub""",
        _chosen: "masked_fill where",
        _multiplied: "mul",
        _divided: "div",
        _contracted: "addbmm addcmul addmm addmv addr baddbmm bmm dot mm mv",
        _convolved: "convolution",
        _normalised: """_batch_norm_no_update _native_batch_norm_legit
            _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm native_batch_norm
            native_group_norm native_layer_norm""",
        _divided_by_norm: "_fused_rms_norm",
        _gated: "glu",
        _moved: """_adaptive_avg_pool2d _adaptive_avg_pool3d _unsafe_view avg_pool2d avg_pool3d cat channel_shuffle
            col2im constant_pad_nd cumsum diag_embed fill flip gather im2col index_add index_copy index_fill
            index_put index_select masked_scatter native_channel_shuffle pixel_shuffle pixel_unshuffle
            reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d
            replication_pad3d roll rot90 scatter_add stack trace tril triu unsafe_split upsample_bilinear2d
            upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
            _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_trilinear3d zero""",
        _looked_up: "embedding index",
        _scattered: "scatter",
        _reduced: """all amax amin aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean
            median min nansum norm std std_mean sum var var_mean""",
        _ordered: "cummax cummin sort topk",
        _softmax: "_log_softmax _safe_softmax _softmax",
        _pooled: "max_pool2d_with_indices max_pool3d_with_indices",
        _pooled_adaptively: "adaptive_max_pool2d adaptive_max_pool3d",
    }.items()
    for name in names.split()
}


def results(function: Any, given: dict[str, Any]) -> Patterns:
    """Return the constant and the flow of what an operation makes, of one tensor or of a list of them.

    Raises:
        ValueError: if there is no rule for what a flow or a masked parameter goes through.
    """
    values, name = _values(given), name_of(function)
    rule = _RULES.get(name)
    if (
        torch.Tag.pointwise in function.tags
        and len(values) == 1
        and rule in (None, _added, _divided)
    ):
        rule = _mapped_singly
    if rule is not None and values:
        return rule(function, given)
    masked = any(part.requires_grad for value in values for part in value[1:] if part is not None)
    if masked or any(value.flow is not None for value in values):
        raise ValueError(f"what passes the operation {name!r} is not known")
    return torch.ones((), dtype=torch.float32), None  # made of parameters or random numbers alone
