"""Which numbers of a forward pass lie on a path from the input to the output: a rule an operation.

Each tensor gets patterns of its shape, 1 for yes and 0 for no. The role of a parameter follows from
the operation that ran: what is added to a flow, joined to one or written into one is a shift, and a
shift is 0; what multiplies is a scale, and a scale is not. Patterns are numbers that autograd
knows, so it finds the way back from the output. An operation without a rule is an error, no guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
Pattern = Tensor | None  # None is 0 everywhere
Patterns = tuple[Any, Any]  # constant and flow, of one result or of a list of them
Rule = Callable[[Any, dict[str, Any]], Patterns]
BLOCKED = 800  # so far below the highest score, as a rule -inf, a softmax is 0 in doubles, too


@dataclass(frozen=True)
class Value:
    """A tensor of the forward pass and its patterns.

    Where it is not zero without any input: as a factor, and as an addend, where a parameter or a
    random number counts as zero; and where the input reaches it, None if it does nowhere.
    """

    tensor: Tensor
    factor: Pattern = None
    addend: Pattern = None
    flow: Pattern = None

    @property
    def parts(self) -> tuple[Pattern, Pattern, Pattern]:
        """All three."""
        return self.factor, self.addend, self.flow

    def changed(self, change: Callable[[Tensor], Tensor]) -> Value:
        """Change all patterns alike."""
        return Value(self.tensor, *(None if part is None else change(part) for part in self.parts))


def name_of(function: Any) -> str:
    """Name of an operation, without its in-place underscore; of an extension with its namespace."""
    namespace, name = function._schema.name.split("::")
    return name.rstrip("_") if namespace == "aten" else f"{namespace}::{name}"


def ones(shape: Iterable[int], like: Tensor) -> Tensor:
    """Pattern that is 1 everywhere, on a tensor's device."""
    return torch.ones(tuple(shape), dtype=torch.float32, device=like.device)


def constant(tensor: Tensor) -> Value:
    """What no input, parameter or random number reaches: it is 1 where it is not zero."""
    pattern = (tensor.detach() != 0).to(torch.float32)
    return Value(tensor, pattern, pattern)


def _sum(parts: Iterable[Pattern]) -> Pattern:
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None


def _values(arguments: Any) -> list[Value]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Value)]


def _constants(values: list[Value]) -> list[Pattern]:
    """Patterns of what is added, joined or written without an input: beside a flow, as addends."""
    flows = any(value.flow is not None for value in values)
    return [value.addend if flows else value.factor for value in values]


def _both(value: Value) -> Patterns:
    return value.factor, value.flow


def _product(multiply: Callable[[Tensor, Tensor], Tensor], left: Value, right: Value) -> Patterns:
    """Of two flows the product has both where both are."""

    def times(one: Pattern, other: Pattern) -> Pattern:
        return None if one is None or other is None else multiply(one, other)

    flows = [
        times(left.flow, right.factor),
        times(left.factor, right.flow),
        times(left.flow, right.flow),
    ]
    return times(left.factor, right.factor), _sum(flows)


# ------------------------------------------------------------------------------------------
# Rules: an operation and its arguments by name to the constant and the flow of its results


def _mapped(function: Any, arguments: dict[str, Any]) -> Patterns:
    """A function of single numbers passes flow; its constant is 1 unless it maps zero to zero."""
    (value,) = _values(arguments)
    zero = torch.zeros((), dtype=value.tensor.dtype, device="cpu")
    at_zero = function(**tree_map_only(Value, lambda _: zero, arguments))
    return ones(value.tensor.shape, value.tensor) if at_zero != 0 else value.factor, value.flow


