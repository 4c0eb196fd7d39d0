"""Data sets that are folders of images: Tiny ImageNet, downloaded and read whole; ImageNet, streamed from disk."""

import contextlib
import hashlib
import multiprocessing
import os
import stat
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..draws import drawing
from .batch import Batch
from .folders import list_folder, open_image
from .loading import (
    balanced_sample,
    dataset,
    download_folder,
    read_folder,
    shuffled,
    stratified_split,
)

# Of the archive that is distributed since 2015 (Le & Yang).
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_BYTES = 248_100_043
TINY_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"


@dataset("tiny-imagenet-200")
def load_tiny_imagenet(name: str, root: Path) -> tuple:
    """100,000 + 10,000 photographs of 200 classes, 64×64 (Le & Yang 2015, Tiny ImageNet visual recognition)."""
    folder, archive = root / name, root / f"{name}.zip"
    if not folder.is_dir():
        try:
            fetch(TINY_URL, download_folder(root) / archive.name, TINY_BYTES, TINY_SHA256)
        except OSError as error:
            files = f"put its folder there, or {archive.name} from {TINY_URL}"
            raise FileNotFoundError(
                f"{name} is not in {root}, download failed ({error}): {files}"
            ) from error
        extract(archive, folder)
    return read_folder(name, folder)


