"""Which layer is the head: the last linear layer to be registered, or the last convolution where there is none."""

import pytest
from torch import nn

import pai_lib as pai

CONV, LINEAR = (lambda: nn.Conv2d(2, 2, 1)), (lambda: nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("layers", "prunable"),
    [
        ([LINEAR, CONV, LINEAR, CONV], ["0.weight", "1.weight", "3.weight"]),
        ([CONV, LINEAR], ["0.weight"]),
        ([LINEAR, CONV], ["1.weight"]),
        ([CONV, CONV, CONV], ["0.weight", "1.weight"]),
        ([LINEAR, LINEAR], ["0.weight"]),
    ],
)
def test_the_head_is_the_last_linear_layer_or_the_last_convolution(layers, prunable):
    assert pai.prunable(nn.Sequential(*(layer() for layer in layers))) == prunable


@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_a_head_alone_is_nothing_to_prune(layer):
    with pytest.raises(ValueError, match="Sequential has no prunable weight"):
        pai.prunable(nn.Sequential(layer(), nn.ReLU()))
