"""Architectures of the paper and the rule that says which of a model's weights can be pruned.

Scores are taken at initialization, so it matters here. In ResNet and VGG all convolutions and
linear layers keep PyTorch's default (``reset_parameters``: Kaiming-uniform with a = √5), where
torchvision's models have another. Vision transformers are torchvision's, with its initialization
but for the head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draws import drawing
from .names import check_known, checked_keywords, count_of


def model_names() -> list[str]:
    """Names that ``build_model`` knows, in the order of their definition."""
    return list(_ARCHITECTURES)


def own_width(name: str) -> int:
    """The width of an architecture where none is given."""
    return _ARCHITECTURES[name][1]


@checked_keywords
def build_model(
    name: str, num_classes: int, *, in_channels: int = 3, width: int | None = None, seed: int = 0
) -> nn.Module:
    """Build an architecture with PyTorch's default initialization, in float32.

    The weights of a seed are drawn on the CPU and then moved to PyTorch's default device: whatever
    this is, and whatever the default dtype, they are the same.

    Args:
        name: one of ``model_names()``.
        num_classes: size C of the output, logits N×C.
        in_channels: channels of the input images N×in_channels×H×W.
        width: channels of the first stage; ``None`` is the architecture's own (64 for ResNet-18).
        seed: seeds the initialization and nothing else: every global random state is left as it
            was.

    Raises:
        ValueError: for an unknown name or a size below 1.

    >>> model = build_model("resnet18", num_classes=10)
    >>> sum(p.numel() for p in model.parameters())
    11173962
    """
    check_known("model", name, _ARCHITECTURES)
    build, width = _ARCHITECTURES[name][0], own_width(name) if width is None else width
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    for size, value in sizes.items():
        count_of(size, value)
    default = torch.get_default_device()
    device = default if default.type == "meta" else torch.device("cpu")  # "meta" draws nothing
    # Weights made in inference mode could never be trained.
    with device, torch.inference_mode(False), drawing(seed):
        model = build(num_classes, in_channels, width)
    return model.to(default)


def check_model(model: Any, values: bool = True) -> None:
    """Raise TypeError for what is no module, ValueError for a tensor without shape or values."""
    if not isinstance(model, nn.Module):
        is_class = isinstance(model, type)
        kind = f"the class {model.__name__}" if is_class else f"of type {type(model).__name__}"
        raise TypeError(f"The model is {kind}: it must be a torch.nn.Module.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name!r} of a lazy module has no shape yet: call the model once.")
        if values and tensor.is_meta:
            raise ValueError(f"{name!r} has no values: the model is on the meta device.")


def check_logits(output: Any, samples: int, highest_label: int = 0) -> Tensor:
    """Return a model's output if it is logits N×C with one a label; else raise ValueError."""
    form = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != samples:
        raise ValueError(f"The model must return logits of shape ({samples}, classes), not {form}.")
    if not output.is_floating_point():
        raise ValueError(f"The model must return real floating-point logits, not {output.dtype}.")
    outputs = output.shape[1]
    if highest_label >= outputs:
        raise ValueError(f"Label {highest_label} is out of range: the model has {outputs} outputs.")
    return output


# --------------------------------------------------------------------------------------------------
# ResNet (He et al., 2016)


