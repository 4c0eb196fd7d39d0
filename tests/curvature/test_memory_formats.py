"""How the numbers of a weight lie in memory changes no result: channels last, transposed, every other one."""

import copy

import pytest
import torch
from conftest import assert_equal_diagonals, batch_of, fisher_loop, hessian
from torch import nn

import pai_lib as pai


def strided(weight):
    """Every other number of a larger tensor, along each axis."""
    large = weight.new_zeros([2 * n for n in weight.shape])
    view = large[tuple(slice(None, None, 2) for _ in weight.shape)]
    return view.copy_(weight)


FORMATS = {
    "channels last": lambda w: w.clone(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(w.ndim, torch.preserve_format)
    ),
    "transposed": lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
    "last axis first": lambda w: w.movedim(-1, 0).contiguous().movedim(0, -1),
    "first axis last": lambda w: w.movedim(0, -1).contiguous().movedim(-1, 0),
    "every other": strided,
    "a part of another": lambda w: torch.cat([w, w, w], -1).narrow(-1, w.shape[-1], w.shape[-1]),
    "an expanded one's copy": lambda w: w.expand(2, *w.shape).clone()[1],
}
BODIES = {  # and the entries of what they make of 3×6×6 numbers
    "few positions": (lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, (2, 1))], 36),
    "many positions": (lambda: [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)], 72),
    "groups": (lambda: [nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)], 16),
    "one axis": (lambda: [nn.Flatten(2), nn.Conv1d(3, 4, 5, 3), nn.ReLU(), nn.Conv1d(4, 3, 3)], 27),
    "three axes": (
        lambda: [nn.Unflatten(2, (2, 3)), nn.Conv3d(3, 4, 2), nn.ReLU(), nn.Conv3d(4, 3, (1, 2, 2))],
        12,
    ),
    "linear": (lambda: [nn.Flatten(), nn.Linear(108, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU()], 5),
    "tokens": (lambda: [nn.Flatten(2), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3)], 9),
}


def contiguous(model):
    torch.manual_seed(0)
    body, entries = BODIES[model]
    layers = [*body(), nn.Flatten(), nn.Linear(entries, 3)]
    return nn.Sequential(*layers).double(), batch_of(5, 3, 6, 6)


def laid_out(model, change):
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            before = parameter.detach().clone()
            parameter.data = change(before)
            assert torch.equal(parameter, before)
    return model


@pytest.mark.parametrize("layout", [layout for layout in FORMATS if "copy" not in layout])
def test_the_layouts_are_other_ones(layout):
    model = laid_out(contiguous("few positions")[0], FORMATS[layout])
    assert not model[0].weight.is_contiguous()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", BODIES)
def test_the_layout_of_a_weight_changes_no_diagonal(name, layout):
    model, batch = contiguous(name)
    other, names = laid_out(model, FORMATS[layout]), pai.prunable(model)
    for group in (1, 2):
        found = pai.fisher_diag(other, batch, group, parameters="all")
        assert_equal_diagonals(found, fisher_loop(model, batch, list(found), group))
    assert_equal_diagonals(pai.exact_diag(other, batch), hessian(model, batch, names).diag())
    for mode in ("exact", "mc"):
        found, expected = pai.ggn_diag(other, batch, mode), pai.ggn_diag(model, batch, mode)
        assert all(torch.allclose(found[name], expected[name], rtol=1e-9) for name in names)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", BODIES)
def test_the_layout_of_a_weight_changes_no_score_mask_or_flow(name, layout):
    model, batch = contiguous(name)
    other = laid_out(model, FORMATS[layout])
    expected, found = (pai.score_many(net, batch, pai.CRITERIA, probes=2) for net in (model, other))
    for key in pai.CRITERIA:
        for weight, value in expected[key].items():
            assert torch.allclose(found[key][weight].to(value), value, rtol=1e-9, atol=1e-15), (key, weight)
    masks = [pai.prune(net, batch, "magnitude", 0.7) for net in (model, other)]
    assert pai.jaccard(*masks) == 1
    sparsity = pai.effective_sparsity(model, masks[0], batch)
    for mask in masks:
        assert pai.effective_sparsity(other, mask, batch) == sparsity
        assert pai.flops_left(other, mask, batch) == pai.flops_left(model, masks[0], batch)
    generators = [torch.Generator().manual_seed(3) for _ in masks]
    assert pai.jaccard(*(pai.shuffle_within_layers(*pair) for pair in zip(masks, generators, strict=True))) == 1
    outputs = []
    for net, mask in zip((model, other), masks, strict=True):
        outputs.append(pai.to_torch_prune(copy.deepcopy(net), mask)(batch.inputs))
        pai.apply_mask(net, mask)
        outputs.append(net(batch.inputs))
    assert all(torch.allclose(output, outputs[0], rtol=1e-12) for output in outputs)
