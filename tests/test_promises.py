"""Whatever a model holds and a process has set: right numbers, or a clear refusal, and all is left as it was."""

import contextlib
import itertools
import random
import subprocess
import sys
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import pai_lib as pai
from pai_lib.data.dataset import Dataset
from pai_lib.pruning.criteria import CRITERIA
from pai_lib.pruning.profiles import PROFILES


def mlp(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch_of(n=6, width=4, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return pai.Batch(torch.randn(n, width, generator=generator), labels)


def ones_like(model, names):
    return {name: torch.ones_like(model.get_parameter(name)) for name in names}


def difference(model, batch, name, step=1e-5):
    """H 1 for one parameter, by central differences of gradients."""
    weight, ends = model.get_parameter(name), []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step
        ends.append(pai.gradient(model, batch, parameters=[name])[name])
        with torch.no_grad():
            weight -= sign * step
    return (ends[0] - ends[1]) / (2 * step)


PRECISIONS = {
    "legacy, medium": "torch.set_float32_matmul_precision('medium')",
    "legacy, TF32": "torch.backends.cuda.matmul.allow_tf32 = True",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "of a backend": "torch.backends.mkldnn.fp32_precision = 'bf16'",
    "of an operation": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "of products": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
}
CHECK = """
import torch, pai_lib as pai
{setting}
b = torch.backends
places = [b, b.cudnn, b.mkldnn, b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn]
places += [b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn]
before = [place.fp32_precision for place in places]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
batch = pai.Batch(torch.randn(64, 256), torch.arange(64) % 10)
single = pai.gradient(model, batch)["0.weight"]
assert [place.fp32_precision for place in places] == before
exact = pai.gradient(model.double(), pai.Batch(batch.inputs.double(), batch.labels))["0.weight"]
assert (single - exact).abs().max() < 1e-5 * exact.abs().max()
if {own}:
    b.fp32_precision = "ieee"
    assert b.mkldnn.matmul.fp32_precision == b.cuda.matmul.fp32_precision == "ieee"
"""


@pytest.mark.parametrize("setting", PRECISIONS)
def test_products_are_in_full_precision_whatever_is_set_and_settings_stay(setting):
    own = setting == "all"  # what followed its backend goes on to
    program = CHECK.format(setting=PRECISIONS[setting], own=own)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("old", [False, True], ids=["parametrization", "hook"])
def test_hessians_of_weight_norm_are_right(old):
    model = mlp(4, 5, 3).double()
    norm = torch.nn.utils.weight_norm if old else weight_norm
    with pytest.warns(FutureWarning) if old else contextlib.nullcontext():
        norm(model[0])
    name = "0.weight_v" if old else "0.parametrizations.weight.original1"
    batch = batch_of()
    batch = pai.Batch(batch.inputs.double(), batch.labels)
    product = pai.hessian_vector_product(model, batch, ones_like(model, [name]))[name]
    torch.testing.assert_close(product, difference(model, batch, name), rtol=1e-5, atol=1e-9)


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.last = inner, nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.tanh(checkpoint(self.inner, x, use_reentrant=False)))


def test_weight_norm_in_activation_checkpointing_has_gradients_and_no_hessian():
    model, batch = Checkpointed(weight_norm(nn.Linear(4, 5))), batch_of()
    assert pai.gradient(model, batch, parameters="all")
    for key in ("grasp", "hutchinson_diag"):
        with pytest.raises(ValueError, match=r"forbids a second derivative .*weight norm in activation check"):
            pai.score(model, batch, key, parameters="all")


@pytest.mark.filterwarnings("ignore::pai_lib.SparsityWarning")
@pytest.mark.parametrize("scope", PROFILES)
def test_sparsity_0_removes_nothing_and_single_numbers_are_layers(scope):
    scores = {"a": torch.rand(18, 4, 3, 3), "b": torch.rand(13, 7), "c": torch.rand(1, 11), "d": torch.tensor(0.5)}
    assert all(kept.all() for kept in pai.make_mask(scores, 0.0, scope).values())
    mask = pai.make_mask(scores, 0.5, scope)
    assert {name: kept.shape for name, kept in mask.items()} == {name: s.shape for name, s in scores.items()}


class Frozen(OrderedDict):
    """As diffusers' FrozenDict: no method of its own changes it."""

    def _refuse(self, *args, **kwargs):
        raise RuntimeError("it is frozen")

    update = setdefault = pop = clear = _refuse


def test_a_frozen_dictionary_is_left_alone():
    model = mlp(4, 6, 3)
    model.config = Frozen(width=4)
    pai.gradient(model, batch_of())
    assert dict(model.config) == {"width": 4}


class Counting(nn.Module):
    """Counts its calls in all that can hold a count, and draws numbers that it does not use."""

    def __init__(self):
        super().__init__()
        self.body = mlp(4, 6, 3)
        self.calls, self.seen, self.queue = torch.zeros(()), np.zeros(2), deque(maxlen=3)

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        self.queue.append(1)
        torch.rand(3)
        return self.body(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, batch: pai.gradient(model, batch),
        lambda model, batch: pai.hutchinson_diag(model, batch, 2),
        lambda model, batch: pai.synaptic_flow(model, batch),
        lambda model, batch: pai.effective_sparsity(model, {"body.0.weight": torch.ones(6, 4).bool()}, batch),
        lambda model, batch: pai.flops_left(model, {"body.0.weight": torch.ones(6, 4).bool()}, batch),
        lambda model, batch: pai.evaluate(model, [batch]),
    ],
    ids="gradient hutchinson synflow effective flops evaluate".split(),
)
def test_what_is_counted_in_place_and_drawn_comes_back(call):
    model, batch = Counting(), batch_of()
    before = torch.get_rng_state()
    call(model, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.calls.item(), model.seen.tolist(), list(model.queue), model.queue.maxlen) == (0, [0, 0], [], 3)


