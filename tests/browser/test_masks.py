"""The page "The masks" in a browser, over file:// as a reader without a server opens it."""

import json
import re
import shutil

import numpy as np
import pytest
from synthetic_records import LAYERS

from pai_lib.experiments.records import Store

from .conftest import ROOT
from .small_book import REPO

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def masks(built):
    return built.with_name("masks.html")


@pytest.fixture
def page(visit, masks):
    return ready(visit(masks))


def ready(page):
    page.locator("#masks-plot [data-point]").first.wait_for()
    return page


def text(page, name):
    return page.locator(f"#masks-{name}").inner_text()


def choose(page, **choices):
    for name, value in choices.items():
        if name == "sparsity":
            page.locator("#masks-sparsity").fill(str(value))  # its place
        elif name == "warmup":
            page.locator(f"#masks-warmup input[value='{value}']").check()
        else:
            page.select_option(f"#masks-{name}", value)
    page.wait_for_timeout(100)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_fits_and_is_accessible(visit, masks, width, mode):
    from axe_playwright_python.sync_playwright import Axe

    page = ready(visit(masks, width, mode))
    choose(page, criterion="fisher_diag", second="snip", sparsity=2)
    page.locator("#masks-page details summary").click()
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for plot in ("masks-plot", "lottery-plot"):
        assert page.locator(f"#{plot} svg").bounding_box()["width"] <= width
    found = Axe().run(page, context=".bd-article", options={"preload": False}).response
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []
    smallest = page.eval_on_selector_all(
        "#masks-plot text", "all => Math.min(...all.map(e => e.getBBox().height))"
    )
    assert smallest >= 9
    assert page.said == []
    assert all(url.startswith("file://") for url in page.asked)


@pytest.mark.parametrize("name", ["masks", "records"])
def test_the_figure_begins_on_the_first_screen(visit, masks, name):
    plot = visit(masks.with_name(f"{name}.html")).locator(f"#{name}-plot svg")
    assert plot.bounding_box()["y"] < 760


def test_the_profile_is_that_of_the_records(page, masks):
    """Against the records themselves: means over seeds, and what is empty or cut."""
    choose(page, criterion="snip", warmup=0, sparsity=1)
    records = Store(masks.parents[3] / "results").mask_records()
    records = [r for r in records if (r.spec.dataset, r.spec.model, r.spec.warmup) == ("cifar10", "resnet18", 0)]
    assert len(records) == 3
    kept = [
        mask["kept"]
        for record in records
        for mask in record.result["masks"]
        if (mask["criterion"], mask["sparsity"]) == ("snip", 0.98)
    ]
    parts = np.mean(kept, axis=0) / list(LAYERS.values())
    said = page.eval_on_selector_all("#masks-plot [data-point]", "all => all.map(e => e.ariaLabel)")
    assert len(said) == len(LAYERS)
    for layer, (name, size) in enumerate(LAYERS.items()):
        words = said[layer]
        assert words.startswith(f"SNIP, layer {layer + 1} of 4, {name}: ")
        assert f" of {size:,} weights kept, n = 3 seeds" in words
        assert float(re.search(r": ([\d.]+) %", words)[1]) == pytest.approx(100 * parts[layer], rel=5e-3)
    assert "empty in 1 of 3 seeds" in said[-1]
    assert "one layer is empty, layer 4 (fc) in 1 of 3 seeds. The mask is not cut." in text(page, "said")
    assert page.locator("#masks-numbers tbody th").all_text_contents() == list(LAYERS)


def test_empty_layers_and_cut_masks_are_marked(page):
    choose(page, criterion="fisher_diag", warmup=98, sparsity=2)
    assert "3 layers are empty" in text(page, "said")
    assert "The mask is cut in 3 of 3 seeds: no path leads from input to output." in text(page, "said")
    assert "cut in 3 of 3 seeds" in text(page, "legend")
    crosses = page.locator("#masks-plot [data-point] > path[stroke-width='2.4']")
    assert crosses.count() == 3
    label = page.locator("#masks-plot svg").get_attribute("aria-label")
    assert "ResNet-18, width 16, CIFAR-10 at sparsity 0.99" in label
    assert "FD, n = 3 seeds: 3 layers are empty" in label
    choose(page, sparsity=0)
    assert crosses.count() == 0
    assert "no layer is empty" in page.locator("#masks-plot svg").get_attribute("aria-label")


