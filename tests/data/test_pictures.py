"""Pictures as people have them: right 8-bit values or one sentence; and what lies in the folders around them."""

import itertools
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pai_lib.data import loading as D
from pai_lib.data.dataset import Dataset
from pai_lib.data.folders import SPLITS, files_below, list_folder, open_image
from pai_lib.data.loading import load_data

GREY = np.random.default_rng(0).integers(0, 65536, (8, 10)).astype(np.uint16)
UPPER = (GREY >> 8).astype(np.uint8)
COLOUR = np.stack([UPPER, UPPER[::-1], UPPER[:, ::-1]], -1)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(path, pixels, kind, extra=b""):
    """A PNG of 16 bits a channel; Pillow cannot write those of several channels."""
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


def tiff(path, content, bits, zero_is_black=1, kind=1):
    """A grey TIFF of 8 × 10 pixels of so many bits: unsigned (kind 1), or signed (2)."""
    fields = [(256, 10), (257, 8), (258, bits), (259, 1), (262, zero_is_black), (273, 8), (277, 1), (278, 8)]
    fields += [(279, len(content)), (339, kind)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    start = struct.pack("<I", 8 + len(content))
    path.write_bytes(b"II*\0" + start + content + struct.pack("<H", len(fields)) + table + bytes(4))
    return path


def saved(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def pixels(path):
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# Pictures -----------------------------------------------------------------------------------------------------


def sixteen_bits(folder):
    yield saved(folder / "grey.png", GREY), UPPER
    yield saved(folder / "little.tif", GREY), UPPER
    yield saved(folder / "big.tif", GREY.astype(">u2")), UPPER
    yield saved(folder / "grey.pgm", GREY), UPPER
    yield png16(folder / "colour.png", np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1), 2), COLOUR
    yield png16(folder / "opaque.png", np.stack([*[GREY] * 3, np.full_like(GREY, 65535)], -1), 6), UPPER
    yield png16(folder / "grey_alpha.png", np.stack([GREY, np.full_like(GREY, 65535)], -1), 4), UPPER
    pairs = (GREY >> 4).astype(int).reshape(-1, 2)
    three = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    yield tiff(folder / "twelve.tif", three.astype(np.uint8).tobytes(), 12), UPPER
    (folder / "twelve.pgm").write_bytes(b"P5 10 8 4095\n" + (GREY >> 4).astype(">u2").tobytes())
    yield folder / "twelve.pgm", UPPER


def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path):
    for path, expected in sixteen_bits(tmp_path):
        found = pixels(path).astype(int)
        expected = np.broadcast_to(expected if expected.ndim == 3 else expected[..., None], (8, 10, 3))
        assert np.abs(found - expected).max() <= (path.name == "twelve.pgm"), path.name  # whose white is 4095


@given(value=st.integers(0, 255))
def test_what_was_8_bits_before_is_the_same_again(tmp_path_factory, value):
    path = saved(tmp_path_factory.getbasetemp() / "x.png", np.full((2, 2), 257 * value, np.uint16))
    assert (pixels(path) == value).all()


@pytest.mark.parametrize(
    ("ending", "mode"),
    [*itertools.product(["png", "tif"], ["1", "L", "P", "LA", "RGBA"]), ("tif", "CMYK"), ("tif", "YCbCr"),
     ("gif", "P"), ("gif", "L"), ("bmp", "1"), ("bmp", "L"), ("webp", "RGBA"), ("jp2", "RGB"), ("tga", "LA")],
)  # fmt: skip
def test_other_modes_become_rgb(tmp_path, mode, ending):
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(tmp_path / f"x.{ending}", **({"lossless": True} if ending == "webp" else {}))
    plain = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(plain - COLOUR).mean() < 2 or mode in ("1", "L", "P", "LA")
    np.testing.assert_array_equal(pixels(tmp_path / f"x.{ending}"), plain)


def test_a_palette_whose_colours_are_all_opaque(tmp_path):
    image = Image.fromarray(COLOUR).quantize(16)
    plain = np.asarray(image.convert("RGB"))
    image.info["transparency"] = b"\xff" * 16
    image.save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(tmp_path / "x.png"), plain)


