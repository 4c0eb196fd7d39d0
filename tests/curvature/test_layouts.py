"""Which rows of a layer belong to which sample: proved for every sample, or refused; and what splits a batch."""

import copy
import itertools
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Net, assert_equal_diagonals, batch_of, fisher_loop, ggn_loop, hessian, linear
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pai_lib as pai


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


class Packed(nn.Module):
    """Only the tokens that are there pass the linear layer, as in unpadded transformers."""

    def __init__(self, bias=True, convolution=False):
        super().__init__()
        self.token = nn.Conv1d(5, 6, 1, bias=bias) if convolution else nn.Linear(5, 6, bias=bias)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        there = x[..., 0] > 0.5
        rows = x[there][:, 1:]
        rows = self.token(rows[..., None])[..., 0] if isinstance(self.token, nn.Conv1d) else self.token(rows)
        pooled = rows.new_zeros(len(x), 6).index_add(0, there.nonzero()[:, 0], rows.tanh())
        return self.head(pooled / there.sum(1, keepdim=True))


def ragged(lengths):
    x = torch.randn(len(lengths), max(lengths), 6, dtype=torch.double)
    x[..., 0] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).double()
    return pai.Batch(x, torch.arange(len(lengths)) % 3)


# The sum of the lengths is a multiple of their number in most: no size tells that rows are ragged.
LENGTHS = st.lists(st.integers(1, 4), min_size=2, max_size=9)


@given(LENGTHS, st.booleans(), st.booleans(), st.sampled_from([1, 2, 3, None]), st.sampled_from([None, 1, 2, 3]))
def test_ragged_rows_are_given_to_their_samples(lengths, bias, convolution, group, chunk):
    model, batch = Packed(bias, convolution).double(), ragged(lengths)
    names = [name for name, _ in model.token.named_parameters(prefix="token")]
    found = pai.fisher_diag(model, batch, group, chunk=chunk, parameters=names)
    assert_equal_diagonals(found, fisher_loop(model, batch, names, group or len(lengths)))
    found = pai.ggn_diag(model, batch, chunk=chunk, parameters=names)
    assert_equal_diagonals(found, ggn_loop(model, batch, names))


def test_rows_that_turn_ragged_after_a_regular_piece():
    model, batch = Packed().double(), ragged([2, 2, 2, 2, 1, 3, 3, 1])
    names = ["token.weight", "token.bias"]
    found = pai.fisher_diag(model, batch, chunk=4, parameters=names)
    assert_equal_diagonals(found, fisher_loop(model, batch, names, 1))


def frames(net, x):
    """Positions first, then samples, as the batch of a convolution."""
    n, positions, _ = x.shape
    x = net.a(x.transpose(0, 1).reshape(-1, 4, 1, 1))
    return net.head(F.relu(x).view(positions, n, 4).sum(0))


LAYOUTS = {
    "samples first": lambda net, x: net.head(F.relu(net.a(x.reshape(-1, 4, 1, 1))).view(len(x), -1, 4).sum(1)),
    "positions first": frames,
    "samples backwards": lambda net, x: net.head(
        F.relu(net.a(x.mean(1).flip(0)[..., None, None])).flatten(1).flip(0)
    ),
    "first position only": lambda net, x: net.head(
        F.relu(net.a(x.reshape(-1, 4, 1, 1))).view(len(x), -1, 4)[:, 0]
    ),
}


@pytest.mark.parametrize("samples", [2, 5, 6])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("case", LAYOUTS)
def test_a_convolution_may_see_several_rows_of_a_sample(case, group, samples):
    model = Net(LAYOUTS[case], a=nn.Conv2d(4, 4, 1), head=linear(4, 3)).double()
    batch, names = batch_of(samples, 5, 4), ["a.weight", "a.bias"]
    assert_equal_diagonals(
        pai.fisher_diag(model, batch, group, parameters=names), fisher_loop(model, batch, names, group)
    )
    assert_equal_diagonals(pai.exact_diag(model, batch, parameters=names), hessian(model, batch, names).diag())


