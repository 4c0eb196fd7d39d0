"""Paths from input to output, compared with a search on a graph that is built by hand, edge by edge."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Net, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pai_lib as pai


class Graph:
    """Nodes are single activations, edges belong to a weight (its name and index) or are always there."""

    def __init__(self, *shape):
        self.count, self.edges = 0, []
        self.inputs = self.new(*shape)

    def new(self, *shape):
        start, self.count = self.count, self.count + int(np.prod(shape))
        return np.arange(start, self.count).reshape(shape)

    def join(self, start, end, weight=None):
        self.edges.append((int(start), int(end), weight))

    def used(self, masks, outputs):
        """Weights with an edge that leads from an input to an output."""
        there = [e for e in self.edges if e[2] is None or masks[e[2][0]][e[2][1]]]
        onward, backward = {}, {}
        for start, end, _ in there:
            onward.setdefault(start, []).append(end)
            backward.setdefault(end, []).append(start)
        fed, read = (search(begin.ravel(), to) for begin, to in ((self.inputs, onward), (outputs, backward)))
        return {weight for start, end, weight in there if weight is not None and start in fed and end in read}


def search(starts, neighbours):
    seen, stack = set(), [int(node) for node in starts]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += neighbours.get(node, [])
    return seen


def windows(size, kernel, stride, padding, dilation):
    """Pairs (output position, tap, input position) along one axis."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    places = itertools.product(range(count), range(kernel))
    pairs = [(out, tap, out * stride - padding + tap * dilation) for out, tap in places]
    return count, [pair for pair in pairs if 0 <= pair[2] < size]


def convolve(graph, nodes, name, c_out, kernel, stride, padding, dilation, groups):
    c_in, height, width = nodes.shape
    (h, rows), (w, columns) = (windows(n, kernel, stride, padding, dilation) for n in (height, width))
    out, inside = graph.new(c_out, h, w), c_in // groups
    for o, i in itertools.product(range(c_out), range(inside)):
        source = o // (c_out // groups) * inside + i
        for (y, a, v), (x, b, u) in itertools.product(rows, columns):
            graph.join(nodes[source, v, u], out[o, y, x], (name, (o, i, a, b)))
    return out


def pool(graph, nodes, kernel, stride, padding, dilation):
    _, height, width = nodes.shape
    (h, rows), (w, columns) = (windows(n, kernel, stride, padding, dilation) for n in (height, width))
    out = graph.new(len(nodes), h, w)
    for c, (y, _, v), (x, _, u) in itertools.product(range(len(nodes)), rows, columns):
        graph.join(nodes[c, v, u], out[c, y, x])
    return out


class Affine(nn.Module):
    """A scale and a shift, under names that say nothing."""

    def __init__(self, channels, subtract):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(channels, 1, 1)), nn.Parameter(torch.ones(channels, 1, 1))
        self.subtract = subtract
        self.register_buffer("three", torch.full((channels, 1, 1), 0.5))

    def forward(self, x):
        return self.one * x - self.two if self.subtract else x * self.one + self.two - self.three


SINGLE = {  # functions of single numbers
    "relu": F.relu, "in-place relu": lambda x: F.relu_(x * 1), "relu6": F.relu6, "hardtanh": F.hardtanh, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "elu": F.elu,
    "softplus": F.softplus, "softsign": F.softsign, "tanhshrink": F.tanhshrink, "hardshrink": F.hardshrink, "mish": F.mish,
    "abs": torch.abs, "square": torch.square, "own square": lambda x: x * x, "cube": lambda x: x**3, "exp": torch.exp,
    "clamp": lambda x: x.clamp(0.3, 0.4), "sign": torch.sign, "sine": torch.sin, "logsigmoid": F.logsigmoid,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x), "own relu": lambda x: x * (x > 0), "leaky": F.leaky_relu,
    "dropout": lambda x: F.dropout(x, 0.9, True), "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, False), "half": lambda x: x / 2 - 1, "negative": lambda x: 1 - x,
    "contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "noise": lambda x: x + torch.randn_like(x), "there and back": lambda x: x.transpose(2, 3).clone().mT,
}  # fmt: skip
NORMS = {
    "batch": lambda c: nn.BatchNorm2d(c), "plain batch": lambda c: nn.BatchNorm2d(c, affine=False),
    "without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "group": lambda c: nn.GroupNorm(1, c), "groups": lambda c: nn.GroupNorm(c, c), "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "affine": lambda c: Affine(c, False), "subtracted": lambda c: Affine(c, True), "prelu": lambda c: nn.PReLU(c),
}  # fmt: skip