def transparent(folder):
    image = Image.fromarray(COLOUR).convert("RGBA")
    image.putpixel((3, 2), (1, 2, 3, 254))
    for ending in ("png", "webp", "tif"):
        image.save(folder / f"alpha.{ending}")
        yield folder / f"alpha.{ending}"
    palette = Image.fromarray(COLOUR).quantize(16)
    index = int(np.asarray(palette)[0, 0])
    for ending in ("png", "gif"):
        palette.save(folder / f"palette.{ending}", transparency=index)
        yield folder / f"palette.{ending}"
    yield saved(folder / "grey.png", UPPER, transparency=int(UPPER[0, 0]))
    key = int(GREY[0, 0])
    yield png16(folder / "grey16.png", GREY, 0, chunk(b"tRNS", struct.pack(">H", key)))
    colour16 = np.stack([GREY] * 3, -1)
    yield png16(folder / "colour16.png", colour16, 2, chunk(b"tRNS", struct.pack(">HHH", key, key, key)))
    yield png16(folder / "alpha16.png", np.stack([*[GREY] * 3, np.full_like(GREY, 300)], -1), 6)


def test_what_is_transparent_in_places_is_refused(tmp_path):
    for path in transparent(tmp_path):
        with pytest.raises(ValueError, match=f"{path.name} cannot be made 8-bit RGB: it is transparent in places"):
            open_image(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_grey_of_fewer_bits_is_told_before_it_is_scaled(tmp_path, bits):
    values = np.arange(2**bits).repeat(8 // bits).reshape(2**bits, -1)  # a byte a row
    packed = [b"\0" + bytes([int("".join(f"{v:0{bits}b}" for v in row), 2)]) for row in values]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8 // bits, 2**bits, bits, 0, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"".join(packed))) + chunk(b"IEND", b"")
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + content)
    np.testing.assert_array_equal(pixels(path)[..., 0], values * (255 // (2**bits - 1)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", struct.pack(">H", 2)) + content)
    with pytest.raises(ValueError, match=r"x\.png cannot be made 8-bit RGB: it is transparent in places"):
        open_image(path)


def test_a_small_key_of_sixteen_bit_colours_is_told_before_it_is_scaled(tmp_path):
    colour = np.full((8, 10, 3), 100, np.uint16)
    path = png16(tmp_path / "x.png", colour, 2, chunk(b"tRNS", struct.pack(">HHH", 100, 100, 100)))
    with pytest.raises(ValueError, match="it is transparent in places"):
        open_image(path)


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tga"])
def test_a_pixel_beyond_its_palette_is_refused(tmp_path, ending):
    index = (np.arange(80) % 8).astype(np.uint8).reshape(8, 10)
    palette = np.random.default_rng(1).integers(0, 256, (8, 3)).astype(np.uint8)
    image, path = Image.frombytes("P", (10, 8), index.tobytes()), tmp_path / f"x.{ending}"
    image.putpalette(palette.tobytes())
    image.save(path)
    np.testing.assert_array_equal(pixels(path), palette[index])
    if ending == "png":  # Pillow would write fewer bits a pixel
        content = path.read_bytes()
        start, end = content.index(b"PLTE") - 4, content.index(b"IDAT") - 4
        path.write_bytes(content[:start] + chunk(b"PLTE", palette[:4].tobytes()) + content[end:])
    else:
        image.putpalette(palette[:4].tobytes())
        image.save(path)
    with pytest.raises(ValueError, match=rf"x\.{ending} cannot be made .* of colour 7, which its palette lacks"):
        open_image(path)


def unknown_scale(folder):
    yield saved(folder / "i.tif", GREY.astype(np.int32))
    yield saved(folder / "f.tif", (GREY / 65535).astype(np.float32))
    yield tiff(folder / "unsigned.tif", GREY.astype("<u4").tobytes(), 32)
    yield tiff(folder / "signed.tif", (GREY.astype(int) - 32768).astype("<i2").tobytes(), 16, kind=2)
    yield tiff(folder / "signed8.tif", (UPPER.astype(int) - 128).astype(np.int8).tobytes(), 8, kind=2)
    yield tiff(folder / "white.tif", GREY.astype("<u2").tobytes(), 16, zero_is_black=0)


def test_numbers_without_a_known_black_and_white_are_refused(tmp_path):
    for path in unknown_scale(tmp_path):
        with pytest.raises(
            ValueError, match=rf"{path.name} cannot be made .*pixels of mode (I|F|I;16|L), whose black"
        ):
            open_image(path)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_of_several_pictures_in_a_file_none_is_taken(tmp_path, ending):
    image, other = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    image.save(tmp_path / f"x.{ending}", save_all=True, append_images=[other, image])
    with pytest.raises(ValueError, match=f"x.{ending} cannot be made 8-bit RGB: it holds 3 pictures"):
        open_image(tmp_path / f"x.{ending}")


def test_the_previews_in_a_photograph_are_not_the_picture(tmp_path):
    image, preview = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (8, 4), "blue")
    image.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[preview])
    assert np.abs(pixels(tmp_path / "x.jpg") - np.array([255.0, 0, 0])).max() < 3
    assert pixels(tmp_path / "x.jpg").shape == (8, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
def test_pictures_are_turned_as_their_orientation_says(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(np.arange(16) * 8, np.arange(24) * 4).astype(np.uint8)[..., None].repeat(3, 2)
    smooth[:8, :8] = 255  # a corner that tells all eight apart
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "jpg" else {}
    saved(tmp_path / f"x.{ending}", smooth, exif=exif, **options)
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]
    expected = Image.fromarray(smooth)
    expected = np.asarray(expected if turned is None else expected.transpose(turned)).astype(int)
    found = pixels(tmp_path / f"x.{ending}").astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (8 if ending == "jpg" else 0)
    grey = saved(tmp_path / "grey.png", GREY, exif=exif)
    assert pixels(grey).shape[:2] == ImageOps.exif_transpose(Image.open(grey)).size[::-1]
    for depth in (np.uint8, np.uint16):
        grey = smooth[..., 0] * depth(np.iinfo(depth).max // 255)
        assert (pixels(saved(tmp_path / "grey.tif", grey, exif=exif)) == expected).all()


@pytest.mark.parametrize("name", ["x.png", "grey16.png", "x.jpg", "x.webp", "x.tif", "x.bmp", "x.ppm", "x.tga"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, name, part):
    path = saved(tmp_path / name, GREY if name == "grey16.png" else COLOUR)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=f"{name} is not a readable image: "):
        open_image(path)


# Folders ------------------------------------------------------------------------------------------------------


def fill(folder, classes=("cat", "dog"), count=5, seed=0):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            content = np.random.default_rng([seed, number, i]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(content).save(folder / name / f"{i}.png")
    return folder


def counts(folder):
    data = load_data(folder)
    return len(data.train_labels), len(data.test_labels), data.num_classes


spellings = {kind: [form(name) for name in names for form in (str, str.title, str.upper)]
             for kind, names in SPLITS.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("train", "held"),
    [
        *itertools.product(["train"], spellings["test"] + spellings["val"]),
        *itertools.product(spellings["train"], ["test"]),
    ],
)
def test_splits_in_every_spelling(tmp_path, train, held):
    fill(tmp_path / "pets" / train)
    fill(tmp_path / "pets" / held, count=2, seed=1)
    assert counts(tmp_path / "pets") == (10, 4, 2)


def test_with_all_three_splits_the_test_set_is_for_tests(tmp_path):
    for number, part in enumerate(("Train", "Valid", "Test")):
        fill(tmp_path / part, count=3 + number, seed=number)
    assert counts(tmp_path) == (6, 10, 2)


@pytest.mark.parametrize("unlabelled", ["", "images", "unknown", "0"])
@pytest.mark.parametrize("val", ["val", "Validation"])
def test_an_unlabelled_test_set_beside_a_labelled_one(tmp_path, unlabelled, val):
    fill(tmp_path / "train")
    fill(tmp_path / val, count=2)
    fill(tmp_path / "test", classes=["x"], count=7)
    (tmp_path / "test" / "x").rename(tmp_path / "test" / (unlabelled or "x"))
    if not unlabelled:
        for path in (tmp_path / "test" / "x").iterdir():
            path.rename(tmp_path / "test" / path.name)
        (tmp_path / "test" / "x").rmdir()
    assert counts(tmp_path) == (10, 4, 2)


JUNK = {
    ".DS_Store": b"x", "Thumbs.db": b"x", "desktop.ini": b"x", "README.md": b"x", "labels.csv": b"x",
    "._0.png": b"not a picture", ".hidden/0.png": None, "__MACOSX/0.png": None, "__MACOSX/cat/._0.png": b"x",
    ".ipynb_checkpoints/0-checkpoint.png": None, "@eaDir/0.png/THUMB.png": None, ".git/objects/0.png": None,
}  # fmt: skip


@pytest.mark.parametrize("where", [".", "cat", "train", "train/cat", "test", "test/dog"])
def test_what_else_lies_in_folders_changes_nothing(tmp_path, where):
    folder = tmp_path / "pets"
    for part in ("train", "test") if "t" in where[:1] else (".",):
        fill(folder / part)
    before = load_data(folder).fingerprint
    for name, content in JUNK.items():
        path = folder / where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content
            or (folder / "train" / "cat" / "0.png" if "t" in where[:1] else folder / "cat" / "0.png").read_bytes()
        )
    D._load.cache_clear()
    assert load_data(folder).fingerprint == before


@pytest.mark.parametrize("where", [".", "train", "test"])
def test_pictures_beside_the_class_folders_are_not_left_out_in_silence(tmp_path, where):
    for part in ("train", "test") if where != "." else (".",):
        fill(tmp_path / part)
    cat = tmp_path / ("train" if where != "." else ".") / "cat"
    (tmp_path / where / "0.png").write_bytes((cat / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"^0\.png and 0 more are in no class folder"):
        load_data(tmp_path)


@pytest.mark.parametrize("size", [10**6, 10**9, 10**18])
def test_pictures_that_no_memory_holds_are_refused_before_one_is_read(tmp_path, size):
    fill(tmp_path)
    with pytest.raises(ValueError, match=f"Memory has no room for images of 10 × {size} × {size} × 3 bytes"):
        load_data(tmp_path, image_size=size)


def test_nested_folders_links_and_capital_endings(tmp_path):
    folder = fill(tmp_path / "pets")
    before = load_data(folder).fingerprint
    (folder / "cat" / "images").mkdir()
    for path in list((folder / "cat").glob("*.png")):
        path.rename(folder / "cat" / "images" / path.name.upper())
    (folder / "dog").rename(tmp_path / "elsewhere")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    assert load_data(folder).fingerprint == before
    Image.new("RGB", (6, 6), "red").save(tmp_path / "elsewhere" / "0.png")
    assert load_data(folder).fingerprint != before  # though nothing in the folder itself has changed


def _refused():
    def case(name, sentence, *folders, **files):
        return pytest.param(folders, files, sentence, id=name)

    yield case("nothing", "holds no class folder")
    yield case("empty class", "emu holds no pictures", "cat", "dog", "emu=0")
    yield case("documents", "docs holds no pictures", "cat", "dog", docs="docs/a.pdf")
    yield case(
        "empty class of a split", "test/dog holds no pictures", "train/cat", "train/dog", "test/cat", "test/dog=0"
    )
    yield case("class in training only", "same classes: one lacks dog", "train/cat", "train/dog", "test/cat")
    yield case(
        "class in test only",
        "same classes: one lacks eel",
        "train/cat",
        "train/dog",
        "test/cat",
        "test/dog",
        "test/eel",
    )
    yield case("two spellings", "has both Train/ and train/: keep one", "train/cat", "Train/cat", "test/cat")
    yield case("two kinds of val", "has both valid/ and validation/", "train/cat", "valid/cat", "validation/cat")
    yield case("no training", "has test/ but not train/ beside it", "test/cat", "test/dog")
    yield case("a class called test", "has test/ but not train/", "test", "control")
    yield case("a class called train", "has train/ but not test/ or val/", "train", "car", "plane")
    yield case("flat splits", "train holds no class folder", a="train/0.png", b="test/0.png")
    yield case(
        "unlabelled test alone",
        "test/ must have the class folders of train/, cat/, dog/; or give .*train itself",
        "train/cat",
        "train/dog",
        "test/images",
    )
    yield case(
        "other names of splits",
        "a guess; call the splits train/",
        "fold1/cat",
        "fold1/dog",
        "fold2/cat",
        "fold2/dog",
    )
    layers = [f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")]
    yield case("splits within splits", "seg_test/, seg_train/ in .* seem to be splits: .* a guess", *layers)
    flat = {"a": "train_images/0.png", "b": "test_images/0.png"}
    yield case("flat splits of other names", "test_images/, train_images/ in .* seem to be splits", **flat)
    yield case("the classes twice", "pets holds cat/, dog/: is it a class", "cat", "dog", "pets/cat", "pets/dog")
    yield case("splits in a class", "cat holds test/: is it a class", "cat/test", "dog/fluffy")
    yield case("a folder in a split", "images/ in .*/train holds cat/, dog/: .* into it", "train/images/cat",
               "train/images/dog", "test/images/cat")  # fmt: skip
    yield case("a folder too deep", "archive/ in .* holds cat/, dog/: .* a guess", "archive/cat", "archive/dog")
    yield case(
        "splits too deep",
        "archive/ in .* holds test/, train/: .* a guess",
        "archive/train/cat",
        "archive/test/cat",
    )


@pytest.mark.parametrize(("folders", "files", "sentence"), list(_refused()))
def test_what_would_be_a_guess_is_refused(tmp_path, folders, files, sentence):
    root = tmp_path / "pets"
    root.mkdir()
    for name in folders:
        name, _, count = name.partition("=")
        fill(root / name, classes=["."] if not count else [], count=3)
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in files.values():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6)).save(root / name)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as error:
        load_data(root)
    assert str(root) in str(error.value)


def test_links_that_lead_nowhere_or_in_circles(tmp_path):
    folder = fill(tmp_path / "pets")
    (folder / "cat" / "up").symlink_to(folder)
    with pytest.raises(ValueError, match=r"cat/up is a link to a folder that it is in"):
        load_data(folder)
    (folder / "cat" / "up").unlink()
    (folder / "emu").symlink_to(tmp_path / "unplugged")
    with pytest.raises(FileNotFoundError, match=r"emu is a link to what is not there"):
        load_data(folder)
    (folder / "emu").unlink()
    (folder / "cat" / "9.png").symlink_to(tmp_path / "unplugged.png")
    with pytest.raises(ValueError, match=r"9\.png is not a readable image"):
        load_data(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_not_an_empty_one(tmp_path):
    folder = fill(tmp_path / "pets")
    (folder / "cat").chmod(0)
    with pytest.raises(PermissionError):
        load_data(folder)
    (folder / "cat").chmod(0o755)


def test_the_order_is_torchvisions(tmp_path):
    from torchvision.datasets import ImageFolder

    fill(
        tmp_path,
        classes=["b", "B", "a-b", "a", "a/images", "a/images-2", "a/Images/x", "a b", "10", "9"],
        count=12,
    )
    assert list_folder(tmp_path)[0] == ImageFolder(tmp_path).samples
    assert sorted(files_below(tmp_path)) == sorted(path for path, _ in ImageFolder(tmp_path).samples)


# Tiny ImageNet ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """The official layout, and the labels of val/ in the order of its table."""
    for name in ("n01", "n02"):
        fill(tmp_path / "train" / name, classes=["images"])
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("0.png\t0\t0\t1\t1\n")
    for number, part in enumerate(("val", "test")):
        fill(tmp_path / part, classes=["images"], count=4, seed=number)
    rows = [f"{i}.png\t{name}\t0\t0\t1\t1\n" for i, name in ((2, "n02"), (0, "n01"), (1, "n01"), (3, "n02"))]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    return tmp_path


def sort(folder, below=""):
    """Do what everybody's script does: move each picture to a folder of its class."""
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        file, name = line.split("\t")[:2]
        target = folder / "val" / name / below
        target.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / file).rename(target / file)


def labels(folder):
    return [label for _, label in list_folder(folder)[1]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(lambda lines: [], "one lacks"), (lambda lines: lines[:-1], "one lacks"),
     (lambda lines: [*lines, "no.JPEG\tn01"], "one lacks no.JPEG"),
     (lambda lines: [*lines, lines[0]], "a file again")],
)  # fmt: skip
def test_a_table_that_does_not_fit_its_pictures_is_refused(tiny, change, sentence):
    table = tiny / "val" / "val_annotations.txt"
    table.write_text("\n".join(change(table.read_text().splitlines())))
    with pytest.raises(ValueError, match=sentence):
        list_folder(tiny)


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("left", [(), ("images",), ("val_annotations.txt",), ("images", "val_annotations.txt")])
def test_val_is_its_own_layout_or_sorted_into_classes(tiny, below, left):
    assert labels(tiny) == [1, 0, 0, 1]
    sort(tiny, below)
    if "images" not in left:
        (tiny / "val" / "images").rmdir()
    if "val_annotations.txt" not in left:
        (tiny / "val" / "val_annotations.txt").unlink()
    assert labels(tiny) == [0, 0, 1, 1]
    assert counts(tiny) == (10, 4, 2)


def test_a_val_that_is_sorted_halfway_or_names_strange_classes_is_refused(tiny):
    table = tiny / "val" / "val_annotations.txt"
    whole = table.read_text()
    for line in ("9.png\tn77\t0\n", "9.png n01\n", "\n"):
        table.write_text(whole + line)
        with pytest.raises(ValueError, match=r"val_annotations\.txt, line 5: it must name a file and a class"):
            list_folder(tiny)
    table.write_text("".join(whole.splitlines(keepends=True)[:2]))
    sort(tiny)
    with pytest.raises(ValueError, match="same classes: one lacks images"):
        list_folder(tiny)


# Arrays -------------------------------------------------------------------------------------------------------


def four(**changed):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 5, 4, 3), dtype=np.uint8)
    return {
        "x_train": x[:16],
        "y_train": np.arange(16) % 3,
        "x_test": x[16:],
        "y_test": np.arange(8) % 3,
        **changed,
    }


