"""Data sets by name: which there are, where they are looked for, and that each is read once."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_path
from ..names import closest, count_of
from .dataset import TRAINING_PART, Dataset, stratified_split
from .folders import read_folder, stamp

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_LOADERS: dict[str, tuple[Callable[..., Any], bool | None]] = {}  # name: loader, augment


def dataset(*names: str, augment: bool | None = True) -> Callable[..., Any]:
    """Register a loader(name, root) of x_train, y_train, x_test, y_test, location.

    It may return x, y, location, of which a fifth is then held out for tests. With `augment=None`
    it is a loader(name, root, image_size) of a data set that is used like `Dataset`.
    """

    def register(loader: Callable[..., Any]) -> Callable[..., Any]:
        _LOADERS.update(dict.fromkeys(names, (loader, augment)))
        return loader

    return register


def dataset_names() -> list[str]:
    """Return the names that `load_data` knows, in the order of registration."""
    return list(_LOADERS)


def is_augmented(name: str) -> bool:
    """Whether training images of the data set of a name are augmented."""
    return _LOADERS[name][1] is not False if name in _LOADERS else True


def _root(root: str | Path | None) -> Path:
    return whole_path(root or os.environ.get("PAI_DATA") or "~/.cache/pai_lib")


@contextlib.contextmanager
def downloading(name: str, root: Path, remedy: str) -> Iterator[None]:
    """Raise FileNotFoundError with a remedy if $PAI_DATA is no folder or the block fails."""
    try:
        if os.environ.get("PAI_DATA") and root == _root(None) and not root.is_dir():
            raise FileNotFoundError("$PAI_DATA is no folder: make it, or correct its name")
        yield
    except (OSError, RuntimeError) as error:
        failed = f"{name} is not in {root}, download failed ({error})"
        raise FileNotFoundError(f"{failed}: {remedy}") from error


def find_own(name: str | Path, root: str | Path | None = None) -> Path | None:
    """Return the folder or .npz file that `load_data` reads for an unregistered name, or None."""
    if not name:
        return None
    folder = _root(root)
    for path in (whole_path(name), folder / name, folder / f"{name}.npz"):
        if path.is_dir() or (path.suffix == ".npz" and path.is_file()):
            return path
    return None


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
    name, folder = str(name), _root(root)
    if image_size is not None:
        count_of("image_size", image_size)
    if name in _LOADERS:
        loader, augment = _LOADERS[name]
        if augment is None:
            return loader(name, folder, image_size)
        files = stamp(folder / f"{name}.npz") + stamp(folder / name)
        return _load(name, folder, image_size, files)
    if own := find_own(name, root):
        return _load(str(own), own, image_size, stamp(own))
    close = closest(name, _LOADERS)
    unknown = f"unknown dataset '{name}'" + (f" (did you mean {close!r}?)" if close else "")
    others = f"or a folder of class folders or .npz file, itself or in {folder}"
    raise ValueError(f"{unknown}: it must be one of {', '.join(_LOADERS)}, {others}")


def check_data(
    name: str | Path, root: str | Path | None = None, image_size: int | None = None
) -> str:
    """Load a data set as `load_data` does and return a summary of a few lines."""
    data = load_data(name, root, image_size)
    counts = f"{len(data.train_labels)} training and {len(data.test_labels)} test images"
    shape = "×".join(map(str, data.image_shape))
    where = f"fingerprint {data.fingerprint}\nread from {data.location}"
    return f"{data.name}: {counts}, {shape}, {data.num_classes} classes\n{where}"


@lru_cache(maxsize=4)  # a sweep reads its data once; nobody may change its tensors in place
def _load(name: str, path: Path, image_size: int | None, files: tuple[Any, ...]) -> Dataset:
    """Read a registered data set below `path`, or what `path` itself is; `files` are its stamp."""
    augment: bool | None = True
    if name in _LOADERS:
        loader, augment = _LOADERS[name]
        *arrays, location = loader(name, path)
    else:
        location = path
        arrays = read_arrays(path) if path.is_file() else read_folder(path, image_size)
    try:
        if len(arrays) == 2:  # no official test set: take a stratified fifth, always the same
            x, y = arrays
            train, test = stratified_split(y, TRAINING_PART, seed=42)
            arrays = [x[train], y[train], x[test], y[test]]
        sizes = {"augment": bool(augment), "image_size": image_size, "location": location}
        return Dataset.from_arrays(Path(name).name, *arrays, **sizes)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from error


def read_arrays(path: Path) -> list[np.ndarray]:
    """Read x_train, y_train, x_test, y_test of an .npz file; ValueError for what is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[key] for key in ARRAYS]
    except Exception as error:  # a damaged archive raises one of many kinds
        raise ValueError(f"{path} must be .npz with arrays {', '.join(ARRAYS)}: {error}") from error