def cast_within():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.conv, self.head = nn.Linear(4, 16), nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(self.conv(self.first(x).view(-1, 1, 4, 4)).flatten(1)).float()

    return Cast()


def forward_derivative():
    class Jvp(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv1d(1, 2, 3), nn.Linear(4, 3)

        def forward(self, x):
            value, slope = torch.func.jvp(self.conv, (x[:, None],), (torch.ones_like(x[:, None]),))
            return self.head((value.tanh() * slope).flatten(1))

    return Jvp().double()


def test_hessians_where_our_convolution_cannot_stand_in():
    model, batch = forward_derivative(), batch_of()
    batch = pai.Batch(batch.inputs.double(), batch.labels)
    name = "conv.weight"
    product = pai.hessian_vector_product(model, batch, ones_like(model, [name]))[name]
    torch.testing.assert_close(product, difference(model, batch, name), rtol=1e-4, atol=1e-8)


def test_a_model_that_casts_within_has_hessians():
    model, batch = cast_within(), batch_of()
    assert all(torch.isfinite(value).all() for value in pai.score(model, batch, "grasp").values())


def test_training_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(8) % 2
    data = Dataset.from_arrays("few", images, labels, images, labels, augment=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = {"1.weight": torch.zeros(6, 64, dtype=torch.bool)}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        pai.train(model, data, mask, epochs=1, batch_size=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    pai.train(model, data, mask, epochs=1, batch_size=2, progress=False)


def test_a_mask_that_cannot_be_applied_changes_nothing():
    model = mlp(4, 6, 6, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = {"0.weight": torch.zeros(6, 4).bool(), "2.weight": torch.ones(6, 6).bool()}
    with pytest.raises(ValueError, match=r"'2.weight' must be a bool tensor of shape \(6, 6\), not meta"):
        pai.apply_mask(model, {**mask, "2.weight": torch.ones(6, 6, device="meta").bool()})
    assert torch.equal(model[0].weight, before["0.weight"])
    model[2].weight = nn.Parameter(torch.ones(6, 1).expand(6, 6))
    with pytest.raises(ValueError, match=r"'2\.weight' is expanded"):
        pai.apply_mask(model, mask)
    assert torch.equal(model[0].weight, before["0.weight"])
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    pai.apply_mask(model, {"0.weight": mask["0.weight"]})
    assert not model[0].weight.any()  # nor NaN


def test_what_parametrize_keeps_is_neither_read_nor_written():
    model, batch = mlp(4, 6, 6, 3), batch_of()
    parametrizations.weight_norm(model[0])
    original = "0.parametrizations.weight.original1"
    expected = pai.gradient(model, batch, parameters=[original])[original]
    with parametrize.cached():
        before = model(batch.inputs)
        assert torch.equal(pai.gradient(model, batch, parameters=[original])[original], expected)
        pai.synaptic_flow(model, batch, parameters=["2.weight"])
        pai.evaluate(model, [batch])
        after = model(batch.inputs)
        assert torch.equal(before, after)
        after.sum().backward()
    assert model.get_parameter(original).grad is not None


@contextlib.contextmanager
def registered(register, registry, key, function):
    register(key)(function)
    try:
        yield
    finally:
        registry.pop(key)


@pytest.mark.parametrize("density", [1.2, float("nan"), -0.5, None, "all"])
def test_the_densities_of_ones_own_profile_are_looked_at(density):
    def own(shapes, asked):
        return {} if density is None else dict.fromkeys(shapes, density)

    with registered(pai.profile, PROFILES, "mine", own), pytest.raises(ValueError, match="density of 'w' by mine"):
        pai.make_mask({"w": torch.rand(3, 3)}, 0.5, "mine")


def test_the_scores_of_ones_own_criterion_are_looked_at():
    def mine(key, function):
        return registered(
            lambda key: pai.criterion(key, "Mine", "mine", "none", "nobody"), CRITERIA, key, function
        )

    model, batch = mlp(4, 6, 6, 3), batch_of()
    with (
        mine("mine", lambda weight: weight.abs().sum(1)),
        pytest.raises(ValueError, match=r"are \(6,\) for '0.weight'"),
    ):
        pai.prune(model, batch, "mine", 0.5)
    with mine("whole", lambda weight: (weight * 100).long()):
        mask = pai.prune(model, batch, "whole", 0.5, rounds=3)
    assert sum(int(kept.sum()) for kept in mask.values()) == 30


def test_the_second_name_of_a_shared_weight_is_told():
    model = mlp(4, 4, 4, 3)
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'2.weight': it is '0.weight', which is shared"):
        pai.gradient(model, batch_of(), parameters=["2.weight"])
    with pytest.raises(ValueError, match=r"it is '0.weight', which is shared"):
        pai.apply_mask(model, {"2.weight": torch.ones(4, 4).bool()})


def test_odd_numbers_are_numbers_or_refused():
    model, batch = mlp(4, 6, 3), batch_of()
    half = pai.gradient(model, batch, temperature=0.5)["0.weight"]
    for same in (Fraction(1, 2), np.float16(0.5), np.float64(0.5)):
        assert torch.equal(pai.gradient(model, batch, temperature=same)["0.weight"], half)
    for call in (pai.gradient, pai.exact_diag, pai.fisher_diag, pai.ggn_diag):
        with pytest.raises(ValueError, match=r"temperature=1e-39: the logits over it are infinite"):
            call(model, batch, temperature=1e-39)
    scores = {"w": torch.rand(60_000)}
    for sparsity in (np.float16(0.9), np.float32(0.3), np.float16(0.5), Fraction(1, 3)):
        kept = int(pai.make_mask(scores, sparsity)["w"].sum())
        assert kept == int((1.0 - float(sparsity)) * 60_000)
    with pytest.raises(ValueError, match=r"vectors\['0.weight'\] must be a tensor"):
        pai.hessian_vector_product(model, batch, {"0.weight": np.ones((6, 4), "f4")})
    mask = {"0.weight": torch.ones(6, 4).bool()}
    with torch.device("meta"):  # of what a caller makes, not of what the library does
        assert pai.flops_left(model, mask, pai.Batch(batch.inputs, None)) == 1


def rectified(x):
    return torch.relu(x)


class Activated(nn.Module):
    """A perceptron with an activation that is a function."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.activation = nn.Linear(4, 8), nn.Linear(8, 3), activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


@pytest.mark.parametrize("key", CRITERIA)
@pytest.mark.parametrize("whole", [False, True], ids=["function", "module"])
def test_what_is_compiled_is_scored_as_it_was_written_and_stays_compiled(key, whole):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    batch, plain = batch_of(), Activated(rectified)
    model = Activated(rectified if whole else torch.compile(rectified, backend=backend))
    if whole:
        model.compile(backend=backend)
    masks = [pai.prune(m, batch, key, 0.5, rounds=1, progress=False) for m in (plain, model)]
    assert pai.jaccard(*masks) == 1
    assert pai.effective_sparsity(model, masks[1], batch) == pai.effective_sparsity(plain, masks[0], batch)
    assert not compilations
    with torch.no_grad():
        model(batch.inputs)
    assert compilations


# --- one's own criteria, threads, experts, and what else shares memory


@pytest.fixture
def in_place():
    """A criterion that changes its gradient in place."""
    pai.criterion("in_place", "In place", "in place", "", "")(lambda weight, gradient: gradient.abs_() * weight)
    yield "in_place"
    del CRITERIA["in_place"]


def test_a_criterion_of_one_s_own_changes_no_other_one(in_place):
    model, batch = mlp(4, 6, 3), batch_of()
    known = {}
    alone = pai.score(model, batch, "fts")
    kept = lambda key, compute: known.setdefault(key, compute())  # noqa: E731
    pai.score_many(model, batch, [in_place], remember=kept)
    after = pai.score_many(model, batch, ["fts"], remember=kept)["fts"]
    assert all(torch.equal(alone[name], after[name]) for name in alone)


def test_a_criterion_that_changes_weights_is_refused_and_a_returned_weight_is_a_copy():
    model, batch = mlp(4, 6, 3), batch_of()
    before = model[0].weight.detach().clone()
    try:
        pai.criterion("changes", "Changes", "changes", "", "")(lambda weight: weight.abs_())
        pai.criterion("weights", "Weights", "weights", "", "")(lambda weight: weight)
        with pytest.raises(ValueError, match="changes changes the weights"):
            pai.score(model, batch, "changes")
        pai.score(model, batch, "weights")["0.weight"].zero_()
    finally:
        for key in ("changes", "weights"):
            CRITERIA.pop(key, None)
    assert torch.equal(model[0].weight, before)


class Slow(nn.Sequential):
    """Calls on eight samples take long enough for another thread to come in between."""

    def forward(self, x):
        time.sleep(0.02 * (len(x) == 8))
        return super().forward(x)


def test_two_threads_score_one_model():
    torch.manual_seed(0)
    model = Slow(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    batch, weight = batch_of(64), model[0].weight
    right = pai.gradient(model, batch)["0.weight"]
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(pai.gradient, model, batch, chunk=8),
            pool.submit(pai.gradient, model, batch, chunk=64),
        ]
        calls.append(pool.submit(pai.prune, model, batch, "snip", 0.5, rounds=2))
    for call in calls[:2]:
        assert torch.allclose(call.result()["0.weight"], right, rtol=1e-4, atol=1e-7)
    assert model.training
    assert model[0].weight is weight


class Experts(nn.Module):
    """Two convolutions, each for the images whose mean has its sign."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        positive, sums = x.mean((1, 2, 3)) > 0, x.new_zeros(len(x), 4)
        for expert, rows in ((self.a, positive), (self.b, ~positive)):
            sums = sums.index_add(0, rows.nonzero()[:, 0], expert(x[rows]).relu().mean((2, 3)))
        return self.head(sums)


@pytest.mark.parametrize("diagonal", [pai.fisher_diag, pai.exact_diag])
def test_a_piece_may_have_no_row_for_a_convolution(diagonal):
    model = Experts()
    images = torch.cat([torch.rand(20, 1, 6, 6), -torch.rand(20, 1, 6, 6)])
    batch = pai.Batch(images, torch.arange(40) % 3)
    whole, pieces = (diagonal(model, batch, parameters="all", chunk=chunk) for chunk in (40, 8))
    for name, values in whole.items():
        assert torch.allclose(pieces[name], values, rtol=1e-3, atol=1e-7)


def test_a_loaded_mask_has_the_layers_in_their_order(tmp_path):
    model, batch = mlp(*[4] * 13, 3), batch_of()
    mask = pai.prune(model, batch, "random", 0.5)
    pai.save_mask(mask, tmp_path / "mask", criterion="random")
    loaded = pai.load_mask(tmp_path / "mask")
    assert list(loaded) == list(mask)
    shuffled = [pai.shuffle_within_layers(each, pai.random_stream(0, "s")) for each in (mask, loaded)]
    assert pai.jaccard(*shuffled) == 1
    with pytest.raises(TypeError, match="This mask has the name 0"):
        pai.save_mask({0: torch.ones(2).bool()}, tmp_path / "other")


class Causal(nn.Module):
    """The first token sees itself alone."""

    def __init__(self, blocked):
        super().__init__()
        self.v, self.u, self.head, self.blocked = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), blocked

    def forward(self, x):
        scores = (x @ x.mT + self.blocked * torch.ones(3, 3).triu(1)).softmax(-1)
        return self.head((scores @ torch.cat([self.v(x[:, :1]), self.u(x[:, 1:])], 1))[:, 0])


@pytest.mark.parametrize("blocked", [-1e9, -1e4, -1e3])
def test_finite_attention_masks_let_nothing_pass(blocked):
    batch = torch.rand(1, 3, 4), torch.zeros(1, dtype=torch.int64)
    model = Causal(blocked)
    mask = ones_like(model, ["v.weight"])
    assert pai.effective_sparsity(model, {n: kept.bool() for n, kept in mask.items()}, batch) == 0
    with pytest.raises(ValueError, match=r"Flow does not pass 'u.weight'"):
        pai.effective_sparsity(model, {"u.weight": torch.ones(6, 4).bool()}, batch)


def test_sparse_buffers_are_left_alone():
    model, batch = mlp(4, 6, 3), batch_of()
    model.register_buffer("adjacency", torch.eye(6).to_sparse())
    mask = pai.prune(model, batch, "snip", 0.5)
    assert 0 <= pai.evaluate(model, [batch])[0] <= 1
    assert pai.effective_sparsity(model, mask, batch) >= 0.5


class Gamma(nn.Module):
    """A function without a derivative in its first operand."""

    def __init__(self):
        super().__init__()
        self.p, self.head = nn.Parameter(torch.rand(4) + 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.special.gammainc(self.p, x.abs()))


def test_what_pytorch_cannot_differentiate_is_named():
    bag = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    tokens = pai.Batch(torch.arange(30).view(6, 5) % 9, torch.arange(6) % 3)
    with pytest.raises(ValueError, match="no second derivative of the operation 'embedding_bag'"):
        pai.hutchinson_diag(bag, tokens, parameters="all")
    with pytest.raises(ValueError, match="no derivative of the operation 'igamma'"):
        pai.gradient(Gamma(), batch_of(), parameters="all")


def test_operations_left_need_no_labels():
    model, batch = mlp(4, 6, 3), batch_of()
    mask = pai.prune(model, batch, "random", 0.5)
    for labels in (None, torch.rand(6, 3), torch.full((6,), 9)):
        assert pai.flops_left(model, mask, pai.Batch(batch.inputs, labels)) == 0.5


def test_parameters_that_share_memory_take_no_masks():
    memory, model = torch.ones(3, 3), mlp(3, 3, 3, 3)
    model[0].weight, model[2].weight = nn.Parameter(memory), nn.Parameter(memory)
    mask = {"0.weight": torch.eye(3).bool()}
    with pytest.raises(ValueError, match=r"'0.weight' shares its memory with '2.weight'"):
        pai.apply_mask(model, mask)
    assert memory.all()


def test_pruning_in_rounds_leaves_a_graph_of_the_caller_usable():
    model, batch = mlp(4, 6, 6, 3), batch_of()
    loss = nn.functional.cross_entropy(model(batch.inputs), batch.labels)
    pai.prune(model, batch, "synflow", 0.9, rounds=3)
    loss.backward()
    assert torch.allclose(model[0].weight.grad, pai.gradient(model, batch)["0.weight"])


def test_an_attention_mask_among_the_inputs_may_hold_minus_infinity():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)

        def forward(self, x, mask):
            return self.head(self.a(x, x, x, attn_mask=mask[0])[0].mean(1))

    masks = torch.full((6, 5, 5), -torch.inf).triu(1)
    batch = pai.Batch((torch.rand(6, 5, 4), masks), torch.arange(6) % 3)
    assert pai.gradient(Attention(), batch)["a.in_proj_weight"].abs().sum() > 0
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="The inputs hold NaN or infinite values"):
            pai.gradient(mlp(4, 6, 3), (torch.full((6, 4), wrong), batch.labels))


def test_equal_numbers_are_whole():
    scores = {name: torch.rand(size) for name, size in (("a", 49), ("b", 49), ("c", 100))}
    for each in (1, 16, 49):
        mask = pai.make_mask(scores, 1 - 3 * each / 198, "equal")
        assert [int(kept.sum()) for kept in mask.values()] == [each] * 3


def test_slips_are_answered_in_words(tmp_path):
    model, batch = mlp(4, 6, 3), batch_of()
    cases = {
        "the model has no '0.weigth': did you mean '0.weight'": lambda: pai.synaptic_flow(
            model, batch, state={"0.weigth": torch.rand(6, 4)}
        ),
        "The scores of 'w' are a list": lambda: pai.rank_correlation({"w": [1, 2]}, {"w": [1, 2]}),
        "one number of samples": lambda: pai.gradient(model, (torch.tensor(1.0), batch.labels)),
        "store='results': it must be a Store": lambda: pai.run(pai.RunSpec(dataset="digits"), "results"),
        "spec is a MaskSpec: it must be a RunSpec": lambda: pai.run(pai.MaskSpec(criteria=("snip",))),
        "spec is a RunSpec: it must be a MaskSpec": lambda: pai.run_masks(pai.RunSpec()),
        "data is a str": lambda: pai.run(pai.RunSpec(dataset="digits"), data="digits"),
        "forward pass fails for inputs of float32": lambda: pai.evaluate(model, [batch_of(width=5)]),
    }
    for sentence, call in cases.items():
        with pytest.raises((ValueError, TypeError), match=sentence):
            call()
    assert pai.Batch(batch.inputs, None).to("cpu").labels is None
    spec = pai.RunSpec(dataset=tmp_path, seed=np.int64(3), lr=np.float32(0.5))
    assert (type(spec.dataset), type(spec.seed), type(spec.lr)) == (str, int, float)


def test_numbers_of_other_types_train_as_plain_ones_do():
    data = pai.load_data("digits")
    numbers = {"lr": Fraction(1, 20), "momentum": Fraction(1, 2), "weight_decay": np.float16(0)}
    plain = {name: float(value) for name, value in numbers.items()}
    curves = []
    for options in ({**numbers, "batch_size": np.int64(256)}, {**plain, "batch_size": 256}):
        model = pai.build_model("resnet8", 10, in_channels=1, width=2)
        curves.append(pai.train(model, data, epochs=1, lr_warmup=0, progress=False, **options))
    assert curves[0] == curves[1]
    assert len(data.split(np.float32(0.5))[0].train_labels) == len(data.train_labels) // 2


def test_a_set_of_names_is_in_the_order_of_the_model():
    model, batch = mlp(4, 6, 6, 3), batch_of()
    names = ["4.weight", "0.weight", "2.weight"]
    diagonal = pai.gradient(model, batch, parameters=set(names))
    assert list(diagonal) == sorted(names)
    assert list(pai.gradient(model, batch, parameters=names)) == names


class DrawsElsewhere(nn.Module):
    """Takes a branch by Python's random numbers, and noise from NumPy's, as some stochastic depth does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.body(x.flatten(1)).relu() * float(np.random.rand())  # noqa: NPY002
        return self.head(x + x.sin() if random.random() < 0.5 else x)


def test_what_models_draw_from_python_and_numpy_comes_from_the_seed_and_comes_back():
    data = pai.load_data("digits")
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    losses = {pai.evaluate(DrawsElsewhere(), data.test_batches(20)) for _ in range(3)}
    assert len(losses) == 1
    options = {"epochs": 1, "batch_size": 256, "seed": 7, "progress": False}
    trained = [pai.train(DrawsElsewhere(), data, **options) for _ in range(2)]
    assert trained[0] == trained[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


class Counts(nn.Module):
    """Counts its calls in arrays of several kinds, and in a parameter that it has not registered."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.short, self.strided = np.zeros(1, np.int16), np.zeros((4, 4))[:, ::2]
        self.free = [nn.Parameter(torch.ones(2))]

    def forward(self, x):
        self.short += 1
        self.strided += 1
        self.free[0].data += 1
        return self.head(self.body(x).relu())


def test_arrays_of_every_kind_and_free_parameters_come_back():
    model, batch = Counts(), batch_of()
    pai.prune(model, batch, "snip", 0.5)
    pai.evaluate(model, [batch])
    assert model.short == 0
    assert not model.strided.any()
    assert torch.equal(model.free[0], torch.ones(2))


def test_vectors_and_states_that_are_no_real_numbers_are_refused():
    model, batch, one = mlp(4, 6, 3), batch_of(), torch.ones(6, 4)
    for vector in (one * 1j, one.to("meta")):
        with pytest.raises(ValueError, match=r"vectors\['0.weight'\] is a .*: it must hold real numbers"):
            pai.hessian_vector_product(model, batch, {"0.weight": vector})
    with pytest.raises(ValueError, match=r"state\['0.weight'\] must be a tensor of the shape \(6, 4\)"):
        pai.synaptic_flow(model, batch, state={"0.weight": torch.ones(2, 2)})


class CausalMask(nn.Module):
    """Attention under a mask that is a buffer of minus infinities, or of truths."""

    def __init__(self, mask):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", mask)

    def forward(self, x):
        x = self.body(x)
        return self.head(self.attention(x, x, x, attn_mask=self.mask)[0][:, 0])


def test_a_causal_mask_of_minus_infinity_blocks_synaptic_flow_as_one_of_truths():
    blocked = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    batch = pai.Batch(torch.randn(6, 5, 3), torch.arange(6) % 3)
    one, other = (
        pai.synaptic_flow(CausalMask(mask), batch)["body.weight"]
        for mask in (blocked, torch.zeros(5, 5).masked_fill(blocked, -torch.inf))
    )
    assert one.abs().sum() > 0
    torch.testing.assert_close(one, other)


def test_names_of_the_library_cannot_be_given_again():
    snip, erk = CRITERIA["snip"], PROFILES["erk"]
    with pytest.raises(ValueError, match="the name 'snip' exists already"):
        pai.criterion("snip", "Mine", "Mine", "x", "me")(lambda noise: noise)
    with pytest.raises(ValueError, match="the name 'erk' exists already"):
        pai.profile("erk")(lambda shapes, density: dict.fromkeys(shapes, density))
    assert CRITERIA["snip"] is snip
    assert PROFILES["erk"] is erk


def test_what_is_no_score_mask_or_profile_is_told(monkeypatch):
    with pytest.raises(TypeError, match="scores is a NoneType"):
        pai.rank_correlation(None, None)
    with pytest.raises(TypeError, match="The scores of 'a' are a <U1"):
        pai.make_mask({"a": np.array(["x"])}, 0.5)
    with pytest.raises(TypeError, match="The scores of 'a' are a meta tensor"):
        pai.make_mask({"a": torch.rand(3, device="meta")}, 0.5)
    monkeypatch.setitem(PROFILES, "nothing", lambda shapes, density: None)
    with pytest.raises(TypeError, match="The profile nothing gives None"):
        pai.make_mask({"a": torch.rand(4)}, 0.5, "nothing")
    mask = {"0.weight": torch.ones(6, 4, dtype=torch.bool)}
    with pytest.raises(TypeError, match="The model is of type NoneType"):
        pai.apply_mask(None, mask)
    old = nn.utils.spectral_norm(nn.Linear(4, 6))
    with pytest.raises(ValueError, match="'weight', which the model has not"):
        pai.apply_mask(old, {"weight": mask["0.weight"]})


def test_training_refuses_odd_arguments_before_it_removes_a_weight():
    data, model = pai.load_data("digits"), pai.build_model("resnet8", 10, in_channels=1, width=2)
    mask = {"stem.0.weight": torch.zeros(2, 1, 3, 3, dtype=torch.bool)}
    before = model.stem[0].weight.clone()
    for odd in ({"stop": True}, {"checkpoint": "c.safetensors"}):
        with pytest.raises(TypeError, match="it must be a"):
            pai.train(model, data, mask, epochs=1, **odd)
    for odd in (torch.ones(3), []):
        with pytest.raises(TypeError, match="mask"):
            pai.train(model, data, odd, epochs=1)
    assert torch.equal(model.stem[0].weight, before)


@pytest.mark.parametrize("path", ["", "/", "a\0b"])
def test_a_mask_is_written_to_a_file_with_a_name(path):
    with pytest.raises(ValueError, match="is no name of a file"):
        pai.save_mask({"w": torch.ones(2).bool()}, path)


def test_a_mask_file_can_be_read_back_or_is_refused(tmp_path):
    with pytest.raises(ValueError, match="__metadata__"):
        pai.save_mask({"__metadata__": torch.ones(2).bool()}, tmp_path / "m.safetensors")
    mask = {"w": torch.ones(2).bool()}
    for order in ("5", "[[1]]"):
        save_file(mask, tmp_path / "o.safetensors", {"pai_lib.order": order})
        assert list(pai.load_mask(tmp_path / "o.safetensors")) == ["w"]
    save_file(mask, tmp_path / "o.safetensors", {"pai_lib.order": "no"})
    with pytest.raises(ValueError, match=r"o\.safetensors"):
        pai.load_mask(tmp_path / "o.safetensors")
