"""Data sets: what is read, how it is split, sampled, augmented and normalised, and every way it can fail."""

import functools
import hashlib
import http.server
import io
import pickle
import socket
import tarfile
import threading

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split
from torchvision import datasets
from torchvision.transforms import functional as TF

from pai_lib import RunSpec, progress, run
from pai_lib.data import loading as D
from pai_lib.data.batch import Batch
from pai_lib.data.dataset import Dataset, crop_and_flip
from pai_lib.data.loading import check_data, dataset_names, load_data


def arrays(train=60, test=20, classes=4, size=8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    x_train, x_test = (rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8) for n in (train, test))
    return {
        "x_train": x_train,
        "y_train": np.arange(train) % classes,
        "x_test": x_test,
        "y_test": np.arange(test) % classes,
    }


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count, classes=2, size=8):
    """A data set whose image i is told from the others by its pixels."""
    x = np.zeros((count, size, size, 3), np.uint8)
    x[..., 0], x[..., 1] = (np.arange(count) // 256)[:, None, None], (np.arange(count) % 256)[:, None, None]
    x[:, 0] = 255  # no channel is constant
    y = np.arange(count) % classes
    return Dataset.from_arrays("numbered", x, y, x[:2], y[:2])


def identities(data, batch):
    """Invert the normalisation and read the numbers that `numbered` wrote."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    pixels = ((batch.inputs * std + mean) * 255).round().long()
    return (pixels[:, 0, 4, 4] * 256 + pixels[:, 1, 4, 4]).tolist()


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


# What is read -------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns(digits):
    truth = sklearn.datasets.load_digits()
    pixels = np.rint(truth.images * 255 / 16).astype(np.uint8)
    train, test = train_test_split(range(1797), train_size=0.8, stratify=truth.target, random_state=42)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.num_classes == 10
    assert not digits.augment
    np.testing.assert_array_equal(digits.train_images[:, 0], pixels[train])
    np.testing.assert_array_equal(digits.test_images[:, 0], pixels[test])
    np.testing.assert_array_equal(digits.train_labels, truth.target[train])
    np.testing.assert_array_equal(digits.test_labels, truth.target[test])
    assert digits.train_images.unique().tolist() == [round(v * 255 / 16) for v in range(17)]


def test_digits32_is_digits_resized(digits):
    big = load_data("digits32")
    truth = torch.nn.functional.interpolate(
        digits.train_images.double(), (32, 32), mode="bilinear", align_corners=False
    )
    assert big.train_images.shape == (1437, 3, 32, 32)
    assert big.train_images.is_contiguous()
    assert (big.train_images - truth).abs().max() <= 0.5
    assert (big.train_images == big.train_images[:, :1]).all()
    assert torch.equal(big.train_labels, digits.train_labels)
    assert torch.equal(big.test_labels, digits.test_labels)


def test_digits_are_the_same_everywhere(digits):
    # Frozen: records of runs are matched by these.
    assert digits.fingerprint == "3e6d45019ea848045dcc13f99c038e11b735fb61857fd2987a3bf94da34574d0"
    assert load_data("digits32").fingerprint == (
        "5f66f41cbb37bab15a06000d47470e92ef8e602bc3081b8697ac4ca6e509661d"
    )


def test_image_size_resizes_any_dataset(digits):
    small = load_data("digits", image_size=4)
    assert small.train_images.shape == (1437, 1, 4, 4)
    truth = TF.resize(digits.train_images.double(), [4, 4], antialias=True)
    assert (small.train_images - truth).abs().max() <= 0.5 + 1e-6
    assert load_data("digits", image_size=8).fingerprint == digits.fingerprint
    for size in (0, -3, 2.5, True):
        with pytest.raises(
            (TypeError, ValueError), match=f"image_size={size}: it must be (at least 1|a whole number)"
        ):
            load_data("digits", image_size=size)
        with pytest.raises((TypeError, ValueError), match=f"image_size={size}: it must be"):
            Dataset.from_arrays("small", **arrays(), image_size=size)


def test_from_arrays_keeps_pixels_and_copies_them():
    for channels in (1, 3):
        four = arrays(channels=channels)
        data = Dataset.from_arrays("mine", **four)
        before = four["x_train"].copy()
        four["x_train"][:] = 0
        np.testing.assert_array_equal(data.train_images, before.transpose(0, 3, 1, 2))
        assert data.train_images.is_contiguous()
        assert (data.num_classes, data.augment, data.name) == (4, True, "mine")
        assert "tensor" not in repr(data)


def test_normalisation():
    data = Dataset.from_arrays("mine", **arrays())
    x = data.normalize(data.train_images)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (data.mean, data.std))
    torch.testing.assert_close(x.double(), (data.train_images / 255.0 - mean) / std, atol=1e-5, rtol=1e-5)
    pixels = data.train_images.double() / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3), correction=0), rtol=1e-12)


def test_to_moves_everything(digits):
    moved = digits.to("meta")
    names = ("train_images", "train_labels", "test_images", "test_labels")
    assert all(getattr(moved, name).device.type == "meta" for name in names)
    assert moved.fingerprint == digits.fingerprint
    assert digits.train_images.device.type == "cpu"
    batch = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)).to("meta")
    assert batch.inputs.device.type == batch.labels.device.type == "meta"


def test_fingerprint_tells_pixels_labels_and_shapes():
    four = arrays()
    original = Dataset.from_arrays("a", **four).fingerprint
    assert len(original) == 64
    assert Dataset.from_arrays("b", **four, augment=False, location="there").fingerprint == original
    for key in four:
        changed = {name: array.copy() for name, array in four.items()}
        changed[key].flat[0] = (changed[key].flat[0] + 1) % 4
        assert Dataset.from_arrays("a", **changed).fingerprint != original, key
    x = four["x_train"].reshape(60, 4, 16, 3)
    reshaped = {**four, "x_train": x, "x_test": four["x_test"].reshape(20, 4, 16, 3)}
    assert Dataset.from_arrays("a", **reshaped).fingerprint != original
    assert (
        Dataset.from_arrays("a", **{**four, "y_train": four["y_train"].astype(np.uint8)}).fingerprint == original
    )


# Splits -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**32 - 1))
def test_split_is_scikit_learns(fraction, seed):
    data = load_data("digits")
    part, (images, labels) = data.split(fraction, seed)
    keep, held = train_test_split(
        range(1437), train_size=fraction, stratify=data.train_labels.numpy(), random_state=seed
    )
    assert torch.equal(part.train_images, data.train_images[keep])
    assert torch.equal(part.train_labels, data.train_labels[keep])
    assert torch.equal(images, data.train_images[held])
    assert torch.equal(labels, data.train_labels[held])
    assert images.dtype == torch.uint8
    assert torch.equal(part.test_images, data.test_images)
    kept = ("mean", "std", "fingerprint", "num_classes", "name", "augment")
    assert all(getattr(part, name) == getattr(data, name) for name in kept)
    expected = data.train_labels.bincount() * fraction
    assert (part.train_labels.bincount(minlength=10) - expected).abs().max() <= 1


def test_split_is_disjoint_exhaustive_and_seeded():
    data = numbered(1000)
    part, (images, labels) = data.split(0.7, seed=3)
    kept = identities(data, Batch(data.normalize(part.train_images), part.train_labels))
    held = identities(data, Batch(data.normalize(images), labels))
    assert sorted(kept + held) == list(range(1000))
    assert torch.equal(data.split(0.7, seed=3)[0].train_images, part.train_images)
    assert not torch.equal(data.split(0.7, seed=4)[0].train_images, part.train_images)


def test_split_of_everything_and_bad_fractions(digits):
    part, (images, labels) = digits.split(1)
    assert torch.equal(part.train_images, digits.train_images)
    assert images.shape == (0, 1, 8, 8)
    assert labels.shape == (0,)
    for fraction in (0, -0.1, 1.01, float("nan"), True, "0.5"):
        with pytest.raises(ValueError, match=f"fraction={fraction!r}: it must be (a finite number )?above 0"):
            digits.split(fraction)
    sentence = "1437 images, .* of them of class ., make parts of 1 and 1436, each of which needs 10, one a class"
    with pytest.raises(ValueError, match=sentence):
        digits.split(0.001)
    with pytest.raises(ValueError, match="make parts of 1435 and 2, each of which needs 10"):
        digits.split(0.999)


# Scoring batch ------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_scoring_batch_is_balanced_seeded_and_from_training(count, seed):
    data = load_data("digits")
    state = torch.get_rng_state()
    batch = data.scoring_batch(count, seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert batch.inputs.shape == (10 * count, 1, 8, 8)
    assert batch.inputs.dtype == torch.float32
    assert batch.labels.tolist() == list(range(10)) * count
    again = data.scoring_batch(count, seed)
    assert torch.equal(batch.inputs, again.inputs)
    fewer = data.scoring_batch(max(1, count - 1), seed)
    assert torch.equal(fewer.inputs, batch.inputs[: len(fewer.inputs)])
    assert not torch.equal(batch.inputs, data.scoring_batch(count, seed + 1).inputs)


def test_scoring_batch_takes_distinct_unaugmented_training_images():
    data = numbered(600, classes=3)
    batch = data.scoring_batch(samples_per_class=200)
    found = identities(data, batch)
    assert sorted(found) == list(range(600))
    assert torch.equal(batch.inputs, data.normalize(data.train_images[found]))
    assert torch.equal(batch.labels, data.train_labels[found])


def test_scoring_batch_samples_every_image_equally():
    data = numbered(20, classes=2)
    counts = np.bincount(
        [i for seed in range(400) for i in identities(data, data.scoring_batch(2, seed))], minlength=20
    )
    assert counts.sum() == 1600
    assert ((counts - 80) ** 2 / 80).sum() < 40  # chi-square, 18 degrees of freedom: p = 0.002


def test_scoring_batch_of_too_many():
    four = arrays(train=20, classes=2)
    four["y_train"] = np.array([0] * 15 + [1] * 5)
    data = Dataset.from_arrays("few", **{**four, "y_test": four["y_test"] % 2})
    assert len(data.scoring_batch(5).labels) == 10
    with pytest.raises(ValueError, match=r"samples_per_class=6 must be 1 to 5, .* class 1"):
        data.scoring_batch(6)
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"samples_per_class={count}: it must be at least 1"):
            data.scoring_batch(count)


# Epochs -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 70), batch_size=st.integers(1, 80), seed=st.integers(0, 2**31))
@example(count=9, batch_size=4, seed=0)
@example(count=3, batch_size=1, seed=0)
@example(count=8, batch_size=4, seed=0)
def test_epoch_has_every_sample_once(count, batch_size, seed):
    data = numbered(count)
    batches = list(data.epoch(batch_size, generator(seed), augment=False))
    found = [i for batch in batches for i in identities(data, batch)]
    dropped = 1 if count % batch_size == 1 and batch_size > 1 else 0
    assert len(found) == len(set(found)) == count - dropped
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.train_labels[found])
    if batch_size > 1:
        assert all(len(batch.labels) > 1 for batch in batches)


def test_epoch_is_seeded_and_shuffles_anew():
    data = Dataset.from_arrays("mine", **arrays())
    rng = generator(5)
    first, second = list(data.epoch(16, rng)), list(data.epoch(16, rng))
    again = list(data.epoch(16, generator(5)))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].labels, second[0].labels)
    large = next(data.epoch(60, generator(5)))  # another batch size, the same draws
    assert torch.equal(torch.cat([batch.inputs for batch in first]), large.inputs)
    assert first[0].inputs.dtype == torch.float32
    assert first[0].labels.dtype == torch.int64


def test_epoch_shuffles_uniformly():
    data, rng, counts = numbered(4), generator(1), {}
    for _ in range(2400):
        order = tuple(identities(data, next(data.epoch(4, rng, augment=False))))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 50  # 23 degrees of freedom: p < 0.001


def reference_crop(image, row, column, flip):
    """Pad by 4 zeros, crop at (row, column), mirror: one C×H×W image, plainly."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 8, width + 8), np.uint8)
    padded[:, 4 : 4 + height, 4 : 4 + width] = image
    crop = padded[:, row : row + height, column : column + width]
    return crop[:, :, ::-1] if flip else crop


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (6, 9)])
def test_augmentation_is_the_plain_one(shape):
    images = torch.randint(256, (162, 3, *shape), dtype=torch.uint8, generator=generator())
    rows, columns, flips = (
        grid.flatten() for grid in torch.meshgrid(*map(torch.arange, (9, 9, 2)), indexing="ij")
    )
    result = crop_and_flip(images, rows, columns, flips.bool())
    assert result.dtype == torch.uint8
    for i, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(result[i], reference_crop(image, rows[i], columns[i], flips[i]))
        truth = TF.crop(TF.pad(images[i], 4), rows[i].item(), columns[i].item(), *shape)
        assert torch.equal(result[i], TF.hflip(truth) if flips[i] else truth)


