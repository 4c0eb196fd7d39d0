"""Architectures of the paper and the rule that says which of a model's weights can be pruned.

Scores are taken at initialization, so it matters here. In ResNet and VGG all convolutions and
linear layers keep PyTorch's default (``reset_parameters``: Kaiming-uniform with a = √5), where
torchvision's models have another. Vision transformers are torchvision's, with its initialization
but for the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draws import drawing
from .names import checked_keywords, nearest

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, tuple[Builder, int]] = {}

"""Module types whose weight tensors are prunable."""


def architecture(name: str, default_width: int) -> Callable[[Builder], Builder]:
    """Register a builder ``(num_classes, in_channels, width) -> Module`` under ``name``."""

    def register(builder: Builder) -> Builder:
        _BUILDERS[name] = (builder, default_width)
        return builder

    return register


def model_names() -> list[str]:
    """Names that ``build_model`` knows, in the order of their definition."""
    return list(_BUILDERS)


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
    if name not in _BUILDERS:
        raise ValueError(f"Unknown model {name!r}: {nearest(name, _BUILDERS)}")
    builder, default_width = _BUILDERS[name]
    width = default_width if width is None else width
    for what, value in (
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("width", width),
    ):
        if value < 1:
            raise ValueError(f"{what}={value}: it must be at least 1.")
    default = torch.get_default_device()
    # The meta device draws nothing. Weights made in inference mode could never be trained.
    with (
        default if default.type == "meta" else torch.device("cpu"),
        torch.inference_mode(False),
        drawing(seed),
    ):
        model = builder(num_classes, in_channels, width)
    return model.to(default)


def check_model(model: Any) -> None:
    """Raise TypeError for what is no module, ValueError for one whose parameters have no shape yet."""
    if not isinstance(model, nn.Module):
        what = (
            f"the class {model.__name__}"
            if isinstance(model, type)
            else f"of type {type(model).__name__}"
        )
        raise TypeError(f"The model is {what}: it must be a torch.nn.Module.")
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"{name!r} of a lazy module has no shape yet: call the model once on a batch first."
            )


def check_logits(output: Any, samples: int, highest_label: int = 0) -> Tensor:
    """Return a model's output if it is logits, N×C, of which the labels have theirs; else raise ValueError."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != samples:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"The model must return logits of shape ({samples}, classes), not {found}."
        )
    if not output.is_floating_point():
        raise ValueError(f"The model must return real floating-point logits, not {output.dtype}.")
    if highest_label >= output.shape[1]:
        raise ValueError(
            f"Label {highest_label} is out of range: the model has {output.shape[1]} outputs."
        )
    return output


# ---------------------------------------------------------------------------------------------------------
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
            self.shortcut = nn.Sequential(
                _convolution(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out)
            )

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
        self, blocks: tuple[int, ...], num_classes: int, in_channels: int, width: int,
        bottleneck: bool = False, imagenet: bool = False,
    ):  # fmt: skip
        super().__init__()
        first = (
            _convolution(in_channels, width, 7, 2)
            if imagenet
            else _convolution(in_channels, width, 3)
        )
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


@architecture("resnet18", 64)
def _resnet18(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return ResNet((2, 2, 2, 2), num_classes, in_channels, width)


@architecture("resnet34", 64)
def _resnet34(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return ResNet((3, 4, 6, 3), num_classes, in_channels, width)


@architecture("resnet50", 64)
def _resnet50(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return ResNet((3, 4, 6, 3), num_classes, in_channels, width, bottleneck=True)


@architecture("resnet50_imagenet", 64)
def _resnet50_imagenet(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return ResNet((3, 4, 6, 3), num_classes, in_channels, width, bottleneck=True, imagenet=True)


@architecture("resnet20", 16)
def _resnet20(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return ResNet((3, 3, 3), num_classes, in_channels, width)


@architecture("resnet8", 16)
def _resnet8(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return ResNet((1, 1, 1), num_classes, in_channels, width)


# ---------------------------------------------------------------------------------------------------------
# VGG (Simonyan & Zisserman, 2015) with batch norm (Ioffe & Szegedy, 2015) and one linear layer


class VGG(nn.Module):
    """3×3 convolutions with batch norm, five max-pools and one linear layer; inputs of 32×32 and more."""

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
        if min(x.shape[-2:]) < 32:
            raise ValueError(
                f"VGG halves its input five times: images of {x.shape[-2]}×{x.shape[-1]} are too small, "
                "it needs 32×32 or more."
            )
        return self.head(self.features(x).mean(dim=(2, 3)))


_VGG_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
for _name, _depth in _VGG_DEPTHS.items():
    architecture(_name, 64)(
        lambda num_classes, in_channels, width, depth=_depth: VGG(
            depth, num_classes, in_channels, width
        )
    )


# ---------------------------------------------------------------------------------------------------------
# Vision transformer (Dosovitskiy et al., 2021)


def _vision_transformer(
    image_size: int, patch: int, layers: int, heads: int, mlp_ratio: int,
    num_classes: int, in_channels: int, width: int,
) -> nn.Module:  # fmt: skip
    """The model and initialization of torchvision, but for the head and another number of input channels.

    torchvision's head starts at zero. Then no gradient reaches any other weight, and every score
    that is made of derivatives is zero everywhere; here the head has PyTorch's default
    initialization.
    """
    from torchvision.models import VisionTransformer

    if width % heads:
        raise ValueError(
            f"width={width}: it must be a multiple of {heads}, the number of attention heads."
        )
    model = VisionTransformer(
        image_size, patch, layers, heads, width, mlp_ratio * width, num_classes=num_classes
    )
    if in_channels != 3:
        model.conv_proj = nn.Conv2d(in_channels, width, patch, patch)
        nn.init.trunc_normal_(
            model.conv_proj.weight, std=(in_channels * patch**2) ** -0.5
        )  # as torchvision's
        nn.init.zeros_(model.conv_proj.bias)
    model.heads.head.reset_parameters()
    model.register_forward_pre_hook(_check_image_size)
    return model


def _check_image_size(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    size, (height, width) = model.image_size, inputs[0].shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"This vision transformer has position embeddings for images of {size}×{size}, not {height}×{width}: "
            f"use image_size={size}."
        )


@architecture("vit_b_16", 768)
def _vit_b_16(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return _vision_transformer(224, 16, 12, 12, 4, num_classes, in_channels, width)


@architecture(
    "vit_cifar", 192
)  # the ViT of Lee, Lee & Song (2021) for 32×32 images, with a class token
def _vit_cifar(num_classes: int, in_channels: int, width: int) -> nn.Module:
    return _vision_transformer(32, 4, 9, 12, 2, num_classes, in_channels, width)
