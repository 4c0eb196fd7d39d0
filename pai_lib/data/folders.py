"""Folders of pictures: which of them is of which class and split; and each as 8-bit RGB, or a sentence why not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = {  # spellings of the folders' names, whatever their capitals
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "eval", "evaluation"),
}
_KINDS = {name: kind for kind, names in SPLITS.items() for name in names}
ENDINGS = (  # what Pillow may read; some need its plugins, and are named where these lack
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff",
    ".webp", ".gif", ".jp2", ".tga", ".avif", ".heic", ".heif",
)  # fmt: skip
_SYSTEMS = re.compile(
    r"\.|__MACOSX$|@eaDir$|\$RECYCLE\.BIN$|System Volume Information$|lost\+found$"
)


def list_folder(
    folder: Path, held: tuple[str, ...] = ("test", "val")
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """List (path, label) of the training images, and of the test images where they are kept apart.

    The classes are folders, within ``train/`` and the splits that are `held` out if there are such.
    The first of these that has labels counts: in class folders as well, or in Tiny ImageNet's
    ``val_annotations.txt``. What systems leave behind (hidden files and folders, ``__MACOSX``), and
    what is no picture, is left out.

    Raises:
        ValueError, FileNotFoundError: for a folder in which classes or splits are missing, or would
            be a guess.
    """
    parts = _splits(folder, held)
    train_folder = parts.get("train", folder)
    train = _pictures_of_classes(train_folder)
    _check_depth(train_folder, train, bool(parts))
    labels = {name: label for label, name in enumerate(train)}

    def samples(classes: dict[str, list[str]]) -> list[tuple[str, int]]:
        return [(path, labels[name]) for name, paths in classes.items() for path in paths]

    if not parts:
        return samples(train), []
    tried = [parts[kind] for kind in held if kind in parts]
    for part in tried:
        if labels.keys() & set(_subfolders(part)):
            test = _pictures_of_classes(part, labels)
            if odd := labels.keys() ^ test.keys():
                raise ValueError(
                    f"{part} and {train_folder} must have the same classes: one lacks {min(odd)}"
                )
            return samples(train), samples(test)
        if (table := part / "val_annotations.txt").is_file():
            return samples(train), _annotated(table, labels)
    names = " and ".join(f"{part.name}/" for part in tried)
    without = f"or give {train_folder} itself, of which a fifth is held out"
    raise ValueError(
        f"{folder}: {names} must have the class folders of {train_folder.name}/, {_some(labels)}; {without}"
    )


def _splits(folder: Path, held: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of the splits by kind, or none where the folder holds classes."""
    found: dict[str, Path] = {}
    for name in _subfolders(folder):
        if kind := _KINDS.get(name.lower()):
            if kind in found:
                raise ValueError(
                    f"{folder} has both {found[kind].name}/ and {name}/: keep one of them"
                )
            found[kind] = folder / name
    if found and "train" not in found:
        names = _some(path.name for path in found.values())
        raise FileNotFoundError(
            f"{folder} has {names} but not train/ beside it; a class must be called otherwise"
        )
    if found and not found.keys() & set(held):
        train, lacking = found["train"], "/ or ".join(held)
        fifth = f"to hold a fifth of it out, give {train} itself"
        raise FileNotFoundError(f"{folder} has {train.name}/ but not {lacking}/ beside it: {fifth}")
    return found


def _pictures_of_classes(folder: Path, wanted: Any = None) -> dict[str, list[str]]:
    """Return the pictures in each class folder, at any depth; an empty one counts unless `wanted` lacks it."""
    classes = {}
    for name in _subfolders(folder):
        files = sorted((at, sorted(names)) for at, names in walk(folder / name))
        paths = [
            os.path.join(at, name)
            for at, names in files
            for name in names
            if name.lower().endswith(ENDINGS)
        ]
        if not paths and (wanted is None or name in wanted):
            raise FileNotFoundError(f"{folder / name} holds no pictures: take it away, or fill it")
        if paths:
            classes[name] = paths
    if not classes:
        raise FileNotFoundError(
            f"{folder} holds no class folder: each class is a folder of its pictures"
        )
    return classes


def _check_depth(folder: Path, classes: dict[str, list[str]], split: bool) -> None:
    """Raise ValueError if what holds the pictures may be no classes, but around them or beside them.

    Around them all hold the same several folders; splits of other spellings are told by a word of
    their names. In a `split` that is called so the classes are its folders, if there are several.
    """
    inner = {name: {path[len(f"{folder / name}/") :].rpartition(os.sep)[0].partition(os.sep)[0] for path in paths}
             - {""} for name, paths in classes.items()}  # fmt: skip
    shared = set.intersection(*inner.values())
    kinds = {
        _KINDS.get(word) for name in classes for word in re.findall("[a-z]+", name.lower())
    } - {None}
    if len(shared) > 1 and not (split and len(classes) > 1):
        outer = f"{_some(classes)} in {folder} hold{'s' * (len(classes) == 1)} {_some(shared)}"
    elif not split and "train" in kinds and len(kinds) > 1:
        outer = f"{_some(classes)} in {folder} seem to be splits"
    else:
        for name, folders in inner.items():
            if known := {
                each for each in folders - {name} if each in classes or each.lower() in _KINDS
            }:
                raise ValueError(
                    f"{folder / name} holds {_some(known)}: is it a class? Take it, or them, away"
                )
        return
    how = "put the classes' folders into it" if split else "call the splits train/ and test/"
    raise ValueError(f"{outer}: which of them are classes is a guess; {how}")