@pytest.mark.parametrize("estimator", [pai.fisher_diag, pai.ggn_diag, pai.exact_diag])
def test_samples_along_another_axis_than_rows_are_refused(estimator):
    """As many positions as samples, and the convolution runs along the samples: no row is a sample's."""

    def along(net, x):  # N×T×C; every sample is looked at alone, for the kernel has one entry
        return net.head(F.relu(net.a(x.permute(1, 2, 0))).mean(0).T)

    model = Net(along, a=nn.Conv1d(4, 4, 1), head=linear(4, 3)).double()
    with pytest.raises(
        ValueError, match=r"Cannot tell which inputs of the layer of 'a\.weight' belong to which sample"
    ):
        estimator(model, batch_of(5, 5, 4), parameters=["a.weight"])


def test_more_samples_than_one_pass_tells_apart():
    model, batch = (
        Net(LAYOUTS["positions first"], a=nn.Conv2d(4, 4, 1), head=linear(4, 3)).double(),
        batch_of(150, 2, 4),
    )
    found = pai.fisher_diag(model, batch, chunk=150, parameters=["a.weight"])
    assert_equal_diagonals(found, fisher_loop(model, batch, ["a.weight"], 1))
    mixed = Net(
        lambda net, x: net.head(net.a(x).relu() + 1e-3 * net.a(x).relu().roll(64, 0)), a=linear(), head=linear()
    )
    with pytest.raises(ValueError, match="depend on another"):
        pai.fisher_diag(mixed, batch_of(150, 4), chunk=150)


# --- samples that see one another


class Words(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.mix, self.words, self.body, self.head = mix, nn.Embedding(20, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(self.body(self.mix(self.words(tokens.long()))).relu().mean(1))


MIXES = {
    "centred": lambda x: x - x.mean(0),
    "centred without a gradient": lambda x: x - x.mean(0).detach(),
    "scaled by the largest": lambda x: x / x.abs().amax().detach(),
    "by the size of the batch": lambda x: x / len(x),
    "by the place in the batch": lambda x: x * torch.linspace(1, 2, len(x), dtype=x.dtype)[:, None, None],
    "sorted": lambda x: x.sort(0).values,
    "rolled": lambda x: x.roll(1, 0),
    "attention over samples": lambda x: (
        (x.transpose(0, 1) @ x.permute(1, 2, 0)).softmax(-1).transpose(0, 1) @ x[0]
    ),
    "batch statistics": lambda x: F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2),
}


@pytest.mark.parametrize("case", [name for name in MIXES if name != "attention over samples"])
@pytest.mark.parametrize("tokens", [True, False, "as real numbers"])
def test_samples_that_see_one_another_are_refused_wherever_a_batch_is_split(case, tokens):
    if tokens:
        model, x = Words(MIXES[case]).double(), torch.randint(0, 20, (6, 5))
        x = x if tokens is True else x.double()
    else:
        model = Net(
            lambda net, x: net.head(net.body(MIXES[case](x)).relu().mean(1)), body=linear(), head=linear(4, 3)
        )
        x = torch.randn(6, 5, 4, dtype=torch.double)
    batch = pai.Batch(x, torch.arange(6) % 3)
    said = "statistics of the batch|depend on another"
    for refused in (
        lambda: pai.fisher_diag(model, batch),
        lambda: pai.ggn_diag(model, batch),
        lambda: pai.fisher_diag(model, batch, 2, chunk=1),
        lambda: pai.gradient(model, batch, chunk=4),
        lambda: pai.hutchinson_diag(model, batch, 1, chunk=3),
        lambda: pai.hutchinson_diag(model, batch, 1, group=2),
        lambda: pai.hessian_vector_product(model, batch, pai.gradient(model, batch), chunk=5),
    ):
        with pytest.raises(ValueError, match=said if case == "batch statistics" else "depend on another"):
            refused()
    assert pai.gradient(model, batch)  # in one piece it is well defined


class Straight(torch.autograd.Function):
    """A coupling that the gradient does not tell, as of quantisation with one scale for the batch."""

    @staticmethod
    def forward(ctx, x):
        out = x.clone()
        out[2:3] += 0.01 * x[3:4]
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def without_grad(x):
    with torch.no_grad():
        return 0.01 * x[3:4]


UNSEEN = {
    "detached": lambda x: torch.cat([x[:2], x[2:3] + 0.01 * x[3:4].detach(), x[3:]]),
    "without grad": lambda x: torch.cat([x[:2], x[2:3] + without_grad(x), x[3:]]),
    "data": lambda x: torch.cat([x[:2], x[2:3] + 0.01 * x[3:4].data, x[3:]]),
    "a number": lambda x: torch.cat([x[:2], x[2:3] + 0.01 * x[3:4].sum().item(), x[3:]]),
    "a comparison": lambda x: torch.cat([x[:2], x[2:3] * (x[3:4] > x[2:3]), x[3:]]),
    "a function of one's own": Straight.apply,
}


@pytest.mark.parametrize("case", UNSEEN)
def test_values_that_no_gradient_follows_are_found_too(case):
    def mix(net, x):
        return net.head(net.a(UNSEEN[case](x) if len(x) > 3 else x).relu())

    model, batch = Net(mix, a=linear(), head=linear(4, 3)).double(), batch_of(40, 4)
    for refused in (lambda: pai.fisher_diag(model, batch), lambda: pai.ggn_diag(model, batch, "mc")):
        with pytest.raises(ValueError, match="depend on another"):
            refused()


NOISES = {
    "NumPy's": lambda net, x: x + torch.from_numpy(np.random.randn(4)),  # noqa: NPY002
    "Python's": lambda net, x: x * random.random(),
    "of a generator of its own": lambda net, x: x + torch.randn(4, generator=GENERATOR, dtype=x.dtype),
    "a counter": lambda net, x: x * GENERATOR.initial_seed() * next(COUNT),
}
GENERATOR, COUNT = torch.Generator().manual_seed(1), itertools.count(1)


@pytest.mark.parametrize("key", ["snip", "fisher_diag", "hutchinson_diag"])
@pytest.mark.parametrize("case", NOISES)
def test_a_model_that_does_not_repeat_itself_is_refused(case, key):
    def forward(net, x):
        return net.head(NOISES[case](net, net.a(x)).relu())

    model = Net(forward, a=linear(), head=linear(4, 3)).double()
    with pytest.raises(ValueError, match=r"draws random numbers|differs from call to call"):
        pai.score(model, batch_of(6, 4), key)


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: torch.rand(1)])
def test_a_draw_of_another_thread_is_not_the_model_s(draw):
    def forward(net, x):
        if others:
            other = others.pop()
            other.start()
            other.join()
        return net.head(net.a(x).relu())

    others = [threading.Thread(target=draw)]
    model, batch = Net(forward, a=linear(), head=linear(4, 3)).double(), batch_of(6, 4)
    pai.fisher_diag(model, batch)
    assert not others