@pytest.mark.parametrize("dtype", [">i8", "<u2", ">u4", "i1", "<i4"])
def test_labels_of_any_integer_type_and_byte_order(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", **four(y_train=(np.arange(16) % 3).astype(dtype)))
    assert load_data(tmp_path / "a.npz").fingerprint == Dataset.from_arrays("a", **four()).fingerprint


def test_arrays_in_any_layout_of_memory():
    plain, x = Dataset.from_arrays("a", **four()), four()["x_train"]
    read_only = x.copy()
    read_only.flags.writeable = False
    chw = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    layouts = {"Fortran": np.asfortranarray(x), "read-only": read_only, "view": chw.transpose(0, 2, 3, 1),
               "reversed": np.ascontiguousarray(x[::-1])[::-1], "list": x.tolist()}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, layout in layouts.items():
            if name == "list":
                layout = np.array(layout, np.uint8)
            assert Dataset.from_arrays("a", **four(x_train=layout)).fingerprint == plain.fingerprint, name
    assert Dataset.from_arrays("a", **four(y_test=[0, 1, 2] * 2 + [0, 1])).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x_train": four()["x_train"] / 255}, r"x_train must be uint8 .* not float64 \(16, 5, 4, 3\)"),
        ({"x_train": four()["x_train"].astype(np.int64)}, "x_train must be uint8 .* not int64"),
        ({"x_test": four()["x_test"].astype(">u2")}, "x_test must be uint8 .* not >u2"),
        ({"x_train": four()["x_train"].transpose(0, 3, 1, 2)}, r"x_train must be .*N×H×W×C .*\(16, 3, 5, 4\)"),
        ({"x_train": four()["x_train"][..., 0]}, r"N×H×W×C with 1 or 3 channels, not uint8 \(16, 5, 4\)"),
        ({"x_train": four()["x_train"][..., [0, 1, 2, 2]]}, r"with 1 or 3 channels, not uint8 \(16, 5, 4, 4\)"),
        ({"y_train": np.arange(16) % 3 - 1}, "labels -1 to 1 lack 2"),
        ({"y_train": np.arange(16) % 3 + 1, "y_test": np.arange(8) % 3 + 1}, "labels 1 to 3 lack 0"),
        ({"y_train": (np.arange(16) % 3).astype(float)}, "y_train must be 16 integer labels, not float64"),
        ({"y_train": np.eye(3, dtype=int)[np.arange(16) % 3]}, r"y_train must be .* not int64 \(16, 3\)"),
        ({"y_train": np.arange(16) % 2 == 0}, "y_train must be 16 integer labels, not bool"),
        ({"y_test": np.array(list("abcabcab"))}, "y_test must be 8 integer labels, not <U1"),
        ({"y_train": np.full(16, 2**64 - 1, np.uint64)}, "lack"),
        ({"x_train": np.array([{}] * 16, object)}, "allow_pickle=False"),
    ],
)  # fmt: skip
def test_arrays_that_are_something_else_are_refused(tmp_path, changed, sentence):
    path = tmp_path / "mine.npz"
    np.savez(path, **four(**changed))
    with pytest.raises(ValueError, match=sentence) as error:
        load_data(path)
    assert str(path) in str(error.value)


# Where data are looked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet-200", "imagenet", "cifer10", "my/pets"])
def test_a_mistyped_folder_of_data_stays_absent(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PAI_DATA", str(tmp_path / "dtaa" / "sets"))
    with pytest.raises((FileNotFoundError, ValueError), match=str(Path("dtaa") / "sets")):
        load_data(name)
    assert list(tmp_path.iterdir()) == []
    assert len(load_data("digits").train_labels) == 1437  # which needs no folder