def test_accuracies_are_named_or_said_to_be_absent(page, visit, masks):
    choose(page, criterion="snip", second="hutchinson_pruning", warmup=98, sparsity=1)
    frame = Store(masks.parents[3] / "results").frame()
    same = frame.query(
        "dataset == 'cifar10' and model == 'resnet18' and width == 16 and warmup == 98 and criterion == 'snip' "
        "and sparsity == 0.98 and control == 'none' and lr == 0.1 and when == 'init'"
    )
    same = same[(same["lr_drops"] == (0.5, 0.75)) & (same["scope"] == "global") & same["temperature"].isna()]
    assert len(same) == 5
    said = text(page, "accuracy")
    values = 100 * same["test_accuracy"]
    assert f"SNIP, test accuracy after training: {values.mean():.2f} ± {values.std():.2f} % (mean, n = 5; " in said
    assert said.count("n = 5") == 4  # of SNIP in three protocols, of HP in one
    assert "learning rate 0.03" in said  # another protocol is another number
    link = page.locator("#masks-accuracy a").first
    link.click()
    page.wait_for_function("document.getElementById('records-model')?.value === 'resnet18'")
    assert "learning rate 0.1" in page.locator("#records-runs-drawn").inner_text()
    assert page.locator("#records-plot [data-point^='snip ']").count() == 5
    other = ready(visit(masks.parent / "masks.html"))
    choose(other, network="cifar100-resnet18", criterion="hutchinson_pruning")
    assert "no accuracy is recorded for this network at this sparsity and warm-up" in text(other, "accuracy")


def test_a_criterion_scored_in_another_way_is_apart(page):
    choose(page, network="cifar10-vgg19")
    page.wait_for_function("document.getElementById('masks-scored').innerText.includes('VGG-19')")
    offered = page.locator("#masks-criterion option").all_inner_texts()
    assert offered == ["SNIP", "FD", "HP", "HP (group size 5)"]
    choose(page, second="hutchinson_pruning (group size 5)", sparsity=1)
    assert "No mask of HP (group size 5) is recorded here." in text(page, "said")
    choose(page, sparsity=0)
    assert "HP (group size 5), n = 1 seed" in text(page, "said")


def test_keys_lead_along_a_profile_and_to_the_other(page):
    choose(page, criterion="snip", second="fisher_diag", sparsity=0)
    focused = "document.activeElement.ariaLabel"
    page.locator("#masks-sparsity").focus()
    page.keyboard.press("Tab")
    assert page.evaluate(focused).startswith("SNIP, layer 1 of 4")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused).startswith("SNIP, layer 2 of 4")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused).startswith("FD, layer 2 of 4")
    assert text(page, "point") == page.evaluate(focused)
    page.locator("#masks-sparsity").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#masks-sparsity").get_attribute("aria-valuetext") == "0.98"
    assert "at sparsity 0.98" in page.locator("#masks-plot svg").get_attribute("aria-label")


def test_a_tap_reads_a_mark(visit, masks):
    page = ready(visit(masks, 375, has_touch=True))
    mark = page.locator("#masks-plot [data-point]").nth(2)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert text(page, "point").startswith("HP, layer 3 of 4")


def test_a_view_has_an_address(page, visit, masks):
    choose(page, criterion="snip", second="fisher_diag", warmup=0, sparsity=2)
    page.locator("#lottery-noise").fill("50")
    other = visit(masks)
    other.goto(page.url)
    other.reload()
    ready(other)
    for name in ("said", "accuracy", "scored", "legend"):
        assert text(other, name) == text(page, name)
    assert other.locator("#lottery-said").inner_text() == page.locator("#lottery-said").inner_text()
    short = visit(masks)
    short.goto(f"{masks.as_uri()}#network=nothing&criterion=fisher_diag&sparsity=0.985")
    short.reload()
    ready(short)
    assert "FD" in text(short, "legend")  # what is unknown is what it would have been, a number the nearest
    assert text(short, "sparsity-said") == "0.98"
    assert short.said == []


def test_without_javascript_it_says_where_the_masks_are(visit, masks):
    page = visit(masks, java_script_enabled=False)
    assert "needs JavaScript" in text(page, "missing")
    assert not page.locator("#masks-page").is_visible()
    assert not page.locator("#lottery-page").is_visible()
    link = page.locator("#masks-missing a").get_attribute("href")
    networks = json.loads((masks.parent / link).read_text())
    assert set(networks) == {"cifar10-resnet18-16", "cifar10-vgg19", "cifar100-resnet18"}


