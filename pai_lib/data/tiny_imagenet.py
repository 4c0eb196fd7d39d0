"""Tiny ImageNet: downloaded once, checked, and read whole."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch.hub import download_url_to_file

from .folders import read_folder
from .loading import dataset, downloading

# Of the archive that is distributed since 2015 (Le & Yang).
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"


@dataset("tiny-imagenet-200")
def load_tiny_imagenet(name: str, root: Path) -> tuple[Any, ...]:
    """100,000 + 10,000 photographs of 200 classes, 64×64 (Le & Yang 2015, Tiny ImageNet)."""
    folder, archive = root / name, root / f"{name}.zip"
    if not folder.is_dir():
        with downloading(name, root, f"put its folder there, or {archive.name} from {TINY_URL}"):
            fetch(archive, folder)
    return *read_folder(folder), folder


def fetch(archive: Path, folder: Path) -> None:
    """Download the archive if it is not there, and unpack it, whole or not at all.

    A second process waits for the first. Raises ValueError for another file, which is deleted.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{archive.name}.lock"):
        if folder.is_dir():  # another process was faster
            return
        if not archive.is_file():
            download_url_to_file(TINY_URL, str(archive))
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != TINY_SHA256:
            archive.unlink()
            hashes = f"had SHA-256 {digest} instead of {TINY_SHA256}"
            raise ValueError(f"{archive} {hashes} and was deleted: try again")
        with tempfile.TemporaryDirectory(dir=root) as temporary:
            shutil.unpack_archive(archive, temporary)
            Path(temporary, folder.name).rename(folder)