def _annotated(table: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    """Return the samples that Tiny ImageNet's table names, all those of ``images/`` beside it, each once.

    A line is a file, its class and more, with tabs between them.
    """
    samples: dict[str, int] = {}
    for number, line in enumerate(table.read_text("utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        if (name := rest.partition("\t")[0]) not in labels or file in samples:
            what = (
                "it names a file again"
                if file in samples
                else "it must name a file and a class of train/"
            )
            raise ValueError(f"{table}, line {number}: {what}, {line!r}")
        samples[file] = labels[name]
    images = table.with_name("images")
    files = os.listdir(images) if images.is_dir() else []
    there = {name for name in files if not _SYSTEMS.match(name) and name.lower().endswith(ENDINGS)}
    if odd := there ^ samples.keys():
        raise ValueError(f"{table} and {images} must have the same pictures: one lacks {min(odd)}")
    return [(str(images / file), label) for file, label in samples.items()]


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(f"{name}/" for name in names[:4]) + ", …" * (len(names) > 4)


def _subfolders(folder: Path) -> list[str]:
    """Return the names of what is a folder, or a link to one, and not of a system."""
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not _SYSTEMS.match(entry.name)]
    if broken := [
        entry.path for entry in seen if entry.is_symlink() and not os.path.exists(entry.path)
    ]:
        raise FileNotFoundError(f"{min(broken)} is a link to what is not there")
    return sorted(entry.name for entry in seen if entry.is_dir())


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Give each folder at and below `folder` with the names of its files, through links, without those of systems.

    Raises ValueError for a link that leads back to where it is, OSError for a folder that may not
    be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not _SYSTEMS.match(name)]
        for link in (
            path for path in (os.path.join(at, name) for name in folders) if os.path.islink(path)
        ):
            if Path(at).resolve().is_relative_to(Path(link).resolve()):
                raise ValueError(f"{link} is a link to a folder that it is in")
        yield at, [name for name in files if not _SYSTEMS.match(name)]


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of a file, or of all files and folders of a folder: they change as it does."""
    inside = (
        [os.path.join(at, name) for at, names in walk(path) for name in ("", *names)]
        if path.is_dir()
        else []
    )
    there = [
        (name, os.stat(name)) for name in sorted(inside or [str(path)]) if os.path.exists(name)
    ]
    return tuple((name, found.st_mtime_ns, found.st_size) for name, found in there)


_TRANSPARENT = "it is transparent in places: put it on a background of your choice"


def open_image(path: str | Path) -> Any:
    """Return an image file as PIL's RGB image of 8 bits, turned as its EXIF orientation says.

    Of 16 bits it takes the upper 8. Raises ValueError naming a file that cannot be read, or whose
    colours would be a guess: it holds several pictures, is transparent in places, or has no known
    black and white.
    """
    from PIL import Image, ImageOps

    try:
        # Of a file that it opens by name Pillow maps some greyscale TIFFs into memory, and turns
        # them amiss.
        with open(path, "rb") as opened, Image.open(opened) as file:
            unclear = _unclear(file)
            image = file if unclear else ImageOps.exif_transpose(_eight_bits(file))
            if not unclear and image.has_transparency_data:
                image = image.convert("RGBA")
                if image.getchannel("A").getextrema() != (255, 255):
                    unclear = _TRANSPARENT
            if not unclear:
                return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise more kinds than it documents
        raise ValueError(f"{path} is not a readable image: {error}") from error
    raise ValueError(f"{path} cannot be made 8-bit RGB: {unclear}")


def _unclear(file: Any) -> str:
    """Return why the colours of an opened image file are not known, or an empty text."""
    if (
        file.format != "MPO" and (frames := getattr(file, "n_frames", 1)) > 1
    ):  # MPO: a photograph and previews
        return f"it holds {frames} pictures, of which none is the picture"
    key = file.info.get("transparency")  # a colour of 16 bits is lost with the lower 8
    if (key is not None and file.mode.startswith("I")) or (
        isinstance(key, tuple) and max(key) > 255
    ):
        return _TRANSPARENT
    tags: Any = getattr(file, "tag_v2", {})  # of TIFF: 262 is 0 where zero is white
    known = file.mode not in ("I", "F") and (not file.mode.startswith("I;16") or tags.get(262) != 0)
    if known or (
        file.mode == "I" and file.format in ("PNG", "PPM")
    ):  # which Pillow calls I for 16 bits
        return ""
    return f"it has pixels of mode {file.mode}, whose black and white are not known: save it with 8 or 16 bits"


def _eight_bits(file: Any) -> Any:
    """Return an image of the upper 8 of 16 (or, in a TIFF, 12) bits; of 8 bits itself."""
    from PIL import Image

    if not file.mode.startswith("I"):
        return file
    bits = getattr(file, "tag_v2", {}).get(258, (16,))[0]
    image = Image.fromarray((np.asarray(file) >> (bits - 8)).astype(np.uint8))
    image.getexif().update(file.getexif())
    return image
