"""Layers of each architecture, as its paper counts them: weights between input and output, shortcuts left out."""

import pytest
from torch import nn

import pai_lib as pai

LAYERS = {
    "resnet8": 8, "resnet20": 20, "resnet18": 18, "resnet50": 50,
    "vgg11": 9, "vgg13": 11, "vgg16": 14, "vgg19": 17,  # without its two hidden linear layers, as on small images
}  # fmt: skip
# Convolutions between two poolings (Simonyan & Zisserman, 2015, table 1).
STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


@pytest.mark.parametrize("name", LAYERS)
def test_the_number_in_a_name_counts_its_layers(name):
    model = pai.build_model(name, 10, width=4)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(layers) == LAYERS[name]


@pytest.mark.parametrize("name", STAGES)
def test_the_stages_of_vgg_are_those_of_the_paper(name):
    model = pai.build_model(name, 10, width=4)
    counts, found = [0], []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            counts[-1] += 1
            found.append(module.out_channels)
        elif isinstance(module, nn.MaxPool2d):
            counts.append(0)
    assert tuple(count for count in counts if count) == STAGES[name]
    widths = [
        4 * factor for factor, count in zip((1, 2, 4, 8, 8), STAGES[name], strict=True) for _ in range(count)
    ]
    assert found == widths