@pytest.mark.parametrize("estimator", [pai.gradient, pai.fisher_diag, pai.exact_diag, pai.hutchinson_diag])
def test_what_no_loss_is_made_of_is_refused(estimator):
    wild = Net(lambda net, x: net.head(net.a(x)) / 0, a=linear(), head=linear(4, 3)).double()
    with pytest.raises(ValueError, match="NaN or infinite values"):
        estimator(wild, batch_of(6, 4))
    one = Net(lambda net, x: net.head(net.a(x).transpose(0, 1).mean(0)), a=linear(), head=linear(4, 1)).double()
    x = torch.randn(6, 5, 4, dtype=torch.double)
    with pytest.raises(ValueError, match="has one output"):
        estimator(one, pai.Batch(x, torch.zeros(6, dtype=torch.int64)))


@pytest.mark.parametrize("pair", [(0, 1), (2, 5), (4, 5)])
def test_two_samples_that_see_one_another_are_found_wherever_they_are(pair):
    def mix(net, x):
        x = x.clone()
        if len(x) == 6:
            x[pair[0]] += 0.01 * x[pair[1]]
        return net.head(net.body(x).relu())

    batch = batch_of(6, 4)
    with pytest.raises(ValueError, match="depend on another"):
        pai.fisher_diag(Net(mix, body=linear(), head=linear(4, 3)), batch)