def test_augmented_epoch_uses_every_offset_and_both_flips_alike():
    data = numbered(162, size=9)  # distinct in every pixel but the first row, and 9 wide: a centre to mirror at
    pixels = torch.randint(1, 256, (1, 3, 9, 9), dtype=torch.uint8, generator=generator())
    image = pixels.expand(6000, -1, -1, -1).permute(0, 2, 3, 1).numpy()
    labels = np.arange(6000) % 2
    data = Dataset.from_arrays("same", image, labels, image[:2], labels[:2])
    (batch,) = data.epoch(6000, generator(3))
    seen = {}
    for row in range(9):
        for column in range(9):
            for flip in (False, True):
                crop = torch.from_numpy(reference_crop(pixels[0].numpy(), row, column, flip).copy())
                matches = (batch.inputs == data.normalize(crop)).flatten(1).all(1).sum()
                seen[row, column, flip] = int(matches)
    assert sum(seen.values()) == 6000  # each is one of the 162, and of one only
    expected = 6000 / 162
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 230  # 161 dof: p < 0.001


def test_augment_follows_the_dataset_unless_told(digits):
    (plain,) = digits.epoch(1437, generator(), augment=None)
    (augmented,) = digits.epoch(1437, generator(), augment=True)
    assert torch.equal(plain.labels, augmented.labels)
    assert not torch.equal(plain.inputs, augmented.inputs)
    order = torch.randperm(1437, generator=generator())
    assert torch.equal(plain.inputs, digits.normalize(digits.train_images[order]))


