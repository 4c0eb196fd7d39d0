"""ImageNet, or what is laid out like it: streamed from disk, since it fits in no memory."""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from ..draws import drawing
from .batch import Batch
from .dataset import Dataset, balanced_sample, shuffled
from .folders import Sample, list_folder, open_image
from .loading import dataset


@dataclass(frozen=True, eq=False)
class ImageStream(Dataset):
    """A `Dataset` whose images are files, read, cropped and resized as they are needed.

    Training crops 8 to 100 % of an image's area, of aspect ratio 3/4 to 4/3, resizes it to
    `image_size`, and mirrors it with probability ½. Without augmentation, and in the test, the
    shorter side becomes 256/224 of `image_size` and the middle is taken: the usual recipe for
    ImageNet (torchvision's references). One seed gives the same order and crops whatever the number
    of workers. A daemonic process may have none and reads alone: Dask's are such unless
    DASK_DISTRIBUTED__WORKER__DAEMON is False in the environment.

    The fingerprint is a SHA-256 over the names and sizes of the files, not their pixels, since
    those of ImageNet are 150 GB to read before each run. It tells files that were added, removed,
    renamed or re-encoded.
    """

    image_size: int = 224
    workers: int = min(16, os.cpu_count() or 1)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return 3, self.image_size, self.image_size

    def scoring_batch(self, samples_per_class: int = 10, seed: int = 0) -> Batch:
        """Return the images that `Dataset.scoring_batch` would choose."""
        chosen = balanced_sample(self.train_labels.cpu(), samples_per_class, self.num_classes, seed)
        batches = self._batches(self.train_images, self.train_labels, chosen, 256)
        inputs, labels = zip(*batches, strict=True)
        return Batch(torch.cat(inputs), torch.cat(labels))

    def epoch(
        self, batch_size: int, generator: Generator, augment: bool | None = None
    ) -> Iterator[Batch]:
        """Iterate once over the shuffled training images, see `Dataset.epoch`."""
        files, labels = self.train_images, self.train_labels
        order = shuffled(len(labels), batch_size, generator)
        seeds = torch.randint(2**62, (len(labels),), generator=generator, device="cpu")
        augment = self.augment if augment is None else augment
        return self._batches(files, labels, order, batch_size, seeds if augment else None)

    def test_batches(self, batch_size: int = 256) -> Iterator[Batch]:
        """Iterate once over the test images, in order."""
        order = torch.arange(len(self.test_labels), device="cpu")
        return self._batches(self.test_images, self.test_labels, order, batch_size)

    def _batches(
        self,
        files: np.ndarray,
        labels: Tensor,
        order: Tensor,
        batch_size: int,
        seeds: Tensor | None = None,
    ) -> Iterator[Batch]:
        device = labels.device
        loader = DataLoader(
            _Images(files, self.location, self.image_size, seeds),
            batch_size,
            sampler=order.tolist(),
            num_workers=0 if multiprocessing.current_process().daemon else self.workers,
            pin_memory=device.type == "cuda",
            generator=Generator(),  # it would draw from the global one
        )
        with torch.device("cpu"):  # where it draws the seed of its workers
            pictures = iter(loader)
        try:
            for pixels, index in zip(pictures, order.to(device).split(batch_size), strict=True):
                inputs = self.normalize(pixels.to(device, non_blocking=True))  # B×C×H×W
                yield Batch(inputs, labels[index])
        except ValueError as error:  # a worker's, whose traceback is in its text
            sentence = str(error).strip().rpartition("\n")[2]
            raise ValueError(sentence.removeprefix("ValueError: ")) from None


class _Images(torch.utils.data.Dataset[Any]):
    """Image i as uint8 C×H×W; augmented by its seed if there is one."""

    def __init__(self, files: np.ndarray, folder: str, size: int, seeds: Tensor | None):
        from torchvision.transforms import v2

        self.files, self.folder, self.seeds = files, folder, seeds
        resized = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        with torch.device("cpu"), drawing(0):  # a crop keeps a tensor
            augmented = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose([*(resized if seeds is None else augmented), v2.PILToTensor()])

    def __getitem__(self, i: int) -> Tensor:
        image = open_image(os.path.join(self.folder, os.fsdecode(self.files[i])))
        with torch.device("cpu"), drawing(0 if self.seeds is None else int(self.seeds[i])):
            return self.transform(image)


@dataset("imagenet", augment=None)
def load_imagenet(name: str, root: Path, image_size: int | None) -> ImageStream:
    """1,281,167 + 50,000 photographs of 1,000 classes (Deng et al. 2009), in train/ and val/."""
    folder = root / name
    train, test = list_folder(folder, held=("val",)) if folder.is_dir() else ([], [])
    if not test:
        advice = f"put train/ and val/ with its class folders in {folder}"
        raise FileNotFoundError(f"{name} cannot be downloaded: {advice}")
    training, testing = _listed(train, folder), _listed(test, folder)
    digest = hashlib.sha256()
    for file, (path, _) in zip((*training[0], *testing[0]), train + test, strict=True):
        digest.update(file + f"\0{os.path.getsize(path)}\n".encode())
    return ImageStream(
        name,
        *training,
        *testing,
        num_classes=int(training[1].max()) + 1,
        mean=(0.485, 0.456, 0.406),  # the published values
        std=(0.229, 0.224, 0.225),
        augment=True,
        fingerprint=digest.hexdigest(),
        location=str(folder),
        image_size=image_size or ImageStream.image_size,
    )


def _listed(samples: list[Sample], folder: Path) -> tuple[np.ndarray, Tensor]:
    """Return the paths below a folder, in bytes (workers copy lists of strings), and the labels."""
    files = [os.fsencode(os.path.relpath(path, folder)) for path, _ in samples]
    labels = [label for _, label in samples]
    return np.array(files), torch.tensor(labels, device="cpu")