@given(chunk=st.integers(1, 7), group=st.sampled_from([1, 2, 3, None]), samples=st.integers(1, 7))
def test_no_split_changes_a_result(chunk, group, samples):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    batch, names = batch_of(samples, 4, 3, 3), ["0.weight", "4.weight"]
    for function in (
        lambda chunk: pai.gradient(model.double(), batch, parameters=names, chunk=chunk),
        lambda chunk: pai.fisher_diag(model.double(), batch, group, parameters=names, chunk=chunk),
        lambda chunk: pai.hutchinson_diag(model.double(), batch, 2, group, parameters=names, chunk=chunk),
    ):
        whole, pieces = function(None), function(chunk)
        assert all(torch.allclose(whole[name], pieces[name], rtol=1e-9, atol=1e-12) for name in names)


@pytest.mark.parametrize(
    "layer", [nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True), nn.GroupNorm(2, 4)]
)
def test_norms_that_look_at_one_sample_are_right(layer):
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), layer, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    batch, names = batch_of(5, 4, 3, 3), ["0.weight", "3.weight"]
    model[0].padding = (1, 1)
    model[5] = nn.Linear(36, 3).double()
    assert_equal_diagonals(pai.fisher_diag(model, batch, parameters=names), fisher_loop(model, batch, names, 1))
    assert_equal_diagonals(pai.ggn_diag(model, batch, parameters=names), ggn_loop(model, batch, names))
    if not getattr(layer, "track_running_stats", False):
        with pytest.raises(ValueError, match="Norm' is not known to be piecewise linear"):
            pai.exact_diag(model, batch, parameters=["0.weight"])


def test_a_model_may_write_into_its_input():
    model = nn.Sequential(nn.ReLU(inplace=True), linear(), nn.ReLU(inplace=True), linear(4, 3))
    batch = batch_of(6, 4)
    before = batch.inputs.clone()
    for key in ("snip", "fisher_pruning", "hutchinson_pruning", "exact_pruning", "synflow"):
        pai.prune(model, batch, key, 0.5)
    assert torch.equal(batch.inputs, before)


