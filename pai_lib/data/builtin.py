"""The data sets that are read whole, by name: one function each. A new one is written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .loading import ARRAYS, dataset, download_folder, read_arrays, to_tensor


@dataset("digits", "digits32", augment=False)
def load_digits(name: str, root: Path) -> tuple:
    """1,797 handwritten digits, 8×8 (Alpaydin & Kaynak 1998, UCI); `digits32` has 3 channels of 32×32."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[
        ..., None
    ]  # 0…16 -> 0…255, N×8×8×1
    if name == "digits32":
        images = to_tensor(images, 32).permute(0, 2, 3, 1).numpy().repeat(3, axis=3)
    return images, bunch.target, "scikit-learn"


@dataset("cifar10", "cifar100")
def load_cifar(name: str, root: Path) -> tuple:
    """60,000 photographs, 32×32 (Krizhevsky 2009, Learning multiple layers of features from tiny images)."""
    if (npz := root / f"{name}.npz").is_file():
        return read_arrays(name, npz)
    from torchvision import datasets

    cifar = getattr(datasets, name.upper())
    try:  # torchvision compares all files with their checksums: one that was cut short is fetched again
        train, test = (
            cifar(download_folder(root), train=True, download=True),
            cifar(root, train=False),
        )
    except (OSError, RuntimeError) as error:
        files = (
            f"put {name}.npz with {', '.join(ARRAYS)} there, or {cifar.filename} from {cifar.url}"
        )
        raise FileNotFoundError(
            f"{name} is not in {root}, download failed ({error}): {files}"
        ) from error
    return (
        train.data,
        np.array(train.targets),
        test.data,
        np.array(test.targets),
        root / cifar.base_folder,
    )
