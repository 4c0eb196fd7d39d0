"""Folders of pictures: which is of which class and split; each as 8-bit RGB, or why it is not."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import Bar, steps
from .dataset import TRAINING_PART, check_split, room_for

SPLITS = {  # spellings of the folders' names, whatever their capitals
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
}
_KINDS = {name: kind for kind, names in SPLITS.items() for name in names}
# What Pillow may read; some need its plugins, and are named where these lack.
ENDINGS = tuple(
    ".jpg .jpeg .jpe .jfif .png .apng .ppm .pgm .pbm .pnm .bmp .tif .tiff .webp .gif .jp2 .tga "
    ".avif .heic .heif".split()
)
_SYSTEMS = re.compile(r"\.|(__MACOSX|@eaDir|\$RECYCLE\.BIN|System Volume Information|lost\+found)$")

Sample = tuple[str, int]  # path, label


def list_folder(
    folder: Path, held: tuple[str, ...] = ("test", "val")
) -> tuple[list[Sample], list[Sample]]:
    """List (path, label) of the training images, and of the test images where they are kept apart.

    The classes are folders, within ``train/`` and the splits that are `held` out if there are such.
    The first of these that has labels counts: in class folders as well, or in Tiny ImageNet's
    ``val_annotations.txt``. What systems leave behind (hidden files and folders, ``__MACOSX``), and
    what is no picture, is left out.

    Raises:
        ValueError, FileNotFoundError: for a folder in which classes or splits are missing, or would
            be a guess.
    """
    splits = _splits(folder, held)
    train_folder = splits.get("train", folder)
    train = _pictures_of_classes(train_folder)
    _check_depth(train_folder, train, bool(splits))
    labels = {name: label for label, name in enumerate(train)}
    samples = _labelled(train, labels)
    if not splits:
        return samples, []
    tried = [splits[kind] for kind in held if kind in splits]
    for part in tried:
        if labels.keys() & set(_subfolders(part)):
            test = _pictures_of_classes(part, labels)
            if odd := labels.keys() ^ test.keys():
                both = f"{part} and {train_folder} must have the same classes"
                raise ValueError(f"{both}: one lacks {min(odd)}")
            return samples, _labelled(test, labels)
        table = part / "val_annotations.txt"
        if table.is_file():
            return samples, _annotated(table, labels)
    names = " and ".join(f"{part.name}/" for part in tried)
    wanted = f"must have the class folders of {train_folder.name}/, {_some(labels)}"
    raise ValueError(f"{folder}: {names} {wanted}; or give {train_folder} itself")


def _labelled(classes: dict[str, list[str]], labels: dict[str, int]) -> list[Sample]:
    return [(path, labels[name]) for name, paths in classes.items() for path in paths]


def _splits(folder: Path, held: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of the splits by kind, or none where the folder holds classes."""
    splits: dict[str, Path] = {}
    for name in _subfolders(folder):
        kind = _KINDS.get(name.lower())
        if kind in splits:
            raise ValueError(f"{folder} has both {splits[kind].name}/ and {name}/: keep one")
        if kind:
            splits[kind] = folder / name
    if not splits:
        return {}
    has = f"{folder} has {_some(path.name for path in splits.values())}"
    if "train" not in splits:
        raise FileNotFoundError(f"{has} but not train/ beside it; a class must be called otherwise")
    if not splits.keys() & set(held):
        advice = f"to hold a fifth of it out, give {splits['train']} itself"
        raise FileNotFoundError(f"{has} but not {'/ or '.join(held)}/ beside it: {advice}")
    return splits