# --- what people pass


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.a, self.b, self.head = (
            nn.Embedding(20, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )

    def forward(self, ids, image, mask=None):
        x = self.a(self.words(ids)).relu()
        x = x.mean(1) if mask is None else (x * mask[..., None]).sum(1)
        return self.head(self.b(x + image).relu())


KEYS = [key for key in pai.CRITERIA if not key.startswith("exact")]


def test_a_batch_is_a_pair_of_tensors_or_arrays():
    model, x, y = mlp(), torch.randn(6, 4), torch.arange(6) % 3
    for key in ("snip", "synflow", "fbss", "exact_pruning", "random"):
        expected = pai.prune(model, pai.Batch(x, y), key, 0.5)
        backwards, labels = np.ascontiguousarray(x.numpy()[:, ::-1])[:, ::-1], y.numpy().astype(np.uint16)
        read_only = x.numpy().copy()
        read_only.setflags(write=False)
        for batch in (
            (backwards, tuple(y.tolist())),
            (x.numpy().astype(">f4"), labels),
            (read_only, list(labels)),
        ):
            found = pai.prune(model, batch, key, 0.5)
            assert all(torch.equal(found[name], kept) for name, kept in expected.items())
        for batch in ([x, y], (x, y), (x.numpy(), y.numpy()), (x, np.asarray(y, dtype=np.int32)), (x, y.tolist())):
            found = pai.prune(model, batch, key, 0.5)
            assert all(torch.equal(found[name], kept) for name, kept in expected.items())


@pytest.mark.parametrize("key", KEYS)
def test_mappings_and_tuples_are_keyword_and_positional_arguments(key):
    model, y = TwoInputs().double(), torch.arange(6) % 3
    ids, image, mask = torch.randint(0, 20, (6, 5)), torch.randn(6, 4).double(), torch.rand(6, 5) < 0.7
    named = pai.score(model, pai.Batch({"image": image, "ids": ids, "mask": mask}, y), key, chunk=4)
    placed = pai.score(model, pai.Batch((ids, image, mask), y), key, chunk=4)
    assert all(torch.equal(named[name], placed[name]) for name in named)
    if key == "fisher_diag":
        want = 0
        for i in range(6):
            out = model(ids[i : i + 1], image[i : i + 1], mask[i : i + 1])
            want = want + torch.autograd.grad(F.cross_entropy(out, y[i : i + 1]), model.a.weight)[0] ** 2 / 6
        assert torch.allclose(named["a.weight"], want, rtol=1e-10)


BAD = {
    "a mapping": lambda x, y: (
        {"ids": x, "labels": y},
        "The batch is a dict: it must be a pair of inputs and labels",
    ),
    "a tensor": lambda x, y: (x, "The batch is a Tensor"),
    "three parts": lambda x, y: ((x, y, y), "The batch is a tuple"),
    "words": lambda x, y: ((["a"] * 6, y), "The inputs hold a str"),
    "names that the model has not": lambda x, y: (
        ({"ids": x}, y),
        r"forward pass fails for inputs of a mapping of ids: .*unexpected keyword argument 'ids'",
    ),
    "two inputs for one": lambda x, y: (((x, x), y), "forward pass fails .*takes 2 positional arguments but 3"),
    "unequal inputs": lambda x, y: (({"input": x, "other": x[:3]}, y), r"one number of samples.*\[6, 3\]"),
    "another width": lambda x, y: (
        (x[:, :3], y),
        r"fails for inputs of float32 of shape \(6, 3\): .*mat1 and mat2",
    ),
    "objects": lambda x, y: ((x.numpy().astype(object), y), "of NumPy's type object: they must be numbers"),
    "a sparse tensor": lambda x, y: ((x.to_sparse(), y), "is of layout torch.sparse_coo"),
    "nothing but a shape": lambda x, y: ((x.to("meta"), y), "has no values"),
    "unequal labels": lambda x, y: ((x, [[0], [1, 2]]), "Labels must be a tensor or array of integers, not list"),
    "labels as words": lambda x, y: ((x, ["a"] * 6), "Labels must be a tensor or array of integers, not list"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_batches_are_refused_in_one_sentence(case):
    batch, message = BAD[case](torch.randn(6, 4), torch.arange(6) % 3)
    with pytest.raises((ValueError, TypeError), match=message):
        pai.prune(mlp(), batch, "snip", 0.5)


class Looked(nn.Module):
    """Integers that come in through ``look``, then a layer."""

    def __init__(self, look):
        super().__init__()
        self.look, self.table = look, nn.Parameter(torch.randn(20, 4))
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        first = torch.zeros(len(tokens), 4)  # of the default dtype, as recurrent networks have it
        return self.head(torch.addmm(self.look(tokens, self.table), first, self.a.weight) + self.a(first + 1))


def test_synaptic_flow_takes_tokens_through_an_embedding_alone():
    x, y = torch.randint(0, 20, (6, 5)), torch.arange(6) % 3
    flows = []
    for tokens in (x, x.flip(1).flip(0)):
        model = Looked(lambda ids, table: F.embedding_bag(ids, table, mode="mean"))
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        flows.append(pai.synaptic_flow(model, pai.Batch(tokens, y))["a.weight"])
    assert torch.equal(*flows)
    for look in (
        lambda ids, table: F.one_hot(ids, 20).to(table).mean(1) @ table,
        lambda ids, table: table[ids].mean(1),
    ):
        with pytest.raises(ValueError, match="no embedding takes"):
            pai.synaptic_flow(Looked(look), pai.Batch(x, y))
    with pytest.raises(ValueError, match="Synaptic flow needs a model that returns"):
        pai.synaptic_flow(Net(lambda net, x: (net.head(net.a(x)),), a=linear(), head=linear(4, 3)), batch_of(6, 4))


@pytest.mark.filterwarnings("ignore::pai_lib.TiedScoresWarning")  # of so few weights
def test_inside_inference_mode_the_masks_are_the_same():
    model, x, y = mlp(), torch.randn(6, 4), torch.arange(6) % 3
    for key in ("snip", "hutchinson_pruning", "synflow", "exact_pruning"):
        expected = pai.prune(model, (x, y), key, 0.5)
        with torch.inference_mode():
            found = pai.prune(model, (x.clone(), y.clone()), key, 0.5)
            made_there = copy.deepcopy(model)
        assert all(torch.equal(found[name], kept) for name, kept in expected.items())
        found = pai.prune(made_there, (x, y), key, 0.5)
        assert all(torch.equal(found[name], kept) for name, kept in expected.items())
        pai.apply_mask(made_there, found)
        assert all((made_there.get_parameter(name)[~kept] == 0).all() for name, kept in found.items())


MODELS = {
    "DataParallel": (
        lambda: nn.DataParallel(mlp()),
        "wrapped in DataParallel",
    ),
    "compiled": (
        lambda: torch.compile(mlp()),
        "is compiled",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)), "has no shape yet"),
    "complex": (lambda: mlp().to(torch.complex64), "is torch.complex64: only real weights"),
    "random": (
        lambda: Net(lambda net, x: net.b(F.dropout(net.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
        "random numbers",
    ),
}


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")  # PyTorch's, of the model "complex"
@pytest.mark.parametrize("key", ["snip", "fisher_diag", "hutchinson_diag", "synflow"])
@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_scored_are_refused_with_the_way_out(case, key):
    build, message = MODELS[case]
    random = torch.get_rng_state()
    model, before = build(), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        pai.score(model, (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3), key)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(random)


# --- what operations alone prove


def proved(model, batch):
    """Whether the graph proves that samples are kept apart, for a batch in one piece."""
    from pai_lib.curvature.graph import find_uses
    from pai_lib.curvature.operations import keeps_samples_apart
    from pai_lib.curvature.problem import problem_at

    with problem_at(model, batch, 1.0, "prunable") as problem:
        logits, edges, _ = problem.watched(slice(0, problem.samples))
        return keeps_samples_apart(logits, find_uses(logits, problem.theta).values(), edges)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50_imagenet", "vgg11"])
def test_operations_alone_prove_it_for_convolutional_networks(name):
    model = pai.build_model(name, 10, width=4)
    assert proved(model, pai.Batch(torch.randn(3, 3, 32, 32), torch.arange(3)))


MIXING = {
    **MIXES,
    "mean over as many tokens as samples": lambda x: x + x.mean(0).unsqueeze(1),
    "samples among themselves": lambda x: x + (x.flatten(1) @ x.flatten(1).T)[..., None],
    "broadcast from the wrong side": lambda x: x + x.mean((1, 2)),
    "one for all": lambda x: x + x.mean(),
}


@pytest.mark.parametrize("case", MIXING)
def test_operations_prove_nothing_for_samples_that_see_one_another(case):
    """With as many samples as tokens and channels, so that no shape tells."""
    model = Net(
        lambda net, x: net.head(MIXING[case](net.body(x)).relu().mean(1)), body=linear(), head=linear(4, 3)
    )
    batch = batch_of(4, 4, 4)
    loss = F.cross_entropy(model(batch.inputs)[:1], batch.labels[:1])
    assert case == "attention over samples" or torch.autograd.grad(loss, model.body.weight)[0].any()
    assert not proved(model, batch)


@given(LENGTHS)
def test_the_two_proofs_agree(lengths):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    batch = batch_of(len(lengths), 2, 4, 4)
    found = pai.fisher_diag(model.double(), batch, parameters=["0.weight", "0.bias"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pai_lib.curvature.squares.keeps_samples_apart", lambda *_: False)
        other = pai.fisher_diag(model, batch, parameters=["0.weight", "0.bias"])
    assert all(torch.equal(found[name], other[name]) for name in found)


def test_a_model_of_one_size_of_batch_is_refused_where_the_batch_is_split():
    model = Net(lambda net, x: net.head(net.a(x).view(6, -1).relu()), a=linear(), head=linear(4, 3))
    batch = batch_of(6, 4)
    assert pai.gradient(model, batch, parameters=["a.weight"])
    for estimator, options in (
        (pai.fisher_diag, {}),
        (pai.gradient, {"chunk": 2}),
        (pai.hutchinson_diag, {"group": 1}),
    ):
        with pytest.raises(ValueError, match=r"forward pass fails for inputs of float64 of shape \(\d, 4\)"):
            estimator(model, batch, parameters=["a.weight"], **options)
