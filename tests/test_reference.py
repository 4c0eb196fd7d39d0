"""Golden numbers: the scores and masks of the paper authors' released code, and exact curvature."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import pai_lib as pai

FOLDER = Path(__file__).parent / "reference"


def conv(c_in, c_out, kernel, stride=1, bias=False):
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 12, 3, 2), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = conv(12, 12, 1, bias=True), nn.BatchNorm2d(12)
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.linear(x.mean((2, 3)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6, 3), conv(6, 6, 3), conv(6, 6, 3)
        self.conv4, self.conv5 = conv(6, 12, 3, 2), conv(6, 12, 1, 2)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.bn4, self.bn5 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x))))))
        x = F.relu(self.bn4(self.conv4(x)) + self.bn5(self.conv5(x)))
        return self.linear(x.mean((2, 3)))


class Golden:
    def __init__(self, name, network):
        self.data = load_file(FOLDER / f"{name}.safetensors")
        self.model = network()
        self.model.load_state_dict(self.get("state"))
        self.batch = pai.Batch(self.data["inputs"], self.data["labels"])

    def get(self, prefix):
        return {k[len(prefix) + 1 :]: v for k, v in self.data.items() if k.startswith(prefix + "/")}

    def double(self):
        return self.model.double(), pai.Batch(self.batch.inputs.double(), self.batch.labels)


@pytest.fixture(params=[("convnet", ConvNet), ("resnet", ResNet)], ids=["convnet", "resnet"])
def golden(request):
    return Golden(*request.param)


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values()).item()
    return max((found[name] - value).abs().max().item() for name, value in expected.items()) / scale


def ours(golden, criterion, group):
    """Our score in the units of the stored one: snip and grasp are divided by the absolute sum."""
    key, variant = (criterion, "cited") if criterion in pai.CRITERIA else ("grasp", "released")
    found = pai.score(golden.model, golden.batch, key, variant=variant, group=group, parameters="all")
    if criterion in ("snip", "grasp_released_sign"):
        total = sum(value.sum() for value in found.values()).abs()
        found = {name: value / total for name, value in found.items()}
    return found


CRITERIA = ["grad_norm", "fisher_diag", "fisher_pruning", "snip", "grasp_released_sign", "fts"]


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_and_masks_are_those_of_the_released_code(golden, criterion, group):
    found = ours(golden, criterion, group)
    assert largest_difference(found, golden.get(f"score/bs{group}/{criterion}")) < 1e-5  # float32
    names = pai.prunable(golden.model)
    for scope in ("global", "layer"):
        for sparsity in ("0.5", "0.9", "0.98"):
            stored = golden.get(f"mask/bs{group}/{criterion}/{scope}/{sparsity}")
            mask = pai.make_mask({name: found[name] for name in names}, float(sparsity), scope)
            for name, kept in stored.items():
                assert torch.equal(mask.get(name, torch.ones_like(kept).bool()), kept.bool()), (name, sparsity)


def test_our_prunable_weights_are_those_that_the_released_names_leave(golden):
    names = [name for name, _ in golden.model.named_parameters()]
    assert pai.prunable(golden.model) == [n for n in names if not any(w in n for w in ("bias", "linear", "bn"))]


def test_one_synflow_round_is_that_of_the_released_code(golden):
    found = pai.score(golden.model, golden.batch, "synflow", parameters="all")
    assert largest_difference(found, golden.get("score/once/synflow")) < 2e-6  # they compute in float32


@pytest.mark.parametrize("temperature", [1, 200])
def test_exact_diagonal_is_the_stored_hessian_diagonal(golden, temperature):
    found = pai.exact_diag(*golden.double(), temperature=temperature, parameters="all")
    assert largest_difference(found, golden.get(f"exact/hessian_diag/T{temperature}")) < 1e-12


@pytest.mark.parametrize("temperature", [1, 200])
def test_stored_probe_deviation_is_the_length_of_a_hessian_column_off_the_diagonal(golden, temperature):
    """√Σ_{j≠i} Hᵢⱼ² over all parameters, for the first weight of each tensor."""
    stored = golden.get(f"exact/probe_std/T{temperature}")
    model, batch = golden.double()
    for name in stored:
        unit = {other: torch.zeros_like(value) for other, value in stored.items()}
        unit[name].view(-1)[0] = 1
        column = pai.hessian_vector_product(model, batch, unit, temperature=temperature)
        column[name].view(-1)[0] = 0
        deviation = sum(value.square().sum().item() for value in column.values()) ** 0.5
        assert deviation == pytest.approx(stored[name].view(-1)[0].item(), rel=1e-9)


@pytest.mark.parametrize("temperature", [1, 200])
def test_our_standard_error_is_the_stored_probe_deviation(golden, temperature):
    stored = golden.get(f"exact/probe_std/T{temperature}")
    _, error = pai.hutchinson_diag(
        *golden.double(), probes=60, temperature=temperature, parameters=list(stored), standard_error=True
    )
    found = sum(value.square().sum().item() for value in error.values()) * 60
    expected = sum(value.square().sum().item() for value in stored.values())
    assert found == pytest.approx(expected, rel=0.1)
