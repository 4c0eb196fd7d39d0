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


def in_part(x):
    x = x * 1
    x[:, :, ::2].relu_()
    x.mT[..., :1].mul_(2)
    x[:, 0] = x[:, 0].sin()
    return x


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


FUNCTIONS = """
    relu relu6 hardtanh sigmoid tanh gelu silu hardswish hardsigmoid elu selu celu softplus softsign tanhshrink
    hardshrink softshrink mish logsigmoid leaky_relu rrelu
""".split()
SINGLE = {  # functions of single numbers
    **{name: getattr(F, name) for name in FUNCTIONS},
    **{name: getattr(torch, name) for name in ("abs", "square", "exp", "sign", "sin", "round", "neg")},
    "in-place relu": lambda x: F.relu_(x * 1),
    "in place, in part": in_part,
    "own square": lambda x: x * x,
    "cube": lambda x: x**3,
    "clamp": lambda x: x.clamp(0.3, 0.4),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "own relu": lambda x: x * (x > 0),
    "dropout that stays on": lambda x: F.dropout(x, 0.9, True),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "half": lambda x: 1 - x / 2,
    "another layout": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "noise": lambda x: x + torch.randn_like(x),
    "there and back": lambda x: x.transpose(2, 3).clone().mT,
    "filled in place": lambda x: (x * 1).masked_fill_(x > 9, 0.0),
    "an own function": lambda x: Sign.apply(x),
}
NORMS = {
    "batch": nn.BatchNorm2d,
    "batch, without a scale": lambda c: nn.BatchNorm2d(c, affine=False),
    "batch, without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "layer": lambda c: nn.GroupNorm(1, c),
    "group": lambda c: nn.GroupNorm(c, c),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "affine": lambda c: Affine(c, False),
    "affine, subtracted": lambda c: Affine(c, True),
    "prelu": nn.PReLU,
}


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
        single = SINGLE[draw(st.sampled_from(sorted(SINGLE)))]
        add(lambda net, xs, f=single: f(xs[-1]), seen[-1])

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


# ---------------------------------------------------------------------------------------------------------
# One kind of operation each, worked out by hand


def everything(model, *names):
    return {name: torch.ones_like(model.get_parameter(name)).bool() for name in names or pai.prunable(model)}


def off_path(model, batch, removed):
    """How many weights are off every path where those at the places given for each name are removed."""
    mask = everything(model, *removed)
    for name, where in removed.items():
        mask[name][where] = False
    return round(pai.effective_sparsity(model, mask, batch) * sum(kept.numel() for kept in mask.values()))


NONE = torch.zeros(0, dtype=torch.long)


def net(function, **parts):
    return Net(lambda net, x: net.head(function(net, x)), **parts, head=nn.Linear(6, 3))


def layers(*names, c_in=4):
    return {name: nn.Linear(c_in if i == 0 else 6, 6) for i, name in enumerate(names)}


TOKENS = pai.Batch(torch.tensor([[3, 1, 0, 5], [2, 2, 6, 0]]), torch.tensor([0, 1]))
ROWS = batch_of(2, 4, 4, dtype=torch.float32)


def assembled(net, x):
    rows = x.new_empty(len(x), 5, 6)
    rows[:, 0] = net.token
    rows[:, 1:] = net.a(x)
    return net.b(rows).relu().mean(1)


class Position(nn.Embedding):
    def forward(self, x):
        return x + super().forward(torch.arange(x.shape[1])) - self.weight[: x.shape[1]]