def _added(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Sums, maxima, comparisons: each operand passes."""
    values = _values(arguments)
    return _sum(_constants(values)), _sum(value.flow for value in values)


def _multiplied(function: Any, arguments: dict[str, Any]) -> Patterns:
    left, right = arguments["self"], arguments["other"]
    if not isinstance(right, Value):
        right = Value(left.tensor, ones((), left.tensor) if right else None)
    elif name_of(function) == "div":  # no divisor is zero
        right = replace(right, factor=ones((), right.tensor))
    return _product(torch.mul, left, right)


def _contracted(function: Any, arguments: dict[str, Any]) -> Patterns:
    return _product(torch.matmul, *_values(arguments))


def _convolved(function: Any, arguments: dict[str, Any]) -> Patterns:
    x, weight, bias = (arguments[name] for name in ("input", "weight", "bias"))
    options = {key: value for key, value in arguments.items() if key not in ("input", "weight")}
    options["bias"] = None

    def convolve(image: Tensor, kernel: Tensor) -> Tensor:
        return function(image, kernel, **options)

    still, flow = _product(convolve, x, weight)
    if bias is None:
        return still, flow
    bias = bias.changed(lambda part: part.view(-1, *[1] * len(arguments["stride"])))
    return _added(function, {"product": Value(x.tensor, still, still, flow), "bias": bias})


def _normalised(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Unit by unit, times the scale: what else the statistics mix does not count."""
    x, weight = arguments["input"], arguments["weight"]
    if weight is None:
        return _both(x)
    shape = (-1, *[1] * (x.tensor.ndim - 2))  # one scale a channel
    if "normalized_shape" in arguments:
        shape = weight.tensor.shape
    return _product(torch.mul, x, weight.changed(lambda part: part.view(shape)))


def _passed(function: Any, arguments: dict[str, Any]) -> Patterns:
    return _both(arguments["self"])


def _copied(function: Any, arguments: dict[str, Any]) -> Patterns:
    return _both(arguments["src"])


def _chosen(function: Any, arguments: dict[str, Any]) -> Patterns:
    """A constant condition chooses; of any other both sides pass, and it passes itself."""
    condition, yes, no = (arguments[name] for name in ("condition", "self", "other"))
    if condition.flow is not None or condition.addend is None:
        return _added(function, arguments)
    true = condition.tensor.to(torch.float32)

    def choose(if_true: Pattern, if_false: Pattern) -> Pattern:
        first = None if if_true is None else if_true * true
        second = None if if_false is None else if_false * (1 - true)
        return _sum([first, second])

    return choose(*_constants([yes, no])), choose(yes.flow, no.flow)


_PLACES = ("index", "indices")  # arguments that say where, not what


def _moved(function: Any, arguments: dict[str, Any]) -> Patterns:
    """What moves, joins, repeats, sums up or averages entries does so with their patterns."""
    places = {name: arguments[name] for name in _PLACES if name in arguments}
    if any(value.flow is not None for value in _values(places)):
        raise ValueError(f"which entries {name_of(function)!r} takes depends on the input")
    arguments = arguments | tree_map_only(Value, lambda value: value.tensor, places)
    if "dtype" in arguments:  # of a sum
        arguments["dtype"] = None
    values = _values(arguments)
    fills = isinstance(arguments.get("value"), int | float)

    def run(patterns: list[Pattern], number: float) -> Any:
        if not number and all(pattern is None for pattern in patterns):
            return None
        rest = iter(patterns)

        def next_pattern(value: Value) -> Tensor:
            pattern = next(rest)
            zero = torch.zeros_like(value.tensor, dtype=torch.float32)
            return zero if pattern is None else pattern

        given = tree_map_only(Value, next_pattern, arguments)
        return function(**given | {"value": number} if fills else given)

    number = float(fills and arguments["value"] != 0)
    return run(_constants(values), number), run([value.flow for value in values], 0.0)


def _looked_up(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Rows of a table; if the input says which, any may be it."""
    table, places = arguments["self"], arguments["indices"]
    index = _values(places)[0]
    several = table.flow is not None or len(places) > 1
    if index.flow is None or index.tensor.dtype == torch.bool or several:
        return _moved(function, arguments)
    rows = index.flow.view(*index.tensor.shape, *[1] * (table.tensor.ndim - 1))
    return None, None if table.factor is None else rows * table.factor.sum(0)


def _scattered(function: Any, arguments: dict[str, Any]) -> Patterns:
    """A number written where the input says: any place along the dimension may be it."""
    index, target = arguments["index"], arguments["self"]
    if index.flow is None or "value" not in arguments:
        return _moved(function, arguments)
    anywhere = index.flow.sum(arguments["dim"], keepdim=True).expand(target.tensor.shape)
    return target.addend, _sum([target.flow, anywhere])


def _reduced(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Maxima, norms and variances, over some dimensions or all."""
    value = arguments["self"]
    dims = arguments.get("dim")
    dims = list(range(value.tensor.ndim)) if dims in (None, []) else dims
    keep = bool(arguments.get("keepdim"))
    return _both(value.changed(lambda part: part.sum(dims, keepdim=keep)))


def _softmax(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Not zero wherever it may look, and every score there counts."""
    value, dim = arguments["self"], arguments["dim"]
    highest = value.tensor.amax(dim, keepdim=True)
    seen = (value.tensor.double() > highest.double() - BLOCKED).to(torch.float32)
    if value.flow is None:
        return seen, None
    return seen, (value.flow * seen).sum(dim, keepdim=True) * seen


def _pooled(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Any entry of a window may be its maximum, as any has a part in its mean."""
    if set(arguments.get("dilation", [1])) != {1}:
        raise ValueError("what passes a dilated maximum is not known")
    names = ("output_size", "kernel_size", "stride", "padding", "ceil_mode")
    options = [arguments[name] for name in names if name in arguments]
    mean = getattr(aten, _MEANS[name_of(function)])
    return _both(arguments["self"].changed(lambda part: mean(part, *options)))


_MEANS = {
    "adaptive_max_pool2d": "_adaptive_avg_pool2d",
    "adaptive_max_pool3d": "_adaptive_avg_pool3d",
    "max_pool2d_with_indices": "avg_pool2d",
    "max_pool3d_with_indices": "avg_pool3d",
}

_RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _added: """add bitwise_and bitwise_or clamp clamp_max clamp_min eq ge gt le logical_and
            logical_or lt maximum minimum ne sub""",
        _multiplied: "div mul",
        _contracted: "bmm dot mm mv",
        _convolved: "convolution",
        _normalised: """_batch_norm_no_update _native_batch_norm_legit
            _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm
            native_batch_norm native_group_norm native_layer_norm""",
        _passed: "_to_copy clone rrelu_with_noise",
        _copied: "copy",
        _chosen: "where",
        _moved: """_adaptive_avg_pool2d _adaptive_avg_pool3d _unsafe_view avg_pool2d
            avg_pool3d cat col2im constant_pad_nd cumsum fill flip gather im2col index_add
            index_copy index_put index_select mean pixel_shuffle pixel_unshuffle reflection_pad1d
            reflection_pad2d repeat replication_pad1d replication_pad2d roll scatter_add stack sum
            tril triu unsafe_split zero""",
        _looked_up: "_unsafe_index index",
        _scattered: "scatter",
        _reduced: """all amax amin any argmax argmin linalg_vector_norm max min norm std std_mean
            var var_mean""",
        _softmax: "_log_softmax _safe_softmax _softmax",
        _pooled: " ".join(_MEANS),
    }.items()
    for name in names.split()
}


def has_rule(function: Any, operands: list[Any]) -> bool:
    """Whether an operation needs not be written in simpler ones: a view needs no rule."""
    views = any(argument.alias_info is not None for argument in function._schema.arguments)
    single = torch.Tag.pointwise in function.tags and len(operands) == 1
    return name_of(function) in _RULES or views or single


def results(function: Any, arguments: dict[str, Any]) -> Patterns:
    """Return the constant and the flow of what an operation makes, of one tensor or a list of them.

    Raises:
        ValueError: if there is no rule for what a flow or a masked parameter goes through.
    """
    values, rule = _values(arguments), _RULES.get(name_of(function))
    if torch.Tag.pointwise in function.tags and len(values) == 1 and rule in (None, _added):
        rule = _mapped
    if rule is not None and values:
        return rule(function, arguments)
    masked = any(value.factor is not None and value.factor.requires_grad for value in values)
    if masked or any(value.flow is not None for value in values):
        raise ValueError(f"what passes the operation {name_of(function)!r} is not known")
    return torch.ones(()), None  # made of parameters or random numbers alone
