"""The data sets that are read whole, by name: one function each. A new one is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .dataset import to_tensor
from .loading import ARRAYS, dataset, downloading, read_arrays


@dataset("digits", "digits32", augment=False)
def load_digits(name: str, root: Path) -> tuple[Any, ...]:
    """1,797 handwritten digits, 8×8 (Alpaydin & Kaynak 1998, UCI); `digits32` has 3 × 32×32."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0…16 to 0…255
    images = images[..., None]  # N×8×8×1
    if name == "digits32":
        images = to_tensor(images, 32).permute(0, 2, 3, 1).numpy().repeat(3, axis=3)
    return images, digits.target, "scikit-learn"


@dataset("cifar10", "cifar100")
def load_cifar(name: str, root: Path) -> tuple[Any, ...]:
    """60,000 photographs, 32×32 (Krizhevsky 2009, Learning multiple layers of features)."""
    arrays = root / f"{name}.npz"
    if arrays.is_file():
        return *read_arrays(arrays), arrays
    from torchvision import datasets

    cifar = getattr(datasets, name.upper())
    archive = f"{cifar.filename} from {cifar.url}"
    with downloading(name, root, f"put {name}.npz with {', '.join(ARRAYS)} there, or {archive}"):
        # It compares all files with their checksums, and fetches again what was cut short.
        train = cifar(root, train=True, download=True)
        test = cifar(root, train=False)
    location = root / cifar.base_folder
    return train.data, np.array(train.targets), test.data, np.array(test.targets), location