def test_without_masks_it_says_so(visit, masks, tmp_path):
    html = tmp_path / "html"
    shutil.copytree(masks.parents[1], html)
    index = html / "_static" / "masks-data" / "index.js"
    values = json.loads(index.read_text().partition(" = ")[2].removesuffix(";\n"))
    index.write_text(f"window.MASKS = {json.dumps({**values, 'networks': []})};\n")
    page = visit(html / "book" / "masks.html")
    assert "There is no record of masks yet" in text(page, "nothing")
    assert not page.locator("#masks-plot").is_visible()
    assert page.said == []


# --- from ranking to lottery


@pytest.mark.parametrize("criterion", ["hutchinson_pruning", "fisher_pruning"])
@pytest.mark.parametrize("beta", [0, 0.05, 0.5, 3.0])
def test_the_expected_profile_is_that_of_direct_simulation(page, criterion, beta):
    """Scores drawn from the histograms, noise added, the highest kept: the mean of many draws."""
    scales = json.loads((ROOT / "results" / "scales" / "scores.json").read_text())
    scores, width, sparsity = scales["warmups"]["98"][criterion], scales["width"], 0.98
    stream = np.random.default_rng(0)
    counts = np.array(scores["counts"])
    layer, bins = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    total = counts.sum() + sum(scores["zeros"])
    wanted, rounds = int((1 - sparsity) * total), 3
    found = np.zeros(len(counts))
    for _ in range(rounds):
        logs = scores["start"] + width * (bins + stream.random(len(bins)))
        noisy = logs + beta * stream.gumbel(size=len(logs))
        chosen = np.argpartition(noisy, -wanted)[-wanted:]
        found += np.bincount(layer[chosen], minlength=len(counts)) / rounds
    options = [scores, width, sparsity, beta]
    values = page.evaluate("([s, w, p, b]) => window.LOTTERY.expected(s, w, p, b).values", options)
    sizes = np.array(list(scales["layers"].values()))
    expected = np.array(values) * sizes
    assert expected.sum() == pytest.approx(wanted, rel=1e-3)
    deviation = np.sqrt(np.maximum(expected, 1) / rounds)
    assert np.all(np.abs(found - expected) < 5 * deviation + 0.01 * expected)


def test_exact_ranking_is_the_recorded_mask_and_the_other_end_is_uniform(page):
    """Fisher scores have no sign: at β = 0 the histograms must give the mask that ``run_masks`` recorded."""
    scales = json.loads((ROOT / "results" / "scales" / "scores.json").read_text())
    (record,) = [
        record
        for record in Store(REPO / "results").mask_records()
        if (record.spec.dataset, record.spec.model, record.spec.width) == ("cifar10", "resnet18", 16)
        and (record.spec.seed, record.spec.warmup) == (0, 98)
    ]
    assert record.result["layers"] == scales["layers"]
    expected = "([s, w, p, b]) => window.LOTTERY.expected(s, w, p, b === null ? Infinity : b).values"
    for mask in record.result["masks"]:
        if mask["criterion"] != "fisher_pruning":
            continue
        options = [scales["warmups"]["98"]["fisher_pruning"], scales["width"], mask["sparsity"], 0]
        counts = np.array(page.evaluate(expected, options)) * list(scales["layers"].values())
        assert np.all(np.abs(counts - mask["kept"]) <= 5 + 0.15 * np.array(mask["kept"]))
    uniform = page.evaluate(expected, [*options[:2], 0.98, None])
    assert uniform == pytest.approx([0.02] * len(uniform))


def test_the_slider_redraws_and_says_what_it_shows(page):
    noise, plot = page.locator("#lottery-noise"), page.locator("#lottery-plot svg")
    before = plot.get_attribute("aria-label")
    assert "β = 0, exact ranking" in before
    assert "by |HP| at" in before  # its scores have a sign
    assert page.locator("#lottery-plot [data-point]").count() == 20
    noise.focus()
    page.keyboard.press("End")
    assert noise.get_attribute("aria-valuetext") == "β = ∞, uniform"
    assert "from 2 % of layer 1 (stem.0) to 2 % of layer" in plot.get_attribute("aria-label")
    assert page.locator("#lottery-plot [data-point]").count() == 40  # beside exact ranking
    page.keyboard.press("Home")
    assert plot.get_attribute("aria-label") == before
    page.keyboard.press("ArrowRight")
    assert plot.get_attribute("aria-label") != before