@st.composite
def networks(draw):
    """A random network, the graph that it is, and the nodes that its head sees."""
    graph = Graph(2, 4, 4)
    parts, steps, seen = {}, [], [graph.inputs]  # step k makes the nodes seen[k + 1]

    def add(step, nodes, **new):
        parts.update(new)
        steps.append(step)
        seen.append(nodes)

    for k in range(draw(st.integers(2, 5))):
        nodes = seen[-1]
        kind = draw(st.sampled_from([*["convolution"] * 4, "max", "mean", "concatenation", "sum", "slice"]))
        mates = [i for i, old in enumerate(seen) if old.shape[1:] == nodes.shape[1:]]
        if kind == "sum":
            mates = [i for i in mates if seen[i].shape == nodes.shape]
        i = draw(st.sampled_from(mates))
        if kind in ("max", "mean") and min(nodes.shape[1:]) > 2:
            stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
            function = F.max_pool2d if kind == "max" else F.avg_pool2d
            step = lambda net, xs, f=function, s=stride, p=padding: f(xs[-1], 2, s, p)  # noqa: E731
            add(step, pool(graph, nodes, 2, stride, padding, 1))
        elif kind == "slice":
            add(lambda net, xs: torch.stack(xs[-1].unbind(1), 1)[:, ::2], nodes[::2])
        elif kind == "concatenation":
            add(lambda net, xs, i=i: torch.cat([xs[i], xs[-1]], 1), np.concatenate([seen[i], nodes]))
        elif kind == "sum":
            add(lambda net, xs, i=i: xs[i] + xs[-1], graph.new(*nodes.shape))
            for start, end in zip([*nodes.flat, *seen[i].flat], [*seen[-1].flat] * 2, strict=True):
                graph.join(start, end)
        else:
            kernel, dilation = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]))
            groups = draw(st.sampled_from([1, 2])) if len(nodes) % 2 == 0 else 1
            options = {"stride": draw(st.integers(1, 2)), "padding": 1, "dilation": dilation, "groups": groups}
            c_out = 2 * draw(st.integers(1, 2))
            new = {f"layer{k}": nn.Conv2d(len(nodes), c_out, kernel, **options)}
            step = lambda net, xs, k=k: getattr(net, f"layer{k}")(xs[-1])  # noqa: E731
            add(step, convolve(graph, nodes, f"layer{k}.weight", c_out, kernel, **options), **new)
        if draw(st.booleans()) and seen[-1][0].size > 1:  # torch refuses to norm a single number
            norm = NORMS[draw(st.sampled_from(sorted(NORMS)))](len(seen[-1]))
            add(lambda net, xs, k=k: getattr(net, f"norm{k}")(xs[-1]), seen[-1], **{f"norm{k}": norm})
        add(lambda net, xs, f=SINGLE[draw(st.sampled_from(sorted(SINGLE)))]: f(xs[-1]), seen[-1])

    def forward(net, x):
        xs = [x]
        for step in steps:
            xs.append(step(net, xs))
        return net.head(xs[-1].flatten(1))

    return Net(forward, **parts, head=nn.Linear(seen[-1].size, 3)), graph, seen[-1]


@given(networks(), st.integers(0, 10**6), st.floats(0.1, 1))
@settings(max_examples=150)
def test_the_effective_sparsity_is_that_of_a_search_on_the_graph(network, seed, density):
    model, graph, outputs = network
    names = [
        name for name in dict(model.named_parameters()) if name.startswith("layer") and name.endswith("weight")
    ]
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(model.get_parameter(n).shape, generator=generator) < density for n in names}
    if not names:
        return
    whole = graph.used({name: torch.ones_like(kept) for name, kept in masks.items()}, outputs)
    batch = batch_of(1, 2, 4, 4)
    if any((name, o) not in {(n, i[0]) for n, i in whole} for name in names for o in range(len(masks[name]))):
        with pytest.raises(ValueError, match=r"Flow does not pass 'layer\d.weight' even in the whole network"):
            pai.effective_sparsity(model, masks, batch)
    else:
        total = sum(kept.numel() for kept in masks.values())
        expected = 1 - len(graph.used(masks, outputs)) / total
        assert pai.effective_sparsity(model, masks, batch) == pytest.approx(expected, abs=1e-12)
