"""A model pruned in PyTorch's form computes what the masked model does, over training steps too."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, batch_of, linear
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import pai_lib as pai


def tied():
    net = Net(lambda net, x: net.head(net.b(net.a(x).relu())), a=linear(), b=linear(), head=linear(4, 3))
    net.b.weight = net.a.weight
    return net


def used_by_the_parent():
    def forward(net, x):
        return net.head(F.linear(net.inner.a(x).relu(), net.inner.a.weight))

    return Net(forward, inner=nn.ModuleDict({"a": linear()}), head=linear(4, 3))


def attention():
    def forward(net, x):
        return net.head(net.attention(*[x.unflatten(1, (2, 2)).repeat(1, 1, 2)] * 3)[0].mean(1))

    parts = {"attention": nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64), "head": linear(4, 3)}
    return Net(forward, **parts)


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), encoder, nn.Flatten(), linear(4, 3))


def own_parameters():
    parts = {
        "weights": nn.ParameterList([torch.randn(4, 4, dtype=torch.float64)]),
        "w": nn.Parameter(torch.eye(4).double()),
    }
    return Net(lambda net, x: net.head((x @ net.w).relu() @ net.weights[0]), head=linear(4, 3), **parts)


def recurrent():
    parts = {"rnn": nn.GRU(4, 5, batch_first=True, dtype=torch.float64), "head": linear(5, 3)}
    return Net(lambda net, x: net.head(net.rnn(x[:, None])[0][:, 0]), **parts)


def read_by_another_hook():
    net = nn.Sequential(Net(lambda layer, x: F.linear(x, layer.twice), weight=nn.Parameter(torch.eye(4).double())))
    net[0].register_forward_pre_hook(lambda layer, _: setattr(layer, "twice", 2 * layer.weight))
    return net.append(linear(4, 3))


NAMES = {
    read_by_another_hook: ["0.weight"],
    own_parameters: ["w", "weights.0"],
    recurrent: ["rnn.weight_ih_l0", "rnn.weight_hh_l0"],
}


@pytest.mark.parametrize(
    "build", [tied, used_by_the_parent, attention, encoder, own_parameters, recurrent, read_by_another_hook]
)
def test_the_pruned_model_computes_and_learns_what_the_masked_one_does(build):
    torch.manual_seed(0)
    masked = build()
    names = NAMES.get(build) or pai.prunable(masked)
    mask = {name: torch.rand(masked.get_parameter(name).shape) < 0.5 for name in names}
    pruned = pai.to_torch_prune(copy.deepcopy(masked), mask)
    pai.apply_mask(masked, mask)
    batch = batch_of(8, 4)
    optimizers = [torch.optim.SGD(m.parameters(), 0.5, 0.9, weight_decay=0.1) for m in (masked, pruned)]
    for _ in range(3):
        for model, optimizer in zip((masked, pruned), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.inputs), batch.labels).backward()
            optimizer.step()
            if model is masked:
                pai.apply_mask(masked, mask)
        for mode in (True, False):
            masked.train(mode)
            pruned.train(mode)
            torch.testing.assert_close(pruned(batch.inputs), masked(batch.inputs), rtol=1e-12, atol=1e-12)
            with torch.no_grad():  # attention has another way then
                torch.testing.assert_close(pruned(batch.inputs), masked(batch.inputs), rtol=1e-12, atol=1e-12)
    for name, kept in mask.items():
        module, _, attribute = name.rpartition(".")
        assert not getattr(pruned.get_submodule(module), attribute)[~kept].any()
    for module in pruned.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, torch_prune.BasePruningMethod):
                torch_prune.remove(module, hook._tensor_name)
    torch.testing.assert_close(pruned(batch.inputs), masked(batch.inputs), rtol=1e-12, atol=1e-12)


def shared_memory():
    net = Net(lambda net, x: net.head(net.b(net.a(x))), a=linear(), b=linear(), head=linear(4, 3))
    net.b.weight = nn.Parameter(net.a.weight.data)
    return net


def held_in_a_list():
    net = Net(lambda net, x: net.head(net.b(F.linear(x, net.held[0]))), a=linear(), b=linear(), head=linear(4, 3))
    net.held = [net.a.weight]
    return net


def held_in_partials():
    net = Net(lambda net, x: net.head(net.steps["b"](net.a(x))), a=linear(), b=linear(), head=linear(4, 3))
    net.steps = {"b": partial(partial(F.linear, weight=net.b.weight), bias=None)}
    return net


def pruned_already():
    net = tied()
    torch_prune.random_unstructured(net.a, "weight", 0.5)
    return net


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (shared_memory, "a.weight", "weight' shares its memory with '[ab].weight': make them one parameter first"),
        (held_in_a_list, "a.weight", "'a.weight' is also held in 'held', where its mask would not reach it"),
        (held_in_partials, "b.weight", "'b.weight' is also held in 'steps', where its mask would not reach it"),
        (pruned_already, "a.weight", "'a.weight' is pruned already: make that permanent"),
        (pruned_already, "a.weight_orig", "'a.weight_orig' is pruned already: make that permanent"),
        (
            lambda: parametrizations.weight_norm(linear()),
            "parametrizations.weight.original1",
            "in a ParametrizationList",
        ),
        (lambda: torch.jit.script(nn.Sequential(linear(), linear())), "0.weight", "in a RecursiveScriptModule"),
    ],
)
def test_what_a_mask_would_not_reach_is_refused_before_anything_is_attached(build, name, message):
    net = build()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    others = {key: p for key, p in net.named_parameters() if key in ("b.weight", "1.weight") and key != name}
    mask = {key: torch.ones_like(p).bool() for key, p in others.items()}
    parameter = dict(net.named_parameters()).get(name, torch.ones(4, 4))
    with pytest.raises(ValueError, match=message):
        pai.to_torch_prune(net, {**mask, name: torch.ones_like(parameter).bool()})
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(key.endswith("_mask") and key not in before for key in net.state_dict())


def test_a_folder_is_no_file_of_a_mask(tmp_path):
    with pytest.raises(IsADirectoryError):
        pai.load_mask(tmp_path)