def _convolution(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, or a 1×1-3×3-1×1 bottleneck, beside a shortcut (He et al., 2016).

    The shortcut is the identity, or a 1×1 convolution with batch norm where the shape changes.
    """

    def __init__(self, c_in: int, c_mid: int, stride: int, bottleneck: bool):
        super().__init__()
        c_out = 4 * c_mid if bottleneck else c_mid
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        channels = (c_in, *[c_mid] * (len(kernels) - 1), c_out)
        strided = 1 if bottleneck else 0  # the stride sits on the (first) 3×3 convolution
        self.convs = nn.ModuleList(
            _convolution(channels[i], channels[i + 1], kernel, stride if i == strided else 1)
            for i, kernel in enumerate(kernels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[1:])
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut.append(_convolution(c_in, c_out, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """N×c_in×H×W to N×c_out×H/stride×W/stride."""
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(F.relu(out) if i else out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network (He et al., 2016).

    Its stem is a 3×3 convolution, for images of about 32×32; or, for those of ImageNet, 7×7 with
    stride 2 and a max-pool.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        width: int,
        bottleneck: bool = False,
        imagenet: bool = False,
    ):
        super().__init__()
        kernel, stride = (7, 2) if imagenet else (3, 1)
        first = _convolution(in_channels, width, kernel, stride)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        if imagenet:
            self.stem.append(nn.MaxPool2d(3, 2, padding=1))
        stages, c_in = [], width
        for stage, count in enumerate(blocks):
            c_mid = width * 2**stage
            for i in range(count):
                stages.append(ResidualBlock(c_in, c_mid, 2 if stage and not i else 1, bottleneck))
                c_in = 4 * c_mid if bottleneck else c_mid
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×C×H×W to logits N×num_classes."""
        x = self.blocks(self.stem(x))  # N×c×h×w
        return self.head(x.mean(dim=(2, 3)))


# --------------------------------------------------------------------------------------------------
# VGG (Simonyan & Zisserman, 2015) with batch norm (Ioffe & Szegedy, 2015) and one linear layer


class VGG(nn.Module):
    """3×3 convolutions with batch norm, five max-pools, one linear layer; for 32×32 and more."""

    def __init__(self, depth: tuple[int, ...], num_classes: int, in_channels: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        c_in = in_channels
        for stage, count in enumerate(depth):
            c_out = width * min(2**stage, 8)
            for _ in range(count):
                layers += [_convolution(c_in, c_out, 3), nn.BatchNorm2d(c_out), nn.ReLU()]
                c_in = c_out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×C×H×W, H and W at least 32, to logits N×num_classes."""
        height, width = x.shape[-2:]
        if min(height, width) < 32:
            raise ValueError(f"VGG needs 32×32 or more: images of {height}×{width} are too small.")
        return self.head(self.features(x).mean(dim=(2, 3)))


# --------------------------------------------------------------------------------------------------
# Vision transformer (Dosovitskiy et al., 2021)


def _vision_transformer(
    image_size: int,
    patch: int,
    layers: int,
    heads: int,
    mlp_ratio: int,
    num_classes: int,
    in_channels: int,
    width: int,
) -> nn.Module:
    """Torchvision's model and initialization, but for its head and the number of input channels.

    Its own head starts at zero. Then no gradient reaches any other weight, and every score that is
    made of derivatives is zero everywhere; here the head has PyTorch's default initialization.
    """
    from torchvision.models import VisionTransformer

    if width % heads:
        raise ValueError(f"width={width}: it must be a multiple of {heads}, the attention heads.")
    model = VisionTransformer(
        image_size, patch, layers, heads, width, mlp_ratio * width, num_classes=num_classes
    )
    if in_channels != 3:  # initialized as torchvision's
        model.conv_proj = nn.Conv2d(in_channels, width, patch, patch)
        nn.init.trunc_normal_(model.conv_proj.weight, std=(in_channels * patch**2) ** -0.5)
        nn.init.zeros_(model.conv_proj.bias)
    model.heads.head.reset_parameters()
    model.register_forward_pre_hook(_check_image_size)
    return model


def _check_image_size(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    size, (height, width) = model.image_size, inputs[0].shape[-2:]
    if (height, width) != (size, size):
        embeddings = f"This model has position embeddings for images of {size}×{size}"
        raise ValueError(f"{embeddings}, not {height}×{width}: use image_size={size}.")


# Name, function (num_classes, in_channels, width) -> Module, default width.
_ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "resnet18": (partial(ResNet, (2, 2, 2, 2)), 64),
    "resnet34": (partial(ResNet, (3, 4, 6, 3)), 64),
    "resnet50": (partial(ResNet, (3, 4, 6, 3), bottleneck=True), 64),
    "resnet50_imagenet": (partial(ResNet, (3, 4, 6, 3), bottleneck=True, imagenet=True), 64),
    "resnet20": (partial(ResNet, (3, 3, 3)), 16),
    "resnet8": (partial(ResNet, (1, 1, 1)), 16),
    "vgg11": (partial(VGG, (1, 1, 2, 2, 2)), 64),
    "vgg13": (partial(VGG, (2, 2, 2, 2, 2)), 64),
    "vgg16": (partial(VGG, (2, 2, 3, 3, 3)), 64),
    "vgg19": (partial(VGG, (2, 2, 4, 4, 4)), 64),
    "vit_b_16": (partial(_vision_transformer, 224, 16, 12, 12, 4), 768),
    # The ViT of Lee, Lee & Song (2021) for 32×32 images, with a class token.
    "vit_cifar": (partial(_vision_transformer, 32, 4, 9, 12, 2), 192),
    # ViT-Lite-6/4 of Hassani et al. (2021): fewer and wider heads, which cost less at small widths.
    "vit_lite_6": (partial(_vision_transformer, 32, 4, 6, 4, 2), 256),
}