def test_epoch_refuses_bad_batch_size_at_once(digits):
    for size in (0, -5):
        with pytest.raises(ValueError, match=f"batch_size={size}: it must be at least 1"):
            digits.epoch(size, generator())


def test_test_batches_are_the_test_images_in_order(digits):
    batches = list(digits.test_batches(100))
    assert [len(batch.labels) for batch in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), digits.test_labels)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), digits.normalize(digits.test_images))
    assert len(list(digits.test_batches())) == 1


# Files of arrays ----------------------------------------------------------------------------------------------


def test_npz_below_pai_data(tmp_path, monkeypatch):
    four = arrays(classes=10)
    np.savez(tmp_path / "cifar10.npz", **four)
    monkeypatch.setenv("PAI_DATA", str(tmp_path))
    data = load_data("cifar10")
    np.testing.assert_array_equal(data.train_images, four["x_train"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test_labels, four["y_test"])
    assert data.location == str(tmp_path / "cifar10.npz")
    assert (data.name, data.num_classes, data.augment) == ("cifar10", 10, True)
    assert load_data("cifar10", image_size=4).train_images.shape == (60, 3, 4, 4)


def test_npz_of_ones_own(tmp_path, monkeypatch):
    four = arrays()
    np.savez(tmp_path / "mine.npz", **four)
    monkeypatch.setenv("PAI_DATA", str(tmp_path))
    data = load_data("mine")
    np.testing.assert_array_equal(data.train_images, four["x_train"].transpose(0, 3, 1, 2))
    assert (data.location, data.num_classes, data.augment) == (str(tmp_path / "mine.npz"), 4, True)
    assert load_data(tmp_path / "mine.npz").fingerprint == data.fingerprint
    assert RunSpec(dataset="mine").data == data.fingerprint
    np.savez(tmp_path / "mine.npz", **arrays(seed=1))
    assert load_data("mine").fingerprint != data.fingerprint  # it is read again
    (tmp_path / "mine.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"mine\.npz must be \.npz with arrays x_train"):
        load_data("mine")
    with pytest.raises(ValueError, match="Unknown dataset 'mime'"):
        run(RunSpec(dataset="mime"))


def test_fingerprint_does_not_depend_on_where_it_was(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "cifar10.npz", **arrays())
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays())
    roots = (tmp_path / "a", str(tmp_path / "b"), tmp_path)
    assert len({load_data("cifar10", root).fingerprint for root in roots}) == 1


def test_loading_again_is_free_until_the_file_changes(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    first = load_data("cifar10", tmp_path)
    assert load_data("cifar10", tmp_path) is first
    np.savez(tmp_path / "cifar10.npz", **arrays(train=80))
    second = load_data("cifar10", tmp_path)
    assert len(second.train_labels) == 80
    assert second.fingerprint != first.fingerprint


def test_check_data(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    summary = check_data("cifar10", tmp_path)
    assert "cifar10: 60 training and 20 test images, 3×8×8, 4 classes" in summary
    assert load_data("cifar10", tmp_path).fingerprint in summary
    assert str(tmp_path / "cifar10.npz") in summary


def bad_arrays():
    four = arrays()
    x, y = four["x_train"], four["y_train"]
    gap = np.where(y == 2, 1, y)
    yield "missing", {k: v for k, v in four.items() if k != "y_test"}, "y_test"
    yield "float images", {**four, "x_train": x.astype(np.float32)}, "x_train must be uint8 .* not float32"
    yield (
        "channels first",
        {**four, "x_test": four["x_test"].transpose(0, 3, 1, 2)},
        r"x_test .* \(20, 3, 8, 8\)",
    )
    yield "no channels", {**four, "x_train": x[..., 0]}, r"N×H×W×C .* \(60, 8, 8\)"
    yield "two channels", {**four, "x_train": x[..., :2]}, "1 or 3 channels"
    yield "empty", {**four, "x_test": four["x_test"][:0], "y_test": y[:0]}, r"x_test .* \(0, 8, 8, 3\)"
    yield "sizes", {**four, "x_test": four["x_test"][:, :4]}, r"x_test .*\(8, 8, 3\).*\(4, 8, 3\)"
    yield (
        "float labels",
        {**four, "y_train": y.astype(float)},
        "y_train must be 60 integer labels, not float64",
    )
    yield "label column", {**four, "y_train": y[:, None]}, r"y_train must be 60 .* \(60, 1\)"
    yield "label count", {**four, "y_test": y[:19]}, r"y_test must be 20 .* \(19,\)"
    yield "from one", {**four, "y_train": y + 1, "y_test": four["y_test"] + 1}, "labels 1 to 4 lack 0"
    yield "negative", {**four, "y_train": y - 1}, "labels -1 to 2 lack 3"
    yield "negative test", {**four, "y_test": four["y_test"] - 1}, "labels 0 to 3 lack -1"
    yield "gap", {**four, "y_train": gap, "y_test": four["y_test"] % 2}, "labels 0 to 3 lack 2"
    yield "unseen", {**four, "y_test": four["y_test"] + 9}, "labels 0 to 3 lack 9"
    yield "one class", {**four, "y_train": y * 0, "y_test": four["y_test"] * 0}, "labels 0 to 0 lack 1"
    yield (
        "constant",
        {**four, "x_train": x * np.array([1, 0, 1], np.uint8)},
        "channel 1 of x_train .* constant",
    )


@pytest.mark.parametrize(("four", "message"), [pytest.param(*rest, id=name) for name, *rest in bad_arrays()])
def test_bad_arrays_are_named_with_their_file(tmp_path, four, message):
    np.savez(tmp_path / "cifar10.npz", **four)
    with pytest.raises(ValueError, match=message) as error:
        load_data("cifar10", tmp_path)
    assert str(tmp_path / "cifar10.npz") in str(error.value)


def test_damaged_npz_is_named(tmp_path):
    path = tmp_path / "cifar100.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[300:320] = bytes(20)
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    objects = {**arrays(), "y_test": np.array([{}] * 20, dtype=object)}
    np.savez(tmp_path / "objects.npz", **objects)
    damaged = (
        whole[: len(whole) // 2], b"", b"not an archive", bytes(middle), buffer.getvalue(),
        (tmp_path / "objects.npz").read_bytes(),
    )  # fmt: skip
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar100\.npz must be \.npz with arrays x_train, y_train"):
            load_data("cifar100", tmp_path)
    path.write_bytes(whole)
    assert len(load_data("cifar100", tmp_path).train_labels) == 60


# Names --------------------------------------------------------------------------------------------------------


def test_names_and_unknown_names(tmp_path):
    assert dataset_names() == ["digits", "digits32", "cifar10", "cifar100", "tiny-imagenet-200", "imagenet"]
    with pytest.raises(ValueError, match=r"unknown dataset 'cifer10' \(did you mean 'cifar10'\?\)") as error:
        load_data("cifer10", tmp_path)
    assert all(name in str(error.value) for name in dataset_names())
    assert str(tmp_path) in str(error.value)
    with pytest.raises(ValueError, match=r"unknown dataset '': it must be one of"):  # not the current folder
        load_data("", tmp_path)
    with pytest.raises(ValueError, match=r"unknown dataset '.*nowhere': it must be one of"):
        load_data(tmp_path / "nowhere", tmp_path)


def test_a_new_dataset_is_one_function(monkeypatch):
    monkeypatch.setattr(D, "_LOADERS", dict(D._LOADERS))

    @D.dataset("noise", augment=False)
    def noise(name, root):
        return *arrays().values(), "nowhere"

    assert "noise" in dataset_names()
    data = load_data("noise")
    assert (data.name, data.location, data.augment) == ("noise", "nowhere", False)


def test_root_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PAI_DATA", raising=False)
    (tmp_path / ".cache" / "pai_lib").mkdir(parents=True)
    np.savez(tmp_path / ".cache" / "pai_lib" / "cifar10.npz", **arrays())
    assert load_data("cifar10").location == str(tmp_path / ".cache" / "pai_lib" / "cifar10.npz")


# Torchvision's files and the download -------------------------------------------------------------------------


@pytest.fixture
def fake_cifar10(tmp_path, monkeypatch):
    """Write 60 images in CIFAR-10's pickled layout and tell torchvision their checksums; return the folder."""
    folder = tmp_path / "source" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    four = arrays(train=50, test=10, classes=10, size=32)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(x, y):
        return {"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), "labels": y.tolist()}

    train = [
        [
            f"data_batch_{i + 1}",
            write(f"data_batch_{i + 1}", batch(four["x_train"][i::5], four["y_train"][i::5])),
        ]
        for i in range(5)
    ]
    test = [["test_batch", write("test_batch", batch(four["x_test"], four["y_test"]))]]
    meta = {**datasets.CIFAR10.meta, "md5": write("batches.meta", {"label_names": list("abcdefghij")})}
    archive = tmp_path / "source" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    for name, value in {
        "train_list": train,
        "test_list": test,
        "meta": meta,
        "tgz_md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        "url": "http://127.0.0.1:1/cifar-10-python.tar.gz",
    }.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    order = np.concatenate([np.arange(50)[i::5] for i in range(5)])
    return folder.parent, {**four, "x_train": four["x_train"][order], "y_train": four["y_train"][order]}


@pytest.fixture
def server(fake_cifar10, monkeypatch):
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=fake_cifar10[0])
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        yield server
        server.shutdown()


def assert_is(data, four):
    np.testing.assert_array_equal(data.train_images, four["x_train"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test_images, four["x_test"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.train_labels, four["y_train"])
    np.testing.assert_array_equal(data.test_labels, four["y_test"])


def test_torchvision_files(fake_cifar10):
    root, four = fake_cifar10
    data = load_data("cifar10", root)
    assert_is(data, four)
    assert data.location == str(root / "cifar-10-batches-py")
    np.savez(root / "cifar10.npz", **arrays())  # the .npz file comes first
    assert load_data("cifar10", root).location == str(root / "cifar10.npz")


def test_download(fake_cifar10, server, tmp_path, capfd):
    data = load_data("cifar10", tmp_path / "new" / "root")
    assert_is(data, fake_cifar10[1])
    assert "100%" in capfd.readouterr().err  # a progress bar


def test_archive_put_there_by_hand_is_unpacked(fake_cifar10, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (fake_cifar10[0] / "cifar-10-python.tar.gz").rename(root / "cifar-10-python.tar.gz")
    assert_is(load_data("cifar10", root), fake_cifar10[1])


def test_download_with_wrong_checksum_is_never_taken_for_good(fake_cifar10, server, tmp_path, monkeypatch):
    root, archive = tmp_path / "root", fake_cifar10[0] / "cifar-10-python.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    for _ in range(2):  # nor is what the first attempt left behind
        with pytest.raises(FileNotFoundError, match=r"cifar10 is not in .*download failed \(File not found or"):
            load_data("cifar10", root)
        assert not (root / "cifar-10-batches-py").exists()
    archive.write_bytes(whole)
    assert_is(load_data("cifar10", root), fake_cifar10[1])


def test_damaged_files_are_fetched_again(fake_cifar10, server, tmp_path):
    root = tmp_path / "root"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"cut short")
    assert_is(load_data("cifar10", root), fake_cifar10[1])


def test_no_server(fake_cifar10, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/x.tar.gz")
    with pytest.raises(FileNotFoundError) as error:
        load_data("cifar10", tmp_path / "root")
    for part in (
        str(tmp_path / "root"),
        "cifar10.npz",
        "x_train",
        "cifar-10-python.tar.gz",
        f"127.0.0.1:{port}",
    ):
        assert part in str(error.value)
    assert list((tmp_path / "root").iterdir()) == []


# Folders of images --------------------------------------------------------------------------------------------


def write_images(folder, classes=("cat", "dog"), count=6, size=(10, 8), seed=0, mode="RGB"):
    rng, written = np.random.default_rng(seed), {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")
            written[name, i] = pixels
    return written


@pytest.mark.parametrize("held", ["test", "val"])
def test_folder_with_its_own_test_set(tmp_path, held):
    train = write_images(tmp_path / "pets" / "train")
    test = write_images(tmp_path / "pets" / held, count=2, seed=1)
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_data(tmp_path / "pets")
    assert (data.name, data.num_classes, data.augment) == ("pets", 2, True)
    assert data.location == str(tmp_path / "pets")
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), np.stack(list(train.values())))
    np.testing.assert_array_equal(data.test_images.permute(0, 2, 3, 1), np.stack(list(test.values())))
    assert data.train_labels.tolist() == [0] * 6 + [1] * 6
    assert data.test_labels.tolist() == [0, 0, 1, 1]


def test_folder_of_class_folders(tmp_path, monkeypatch):
    written = write_images(tmp_path / "pets", count=10)
    data = load_data(str(tmp_path / "pets"))
    labels = [0] * 10 + [1] * 10
    train, test = train_test_split(range(20), train_size=0.8, stratify=labels, random_state=42)
    pixels = np.stack(list(written.values())).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.train_images, pixels[train])
    np.testing.assert_array_equal(data.test_images, pixels[test])
    assert data.test_labels.bincount().tolist() == [2, 2]
    assert load_data("pets", tmp_path) is data  # by its name below root
    monkeypatch.chdir(tmp_path)
    assert load_data("./pets") is data
    (tmp_path / "pets").rename(tmp_path / "cifar10")
    assert load_data("./cifar10").fingerprint == data.fingerprint  # a path is not the registered name


def test_folder_is_read_again_when_a_file_changes(tmp_path):
    write_images(tmp_path / "pets", count=10)
    before = load_data(tmp_path / "pets")
    Image.new("RGB", (10, 8), "red").save(tmp_path / "pets" / "cat" / "0.png")
    assert load_data(tmp_path / "pets").fingerprint != before.fingerprint


def test_folder_of_differing_sizes(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=1, size=(12, 8))
    first, odd = tmp_path / "train" / "cat" / "0.png", tmp_path / "test" / "cat" / "0.png"
    with pytest.raises(ValueError, match="image_size") as error:
        load_data(tmp_path)
    assert f"{first} is (8, 10, 3), {odd} is (8, 12, 3)" in str(error.value)
    data = load_data(tmp_path, image_size=6)
    assert data.train_images.shape == (12, 3, 6, 6)
    truth = Image.open(odd).resize((6, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.test_images[0].permute(1, 2, 0), np.asarray(truth))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_image_modes_become_rgb(tmp_path, mode):
    write_images(tmp_path / "pets", mode=mode)
    data = load_data(tmp_path / "pets")
    assert data.train_images.shape[1] == 3
    if mode == "L":
        assert torch.equal(data.train_images[:, 0], data.train_images[:, 2])


def test_unreadable_images_are_named(tmp_path):
    write_images(tmp_path / "pets")
    path = tmp_path / "pets" / "dog" / "3.png"
    whole = path.read_bytes()
    for content in (whole[:100], b"", b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"dog/3\.png is not a readable image"):
            load_data(tmp_path / "pets")


def test_folders_that_are_no_dataset(tmp_path):
    def load(name):
        return load_data(tmp_path / name)

    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="class folder"):
        load("empty")
    write_images(tmp_path / "hollow")
    (tmp_path / "hollow" / "emu").mkdir()
    with pytest.raises(FileNotFoundError, match="emu"):
        load("hollow")
    write_images(tmp_path / "one", classes=["cat"])
    with pytest.raises(ValueError, match=r"one: y_train .*labels 0 to 0 lack 1"):
        load("one")
    write_images(tmp_path / "few", count=1)
    few = "few: 2 images, 1 of them of cat, make parts of 1 and 1, each of which needs 2, one a class"
    with pytest.raises(ValueError, match=few):
        load("few")
    write_images(tmp_path / "rare", count=20)
    write_images(tmp_path / "rare", classes=["bee"], count=1)
    (tmp_path / "rare" / "cat" / "3.png").write_text("not read before it is told")
    with pytest.raises(ValueError, match="rare: 41 images, 1 of them of bee, make parts of 32 and 9"):
        load("rare")
    write_images(tmp_path / "untested" / "train")
    with pytest.raises(FileNotFoundError, match="untested has train/ but not test/ or val/"):
        load("untested")
    write_images(tmp_path / "other" / "train")
    write_images(tmp_path / "other" / "test", classes=["cat", "eel", "dog"])
    with pytest.raises(ValueError, match="must have the same classes: one lacks eel"):
        load("other")


def test_tiny_imagenet_as_distributed(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        write_images(root / "train" / name, classes=["images"])
        (root / "train" / name / f"{name}_boxes.txt").write_text("0.png\t0\t0\t1\t1\n")
    val = write_images(root / "val", classes=["images"], count=4, seed=2)
    write_images(root / "test", classes=["images"])  # without labels
    rows = [f"{i}.png\t{name}\t0\t0\t1\t1\n" for i, name in ((2, "n02"), (0, "n01"), (1, "n01"), (3, "n02"))]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    data = load_data(root)
    assert data.train_labels.tolist() == [0] * 6 + [1] * 6
    assert data.test_labels.tolist() == [1, 0, 0, 1]
    expected = np.stack([val["images", i] for i in (2, 0, 1, 3)])
    np.testing.assert_array_equal(data.test_images.permute(0, 2, 3, 1), expected)


def test_reading_a_folder_shows_a_bar_if_it_takes_long_and_writes_none_to_a_file(tmp_path, monkeypatch, capfd):
    write_images(tmp_path / "pets")
    monkeypatch.setattr(progress, "DELAY", 0)
    load_data(tmp_path / "pets")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(progress, "_hidden", lambda: False)  # as on a terminal
    write_images(tmp_path / "others")
    load_data(tmp_path / "others")
    assert "reading images" in capfd.readouterr().err