def _pictures_of_classes(folder: Path, needed: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the pictures in each class folder, at any depth.

    An empty folder is an error; where some classes are `needed`, of these alone.
    """
    classes = {}
    for name in _subfolders(folder):
        pictures = _pictures(folder / name)
        if pictures:
            classes[name] = pictures
        elif not needed or name in needed:
            raise FileNotFoundError(f"{folder / name} holds no pictures: take it away, or fill it")
    if not classes:
        raise FileNotFoundError(f"{folder} holds no class folder: each is one of its pictures")
    files = [path.name for path in folder.iterdir() if path.is_file()]
    if loose := [name for name in files if _is_picture(name) and not _SYSTEMS.match(name)]:
        right = f"move them into one, or away from {folder}"
        raise ValueError(f"{min(loose)} and {len(loose) - 1} more are in no class folder: {right}")
    return classes


def _check_depth(folder: Path, classes: dict[str, list[str]], is_split: bool) -> None:
    """Raise ValueError if what holds the pictures may be no classes, but around or beside them.

    Around them all hold the same several folders; splits of other spellings are told by a word of
    their names. In a split that is called so the classes are its folders, if there are several.
    """
    inner = {}  # the folders right in each class
    for name, paths in classes.items():
        start = len(os.path.join(folder, name, ""))
        parts = [path[start:].split(os.sep) for path in paths]
        inner[name] = {part[0] for part in parts if len(part) > 1}
    shared = set.intersection(*inner.values())
    words = {word for name in classes for word in re.findall("[a-z]+", name.lower())}
    kinds = {_KINDS[word] for word in words & _KINDS.keys()}
    outer = f"{_some(classes)} in {folder}"
    advice = "put the classes' folders into it" if is_split else "call the splits train/ and test/"
    guess = f"which of them are classes is a guess; {advice}"
    if len(shared) > 1 and not (is_split and len(classes) > 1):
        verb = "holds" if len(classes) == 1 else "hold"
        raise ValueError(f"{outer} {verb} {_some(shared)}: {guess}")
    if "train" in kinds and len(kinds) > 1 and not is_split:
        raise ValueError(f"{outer} seem to be splits: {guess}")
    for name, folders in inner.items():
        others = {part for part in folders if part in classes or part.lower() in _KINDS} - {name}
        if others:
            holds = f"{folder / name} holds {_some(others)}"
            raise ValueError(f"{holds}: is it a class? Take it, or them, away")


def _annotated(table: Path, labels: dict[str, int]) -> list[Sample]:
    """Return the samples that Tiny ImageNet's table names, all those of ``images/``, each once.

    A line is a file, its class and more, with tabs between them.
    """
    samples: dict[str, int] = {}
    for number, line in enumerate(table.read_text("utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        where = f"{table}, line {number}"
        if name not in labels:
            raise ValueError(f"{where}: it must name a file and a class of train/, {line!r}")
        if file in samples:
            raise ValueError(f"{where}: it names a file again, {line!r}")
        samples[file] = labels[name]
    images = table.with_name("images")
    pictures = {os.path.basename(path) for path in _pictures(images)}
    if odd := pictures ^ samples.keys():
        raise ValueError(f"{table} and {images} must have the same pictures: one lacks {min(odd)}")
    return [(str(images / file), label) for file, label in samples.items()]


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(f"{name}/" for name in names[:4]) + ", …" * (len(names) > 4)


def _pictures(folder: Path) -> list[str]:
    return [path for path in files_below(folder) if _is_picture(path)]


def _is_picture(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def _subfolders(folder: Path) -> list[str]:
    """Return the names of what is a folder, or a link to one, and not of a system."""
    paths = [path for path in folder.iterdir() if not _SYSTEMS.match(path.name)]
    for path in sorted(paths):
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"{path} is a link to what is not there")
    return sorted(path.name for path in paths if path.is_dir())


def files_below(folder: Path) -> list[str]:
    """List all files of a folder, at any depth, through links, without those of systems.

    Raises ValueError for a link that leads back to where it is, OSError for a folder that may not
    be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for at, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not _SYSTEMS.match(name)]
        for link in [os.path.join(at, name) for name in folders]:
            if os.path.islink(link) and Path(at).resolve().is_relative_to(Path(link).resolve()):
                raise ValueError(f"{link} is a link to a folder that it is in")
        found += [(at, name) for name in files if not _SYSTEMS.match(name)]
    return [os.path.join(at, name) for at, name in sorted(found)]


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of a file, or of all in a folder: they change as it does."""
    files = files_below(path) if path.is_dir() else [str(path)]
    states = {file: os.stat(file) for file in files if os.path.exists(file)}
    return tuple((file, state.st_mtime_ns, state.st_size) for file, state in states.items())


def read_folder(folder: Path, image_size: int | None = None) -> list[np.ndarray]:
    """Read all images of a folder: x_train, y_train, x_test, y_test, or x, y without a test set."""
    from PIL import Image

    train, test = list_folder(folder)
    y, count = np.array([label for _, label in train + test]), len(train)
    if not test:
        check_split(y, TRAINING_PART, f"{folder}: ", _subfolders(folder))
    first = train[0][0]
    shape = (image_size, image_size, 3) if image_size else np.shape(open_image(first))
    x = room_for(len(y), *shape).numpy()  # N×H×W×3
    with Bar("reading images"):
        for place, (path, _) in zip(x, steps(train + test, "image"), strict=True):
            image = open_image(path)
            if image_size is not None:
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            if np.shape(image) != shape:
                differing = f"{first} is {shape}, {path} is {np.shape(image)}"
                raise ValueError(f"without image_size, images must have equal H×W×3: {differing}")
            place[:] = image
    return [x[:count], y[:count], x[count:], y[count:]] if test else [x, y]


class _UnclearError(Exception):
    """The colours of a picture are not known."""


_TRANSPARENT = "it is transparent in places: put it on a background of your choice"


def open_image(path: str | Path) -> Any:
    """Return an image file as PIL's RGB image of 8 bits, turned as its EXIF orientation says.

    Of 16 bits it takes the upper 8. Raises ValueError naming a file that cannot be read, or whose
    colours would be a guess: it holds several pictures, is transparent in places, or has no known
    black and white, or no such colour in its palette.
    """
    from PIL import Image, ImageOps

    try:
        # Of a file that it opens by name Pillow maps some greyscale TIFFs into memory, and turns
        # them amiss.
        with open(path, "rb") as opened, Image.open(opened) as file:
            _check_colours(file)
            image = ImageOps.exif_transpose(_eight_bits(file))
            if image.mode.startswith("P"):
                last = int(np.asarray(image.getchannel(0)).max())
                if last >= len(image.getpalette() or ()) // 3:
                    raise _UnclearError(f"it has pixels of colour {last}, which its palette lacks")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                if image.getchannel("A").getextrema() != (255, 255):
                    raise _UnclearError(_TRANSPARENT)
            return image.convert("RGB")
    except _UnclearError as unclear:
        raise ValueError(f"{path} cannot be made 8-bit RGB: {unclear}") from None
    except Exception as error:  # Pillow's decoders raise more kinds than it documents
        raise ValueError(f"{path} is not a readable image: {error}") from error


def _check_colours(file: Any) -> None:
    """Raise _UnclearError if the colours of an opened image file are not known."""
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # a photograph and its previews
        raise _UnclearError(f"it holds {frames} pictures, of which none is the picture")
    scaled = re.search("(L|RGB|I);", str(file.tile))  # not of 8 bits, in which the key is
    if scaled and file.info.get("transparency") is not None:
        raise _UnclearError(_TRANSPARENT)
    tags = getattr(file, "tag_v2", {})  # of a TIFF
    zero_is_white, signed = tags.get(262) == 0, max(tags.get(339, (1,))) > 1
    of_16_bits = file.mode == "I" and file.format in ("PNG", "PPM")  # as Pillow calls them
    unknown = signed or (file.mode in ("I", "F") and not of_16_bits)
    if unknown or (file.mode.startswith("I;16") and zero_is_white):
        pixels = f"it has pixels of mode {file.mode}, whose black and white are not known"
        raise _UnclearError(f"{pixels}: save it unsigned, with 8 or 16 bits")


def _eight_bits(file: Any) -> Any:
    """Return an image of the upper 8 of 16 (or, in a TIFF, 12) bits; of 8 bits itself."""
    from PIL import Image

    if not file.mode.startswith("I"):
        return file
    bits = getattr(file, "tag_v2", {}).get(258, (16,))[0]
    image = Image.fromarray((np.asarray(file) >> (bits - 8)).astype(np.uint8))
    image.getexif().update(file.getexif())
    return image
