"""Data sets held whole in memory as uint8 tensors: splitting, scoring batches, augmented epochs.

Images stay uint8 on one device until a batch of them is cropped, flipped and made float there.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..names import check_number, count_of
from .batch import Batch

TRAINING_PART = 0.8  # of images without a test set
PADDING = 4  # pixels on each side before the random crop: the usual recipe for 32×32 images


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of one data set; built by `load_data` or `Dataset.from_arrays`."""

    name: str
    train_images: Any = field(repr=False)  # uint8 Tensor N×C×H×W; of an `ImageStream` its files
    train_labels: Tensor = field(repr=False)  # int64 N
    test_images: Any = field(repr=False)
    test_labels: Tensor = field(repr=False)
    num_classes: int
    mean: tuple[float, ...]  # of each channel of the training images, pixels in [0, 1]
    std: tuple[float, ...]
    augment: bool  # random crop and flip in training; not of digits: a mirrored one is none
    fingerprint: str  # SHA-256 over shapes, pixels and labels, training and test
    location: str = ""  # where it was read from
    resized: int | None = None  # to squares of so many pixels

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: np.ndarray,
        y_train: np.ndarray,
        x_test: np.ndarray,
        y_test: np.ndarray,
        augment: bool = True,
        image_size: int | None = None,
        location: str | Path = "",
    ) -> Self:
        """Build a data set from uint8 images N×H×W×C, C 1 or 3, and integer labels 0, 1, … (N).

        `image_size` resizes to squares, bilinearly. Raises ValueError naming an array that is
        otherwise.
        """
        x_train, y_train, x_test, y_test = map(np.asarray, (x_train, y_train, x_test, y_test))
        _check_arrays(x_train, y_train, x_test, y_test)
        images = [to_tensor(x, image_size) for x in (x_train, x_test)]
        labels = [torch.from_numpy(y.astype(np.int64)) for y in (y_train, y_test)]
        tensors = images[0], labels[0], images[1], labels[1]
        classes, (mean, std) = int(labels[0].max()) + 1, _mean_std(images[0])
        about = augment, digest_of(*tensors), str(location), image_size
        return cls(name, *tensors, classes, mean, std, *about)

    def to(self, device: str | torch.device) -> Self:
        """Return the data set with its tensors on `device`."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.train_images.shape[1:])

    @cached_property  # moved once: a copy in every step would make the host wait for a GPU
    def _scale(self) -> Tensor:
        device = self.train_labels.device
        scale = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device)  # 2×C
        return scale[..., None, None] * 255

    def normalize(self, images: Tensor) -> Tensor:
        """Return (x/255 − mean)/std of uint8 `images` N×C×H×W as float32, on their device."""
        mean, std = self._scale.to(images.device)  # C×1×1
        return images.float().sub_(mean).div_(std)

    def split(self, fraction: float, seed: int = 42) -> tuple[Self, tuple[Any, Tensor]]:
        """Keep a stratified `fraction` of the training images and hold out the rest for validation.

        Returns the smaller data set and the held-out (uint8 images N×C×H×W, int64 labels N),
        exactly those of scikit-learn's `train_test_split(range(N), train_size=fraction,
        stratify=labels, random_state=seed)`. Mean, std and fingerprint stay those of the whole.
        Raises ValueError unless 0 < fraction ≤ 1 and either part can have each class.
        """
        images, labels = self.train_images, self.train_labels
        check_number("fraction", fraction, "above 0 and at most 1")
        fraction = float(fraction)
        count_of("seed", seed, 0, below=2**32)
        if fraction == 1:
            return self, (images[:0], labels[:0])
        keep, held = stratified_split(labels.cpu().numpy(), fraction, seed)
        part = replace(self, train_images=images[keep], train_labels=labels[keep])
        return part, (images[held], labels[held])

    def scoring_batch(self, samples_per_class: int = 10, seed: int = 0) -> Batch:
        """Return a class-balanced batch of training images, unaugmented, to score weights on.

        Sample i has class i mod `num_classes`, so that consecutive groups mix the classes. One seed
        gives the same samples on every device, fewer a prefix of more. Raises ValueError for a
        number there is not.

        >>> from pai_lib import load_data
        >>> load_data("digits").scoring_batch(samples_per_class=2).labels.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        """
        chosen = balanced_sample(self.train_labels.cpu(), samples_per_class, self.num_classes, seed)
        return Batch(self.normalize(self.train_images[chosen]), self.train_labels[chosen])

    def epoch(
        self, batch_size: int, generator: Generator, augment: bool | None = None
    ) -> Iterator[Batch]:
        """Iterate once over the shuffled training images, by default as `self.augment` says.

        Augmentation is a random crop after zero-padding by 4 pixels, then a horizontal flip with
        probability ½. All randomness is drawn from `generator`, a CPU generator, at the call: the
        same on every device. Every image comes once, except that a last batch of a single one,
        which batch norm cannot train on, is dropped (unless `batch_size` is 1). Raises ValueError
        for a batch size below 1.
        """
        augment = self.augment if augment is None else augment
        batch_size = count_of("batch_size", batch_size)
        count, device = len(self.train_labels), self.train_images.device
        order = shuffled(count, batch_size, generator)
        shifts = torch.randint(2 * PADDING + 1, (2, count), generator=generator, device="cpu")
        flips = torch.randint(2, (count,), generator=generator, device="cpu").bool().to(device)
        rows, columns = shifts.to(device)

        def batch(index: Tensor) -> Batch:
            images = self.train_images[index]  # B×C×H×W
            if augment:
                images = crop_and_flip(images, rows[index], columns[index], flips[index])
            return Batch(self.normalize(images), self.train_labels[index])

        return map(batch, order.to(device).split(batch_size))

    def test_batches(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Iterate once over the test images, in order."""
        batch_size = count_of("batch_size", batch_size)
        images, labels = self.test_images.split(batch_size), self.test_labels.split(batch_size)
        return map(Batch, map(self.normalize, images), labels)


def balanced_sample(labels: Tensor, samples_per_class: int, num_classes: int, seed: int) -> Tensor:
    """Return the indices of `Dataset.scoring_batch`, from all labels (on the CPU)."""
    counts = labels.bincount(minlength=num_classes)
    fewest, rarest = (int(value) for value in counts.min(0))
    if count_of("samples_per_class", samples_per_class) > fewest:
        images = f"1 to {fewest}, the images of class {rarest}"
        raise ValueError(f"samples_per_class={samples_per_class} must be {images}")
    generator = Generator().manual_seed(count_of("seed", seed, 0))
    order = torch.randperm(len(labels), generator=generator, device="cpu")
    by_class = order[labels[order].argsort(stable=True)]  # N, one class after another
    first = counts.cumsum(0) - counts  # num_classes: where each class starts
    return by_class[torch.arange(samples_per_class, device="cpu")[:, None] + first].flatten()


def shuffled(count: int, batch_size: int, generator: Generator) -> Tensor:
    """Return the order of `Dataset.epoch`."""
    count_of("batch_size", batch_size)
    order = torch.randperm(count, generator=generator, device="cpu")
    return order[:-1] if count % batch_size == 1 and batch_size > 1 else order


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> list[np.ndarray]:
    """Return the indices of a stratified `fraction` and of the rest, see `Dataset.split`."""
    from sklearn.model_selection import train_test_split

    check_split(labels, fraction)
    options: Any = {"train_size": fraction, "stratify": labels, "random_state": seed}
    return train_test_split(np.arange(len(labels)), **options)


def check_split(labels: Any, fraction: float, start: str = "", names: Any = None) -> None:
    """Raise ValueError, begun by `start`, unless either part can have each class."""
    classes, counts = np.unique(labels, return_counts=True)
    images, kept, rarest = len(labels), int(fraction * len(labels)), int(counts.argmin())
    if counts[rarest] < 2 or min(kept, images - kept) < len(classes):
        name = names[rarest] if names else f"class {classes[rarest]}"
        parts = f"{start}{images} images, {counts[rarest]} of them of {name}"
        needed = f"each of which needs {len(classes)}, one a class"
        raise ValueError(f"{parts}, make parts of {kept} and {images - kept}, {needed}")


def crop_and_flip(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crop image i out of its zero-padded self at (`rows[i]`, `columns[i]`); mirror if `flips[i]`.

    Images B×C×H×W to the same shape; the others have B numbers.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (PADDING,) * 4)  # B×C×(H+8)×(W+8)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # B×C×9×9×H×W, a view
    crops = windows[torch.arange(len(images), device=images.device), :, rows, columns]  # B×C×H×W
    return torch.where(flips.view(-1, 1, 1, 1), crops.flip(-1), crops)


def to_tensor(images: np.ndarray, size: int | None) -> Tensor:
    """Copy uint8 N×H×W×C into N×C×H×W, in squares of `size` if given; what shrinks is averaged."""
    tensor = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
    if size is None or tensor.shape[2:] == (count_of("image_size", size), size):
        return tensor
    resized = room_for(*tensor.shape[:2], size, size)
    for place, some in zip(resized.split(100), tensor.split(100), strict=True):  # to save memory
        pixels = F.interpolate(some.float(), (size, size), mode="bilinear", antialias=True)
        place.copy_(pixels.round())
    return resized


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 over shapes and numbers: of a data set's four tensors its fingerprint."""
    digest = hashlib.sha256(str([tuple(tensor.shape) for tensor in tensors]).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def room_for(*shape: int) -> Tensor:
    """Uninitialized uint8 images; ValueError if they are larger than memory."""
    try:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        images = " × ".join(map(str, shape))
        raise ValueError(f"Memory has no room for images of {images} bytes.") from error


def _check_arrays(
    x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> None:
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or x.size == 0:
            wanted = "uint8 N×H×W×C with 1 or 3 channels"
            raise ValueError(f"x_{part} must be {wanted}, not {x.dtype} {x.shape}")
        if y.dtype.kind not in "iu" or y.shape != (len(x),):
            raise ValueError(f"y_{part} must be {len(x)} integer labels, not {y.dtype} {y.shape}")
    train, test = x_train.shape[1:], x_test.shape[1:]
    if train != test:
        raise ValueError(f"x_test must be images {train} as x_train is, not {test}")
    classes = np.arange(max(2, len(np.unique(y_train))))
    missing = np.setdiff1d(np.append(classes, y_test), y_train)
    if len(missing):
        labels = f"its labels {y_train.min()} to {y_train.max()} lack {int(missing[0])}"
        raise ValueError(f"y_train must hold all classes 0, 1, … and those of y_test: {labels}")


def _mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel, from exact counts of the 256 pixel values."""
    histograms = [channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]
    counts = torch.stack(histograms).double()  # C×256
    weights, values = counts / counts[0].sum(), torch.arange(256, device="cpu").double() / 255
    mean = weights @ values  # C
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    if std.min() == 0:
        channel = int(std.argmin())
        raise ValueError(f"channel {channel} of x_train must not be constant: it has no scale")
    return tuple(mean.tolist()), tuple(std.tolist())
