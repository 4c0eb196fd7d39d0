"""Models of one's own, each with the shape of one input: what the paper's networks do not have."""

import torch
from conftest import Net, randomize
from torch import nn

import pai_lib as pai


def convolutional():
    return randomize(pai.build_model("resnet8", 10, in_channels=1, width=2, seed=1)), (1, 8, 8)


def depthwise():
    layers = [nn.Conv1d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv1d(4, 6, 1), nn.AvgPool1d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(18, 10)), (4, 8)


def transformer():
    tokens, block = nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    token, head = nn.Parameter(torch.randn(8, dtype=torch.float32)), nn.Linear(8, 10)
    return Net(
        lambda net, x: net.head(net.block(net.tokens(x) + net.token).mean(1)),
        tokens=tokens, block=block, token=token, head=head,
    ), (3, 5)  # fmt: skip


def tied():
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), a, nn.ReLU(), b, nn.ReLU(), nn.Linear(6, 10)), (4,)


MODELS = {function.__name__: function for function in (convolutional, depthwise, transformer, tied)}


def seeded(name):
    """Return a model and a batch of six, in float32, the same in each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, shape = MODELS[name]()
        return model, pai.Batch(torch.randn(6, *shape), torch.arange(6) % 10)
