"""Tiny ImageNet's archive and every way it can fail; ImageNet's folders, streamed: order, crops, runs."""

import functools
import hashlib
import http.server
import io
import multiprocessing
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from pai_lib.data import tiny_imagenet as T
from pai_lib.data.loading import check_data, load_data
from pai_lib.experiments.run import run
from pai_lib.experiments.spec import RunSpec


def picture(seed=0, size=(16, 12)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


# Tiny ImageNet's archive --------------------------------------------------------------------------------------


def archive():
    """The official layout: two classes of two training images, two validation images, one test image."""
    members = {
        "wnids.txt": b"n01\nn02\n",
        "train/n01/n01_boxes.txt": b"n01_0.JPEG\t0\t0\t1\t1\n",
        **{f"train/{c}/images/{c}_{i}.JPEG": picture(i) for c in ("n01", "n02") for i in range(2)},
        **{f"val/images/val_{i}.JPEG": picture(7 + i) for i in range(2)},
        "val/val_annotations.txt": b"val_1.JPEG\tn01\t0\t0\t1\t1\nval_0.JPEG\tn02\t0\t0\t1\t1\n",
        "test/images/test_0.JPEG": picture(9),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, value in members.items():
            file.writestr(f"tiny-imagenet-200/{name}", value)
    return content.getvalue()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and breaks the connection after `limit` bytes, if told so."""

    limit, requests = None, []

    def do_GET(self):
        body = Path(self.translate_path(self.path)).read_bytes()
        self.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of the archive, which the library takes for the official one."""
    folder = tmp_path / "site"
    folder.mkdir()
    content = archive()
    (folder / "tiny.zip").write_bytes(content)
    handler = type("Handler", (Server,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(T, "TINY_URL", f"http://127.0.0.1:{server.server_address[1]}/tiny.zip")
        monkeypatch.setattr(T, "TINY_SHA256", hashlib.sha256(content).hexdigest())
        handler.folder = folder
        yield handler
        server.shutdown()


NAME = "tiny-imagenet-200"


def left(root):
    """What is in a folder, but for the lock of processes that wait for each other."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_download_and_its_own_validation_annotations(site, tmp_path, capfd):
    root = tmp_path / "new" / "root"
    data = load_data(NAME, root)
    assert left(root) == [NAME, f"{NAME}.zip"]
    assert (data.name, data.num_classes, data.augment, data.location) == (NAME, 2, True, str(root / NAME))
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.test_labels.tolist() == [0, 1]
    for i, image in enumerate((8, 7)):  # as annotated
        truth = np.asarray(Image.open(io.BytesIO(picture(image))))
        np.testing.assert_array_equal(data.test_images[i].permute(1, 2, 0), truth)
    assert "100%" in capfd.readouterr().err
    assert load_data(NAME, root).fingerprint == data.fingerprint
    assert len(site.requests) == 1


def test_an_archive_put_there_by_hand_is_unpacked(site, tmp_path):
    shutil.copy(site.folder / "tiny.zip", tmp_path / f"{NAME}.zip")
    assert load_data(NAME, tmp_path).num_classes == 2
    assert site.requests == []


@pytest.mark.parametrize("fault", ["broken off", "damaged", "damaged by hand"])
def test_another_file_is_refused_and_deleted(site, tmp_path, fault):
    content = (site.folder / "tiny.zip").read_bytes()
    if fault == "broken off":
        site.limit = 100
    else:
        damaged = content[:200] + bytes([content[200] ^ 1]) + content[201:]
        by_hand = fault == "damaged by hand"
        (tmp_path / f"{NAME}.zip" if by_hand else site.folder / "tiny.zip").write_bytes(damaged)
    with pytest.raises(ValueError, match=f"had SHA-256 [0-9a-f]{{64}} instead of {T.TINY_SHA256} and was deleted"):
        load_data(NAME, tmp_path)
    assert left(tmp_path) == ["site"]
    (site.folder / "tiny.zip").write_bytes(content)
    site.limit = None
    assert load_data(NAME, tmp_path).num_classes == 2


def test_without_a_server_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(T, "TINY_URL", "http://127.0.0.1:9/tiny.zip")
    with pytest.raises(FileNotFoundError, match=r"download failed .*: put its folder there, or tiny-.*from http"):
        load_data(NAME, tmp_path)
    assert left(tmp_path) == []


def test_two_processes_download_once(site, tmp_path):
    context = multiprocessing.get_context("fork")  # with the patched address
    workers = [context.Process(target=load_data, args=(NAME, tmp_path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(site.requests) == 1
    assert load_data(NAME, tmp_path).num_classes == 2


def test_an_interrupted_extraction_leaves_nothing(site, tmp_path, monkeypatch):
    shutil.copy(site.folder / "tiny.zip", tmp_path / f"{NAME}.zip")

    def full(file, folder):
        (Path(folder) / NAME).mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "unpack_archive", full)
        with pytest.raises(OSError, match="No space left"):
            load_data(NAME, tmp_path)
    assert left(tmp_path) == ["site", f"{NAME}.zip"]
    assert load_data(NAME, tmp_path).num_classes == 2


# ImageNet's folders -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twelve training and four test images of two classes, light and dark, of several sizes."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("n01", "n02")):
            folder = root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([label, i]).integers(0, 100, (40 + 3 * i, 50 - 2 * i, 3))
                Image.fromarray((noise + 150 * label).astype(np.uint8)).save(folder / f"{i}.JPEG", quality=95)
    (root / "imagenet" / "test").mkdir()  # the official one has no labels
    return root


@pytest.fixture(scope="module")
def stream(root):
    return load_data("imagenet", root, image_size=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_what_is_streamed(root, stream):
    assert (stream.name, stream.num_classes, stream.image_shape) == ("imagenet", 2, (3, 32, 32))
    assert load_data("imagenet", root).image_shape == (3, 224, 224)
    assert stream.train_labels.tolist() == [0] * 6 + [1] * 6
    assert stream.test_labels.tolist() == [0, 0, 1, 1]
    assert stream.location == str(root / "imagenet")
    assert "12 training and 4 test images, 3×224×224, 2 classes" in check_data("imagenet", root)


@pytest.mark.parametrize(("size", "shorter_side"), [(224, 256), (32, 37)])
def test_test_images_are_resized_cropped_and_normalised(root, stream, size, shorter_side):
    (batch,) = load_data("imagenet", root, image_size=size).test_batches()
    image = Image.open(root / "imagenet" / "val" / "n02" / "0.JPEG")
    truth = TF.to_tensor(TF.center_crop(TF.resize(image, shorter_side), size))
    truth = TF.normalize(truth, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(batch.inputs[2], truth)
    assert batch.labels.tolist() == [0, 0, 1, 1]
    assert [len(labels) for _, labels in stream.test_batches(3)] == [3, 1]


def test_an_epoch_is_the_same_for_any_number_of_workers(stream):
    before = torch.get_rng_state()
    epochs = []
    for workers in (0, 1, 2):
        part = replace(stream, workers=workers)
        epochs.append(list(part.epoch(5, generator())))
    assert torch.equal(torch.get_rng_state(), before)
    for other in epochs[1:]:
        for (x, y), (x_other, y_other) in zip(epochs[0], other, strict=True):
            assert torch.equal(x, x_other)
            assert torch.equal(y, y_other)
    assert [len(y) for _, y in epochs[0]] == [5, 5, 2]
    assert torch.cat([y for _, y in epochs[0]]).bincount().tolist() == [6, 6]
    again, other = (next(stream.epoch(12, generator(seed))) for seed in (0, 1))
    assert torch.equal(again.inputs, torch.cat([x for x, _ in epochs[0]]))
    assert not torch.equal(again.inputs, other.inputs)


def test_a_daemonic_process_reads_alone(root):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=load_data("imagenet", root, 32).scoring_batch, daemon=True, args=(2,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_augmentation_differs_by_image_and_epoch_and_can_be_off(stream):
    draws = generator()
    first, second = next(stream.epoch(12, draws)), next(stream.epoch(12, draws))
    brightness = first.inputs.mean((1, 2, 3))
    assert (brightness[first.labels == 1].min() > brightness[first.labels == 0].max()).item()  # labels fit images
    assert not torch.equal(first.inputs.sum(0), second.inputs.sum(0))
    plain = [next(stream.epoch(12, generator(seed), augment=False)) for seed in (0, 1)]
    torch.testing.assert_close(plain[0].inputs.sum(0), plain[1].inputs.sum(0))


def test_scoring_batches_and_splits_are_those_of_other_data_sets(stream):
    batch = stream.scoring_batch(3, seed=1)
    assert batch.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(stream.scoring_batch(2, seed=1).inputs, batch.inputs[:4])
    with pytest.raises(ValueError, match="samples_per_class=7 must be 1 to 6"):
        stream.scoring_batch(7)
    half, (files, labels) = stream.split(0.5)
    assert half.train_labels.bincount().tolist() == [3, 3]
    assert labels.bincount().tolist() == [3, 3]
    assert sorted([*half.train_images, *files]) == sorted(stream.train_images)
    assert half.fingerprint == stream.fingerprint
    whole, (none, _) = stream.split(1.0)
    assert (len(whole.train_images), len(none)) == (12, 0)


def test_a_single_last_image_is_dropped(stream):
    assert [len(y) for _, y in stream.epoch(11, generator())] == [11]
    with pytest.raises(ValueError, match="batch_size=0: it must be at least 1"):
        stream.epoch(0, generator())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_is_one_sentence(root, tmp_path, workers):
    shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    (broken := next((tmp_path / "imagenet" / "train").rglob("*.*"))).write_bytes(b"none")
    data = replace(load_data("imagenet", tmp_path), workers=workers)
    with pytest.raises(ValueError, match=rf"^{broken} is not a readable image[^\n]*$"):
        list(data.epoch(4, generator()))


def test_the_fingerprint_tells_names_and_sizes(root, tmp_path):
    def fingerprint():
        return load_data("imagenet", tmp_path).fingerprint

    copy = shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    first = fingerprint()
    assert first == load_data("imagenet", root).fingerprint
    image = copy / "train" / "n01" / "0.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    changed = fingerprint()
    image.rename(image.with_name("9.JPEG"))
    assert len({first, changed, fingerprint()}) == 3


def test_folders_that_are_not_imagenet(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagenet cannot be downloaded: put train/ and val/ .*/imagenet"):
        load_data("imagenet", tmp_path)
    shutil.copytree(root / "imagenet" / "train", tmp_path / "imagenet" / "train")
    with pytest.raises(FileNotFoundError, match="imagenet has train/ but not val/ beside it"):
        load_data("imagenet", tmp_path)
    shutil.copytree(root / "imagenet" / "val" / "n01", tmp_path / "imagenet" / "val" / "n01")
    with pytest.raises(ValueError, match="must have the same classes: one lacks n02"):
        load_data("imagenet", tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(root, tmp_path, workers):
    copy = shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    (copy / "val" / "n02" / "1.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val/n02/1\.JPEG is not a readable image"):
        list(replace(load_data("imagenet", tmp_path), workers=workers).test_batches())


@pytest.mark.filterwarnings("ignore::pai_lib.TiedScoresWarning")  # so narrow a network is dead in places
def test_a_whole_run_on_imagenets_layout(root, monkeypatch):
    monkeypatch.setenv("PAI_DATA", str(root))
    spec = RunSpec(
        dataset="imagenet", image_size=32, model="resnet50_imagenet", width=2, criterion="fts", sparsity=0.5,
        samples_per_class=2, warmup=2, epochs=2, batch_size=6, schedule="cosine", lr_warmup=1, train_fraction=0.5,
    )  # fmt: skip
    first, again = (run(spec, device="cpu", progress=False) for _ in range(2))
    assert first.failure is None
    assert first.data == {
        "fingerprint": load_data("imagenet", root).fingerprint, "train": 6, "test": 4,
    }  # fmt: skip
    assert len(first.result["curves"]["loss"]) == 2
    assert first.result["curves"] == again.result["curves"]
    assert first.result["test_accuracy"] == again.result["test_accuracy"]
