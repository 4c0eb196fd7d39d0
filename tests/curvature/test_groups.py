"""Groups that do not divide the batch, and estimates that need no luck: exact equalities for every group size.

Where a single weight is probed the Hessian has one row: one Rademacher probe then gives Hᵢᵢ of a group exactly,
and what is left to see is how groups are weighted.
"""

import pytest
import torch
from conftest import Net, assert_equal_diagonals, batch_of, fisher_loop, flat, hessian, linear
from torch import nn

import pai_lib as pai

GROUPS = [1, 2, 3, 4, 5, 6, 7, None]  # of 7 samples


def one_weight():
    """A network that is linear in one weight, whose curvature differs much between samples."""
    model = Net(
        lambda net, x: net.head(x) * torch.tensor([1.0, -2.0, 3.0]).double(), head=linear(1, 1, bias=False)
    )
    model.head.weight.data.fill_(0.3)
    batch = pai.Batch(torch.arange(1.0, 8.0, dtype=torch.float64)[:, None] ** 2 / 10, torch.arange(7) % 3)
    return model, batch, ["head.weight"]


def by_group(batch, group):
    return [pai.Batch(*part) for part in zip(*(t.split(group or 7) for t in batch), strict=True)]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("standard_error", [False, True])
def test_hutchinson_weights_each_group_by_its_samples(group, standard_error):
    model, batch, names = one_weight()
    options = {"parameters": names, "standard_error": standard_error}
    found = pai.hutchinson_diag(model, batch, 2, group, **options)
    assert_equal_diagonals(found[0] if standard_error else found, hessian(model, batch, names).diag())
    if standard_error:  # both probes say the same
        assert flat(found[1]).abs().max() < 1e-12


@pytest.mark.parametrize("group", GROUPS)
def test_the_standard_error_weights_each_group_by_its_samples(group):
    """With normal probes z a group contributes z²Hᵢᵢ⁽ᵍ⁾: the standard error follows from the squares drawn."""
    model, batch, names = one_weight()
    parts, probes, generator = by_group(batch, group), 5, torch.Generator().manual_seed(4)
    expected, variance = 0.0, 0.0
    for part in parts:
        squares = torch.stack([torch.randn(1, 1, generator=generator).double() ** 2 for _ in range(probes)])
        h, weight = hessian(model, part, names).item(), len(part.labels) / 7
        expected += weight * h * squares.mean().item()
        variance += weight**2 * h**2 * squares.var().item() / probes
    options = {"distribution": "normal", "generator": torch.Generator().manual_seed(4), "standard_error": True}
    estimate, error = pai.hutchinson_diag(model, batch, probes, group, parameters=names, **options)
    assert flat(estimate).item() == pytest.approx(expected, rel=1e-9)
    assert flat(error).item() == pytest.approx(variance**0.5, rel=1e-9)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_fisher_counts_a_smaller_last_group_as_one_group(group, chunk):
    model, batch, names = one_weight()
    found = pai.fisher_diag(model, batch, group, parameters=names, chunk=chunk)
    assert_equal_diagonals(found, fisher_loop(model, batch, names, group or 7))


@pytest.mark.parametrize("group", [2, 3, 5])
def test_hutchinson_with_unequal_groups_is_unbiased(group):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    batch, names = batch_of(7, 1, 2, 2), ["1.weight", "3.weight"]
    g = torch.Generator().manual_seed(0)
    draws = [flat(pai.hutchinson_diag(model, batch, 1, group, parameters=names, generator=g)) for _ in range(400)]
    draws, exact = torch.stack(draws), hessian(model, batch, names).diag()
    assert ((draws.mean(0) - exact).abs() <= 4 * draws.std(0) / 20 + 1e-14).all()


def test_one_group_of_all_samples_may_mix_them():
    """Nothing is split, so nothing needs to be independent: it is the squared gradient."""
    model = Net(lambda net, x: net.head(x - x.mean(0)), head=linear(4, 3))
    batch, names = batch_of(6, 4), ["head.weight", "head.bias"]
    gradient = flat(pai.gradient(model, batch, parameters=names))
    for group in (None, 6, 100):
        assert_equal_diagonals(pai.fisher_diag(model, batch, group, parameters=names), gradient.square())
    with pytest.raises(ValueError, match="depend on another"):
        pai.fisher_diag(model, batch, 3, parameters=names)
