"""Data sets held whole in memory as uint8 tensors: reading, splitting, scoring batches, augmented epochs.

Images stay uint8 on one device until a batch of them is cropped, flipped and made float there.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import tqdm

from ..names import closest
from .batch import Batch
from .folders import list_folder, open_image, stamp

ARRAYS = ("x_train", "y_train", "x_test", "y_test")

PADDING = 4  # pixels on each side before the random crop: the usual recipe for 32×32 images
_LOADERS: dict[
    str, tuple[Callable, bool | None]
] = {}  # name -> loader, augment; None: it makes a data set itself


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of one data set; built by `load_data` or `Dataset.from_arrays`."""

    name: str
    train_images: Tensor = field(repr=False)  # uint8 N×C×H×W, contiguous
    train_labels: Tensor = field(repr=False)  # int64 N
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    num_classes: int
    mean: tuple[float, ...]  # of each channel of the training images, pixels in [0, 1]
    std: tuple[float, ...]
    augment: bool  # random crop and horizontal flip in training; False for digits: a mirrored digit is none
    fingerprint: str  # SHA-256 over shapes, pixels and labels, training and test
    location: str = ""  # where it was read from

    @classmethod
    def from_arrays(
        cls, name: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray,
        augment: bool = True, image_size: int | None = None, location: str | Path = "",
    ) -> "Dataset":  # fmt: skip
        """Build a data set from NumPy arrays: uint8 images N×H×W×C, C 1 or 3, and integer labels 0, 1, … (N).

        `image_size` resizes to squares, bilinearly. Raises ValueError naming an array that is
        otherwise.
        """
        x_train, y_train, x_test, y_test = map(np.asarray, (x_train, y_train, x_test, y_test))
        _check_arrays(x_train, y_train, x_test, y_test)
        images = [to_tensor(x, image_size) for x in (x_train, x_test)]
        labels = [torch.from_numpy(y.astype(np.int64)) for y in (y_train, y_test)]
        tensors, classes = (images[0], labels[0], images[1], labels[1]), int(labels[0].max()) + 1
        digest = hashlib.sha256(str([tuple(tensor.shape) for tensor in tensors]).encode())
        for tensor in tensors:
            digest.update(tensor.numpy().data)
        return cls(
            name,
            *tensors,
            classes,
            *_mean_std(images[0]),
            augment,
            digest.hexdigest(),
            str(location),
        )

    def to(self, device: str | torch.device) -> "Dataset":
        """Return the data set with its tensors on `device`."""
        tensors = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property  # moved once: a copy in every step would make the host wait for a GPU
    def _scale(self) -> Tensor:
        scale = torch.tensor(
            [self.mean, self.std], dtype=torch.float32, device=self.train_labels.device
        )
        return scale[..., None, None] * 255

    def normalize(self, images: Tensor) -> Tensor:
        """Return (x/255 − mean)/std of uint8 `images` N×C×H×W as float32, on their device."""
        mean, std = self._scale.to(images.device)  # C×1×1
        return images.float().sub_(mean).div_(std)

    def split(self, fraction: float, seed: int = 42) -> tuple["Dataset", tuple[Tensor, Tensor]]:
        """Keep a stratified `fraction` of the training images and hold out the rest for validation.

        Returns the smaller data set and the held-out (uint8 images N×C×H×W, int64 labels N),
        exactly those of scikit-learn's `train_test_split(range(N), train_size=fraction,
        stratify=labels, random_state=seed)`. Mean, std and fingerprint stay those of the whole.
        Raises ValueError unless 0 < fraction ≤ 1.
        """
        keep, held = stratified_split(self.train_labels.cpu().numpy(), fraction, seed)
        if fraction == 1:
            return self, (self.train_images[:0], self.train_labels[:0])
        part = replace(
            self, train_images=self.train_images[keep], train_labels=self.train_labels[keep]
        )
        return part, (self.train_images[held], self.train_labels[held])

    def scoring_batch(self, samples_per_class: int = 10, seed: int = 0) -> Batch:
        """Return a class-balanced batch of training images, unaugmented, to score weights on.

        Sample i has class i mod `num_classes`, so that consecutive groups mix the classes. One seed
        gives the same samples on every device, fewer a prefix of more. Raises ValueError for a
        number there is not.

        >>> load_data("digits").scoring_batch(samples_per_class=2).labels.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        """
        chosen = balanced_sample(self.train_labels.cpu(), samples_per_class, self.num_classes, seed)
        return Batch(self.normalize(self.train_images[chosen]), self.train_labels[chosen])

    def epoch(
        self, batch_size: int, generator: Generator, augment: bool | None = None
    ) -> Iterator[Batch]:
        """Iterate once over the shuffled training images, augmented if `augment` (default: `self.augment`).

        Augmentation is a random crop after zero-padding by 4 pixels, then a horizontal flip with
        probability ½. All randomness is drawn from `generator`, a CPU generator, at the call: the
        same on every device. Every image comes once, except that a last batch of a single one,
        which batch norm cannot train on, is dropped (unless `batch_size` is 1). Raises ValueError
        for a batch size below 1.
        """
        augment = self.augment if augment is None else augment
        count, device = len(self.train_labels), self.train_images.device
        order = shuffled(count, batch_size, generator)
        offsets = torch.randint(2 * PADDING + 1, (2, count), generator=generator, device="cpu").to(
            device
        )  # rows, columns
        flips = torch.randint(2, (count,), generator=generator, device="cpu").bool().to(device)

        def batch(index: Tensor) -> Batch:
            images = self.train_images[index]  # B×C×H×W
            if augment:
                images = _crop_and_flip(images, offsets[0, index], offsets[1, index], flips[index])
            return Batch(self.normalize(images), self.train_labels[index])

        return map(batch, order.to(device).split(batch_size))

    def test_batches(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Iterate once over the test images, in order."""
        images, labels = self.test_images.split(batch_size), self.test_labels.split(batch_size)
        return map(Batch, map(self.normalize, images), labels)


def balanced_sample(labels: Tensor, samples_per_class: int, num_classes: int, seed: int) -> Tensor:
    """Return the indices of a scoring batch, see `Dataset.scoring_batch`, from all labels (on the CPU)."""
    counts = labels.bincount(minlength=num_classes)
    fewest, rarest = (int(value) for value in counts.min(0))
    if samples_per_class not in range(1, fewest + 1):
        raise ValueError(
            f"{samples_per_class=} must be 1 to {fewest}, the images of class {rarest}"
        )
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed), device="cpu")
    by_class = order[labels[order].argsort(stable=True)]  # N, one class after another
    first = counts.cumsum(0) - counts  # num_classes: where each class starts
    return by_class[torch.arange(samples_per_class, device="cpu")[:, None] + first].flatten()


def shuffled(count: int, batch_size: int, generator: Generator) -> Tensor:
    """Return the order of an epoch, see `Dataset.epoch`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    order = torch.randperm(count, generator=generator, device="cpu")
    return order[:-1] if count % batch_size == 1 and batch_size > 1 else order


def dataset_names() -> list[str]:
    """Return the names that `load_data` knows, in the order of registration."""
    return list(_LOADERS)


def _root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("PAI_DATA") or "~/.cache/pai_lib").expanduser().resolve()


