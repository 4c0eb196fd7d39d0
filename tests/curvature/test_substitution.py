"""Substituted weights: seen by all that computes with them, also late, and gone at the end whatever happens."""

import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, batch_of, fisher_loop, flat
from torch import nn
from torch.utils.checkpoint import checkpoint

import pai_lib as pai
from pai_lib.curvature.calls import substituted


class Checkpointed(nn.Module):
    """Two layers that are computed again in the backward pass, and a head."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant, self.a, self.b, self.head = reentrant, nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def body(self, x):
        return self.b(self.a(x).relu()).relu()

    def forward(self, x):
        plain = self.reentrant is None
        return self.head(self.body(x) if plain else checkpoint(self.body, x, use_reentrant=self.reentrant))


def net(reentrant=None):
    torch.manual_seed(0)
    return Checkpointed(reentrant).double()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("key", pai.CRITERIA)
def test_activation_checkpointing_changes_no_score(key, frozen):
    batch = batch_of(7, 4)
    expected = pai.score(net(), batch, key)
    found = pai.score(net(False).requires_grad_(not frozen), batch, key)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # PyTorch's
@pytest.mark.parametrize("key", ["snip", "fisher_diag", "hutchinson_diag", "exact_diag"])
def test_reentrant_checkpointing_is_refused(key):
    with pytest.raises(ValueError, match="use use_reentrant=False"):
        pai.score(net(True), batch_of(7, 4), key)


BODIES = {
    "hard sigmoid": [nn.Conv2d(2, 4, 3), nn.Hardsigmoid(), nn.Conv2d(4, 4, 3)],
    "circular padding": [nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Conv2d(4, 4, 3)],
    "batch norm": [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)],
}


@pytest.mark.parametrize(
    "key", ["snip", "grasp", "hutchinson_pruning", "fisher_pruning", "exact_pruning", "synflow"]
)
@pytest.mark.parametrize("body", BODIES)
def test_what_is_recomputed_is_what_was_computed(body, key):
    class Body(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.again, self.body, self.head = again, nn.Sequential(*BODIES[body]), nn.Linear(4, 3)

        def forward(self, x):
            out = checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)
            return self.head(out.mean((2, 3)))

    x = torch.randn(5, 2, 7, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    model, batch = Body(True).double(), pai.Batch(x, torch.arange(5) % 3)
    plain = Body(False).double()
    plain.load_state_dict(model.state_dict())
    if body == "hard sigmoid" and key in ("grasp", "hutchinson_pruning"):  # PyTorch's own is recomputed
        with pytest.raises(ValueError, match="no second derivative of the operation 'hardsigmoid'"):
            pai.score(model, batch, key)
        return
    found = pai.score(model, batch, key)
    for name, value in pai.score(plain, batch, key).items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-12)  # its hard sigmoid has a float32 sixth


def test_what_a_forward_pass_registers_is_gone_at_the_end():
    class Growing(Recurrent):
        def forward(self, x):
            self.register_buffer("seen", x.detach(), persistent=False)
            return super().forward(x)

    model, batch = Growing().double(), batch_of(5, 3, 4)
    for key in ("snip", "synflow"):
        pai.score(model, batch, key)
        assert not list(model.buffers())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(4, 5), nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.cell(self.embed(x))[0][:, -1])


def test_a_recurrent_network_computes_with_what_is_substituted():
    torch.manual_seed(0)
    model, batch = Recurrent().double(), batch_of(5, 3, 4)
    names = ["embed.weight", "cell.weight_hh_l0"]
    loss = F.cross_entropy(model(batch.inputs), batch.labels)
    expected = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    found = pai.gradient(model, batch, parameters=names)
    assert all(torch.allclose(found[name], value) for name, value in zip(names, expected, strict=True))
    found = pai.fisher_diag(model, batch, parameters=["embed.weight"])
    assert torch.allclose(flat(found), fisher_loop(model, batch, ["embed.weight"], 1))
    other = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    with substituted(model, other):
        assert not model(batch.inputs).any()
    assert model(batch.inputs).any()


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.saved_tensors[0], None


HELD = {
    "a list": lambda net: lambda x: F.linear(x, HOLDER[0]),
    "a partial": lambda net: functools.partial(F.linear, weight=net.b.weight),
    "a closure": lambda net: lambda x, weight=net.b.weight: x @ weight.t(),
    "a view": lambda net: functools.partial(lambda view, x: x @ view, net.b.weight.t()),
    "a slice": lambda net: lambda x, view=net.b.weight[:3]: F.linear(x, torch.cat([view, view])),
    "a function of one's own": lambda net: lambda x: Product.apply(x, HOLDER[0]),
    "among several": lambda net: lambda x: torch.einsum("ni,oi->no", x, HOLDER[0]),
    "without a gradient": lambda net: lambda x: F.linear(x, HOLDER[0].detach()),
    "a method": lambda net: HOLDER[0].mul,
    "an embedding": lambda net: lambda x: F.embedding(x.argmax(1), HOLDER[0]),
    "a recomputed layer": lambda net: (
        lambda x: checkpoint(lambda x: F.linear(x, HOLDER[0]), x, use_reentrant=False)
    ),
}
HOLDER = []


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", HELD)
def test_a_weight_that_is_taken_from_elsewhere_than_its_module_is_refused(case, frozen):
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.h(net.steps[0](net.b(net.a(x).relu()).relu())),
        a=nn.Linear(4, 6), b=nn.Linear(6, 6), h=nn.Linear(6, 3),
    ).double().requires_grad_(not frozen)  # fmt: skip
    HOLDER[:] = [model.b.weight]
    model.steps, batch = [HELD[case](model)], batch_of(6, 4)
    mask = {"a.weight": torch.ones(6, 4).bool()}
    for refused in (
        *(
            functools.partial(pai.score, model, batch, key)
            for key in ("snip", "synflow", "fts", "hutchinson_diag")
        ),
        lambda: pai.gradient(model, batch, parameters=["a.weight"]),
        lambda: pai.effective_sparsity(model, mask, batch),
    ):
        with pytest.raises(ValueError, match=r"takes 'b\.weight' from elsewhere than its module \(as from a list"):
            refused()
    assert model.b.weight is HOLDER[0]
    assert model(batch.inputs).isfinite().all()


def test_a_weight_that_is_held_elsewhere_and_not_used_there_does_no_harm():
    def forward(net, x):
        assert net.held[0].shape == net.held[0].data.shape
        return plain(net, x.to(net.held[0].device, net.held[0].dtype))

    def plain(net, x):
        return net.h(net.b(net.a(x).relu()).relu())

    parts = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 6), "h": nn.Linear(6, 3)}
    model, other, batch = Net(forward, **parts).double(), Net(plain, **parts), batch_of(6, 4)
    model.held, seen = [model.b.weight], []
    model.register_forward_hook(lambda *_: seen.append((model.held[0] != 0) & model.held[0].isfinite()))
    for key in ("snip", "synflow", "fts", "grasp"):
        found, expected = pai.score(model, batch, key), pai.score(other, batch, key)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    mask = pai.prune(other, batch, "snip", 0.5)
    assert pai.effective_sparsity(model, mask, batch) == pai.effective_sparsity(other, mask, batch)
    vectors = {name: model.get_parameter(name) for name in mask}  # the weights themselves
    found = pai.hessian_vector_product(model, batch, vectors)
    expected = pai.hessian_vector_product(other, batch, {name: v.detach().clone() for name, v in vectors.items()})
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def fail(tied):
    assert tied["two"].weight is tied["one"].a.weight
    assert not tied["two"].weight.any()
    raise RuntimeError("as asked")


def test_the_model_is_as_it_was_whatever_happens():
    model = net()
    model.b.weight = nn.Parameter(model.b.weight.detach(), requires_grad=False)
    tied = nn.ModuleDict({"one": model, "two": model.a})
    before = {name: parameter for name, parameter in tied.named_parameters(remove_duplicate=False)}
    with pytest.raises(RuntimeError, match="as asked"), substituted(tied, {"one.a.weight": torch.zeros(6, 4)}):
        fail(tied)
    after = {name: parameter for name, parameter in tied.named_parameters(remove_duplicate=False)}
    assert all(after[name] is parameter for name, parameter in before.items())
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True, True]
