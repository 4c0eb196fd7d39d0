"""Shared by the tests: settings, a module made of a function, and oracles written without the library."""

import gc
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import nn

from pai_lib import Batch, RunSpec, run

torch.set_num_threads(1)
# In CI the drawn examples are always the same: a pull request fails for what it changed, not for its luck.
settings.register_profile("pai", deadline=None, max_examples=25, derandomize="CI" in os.environ)
settings.load_profile("pai")

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Garbage is looked for among what tests make: each run does so, and modules are a million objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # libraries look for leaks at the end


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """Which tests share a worker must not decide which of them is the one with too many open figures."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


class Net(nn.Module):
    """``Net(lambda net, x: ..., a=module, ...)``: any forward pass over named modules and parameters."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def linear(c_in=4, c_out=4, **options):
    return nn.Linear(c_in, c_out, dtype=torch.float64, **options)


def batch_of(*shape, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return Batch(inputs, torch.randint(0, classes, shape[:1], generator=generator))


def randomize(model, seed=0):
    """Random statistics, scales and shifts for every norm, so that none of them is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def loss_function(model, batch, names, temperature=1.0):
    """The mean loss as a function of one flat vector of the named parameters, and that vector now."""
    model.eval()
    values = {name: model.get_parameter(name).detach() for name in names}

    def loss(vector):
        parts = vector.split([value.numel() for value in values.values()])
        theta = {name: part.view_as(values[name]) for name, part in zip(names, parts, strict=True)}
        logits = torch.func.functional_call(model, theta, (batch.inputs,))
        return F.cross_entropy(logits / temperature, batch.labels)

    return loss, flat(values)


def hessian(model, batch, names, temperature=1.0):
    loss, at = loss_function(model, batch, names, temperature)
    return torch.func.hessian(loss)(at)


def fisher_loop(model, batch, names, group, temperature=1.0):
    """Squared gradients, one group after the other."""
    model.eval()
    parameters = [model.get_parameter(name).requires_grad_() for name in names]
    squares = []
    for x, y in zip(batch.inputs.split(group), batch.labels.split(group), strict=True):
        grads = torch.autograd.grad(F.cross_entropy(model(x) / temperature, y), parameters)
        squares.append(torch.cat([g.flatten() for g in grads]).square())
    return torch.stack(squares).mean(0)


def ggn_loop(model, batch, names, temperature=1.0):
    """Diagonal of (1/N) Σₙ JₙᵀHₙJₙ, one row of J after the other."""
    model.eval()
    parameters = [model.get_parameter(name) for name in names]
    total = 0
    for n in range(len(batch.inputs)):
        logits = model(batch.inputs[n : n + 1])[0] / temperature
        rows = [torch.autograd.grad(logit, parameters, retain_graph=True) for logit in logits]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])  # C × P
        p = logits.detach().softmax(0)
        total = total + (jacobian * ((p.diag() - p.outer(p)) @ jacobian)).sum(0)
    return total / len(batch.inputs)


def assert_equal_diagonals(found, expected, relative=1e-10):
    """Equal to ``relative`` times the largest entry."""
    found = flat(found)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


@pytest.fixture
def root(tmp_path):
    """Return a project with one notebook and one chapter made from it."""
    from project import make_project

    return make_project(tmp_path)


# --- runs of a second and less

SPEC = RunSpec(
    dataset="digits", model="resnet8", width=4, criterion="snip", sparsity=0.9, samples_per_class=2, warmup=2,
    epochs=1, batch_size=64, lr=0.1, train_fraction=0.2,
)  # fmt: skip


def quick(spec=SPEC, store=None, **options):
    return run(spec, store, device="cpu", progress=False, **options)


def untimed(record):
    """Return a record without what differs between two runs of one spec."""
    values = record.to_dict()
    values["result"] = {
        k: v for k, v in values["result"].items() if "seconds" not in k and k != "peak_memory_bytes"
    }
    values["provenance"] = {k: v for k, v in values["provenance"].items() if k not in ("started", "finished")}
    return values


def files(folder):
    """Return the files in a folder, without locks and checkpoints."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if path.parts[0] != ".checkpoints")


# --- four of them, for sweeps

TINY = replace(SPEC, width=2, train_fraction=0.1, warmup=1)
SPECS = [replace(TINY, seed=seed, sparsity=sparsity) for seed in range(2) for sparsity in (0.5, 0.9)]


def settled(record):
    """Return what is the same in a record however often its run was interrupted, and whoever commits meanwhile."""
    values = untimed(record)
    dropped = ("resumed", "git", "dirty")
    values["provenance"] = {name: value for name, value in values["provenance"].items() if name not in dropped}
    return values


@pytest.fixture(scope="module")
def records():
    return {spec: settled(quick(spec)) for spec in SPECS}


def assert_complete(store, records, specs=SPECS):
    """The store holds each run once, as if nothing had happened, and nothing else."""
    assert [store.path(spec).is_file() for spec in specs] == [True] * len(specs)
    assert len(store.records()) == len(specs)
    assert all(settled(store.load(spec)) == records[spec] for spec in specs)
    rest = [path for path in store.root.rglob("*") if path.suffix in (".tmp", ".safetensors")]
    assert rest == []