def download_folder(root: Path) -> Path:
    """Return the folder to download to; FileNotFoundError if $PAI_DATA names one that is not there."""
    if os.environ.get("PAI_DATA") and root == _root(None) and not root.is_dir():
        raise FileNotFoundError(
            f"$PAI_DATA is {root}, which is no folder: make it, or correct its name"
        )
    return root


def find_own(name: str | Path, root: str | Path | None = None) -> Path | None:
    """Return the folder or .npz file that `load_data` would read for an unregistered name, or None."""
    paths = (
        (Path(name).expanduser().resolve(), _root(root) / name, _root(root) / f"{name}.npz")
        if name
        else ()
    )
    return next(
        (path for path in paths if path.is_dir() or (path.suffix == ".npz" and path.is_file())),
        None,
    )


def load_data(
    name: str | Path, root: str | Path | None = None, image_size: int | None = None
) -> Dataset:
    """Load a data set by name, or a folder of class folders by path.

    `digits` and `digits32` come with scikit-learn. `cifar10` and `cifar100` are looked for in
    `root` (default: $PAI_DATA, else ~/.cache/pai_lib) as `<name>.npz` with the arrays of
    `Dataset.from_arrays`, then as torchvision's own files, and are then downloaded there.
    `tiny-imagenet-200` is read as distributed, tested on its `val/`, and downloaded if it is not in
    `root`. `imagenet` is streamed from `root`: see `ImageStream`. Any other name is data of your
    own, itself or in `root`: `<name>.npz` with those arrays, or a folder. It holds `train/` and
    `test/` (or `val/`, if `test/` has no labels or is not there) with class folders, or only these,
    a fixed fifth of which is then for tests. Pictures become 8-bit RGB, turned as their EXIF
    orientation says.

    `image_size` resizes to squares, bilinearly; images of differing sizes need it. Raises
    ValueError for an unknown name or unusable contents, FileNotFoundError for what is neither there
    nor can be downloaded.
    """
    root = _root(root)
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise ValueError(f"image_size must be at least 1 pixel, not {image_size!r}")
    if name in _LOADERS:
        loader, augment = _LOADERS[name]
        if augment is None:
            return loader(name, root, image_size)
        return _load(name, root, image_size, stamp(root / f"{name}.npz") + stamp(root / name))
    if own := find_own(name, root):
        return _load(str(own), own, image_size, stamp(own))
    close = closest(name, _LOADERS)
    hint = f" (did you mean {close!r}?)" if close else ""
    known = f"{', '.join(_LOADERS)}, or a folder of class folders or .npz file, itself or in {root}"
    raise ValueError(f"unknown dataset '{name}'{hint}: it must be one of {known}")


