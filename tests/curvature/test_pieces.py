"""What one piece of a batch does not show: full or idle experts, rare draws, late NaN, no gradient."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Net, assert_equal_diagonals, batch_of, fisher_loop, flat, ggn_loop, hessian, linear
from torch import nn
from torch.utils.checkpoint import checkpoint

import pai_lib as pai

KEYS = ["snip", "grasp", "fts", "fisher_diag", "hutchinson_diag"]  # of each way of asking for gradients


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


def mlp(change=lambda z: z, **parts):
    """Two layers and a head, with something done between the layers."""

    def forward(net, x):
        return net.h(net.b(change(net.a(x).relu())).relu())

    return Net(forward, a=linear(4, 6), b=linear(6, 6), h=linear(6, 3), **parts)


# --- experts


def experts(capacity=None, count=2, only_hit=True):
    def forward(net, x):
        where = torch.bucketize(x[:, 0].contiguous(), torch.linspace(-0.5, 0.5, count + 1)[1:-1].double())
        out = x.new_zeros(len(x), 6)
        for i, expert in enumerate(net.experts):
            at = (where == i).nonzero()[:, 0][:capacity]
            if len(at) or not only_hit:
                out = out.index_add(0, at, expert(x[at]))
        return net.h(net.b(out.relu()).relu())

    layers = nn.ModuleList(linear(4, 6) for _ in range(count))
    return Net(forward, experts=layers, b=linear(6, 6), h=linear(6, 3))


def sorted_batch(samples):
    """Of which each piece meets few experts."""
    batch = batch_of(samples, 4)
    return pai.Batch(batch.inputs[batch.inputs[:, 0].argsort()], batch.labels)


@pytest.mark.parametrize("only_hit", [True, False])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("chunk", [1, 3, 12])
def test_a_piece_may_miss_an_expert(chunk, count, only_hit):
    model, batch = experts(count=count, only_hit=only_hit), sorted_batch(12)
    names = pai.prunable(model)
    loss = F.cross_entropy(model(batch.inputs), batch.labels)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [model.get_parameter(n) for n in names])])
    torch.testing.assert_close(flat(pai.gradient(model, batch, chunk=chunk)), expected)
    dense = hessian(model, batch, names)
    vectors = {name: torch.randn_like(model.get_parameter(name)) for name in names}
    product = pai.hessian_vector_product(model, batch, vectors, chunk=chunk)
    torch.testing.assert_close(flat(product), dense @ flat(vectors))
    one, other = (
        pai.hutchinson_diag(model, batch, 3, chunk=c, generator=torch.Generator().manual_seed(1))
        for c in (chunk, 12)
    )
    torch.testing.assert_close(flat(one), flat(other))
    for group in (1, 2):
        found = pai.fisher_diag(model, batch, group, chunk=chunk)
        squares = []  # the oracle's parameters may be unused in a group
        for x, y in zip(batch.inputs.split(group), batch.labels.split(group), strict=True):
            grads = torch.autograd.grad(
                F.cross_entropy(model(x), y), [model.get_parameter(n) for n in names], materialize_grads=True,
                allow_unused=True,
            )  # fmt: skip
            squares.append(torch.cat([g.flatten() for g in grads]).square())
        assert_equal_diagonals(found, torch.stack(squares).mean(0))
    assert_equal_diagonals(pai.exact_diag(model, batch, chunk=chunk), dense.diag())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("chunk", [2, 8])
def test_an_expert_that_no_piece_meets_is_refused(key, chunk):
    model, batch = experts(), batch_of(8, 4)
    batch.inputs[:, 0].abs_()
    with pytest.raises(ValueError, match=r"No gradient reaches 'experts\.0\.weight': it is not used, or only"):
        pai.score(model, batch, key, chunk=chunk)


@pytest.mark.parametrize("only_hit", [True, False])
@pytest.mark.parametrize("capacity", [30, 64])
def test_experts_that_larger_pieces_fill_are_refused_at_every_chunk(capacity, only_hit):
    """As in a Switch Transformer: more than its capacity an expert leaves out."""
    model, batch = experts(capacity, only_hit=only_hit), batch_of(200, 4)
    for chunk in (None, 25, 50, 60, 130, 199):
        for refused in (
            lambda chunk=chunk: pai.gradient(model, batch, chunk=chunk),
            lambda chunk=chunk: pai.fisher_diag(model, batch, chunk=chunk),
            lambda chunk=chunk: pai.hutchinson_diag(model, batch, 1, chunk=chunk),
            lambda chunk=chunk: pai.exact_diag(model, batch, chunk=chunk),
        ):
            with pytest.raises(ValueError, match="logits of one sample depend on another"):
                refused()
    enough = experts(200, only_hit=only_hit)
    whole, pieces = (pai.gradient(enough, batch, chunk=chunk) for chunk in (200, 50))
    torch.testing.assert_close(flat(whole), flat(pieces))


def test_a_chunk_above_the_default_is_looked_at_in_its_size():
    model, batch = experts(400), batch_of(1500, 4)
    assert pai.gradient(model, batch)  # in pieces of 64, in which no expert is full
    with pytest.raises(ValueError, match="logits of one sample depend on another"):
        pai.gradient(model, batch, chunk=1000)


# --- randomness


def drop(z):
    return z if torch.rand(()) < 0.3 else z + 1


DRAWS = {
    "rare dropout": lambda z: F.dropout(z, 0.02),
    "of one sample": lambda z: torch.cat([z[:-1], z[-1:] + torch.randn_like(z[-1:])]) if len(z) > 2 else z,
    "a layer left out": drop,
    "mixed in a random order": lambda z: z + 0.1 * z[torch.randperm(len(z))],
    "NumPy's": lambda z: z * (1 + torch.from_numpy(np.random.rand(len(z), 1) < 0.05)),  # noqa: NPY002
    "Python's": lambda z: z if random.random() < 0.3 else 2 * z,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("case", DRAWS)
def test_draws_are_noticed_though_two_samples_may_agree(case, key, seed):
    model, batch = mlp(DRAWS[case]), batch_of(60, 4)
    torch.manual_seed(seed)
    random.seed(seed)
    for chunk in (None, 10):
        with pytest.raises(ValueError, match="The model's output differs from call to call"):
            pai.score(model, batch, key, chunk=chunk)


def test_unknown_words_that_are_random_vectors_are_noticed():
    def forward(net, t):
        words = torch.where((t == 9)[..., None], torch.randn(*t.shape, 6, dtype=torch.float64), net.words(t))
        return net.h(net.b(net.a(words.mean(1)).relu()).relu())

    parts = {"words": nn.Embedding(10, 6).double(), "a": linear(6, 6), "b": linear(6, 6), "h": linear(6, 3)}
    tokens = torch.randint(0, 9, (30, 5))
    tokens[-1] = 9
    for key in KEYS:
        with pytest.raises(ValueError, match="The model's output differs from call to call"):
            pai.score(Net(forward, **parts), pai.Batch(tokens, torch.arange(30) % 3), key)


@pytest.mark.parametrize("case", ["a layer left out", "rare dropout", "Python's"])
def test_synaptic_flow_notices_draws_too(case):
    for seed in range(5):
        torch.manual_seed(seed)
        model = mlp(lambda z: DRAWS[case](z.repeat(1, 10))[:, :6])
        with pytest.raises(ValueError, match="The model's output differs from call to call"):
            pai.score(model, batch_of(6, 4), "synflow")


@pytest.mark.parametrize("key", [*KEYS, "synflow", "exact_diag"])
def test_draws_without_an_effect_change_nothing(key):
    def harmless(z):
        return z + 0 * torch.rand_like(z) + 0 * random.random() + 0 * np.random.rand()  # noqa: NPY002

    torch.manual_seed(3)
    drawing = mlp(harmless)
    torch.manual_seed(3)
    found, expected = (pai.score(m, batch_of(20, 4), key, chunk=6) for m in (drawing, mlp()))
    torch.testing.assert_close(flat(found), flat(expected))


@pytest.mark.parametrize(("function", "calls"), [(pai.gradient, 3), (pai.synaptic_flow, 1)])
def test_a_model_without_draws_is_not_called_again(function, calls):
    seen, batch = [], batch_of(60, 4)
    model = mlp(lambda z: seen.append(len(z)) or z)
    function(model, batch)
    assert len(seen) == calls  # two samples twice, and the batch
    assert sum(length for length in seen if length > 2) in (60, 0)


def test_the_random_state_is_that_before_a_refusal():
    model = mlp(lambda z: F.dropout(z, 0.5))
    for key in ("snip", "synflow"):
        before = torch.get_rng_state()
        with pytest.raises(ValueError, match="differs from call to call"):
            pai.score(model, batch_of(60, 4), key)
        assert torch.equal(torch.get_rng_state(), before)


# --- NaN


@pytest.mark.parametrize("key", [*KEYS, "exact_diag"])
@pytest.mark.parametrize("value", [-1.0, 0.0])
@pytest.mark.parametrize("place", [0, 70, 129])
def test_logits_that_are_not_finite_are_refused_wherever_they_are(place, value, key):
    model = mlp()
    body = model.function
    model.function = lambda net, x: body(net, 1 / x.sqrt())  # NaN, and infinite
    batch = batch_of(130, 4)
    batch.inputs.abs_()
    for chunk in (30, 130):
        assert pai.score(model, batch, key, chunk=chunk, probes=1)
    batch.inputs[place] = value
    for chunk in (None, 30, 130):
        with pytest.raises(ValueError, match="The model's logits hold NaN or infinite values"):
            pai.score(model, batch, key, chunk=chunk, probes=1)


# --- no gradient


def without_grad(net, x):
    with torch.no_grad():
        z = net.a(x).relu()
    return net.h(net.b(z).relu())


def in_inference_mode(net, x):
    with torch.inference_mode():
        z = net.a(x).relu()
    return net.h(net.b(z.clone()).relu())


NOWHERE = {
    "no_grad": without_grad,
    "inference mode": in_inference_mode,
    "detached": lambda net, x: net.h(net.b(net.a(x).relu().detach()).relu()),
    "data": lambda net, x: net.h(net.b(net.a(x).relu().data).relu()),
    "a comparison": lambda net, x: net.h(net.b(net.a(x).gt(0).double()).relu()),
    "unused": lambda net, x: net.h(net.b(F.pad(x, (0, 2))).relu()),
    "all of it": torch.no_grad()(lambda net, x: net.h(net.b(net.a(x).relu()).relu())),
    "all of it, for inference": torch.inference_mode()(lambda net, x: net.h(net.b(net.a(x).relu()).relu())),
}


@pytest.mark.parametrize("key", [*KEYS, "synflow", "exact_diag"])
@pytest.mark.parametrize("case", NOWHERE)
def test_a_weight_that_no_gradient_reaches_is_refused_in_a_true_sentence(case, key):
    model, batch = mlp(), batch_of(6, 4)
    model.function = NOWHERE[case]
    says = r"No gradient reaches 'a\.weight': it is not used, or only where none flows"
    whole = case.startswith("all") and key == "synflow"
    for chunk in (None, 2):
        with pytest.raises(ValueError, match="needs a model that returns a tensor of" if whole else says):
            pai.score(model, batch, key, chunk=chunk)
    if not case.startswith("all"):
        assert pai.score(model, batch, key, parameters=["b.weight"])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # PyTorch's
@pytest.mark.parametrize("key", [*KEYS, "synflow", "exact_diag"])
@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("first", [False, True])
def test_reentrant_checkpointing_is_refused_wherever_it_is(first, samples, key):
    def forward(net, x):
        if first:
            return net.h(net.b(checkpoint(lambda x: net.a(x).relu(), x, use_reentrant=True)).relu())
        return net.h(checkpoint(lambda z: net.b(z).relu(), net.a(x).relu(), use_reentrant=True))

    model = mlp()
    model.function = forward
    for chunk in (None, 2):
        with pytest.raises(ValueError, match="use_reentrant=True, which hides its weights from derivatives"):
            pai.score(model, batch_of(samples, 4), key, chunk=chunk)


# --- batch norms


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_batch_norm_that_does_not_run_does_no_harm(norm, chunk):
    model, batch = mlp(aux=norm(6, track_running_stats=False)), batch_of(6, 4)
    names = pai.prunable(model)
    assert_equal_diagonals(pai.fisher_diag(model, batch, chunk=chunk), fisher_loop(model, batch, names, 1))
    assert_equal_diagonals(pai.ggn_diag(model, batch, chunk=chunk), ggn_loop(model, batch, names))


@pytest.mark.parametrize("same", [False, True])
def test_a_batch_norm_that_runs_with_the_statistics_of_the_batch_is_refused(same):
    """Also if all samples are the same: their logits agree in any batch, their gradients do not."""
    batch = batch_of(6, 4)
    if same:
        batch.inputs[:] = batch.inputs[:1].clone()
    for norm in (
        nn.BatchNorm1d(6, track_running_stats=False).double(),
        lambda z: F.batch_norm(z, None, None, training=True),
    ):
        for estimator in (pai.fisher_diag, pai.ggn_diag):
            with pytest.raises(ValueError, match="A batch norm used the statistics of the batch"):
                estimator(mlp(norm), batch)


# --- where no derivative is taken


def test_the_table_of_tokens_has_no_flow_and_is_not_called_unreached():
    """What is looked up in it is all ones, whatever it holds."""

    def forward(net, t):
        return net.h(net.b(net.words(t).mean(1)).relu())

    model = Net(forward, words=nn.Embedding(10, 6).double(), b=linear(6, 6), h=linear(6, 3))
    flow = pai.synaptic_flow(model, pai.Batch(torch.randint(0, 10, (4, 5)), torch.arange(4) % 3), parameters="all")
    assert not flow["words.weight"].any()
    expected = (model.h.weight.abs() @ model.b.weight.abs()).sum()
    torch.testing.assert_close(flow["b.weight"].sum(), expected.detach())


def test_multiply_adds_of_an_unused_layer_are_refused():
    model = mlp(u=linear(3, 3))
    mask = {name: torch.ones_like(model.get_parameter(name)).bool() for name in ("a.weight", "u.weight")}
    with pytest.raises(ValueError, match=r"No gradient reaches 'u\.weight': it is not used, or only"):
        pai.flops_left(model, mask, batch_of(6, 4))