def fetch(url: str, path: Path, size: int, sha256: str) -> None:
    """Download a file of this size and SHA-256, unless it is there; a second process waits for the first.

    Until it is whole and checked it is called `<path>.part`, and is continued where an attempt was
    interrupted. Raises OSError if it cannot be had, ValueError if it is another file, which is then
    deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        part = path if path.exists() else path.with_name(f"{path.name}.part")
        try:
            with open(part, "a+b") as file:
                if part != path:
                    _download(url, file, size)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                part.unlink()
                raise ValueError(
                    f"{part} had SHA-256 {digest} instead of {sha256} and was deleted: try again"
                )
            part.replace(path)
        finally:
            with contextlib.suppress(
                OSError
            ):  # where an open file cannot be deleted, its release does it
                lock.unlink()


def _download(url: str, file: BinaryIO, size: int) -> None:
    """Append what the file lacks."""
    done = os.fstat(file.fileno()).st_size
    if done >= size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        if answer.status != 206:  # it sends all, not the rest
            file.truncate(done := 0)
        with tqdm(desc="downloading", total=size, initial=done, unit="B", unit_scale=True) as bar:
            while done <= size and (chunk := answer.read(2**20)):
                done += file.write(chunk)
                bar.update(len(chunk))
    if done < size:
        raise ConnectionError(f"{url} ended after {done} of {size} bytes")


def extract(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive of one folder, whole or not at all.

    Raises ValueError, before anything is written, for a member that is a link or would lie outside
    of it.
    """
    with (
        zipfile.ZipFile(archive) as file,
        tempfile.TemporaryDirectory(dir=folder.parent) as temporary,
    ):
        inside = Path(temporary, folder.name).resolve()
        for member in file.infolist():
            within = Path(temporary, member.filename).resolve().is_relative_to(inside)
            if not within or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(
                    f"{archive} holds {member.filename!r}, which is not a file in {folder.name}/"
                )
        for member in tqdm(file.infolist(), "extracting", unit=" files"):
            file.extract(member, temporary)
        try:
            inside.rename(folder)
        except OSError:
            if not folder.is_dir():  # or another process was faster
                raise


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Images that are read, cropped and resized as they are needed; used like a `Dataset`.

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

    name: str
    train_files: np.ndarray = field(
        repr=False
    )  # bytes: a list of a million strings would be copied by each worker
    train_labels: Tensor = field(repr=False)  # int64 N
    test_files: np.ndarray = field(repr=False)
    test_labels: Tensor = field(repr=False)
    num_classes: int
    fingerprint: str
    location: str
    image_size: int = 224
    workers: int = min(16, os.cpu_count() or 1)
    augment: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # the published values of ImageNet
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return 3, self.image_size, self.image_size

    def to(self, device: str | torch.device) -> "ImageStream":
        """Return the data set with batches on `device`."""
        labels = {name: getattr(self, name).to(device) for name in ("train_labels", "test_labels")}
        return replace(self, **labels)

    def split(
        self, fraction: float, seed: int = 42
    ) -> tuple["ImageStream", tuple[np.ndarray, Tensor]]:
        """Keep a stratified `fraction` of the training images, see `Dataset.split`; return files of the rest."""
        keep, held = stratified_split(self.train_labels.cpu().numpy(), fraction, seed)
        part = replace(
            self, train_files=self.train_files[keep], train_labels=self.train_labels[keep]
        )
        return part, (self.train_files[held], self.train_labels[held])

    def scoring_batch(self, samples_per_class: int = 10, seed: int = 0) -> Batch:
        """Return the images that `Dataset.scoring_batch` would choose."""
        chosen = balanced_sample(self.train_labels.cpu(), samples_per_class, self.num_classes, seed)
        inputs, labels = zip(
            *self._batches(self.train_files, self.train_labels, chosen, 256), strict=True
        )
        return Batch(torch.cat(inputs), torch.cat(labels))

    def epoch(
        self, batch_size: int, generator: Generator, augment: bool | None = None
    ) -> Iterator[Batch]:
        """Iterate once over the shuffled training images, see `Dataset.epoch`."""
        order = shuffled(len(self.train_labels), batch_size, generator)
        seeds = torch.randint(2**62, (len(self.train_labels),), generator=generator, device="cpu")
        augment = self.augment if augment is None else augment
        return self._batches(
            self.train_files, self.train_labels, order, batch_size, seeds if augment else None
        )

    def test_batches(self, batch_size: int = 256) -> Iterator[Batch]:
        """Iterate once over the test images, in order."""
        return self._batches(
            self.test_files,
            self.test_labels,
            torch.arange(len(self.test_labels), device="cpu"),
            batch_size,
        )

    def _batches(
        self,
        files: np.ndarray,
        labels: Tensor,
        order: Tensor,
        batch_size: int,
        seeds: Tensor | None = None,
    ) -> Iterator[Batch]:
        images = _Images(files, self.location, self.image_size, seeds)
        device, daemon = labels.device, multiprocessing.current_process().daemon
        loader = DataLoader(
            images, batch_size, sampler=order.tolist(), num_workers=0 if daemon else self.workers,
            pin_memory=device.type == "cuda", generator=Generator(),  # it would draw from the global one
        )  # fmt: skip
        scale = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device)
        mean, std = scale[..., None, None] * 255  # C×1×1
        with torch.device("cpu"):  # where it draws the seed of its workers
            pictures = iter(loader)
        for pixels, index in zip(pictures, order.to(device).split(batch_size), strict=True):
            inputs = pixels.to(device, non_blocking=True).float().sub_(mean).div_(std)  # B×C×H×W
            yield Batch(inputs, labels[index])


class _Images(torch.utils.data.Dataset):
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
    """1,281,167 + 50,000 photographs of 1,000 classes (Deng et al. 2009), in class folders in train/ and val/."""
    folder = root / name
    parts = list_folder(folder, held=("val",)) if folder.is_dir() else ([], [])
    if not parts[1]:
        raise FileNotFoundError(
            f"{name} cannot be downloaded: put train/ and val/ with its class folders in {folder}"
        )
    files = [
        np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in part]) for part in parts
    ]
    labels = [torch.tensor([label for _, label in part], device="cpu") for part in parts]
    digest = hashlib.sha256()
    for path in (*files[0], *files[1]):
        digest.update(
            path + f"\0{os.path.getsize(os.path.join(os.fsencode(folder), path))}\n".encode()
        )
    arguments = (
        name,
        files[0],
        labels[0],
        files[1],
        labels[1],
        int(labels[0].max()) + 1,
        digest.hexdigest(),
    )
    return ImageStream(*arguments, str(folder), image_size=image_size or ImageStream.image_size)