def check_data(name: str | Path, root: str | Path | None = None) -> str:
    """Load a data set as `load_data` does and return a summary of a few lines."""
    data = load_data(name, root)
    counts = f"{len(data.train_labels)} training and {len(data.test_labels)} test images"
    shape = "×".join(map(str, data.image_shape))
    where = f"fingerprint {data.fingerprint}\nread from {data.location}"
    return f"{data.name}: {counts}, {shape}, {data.num_classes} classes\n{where}"


@lru_cache(maxsize=4)  # a sweep reads its data once; nobody may change its tensors in place
def _load(name: str, root: Path, image_size: int | None, stamp: tuple) -> Dataset:
    read = read_arrays if root.is_file() else partial(read_folder, image_size=image_size)
    loader, augment = _LOADERS.get(name, (read, True))
    *arrays, location = loader(name, root)
    try:
        if len(arrays) == 2:  # no official test set: take a stratified fifth, always the same
            (x, y), (train, test) = arrays, stratified_split(arrays[1], 0.8, seed=42)
            arrays = x[train], y[train], x[test], y[test]
        sized = {"augment": bool(augment), "image_size": image_size, "location": location}
        return Dataset.from_arrays(Path(name).name, *arrays, **sized)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from error


def _crop_and_flip(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crop image i out of its zero-padded self at (`rows[i]`, `columns[i]`); mirror it if `flips[i]`."""
    padded = F.pad(images, (PADDING,) * 4)  # B×C×(H+8)×(W+8)
    windows = padded.unfold(2, images.shape[2], 1).unfold(
        3, images.shape[3], 1
    )  # B×C×9×9×H×W, a view
    crops = windows[torch.arange(len(images), device=images.device), :, rows, columns]  # B×C×H×W
    return torch.where(flips.view(-1, 1, 1, 1), crops.flip(-1), crops)


def _check_arrays(
    x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> None:
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or x.size == 0:
            raise ValueError(
                f"x_{part} must be uint8 N×H×W×C with 1 or 3 channels, not {x.dtype} {x.shape}"
            )
        if y.dtype.kind not in "iu" or y.shape != (len(x),):
            raise ValueError(f"y_{part} must be {len(x)} integer labels, not {y.dtype} {y.shape}")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"x_test must be images {x_train.shape[1:]} as x_train is, not {x_test.shape[1:]}"
        )
    classes = np.arange(max(2, len(np.unique(y_train))))
    if len(missing := np.setdiff1d(np.append(classes, y_test), y_train)):
        lack = f"its labels {y_train.min()} to {y_train.max()} lack {int(missing[0])}"
        raise ValueError(
            f"y_train must hold classes 0, 1, … without a gap, and all of y_test: {lack}"
        )


def to_tensor(images: np.ndarray, size: int | None) -> Tensor:
    """Turn uint8 N×H×W×C into N×C×H×W; resize to squares of `size` if given, averaging where they shrink."""
    tensor = torch.from_numpy(
        np.array(images.transpose(0, 3, 1, 2), order="C")
    )  # a copy, whatever its layout was
    if size is None or tensor.shape[2:] == (size, size):
        return tensor
    resize = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
    return torch.cat(
        [resize(chunk.float()).round().byte() for chunk in tensor.split(1000)]
    )  # to save memory


def _mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, from exact counts of the 256 pixel values."""
    counts = torch.stack(
        [channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]
    )  # C×256
    weights, values = (
        counts.double() / counts[0].sum(),
        torch.arange(256, device="cpu").double() / 255,
    )
    mean = weights @ values  # C
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    if std.min() == 0:
        raise ValueError(
            f"channel {int(std.argmin())} of x_train must not be constant: it has no scale"
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> list[np.ndarray]:
    """Return the indices of a stratified `fraction` and of the rest, see `Dataset.split`."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
    if fraction == 1:
        return [np.arange(len(labels)), np.arange(0)]
    from sklearn.model_selection import train_test_split

    return train_test_split(
        np.arange(len(labels)), train_size=fraction, stratify=labels, random_state=seed
    )


def read_folder(name: str, folder: Path, image_size: int | None = None) -> tuple:
    """Read all images of a folder: a loader, see `dataset`."""
    from PIL import Image

    (train, test), images = list_folder(folder), []
    for path, _ in tqdm(train + test, desc="reading images", unit=" images"):
        image = open_image(path)
        if image_size is not None:
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        images.append(np.asarray(image))  # H×W×3
        if images[-1].shape != images[0].shape:
            differing = f"{train[0][0]} is {images[0].shape}, {path} is {images[-1].shape}"
            raise ValueError(f"without image_size, images must have equal H×W×3: {differing}")
    x, y, count = np.stack(images), np.array([label for _, label in train + test]), len(train)
    return (x[:count], y[:count], x[count:], y[count:], folder) if test else (x, y, folder)


def dataset(*names: str, augment: bool | None = True) -> Callable:
    """Register a loader(name, root) of x_train, y_train, x_test, y_test, location; or of x, y, location.

    With `augment=None` it is a loader(name, root, image_size) of a data set that is used like
    `Dataset`.
    """

    def register(loader: Callable) -> Callable:
        _LOADERS.update(dict.fromkeys(names, (loader, augment)))
        return loader

    return register


def read_arrays(name: str, path: Path) -> tuple:
    """Read an .npz file: a loader, see `dataset`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return *(arrays[key] for key in ARRAYS), path
    except Exception as error:  # a damaged archive raises one of many kinds
        raise ValueError(f"{path} must be .npz with arrays {', '.join(ARRAYS)}: {error}") from error