SHIFTS = {
    "a token, joined": net(
        lambda net, x: net.b(torch.cat([net.token.expand(len(x), 1, 6), net.a(x)], 1)).relu().mean(1),
        token=nn.Parameter(torch.randn(1, 1, 6)), **layers("a", "b"),
    ),
    "a token, written": net(assembled, token=nn.Parameter(torch.randn(6)), **layers("a", "b")),
    "a token in place of some": net(
        lambda net, x: net.b(torch.where(torch.arange(4)[:, None] > 1, net.a(x), net.other)).mean(1),
        other=nn.Parameter(torch.randn(6)), **layers("a", "b"),
    ),
    "positions": net(lambda net, x: net.b(net.p(net.a(x))).mean(1), p=Position(9, 6), **layers("a", "b")),
    "what is subtracted in place": net(
        lambda net, x: net.b(net.a(x).sub_(net.mean).div_(net.deviation).tanh()).mean(1),
        mean=nn.Parameter(torch.ones(6)), deviation=nn.Parameter(torch.ones(6)), **layers("a", "b"),
    ),
    "a shift that is computed": net(
        lambda net, x: net.b(net.a(x) + F.softplus(net.s) * net.t.exp().cumsum(0)).mean(1),
        s=nn.Parameter(torch.ones(6)), t=nn.Parameter(torch.ones(6)), **layers("a", "b"),
    ),
    "biases of a functional call": net(
        lambda net, x: F.linear(F.linear(x, net.a.weight, net.c).cos(), net.b.weight, net.c).mean(1),
        c=nn.Parameter(torch.ones(6)), **layers("a", "b"),
    ),
    "noise": net(lambda net, x: net.b(net.a(x) + torch.randn(6)).mean(1), **layers("a", "b")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHIFTS)
def test_nothing_gets_through_an_empty_layer_whatever_is_added_behind_it(kind):
    model = SHIFTS[kind]
    assert off_path(model, ROWS, {"a.weight": NONE, "b.weight": NONE}) == 0
    assert off_path(model, ROWS, {"a.weight": slice(None), "b.weight": NONE}) == 24 + 36
    assert off_path(model, ROWS, {"a.weight": 2, "b.weight": NONE}) == 4 + 6


TABLE = {"table": nn.Embedding(7, 6), "b": nn.Linear(6, 6)}
LOOKUPS = {
    "an embedding": net(lambda net, x: net.b(net.table(x)).mean(1), **TABLE),
    "a table": net(lambda net, x: net.b(net.table.weight[x]).mean(1), **TABLE),
    "one-hot rows": net(lambda net, x: net.b(F.one_hot(x, 7).float() @ net.table.weight).mean(1), **TABLE),
    "with positions": net(
        lambda net, x: net.b(net.table(x) + net.place(torch.arange(x.shape[1]))).mean(1), **TABLE,
        place=nn.Embedding(4, 6),
    ),
    "with a mask for padding": net(
        lambda net, x: net.b((net.table(x) * (x != 0)[..., None]).sum(1) / (x != 0).sum(1, keepdim=True)), **TABLE
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOKUPS)
def test_of_token_numbers_any_may_occur(kind):
    model = LOOKUPS[kind]
    assert off_path(model, TOKENS, {"b.weight": NONE}) == 0
    assert off_path(model, TOKENS, {"table.weight": NONE, "b.weight": NONE}) == 0
    assert off_path(model, TOKENS, {"table.weight": 4, "b.weight": NONE}) == 6  # of a word: the others are left
    assert off_path(model, TOKENS, {"table.weight": (slice(None), 1), "b.weight": NONE}) == 7 + 6
    assert off_path(model, TOKENS, {"table.weight": NONE, "b.weight": (slice(None), 1)}) == 7 + 6


def test_products_need_both_and_gates_that_are_never_shut_need_one():
    two = net(lambda net, x: net.a(x) * net.b(x), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    one = net(lambda net, x: net.a(x) * net.b(x).sigmoid(), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    glu = net(lambda net, x: F.glu(torch.cat([net.a(x), net.b(x)], 1)), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    batch = batch_of(2, 4)
    add = net(lambda net, x: torch.addcmul(net.a.bias, net.a(x), net.b(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    for model, without_a, without_b in ((two, 8, 8), (one, 8, 4), (glu, 8, 4), (add, 8, 8)):
        assert off_path(model, batch, {"a.weight": 1, "b.weight": NONE}) == without_a
        assert off_path(model, batch, {"a.weight": NONE, "b.weight": 1}) == without_b


def test_a_softmax_sees_all_scores_but_those_that_it_must_not():
    weighted = net(lambda net, x: (net.b(x).softmax(1) * net.a(x)).sum(1), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    assert (
        off_path(weighted, ROWS, {"a.weight": 1, "b.weight": NONE}) == 8
    )  # without values its scores tell nothing
    assert off_path(weighted, ROWS, {"a.weight": NONE, "b.weight": 1}) == 4

    def first_token(net, x, causal):
        rows = torch.cat([net.a(x[:, :1]), net.b(x[:, 1:])], 1)
        return F.scaled_dot_product_attention(rows, rows, rows, is_causal=causal)[:, 0]

    model = net(lambda net, x: first_token(net, x, False), **layers("a"), b=nn.Linear(4, 6))
    assert off_path(model, ROWS, {"a.weight": NONE, "b.weight": NONE}) == 0
    model.function = lambda net, x: net.head(first_token(net, x, True))  # it sees itself alone
    assert off_path(model, ROWS, {"a.weight": NONE}) == 0
    with pytest.raises(ValueError, match=r"Flow does not pass 'b.weight' even in the whole network"):
        off_path(model, ROWS, {"a.weight": NONE, "b.weight": NONE})
    learned = net(
        lambda net, x: F.scaled_dot_product_attention(net.query.expand(len(x), 1, 6), net.a(x), net.b(x))[:, 0],
        query=nn.Parameter(torch.randn(1, 1, 6)), a=nn.Linear(4, 6), b=nn.Linear(4, 6),
    )  # fmt: skip
    assert off_path(learned, ROWS, {"a.weight": 1, "b.weight": NONE}) == 4
    assert off_path(learned, ROWS, {"a.weight": NONE, "b.weight": slice(None)}) == 48


def test_constants_let_pass_where_they_are_not_zero_and_parameters_everywhere():
    """A masked autoregressive layer; a norm that starts at zero, as the last of a residual block often does."""
    lower = torch.ones(6, 4).tril()
    made = net(lambda net, x: F.linear(x, net.a.weight * net.lower), a=nn.Linear(4, 6), lower=nn.Buffer(lower))
    assert off_path(made, batch_of(2, 4), {"a.weight": NONE}) == int((lower == 0).sum())
    norm = nn.BatchNorm1d(6)
    nn.init.zeros_(norm.weight)
    assert (
        off_path(net(lambda net, x: net.n(net.a(x)), n=norm, a=nn.Linear(4, 6)), batch_of(2, 4), {"a.weight": 1})
        == 4
    )
    scaled = net(lambda net, x: net.a(x) * F.softplus(net.s), s=nn.Parameter(torch.zeros(6)), a=nn.Linear(4, 6))
    assert off_path(scaled, batch_of(2, 4), {"a.weight": 1}) == 4


def test_a_norm_written_out_is_reached_by_what_it_divides():
    """In x/‖x‖ a unit whose own output nobody reads still scales the others."""

    def forward(net, x):
        return net.b(F.normalize(net.a(x), dim=1))

    for norm in (forward, lambda net, x: net.b(F.rms_norm(net.a(x), (6,)))):
        model = net(norm, **layers("a", "b"))
        assert off_path(model, batch_of(2, 4), {"a.weight": NONE, "b.weight": (slice(None), 1)}) == 6
        assert off_path(model, batch_of(2, 4), {"a.weight": 1, "b.weight": NONE}) == 4 + 6
        assert off_path(model, batch_of(2, 4), {"a.weight": slice(None), "b.weight": NONE}) == 24 + 36


def test_recurrent_layers_are_their_gates():
    """A unit that nothing enters, and one that is not read, of a recurrent layer and by hand."""
    for layer in (nn.RNN, nn.GRU, nn.LSTM):
        gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[layer]
        model = net(lambda net, x: net.rnn(x)[0][:, -1], rnn=layer(4, 6, batch_first=True))
        first, again = "rnn.weight_ih_l0", "rnn.weight_hh_l0"
        unit = [2 + 6 * gate for gate in range(gates)]
        assert off_path(model, ROWS, {first: NONE, again: NONE, "head.weight": NONE}) == 0
        assert off_path(model, ROWS, {first: unit, again: unit, "head.weight": NONE}) == gates * 10 + gates * 5 + 3
        assert off_path(model, ROWS, {first: slice(None), again: NONE, "head.weight": NONE}) == gates * 60 + 18
        before = torch.backends.mkldnn.enabled
        assert off_path(model, ROWS, {first: NONE, again: (slice(None), 2), "head.weight": (slice(None), 2)}) == (
            gates * 10 + 3 + gates * 5
        )
        assert torch.backends.mkldnn.enabled == before


def test_weights_that_only_constants_enter_are_on_no_path():
    """cos(0) is 1: it lets the other factor pass, but no input reaches the weight behind it."""
    model = net(
        lambda net, x: net.b(net.a(x).cos()) * net.c(x), b=nn.Linear(6, 6), **layers("a"), c=nn.Linear(4, 6)
    )
    assert off_path(model, batch_of(2, 4), {"a.weight": 1, "b.weight": NONE, "c.weight": NONE}) == 4 + 6


def test_inputs_by_name_and_in_order():
    parts = {"a": nn.Linear(4, 6), "b": nn.Embedding(7, 6), "head": nn.Linear(6, 3)}

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict(parts)

        def forward(self, rows, tokens):
            return self.parts["head"](self.parts["a"](rows).mean(1) + self.parts["b"](tokens).mean(1))

    removed = {"parts.a.weight": 1, "parts.b.weight": (slice(None), 2)}
    for inputs in ({"tokens": TOKENS.inputs, "rows": ROWS.inputs}, (ROWS.inputs, TOKENS.inputs)):
        assert off_path(Two(), pai.Batch(inputs, TOKENS.labels), removed) == 4 + 7


def test_half_precision_frozen_and_shared_weights():
    half = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).bfloat16().requires_grad_(False)
    assert off_path(half, batch_of(2, 4), {"0.weight": 1}) == 4
    shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    shared[2].weight = shared[0].weight
    assert off_path(shared, batch_of(2, 4), {"0.weight": (0, slice(1, 4))}) == 3  # unit 0 still sees input 0


def detour(net, x):
    return torch.from_numpy(net.a(x).detach().numpy())


def expert(net, x):
    return torch.stack([net.a(x), 2 * net.a(x)])[net.a(x)[:, 0].gt(0).long(), torch.arange(len(x))]


UNREACHED = "Flow does not pass 'a.weight' even in the whole network"
DEPENDS = "The effective sparsity of this model cannot be told: which entries 'index' takes depends on the input"
UNKNOWN = "what passes the operation '.*' is not known"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (detour, UNREACHED),
        (lambda net, x: net.a(x) * 0, UNREACHED),
        (expert, DEPENDS),
        (lambda net, x: net.a(x)[:, net.a(x)[0] > -99], DEPENDS),
        (lambda net, x: torch.view_as_complex(net.a(x).unflatten(1, (3, 2))).abs().repeat(1, 2), "is not known"),
        (lambda net, x: net.a(x).topk(6).values, UNKNOWN),
        (lambda net, x: F.max_pool1d(net.a(x), 2, 1, 1, dilation=2).repeat(1, 2)[:, :6], "dilated"),
        (lambda net, x: torch.linalg.qr(net.a(x).mT @ net.a(x))[0][:1], UNKNOWN),
        (lambda net, x: F.linear(x, torch.linalg.pinv(net.a.weight).mT), UNKNOWN),
    ],
)
def test_what_cannot_be_told_is_one_sentence(function, message):
    model = net(function, a=nn.Linear(4, 6))
    with pytest.raises(ValueError, match=message):
        pai.effective_sparsity(model, everything(model, "a.weight"), batch_of(2, 4, dtype=torch.float32))


@pytest.mark.parametrize(
    ("change", "batch", "message"),
    [
        (
            lambda model: model,
            (torch.randn(2, 5), torch.arange(2)),
            r"fails for inputs of float32 of shape \(1, 5\)",
        ),
        (lambda model: model, torch.randn(2, 4), "The batch is a Tensor: it must be a pair"),
        (nn.DataParallel, batch_of(2, 4), "use what it wraps, its .module"),
        (lambda model: nn.Sequential(model, nn.LazyLinear(2)), batch_of(2, 4), "lazy module has no shape yet"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(change, batch, message):
    model = change(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    name, weight = next(iter(model.named_parameters()))
    for function in (pai.effective_sparsity, pai.flops_left):
        with pytest.raises((TypeError, ValueError), match=message):
            function(model, {name: torch.ones_like(weight).bool()}, batch)


def test_batches_as_a_loader_gives_them():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    for batch in ([ROWS.inputs[:, 0], ROWS.labels], (np.ones((2, 4)), np.arange(2))):
        assert off_path(model, batch, {"0.weight": 1}) == 4
        assert off_path(model, batch, {"0.weight": NONE}) == 0


def test_a_mask_of_a_shift_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"Flow does not pass '0.bias' .*it is a shift there"):
        pai.effective_sparsity(model, everything(model, "0.weight", "0.bias"), batch_of(2, 4))


def test_the_model_and_torch_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(6, 3))
    before, functions = {k: v.clone() for k, v in model.state_dict().items()}, dict(vars(F))
    with torch.inference_mode():
        assert pai.effective_sparsity(model, everything(model, "0.weight"), batch_of(2, 4)) == 0
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert dict(vars(F)) == functions
