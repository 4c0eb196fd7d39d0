"""Substituted weights: seen by all that computes with them, also late, and gone at the end whatever happens."""

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, fisher_loop, flat
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
