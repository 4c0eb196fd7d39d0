"""The page of masks shows what its records hold; terms and dark figures are made as they should be."""

import base64
import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_records import LAYERS, PLAIN, masks_of, record_of, write_masks, write_records

from pai_lib import CRITERIA, MaskSpec
from pai_lib.experiments.records import MaskRecord, Store

figures = pytest.importorskip("pai_lib.analysis.figures")
pytest.importorskip("sphinx")
REPO = Path(__file__).parents[2]


def extension(name):
    """Import an extension as Sphinx does: from its folder."""
    sys.path.insert(0, str(REPO / "book" / "_ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


masks_page, terms, light_pages = map(extension, ("masks_page", "terms", "light_pages"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("some") / "results"
    write_records(root, seeds=2)
    write_masks(root)
    return Store(root)


@pytest.fixture(scope="module")
def data(store):
    return json.loads(json.dumps(masks_page.page_data(store.root), allow_nan=False))


def test_sums_over_seeds_are_those_of_the_records(store, data):
    index, networks = data
    assert index["networks"][0]["key"] == "cifar10-resnet18-16"  # most masks first
    assert set(networks) == {"cifar10-resnet18-16", "cifar10-vgg19", "cifar100-resnet18"}
    network = networks["cifar10-resnet18-16"]
    assert dict(zip(network["layers"], network["sizes"], strict=True)) == LAYERS
    assert len(network["masks"]) == 2 * 3 * 3
    records = [record for record in store.mask_records() if record.spec.width == 16]
    for mask in network["masks"]:
        kept = [
            found["kept"]
            for record in records
            if record.spec.warmup == mask["warmup"]
            for found in record.result["masks"]
            if (found["criterion"], found["sparsity"]) == (mask["criterion"], mask["sparsity"])
        ]
        assert mask["seeds"] == [0, 1, 2]
        assert mask["kept"] == np.sum(kept, axis=0).tolist()
        empty = (np.array(kept) == 0).sum(axis=0)
        assert mask["empty"] == {str(layer): int(count) for layer, count in enumerate(empty) if count}
        assert mask["cut"] == (3 if mask["criterion"] == "fisher_diag" and mask["sparsity"] >= 0.98 else 0)
        assert "scored" not in mask


def test_what_was_scored_in_another_way_is_apart_and_says_so(data):
    (other,) = [mask for mask in data[1]["cifar10-vgg19"]["masks"] if "scored" in mask]
    assert (other["criterion"], other["scored"], other["seeds"]) == ("hutchinson_pruning", "group size 5", [0])


def test_accuracies_are_of_the_same_network(store, data):
    found = data[1]["cifar10-resnet18-16"]["accuracies"]
    assert {(run["dataset"], run["model"]) for run in found} == {("cifar10", "resnet18")}
    (run,) = [
        run
        for run in found
        if (run["criterion"], run["sparsity"], run["warmup"]) == ("snip", 0.99, 98) and run["n"] == 2
    ]
    frame = store.frame().query(
        "criterion == 'snip' and sparsity == 0.99 and warmup == 98 and model == 'resnet18'"
    )
    assert run["mean"] == pytest.approx(frame.query("width == 16")["test_accuracy"].mean())
    assert data[1]["cifar10-vgg19"]["accuracies"] == []  # those runs have a width of 16, these masks their own
    assert len(data[1]["cifar100-resnet18"]["accuracies"]) > 0


def test_other_data_make_another_network(tmp_path):
    store = Store(tmp_path / "results")
    spec = MaskSpec(width=16, criteria=("snip",), sparsities=(0.9,))
    store.save(masks_of(spec))
    other = masks_of(MaskSpec(width=16, criteria=("snip",), sparsities=(0.9,), seed=1))
    store.save(MaskRecord(other.spec, other.result, None, {"fingerprint": "9f" * 32}, other.provenance))
    _, networks = masks_page.page_data(store.root)
    assert set(networks) == {"cifar10-resnet18-16", "cifar10-resnet18-16-2"}
    assert all(mask["seeds"] in ([0], [1]) for network in networks.values() for mask in network["masks"])


def test_failed_work_and_files_that_cannot_be_read_leave_a_page(tmp_path):
    store = Store(tmp_path / "results")
    spec = MaskSpec(width=16, criteria=("snip",))
    store.save(MaskRecord(spec, {}, {"reason": "no memory"}, {"fingerprint": "8e" * 32}, {"device": "CPU"}))
    store.save(record_of(PLAIN))
    (store.root / "masks" / "cifar10" / "resnet18" / "bad.json").write_text("{")
    index, networks = masks_page.page_data(store.root)
    assert (networks, index["networks"], index["failed"]) == ({}, [], 1)
    (sentence,) = index["unreadable"]
    assert sentence.startswith("masks/cifar10/resnet18/bad.json is not a readable record")
    assert masks_page.page_data(tmp_path / "nothing")[1] == {}


def test_files_beside_the_page(tmp_path, store):
    source, built = tmp_path / "source", tmp_path / "built"
    (source / "book").mkdir(parents=True)
    (source / "results").symlink_to(store.root)
    app = SimpleNamespace(srcdir=str(source), outdir=str(built), builder=SimpleNamespace(format="html"))
    masks_page.write_data(app)
    assert not built.exists()  # a book without this page
    (source / "book" / "masks.md").touch()
    masks_page.write_data(app)
    folder = built / "_static" / "masks-data"
    networks = json.loads((folder / "masks.json").read_text())
    assert {f"{key}.js" for key in networks} | {"index.js", "scales.js", "masks.json"} == {
        path.name for path in folder.iterdir()
    }
    start, _, content = (folder / "cifar10-vgg19.js").read_text("utf-8").partition(" = ")
    assert start == 'window.MASKS.networks_by_key["cifar10-vgg19"]'
    assert json.loads(content.removesuffix(";\n")) == networks["cifar10-vgg19"]
    assert (folder / "scales.js").read_text() == "window.SCALES = null;\n"


def test_what_is_committed_is_small():
    _, networks = masks_page.page_data(REPO / "results")
    assert all(len(json.dumps(network)) < 300_000 for network in networks.values())
    assert (REPO / "results" / masks_page.SCALES).stat().st_size < 300_000


# --- terms


@pytest.mark.parametrize("key", CRITERIA)
def test_formulas_are_in_letters_and_costs_in_words(key):
    (term,) = [term for term in terms.terms() if term["label"] == CRITERIA[key].label]
    assert "\\" not in term["formula"]
    assert not set("{}^_") & set(term["formula"])
    assert "gradient" in term["cost"]


def test_costs_are_those_that_the_chapter_counts():
    """Against the chapter's stored table, "by the formulas": ten probes and ten classes."""
    notebook = json.loads((REPO / "notebooks" / "cost.ipynb").read_text("utf-8"))
    text = next(
        "".join(out["data"]["text/plain"])
        for cell in notebook["cells"]
        for out in cell.get("outputs", [])
        if "by the formulas" in "".join(out.get("data", {}).get("text/plain", ""))
    )
    for term in terms.terms():
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{term['label']} ")]
        counted = line.split()[-3]
        if "×" in line:  # rounds of one input
            assert term["cost"] == "100 gradients of one input, and no data"
        else:
            number = float(counted)
            assert term["cost"].startswith(f"{number:.2g} gradient" if number else "no gradient")


def test_an_unknown_command_does_not_stop_the_book():
    assert terms.in_letters(r"(\theta\, g)^2 \cdot a") == "(θ\u2009g)²cdota"


# --- figures on dark pages


def test_ink_ground_and_weak_colours_are_exchanged_and_the_others_stay():
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    from pai_lib.analysis.dark import GROUND, HUES, INKS, darken

    figures.use_style()
    figure, axes = plt.subplots()
    (line,) = axes.plot([0, 1], color="#D55E00")
    (dense,) = axes.plot([1, 0], color="black")
    bars = axes.bar([0], [1], color="#333333")
    hollow = axes.scatter([0], [0], facecolor="white", edgecolor="#0072B2")
    dots = axes.scatter([0, 1], [0, 1], color=["#009E73", "#333333"])
    cell = axes.text(0, 0, "on a dark cell", color="white")
    figure.canvas.draw()
    darken(figure)
    assert to_hex(line.get_color()).upper() == "#D55E00"
    assert to_hex(dense.get_color()) == INKS["black"]
    assert to_hex(bars[0].get_facecolor()) == "#333333"
    assert to_hex(hollow.get_facecolor()[0]) == GROUND
    assert to_hex(hollow.get_edgecolor()[0]).upper() == HUES["#0072B2"]
    assert to_hex(dots.get_facecolor()[0]).upper() == "#009E73"
    assert to_hex(dots.get_facecolor()[1]) == INKS["#333333"]
    assert cell.get_color() == "white"
    assert {to_hex(label.get_color()) for label in axes.get_xticklabels()} == {INKS["#333333"]}
    assert to_hex(axes.spines["left"].get_edgecolor()) == INKS["#333333"]
    plt.close(figure)


def test_a_page_finds_the_dark_form_of_its_figures(tmp_path, monkeypatch):
    import hashlib

    import matplotlib.pyplot as plt
    from PIL import Image

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: shown.append((data, metadata)))
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    figures.show(figure, "A line.")
    ((data, metadata),) = shown
    outputs = [{"output_type": "display_data", "data": data, "metadata": metadata}]
    path = tmp_path / "page.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]}))
    ((name, dark),) = light_pages.dark_pictures(path).items()
    assert name == hashlib.sha256(base64.b64decode(data["image/png"])).hexdigest()
    light = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("L")
    assert light.getpixel((2, 2)) == 255
    assert Image.open(io.BytesIO(dark)).convert("L").getpixel((2, 2)) < 30
    assert light_pages.dark_pictures(tmp_path / "page.md") == {}
