"""The page "The records" in a browser, over file:// as a reader without a server opens it."""

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest

from pai_lib import CRITERIA
from pai_lib.experiments.records import Store

from .small_book import build

pytestmark = pytest.mark.browser
POINT = '#records-plot [data-point="{}"]'


@pytest.fixture(scope="module")
def frame(built):
    return Store(built.parents[3] / "results").frame()


@pytest.fixture
def page(visit, built):
    return visit(built)


def text(page, name):
    return page.locator(f"#records-{name}").inner_text()


def drawn(page):
    """Return the points of the figure, as ``criterion sparsity``."""
    return page.eval_on_selector_all("#records-plot [data-point]", "all => all.map(e => e.dataset.point)")


def column(page, name):
    """Return a column of the table's page, by its heading."""
    headings = page.locator("#records-runs thead th").all_inner_texts()
    place = headings.index(name) + 1
    return page.locator(f"#records-runs tbody td:nth-child({place})").all_inner_texts()


# --- the page


def test_nothing_from_elsewhere_and_no_error_of_its_own(visit, built):
    page, other = visit(built), visit(built.with_name("rerun.html"))
    for each in (page, other):
        each.wait_for_load_state("load")
    page.locator("#records-runs tbody tr").first.wait_for()
    assert set(page.said) <= set(other.said)  # the theme complains on every page
    assert all(url.startswith("file://") for url in page.asked)
    assert any("records-data/data.js" in url for url in page.asked)
    assert not any("/records/" in url or "s-data" in url.replace("masks-", "records-") for url in other.asked)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_fits_and_is_accessible(visit, built, width, mode):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(built, width, mode)
    page.locator("#records-search").fill("synflow 0.99 seed=4")  # few rows, a failed one: axe looks at every cell
    page.locator("details summary").click()
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#records-plot svg").bounding_box()["width"] <= width
    found = Axe().run(page, context=".bd-article", options={"preload": False}).response
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []
    assert len(found["passes"]) > 10


def test_without_javascript_it_says_where_the_records_are(visit, built):
    page = visit(built, java_script_enabled=False)
    assert "need JavaScript" in text(page, "missing")
    assert not page.locator("#records-figure, #records-table").first.is_visible()
    link = page.locator("#records-missing a").get_attribute("href")
    assert (built.parent / link).read_bytes().count(b"\n") > 1000


def test_with_it_the_sentence_is_gone(page):
    assert not page.locator("#records-missing").is_visible()


def test_without_records_it_says_so(visit, tmp_path):
    page = visit(build(tmp_path, seeds=0))
    assert "There is no record of a pruned network yet" in text(page, "nothing")
    assert not page.locator("#records-plot").is_visible()
    assert text(page, "count") == "0 of 0 runs, 0 of them failed."
    assert page.locator("#records-next").is_disabled()


# --- the figure


def test_other_choices_draw_other_points(page, frame):
    assert len(drawn(page)) == 1 + 5 * 6  # of so many criteria a few
    page.locator("#records-all").click()
    everything = drawn(page)
    assert len(everything) == 1 + 5 * len(CRITERIA)
    assert "dense 0" in everything
    page.select_option("#records-model", "vgg19")
    assert sorted(drawn(page)) == ["fts 0.9", "fts 0.98", "snip 0.9", "snip 0.98"]
    assert "There is no dense network with these settings" in text(page, "drawn")
    assert "VGG-19 on CIFAR-10; width 16, 10,000 training images, 12 epochs" in text(page, "runs-drawn")
    page.select_option("#records-dataset", "cifar100")
    assert "ResNet-18 on CIFAR-100; its own width" in text(page, "runs-drawn")
    page.select_option("#records-dataset", "cifar10")
    page.select_option("#records-model", "resnet18")
    page.get_by_label("with (98 updates)").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "0"  # the focus stays on what was chosen
    assert "dense 0" not in drawn(page)
    assert "warm-up: without" in text(page, "runs-drawn")
    options = page.locator("#records-protocol option").all_inner_texts()
    assert len(options) == len(set(options)) == 3
    page.select_option("#records-protocol", next(option for option in options if "learning rate 0.03" in option))
    assert len(drawn(page)) == 4


def test_criteria_are_chosen(page):
    page.select_option("#records-model", "vgg19")
    assert len(drawn(page)) == 4  # of few criteria all
    page.select_option("#records-model", "resnet18")
    assert len(drawn(page)) == 31
    assert "criteria" not in page.url
    page.locator("#records-none").click()
    assert drawn(page) == []
    assert text(page, "drawn").startswith("0 curves of 0 runs.")
    page.get_by_label("SNIP", exact=True).check()
    page.get_by_label("FTS", exact=True).check()
    assert len(drawn(page)) == 10
    assert text(page, "drawn").startswith("2 curves of 50 runs.")
    page.get_by_label("SNIP", exact=True).uncheck()
    assert {point.split()[0] for point in drawn(page)} == {"fts"}
    page.locator("#records-all").click()
    assert len(drawn(page)) > 80
    page.reload()
    assert len(drawn(page)) > 80


def in_words(frame, label, criterion, sparsity):
    """Return what the page should say of a point, from pandas."""
    rows = frame[(frame["criterion"] == criterion) & (frame["sparsity"] == sparsity)]
    rows = rows.query(
        "model == 'resnet18' and dataset == 'cifar10' and warmup == 98 and lr == 0.1 and when == 'init'"
    )
    rows = rows.query("control == 'none' and scope == 'global' and variant == 'cited' and temperature.isna()")
    found = 100 * rows[rows["lr_drops"] == (0.5, 0.75)]["test_accuracy"].dropna()
    return said(label, sparsity, found.mean(), found.std(), len(found))


def said(label, sparsity, mean, deviation, n):
    return f"{label}, sparsity {sparsity:g}: mean {mean:.2f} %, standard deviation {deviation:.2f}, n = {n} "


def test_a_point_tells_its_numbers_to_pointer_and_keys(page, frame):
    page.locator("#records-none").click()
    for label in ("SNIP", "SynFlow", "Dense"):
        page.get_by_label(label, exact=True).check()
    assert "Tap or point at a mark" in text(page, "point")
    mark = page.locator(POINT.format("snip 0.95")).locator("path").last
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert text(page, "point") == in_words(frame, "SNIP", "snip", 0.95) + "(seeds 0, 1, 2, 3, 4)"
    page.locator("#records-criteria input").last.focus()
    page.keyboard.press("Tab")  # into the figure: one stop, at the point told last
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == text(page, "point")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused).startswith(in_words(frame, "SNIP", "snip", 0.98))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # there is no other
    assert page.evaluate(focused).startswith(in_words(frame, "SNIP", "snip", 0.99))
    while "SynFlow" not in page.evaluate(focused):
        before = page.evaluate(focused)
        page.keyboard.press("ArrowUp" if frame_mean(frame, "synflow") > frame_mean(frame, "snip") else "ArrowDown")
        assert page.evaluate(focused) != before
    assert (
        page.evaluate(focused) == in_words(frame, "SynFlow", "synflow", 0.99) + "(seeds 0, 1)"
    )  # the others failed
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "records-svg"


def frame_mean(frame, criterion):
    plain = frame.query("model == 'resnet18' and dataset == 'cifar10' and warmup == 98 and lr == 0.1")
    return plain[(plain["criterion"] == criterion) & (plain["sparsity"] == 0.99)]["test_accuracy"].mean()


def test_downloads_hold_what_is_shown(page, frame):
    page.locator("#records-none").click()
    page.get_by_label("SNIP", exact=True).check()
    page.get_by_label("Dense", exact=True).check()
    with page.expect_download() as begun:
        page.locator("#records-shown").click()
    assert begun.value.suggested_filename == "resnet18-cifar10-warmup-98.csv"
    rows = pd.read_csv(io.BytesIO(Path(begun.value.path()).read_bytes()))
    assert list(rows["criterion"]) == ["dense"] + 5 * ["snip"]
    for row in rows.iloc[1:].itertuples():
        numbers = said("SNIP", row.sparsity, 100 * row.mean, 100 * row.sd, row.n)
        assert numbers == in_words(frame, "SNIP", "snip", row.sparsity)
    assert set(rows["seeds"]) == {"0 1 2 3 4"}
    with page.expect_download() as begun:
        page.locator("#records-svg").click()
    figure = ElementTree.fromstring(Path(begun.value.path()).read_text("utf-8"))
    assert figure.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join(figure.itertext())
    assert "SNIP (n = 5)" in words
    assert "learning rate 0.1" in words
    assert "FTS" not in words


def test_criteria_look_as_in_the_other_figures(page):
    from matplotlib.colors import to_hex

    from pai_lib.analysis.figures import criterion_styles

    page.locator("#records-all").click()
    for key, style in criterion_styles().items():
        mark = page.locator(f'#records-plot [data-point^="{key} "]').first
        shown = mark.locator("line" if key == "dense" else "path").first.get_attribute("stroke")
        shown = shown if key == "dense" else to_hex(shown)
        assert shown == ("currentColor" if key == "dense" else to_hex(style["color"])), key


def test_in_the_dark_criteria_look_as_in_the_other_figures_too(visit, built):
    from pai_lib.analysis import dark
    from pai_lib.analysis.figures import criterion_styles

    page = visit(built, 1280, "dark")
    page.locator("#records-all").click()
    for key, style in criterion_styles().items():
        swatch = page.locator(f"#records-criteria label:has([value='{key}']) line")
        wanted = (dark.INKS | dark.HUES).get(style["color"], style["color"])
        rgb = tuple(int(wanted[i : i + 2], 16) for i in (1, 3, 5))
        assert swatch.evaluate("e => getComputedStyle(e).stroke") == f"rgb{rgb}", key
        for part in page.locator(f'#records-plot [data-point^="{key} "] path[fill^="#"]').all():
            assert part.evaluate("e => getComputedStyle(e).fill") == f"rgb{rgb}", key


# --- the table


def test_a_phone_shows_each_run_s_accuracy(visit, built):
    page = visit(built, 375)
    page.locator("#records-search").fill("snip")
    box = page.locator("#records-runs tbody td:nth-child(2)").first.bounding_box()
    assert box["x"] + box["width"] <= 375
    heads = [said.strip() for said in page.locator("#records-runs thead th").all_inner_texts()]
    assert heads[:4] == ["record", "accuracy (%)", "criterion", "sparsity"]
    assert max(map(heads.index, ("data set", "model", "width"))) < min(map(heads.index, ("control", "scope")))
    assert max(map(heads.index, ("control", "scope"))) < heads.index("learning rate")


def test_sorting_by_click_and_by_keys(page, frame):
    head = page.locator("#records-runs th", has_text="accuracy")
    assert head.get_attribute("aria-sort") is None
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    lowest = frame["test_accuracy"].dropna().sort_values()
    assert column(page, "accuracy (%)") == [f"{100 * value:.2f}" for value in lowest[:50]]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "accuracy (%)") == [f"{100 * value:.2f}" for value in lowest[::-1][:50]]
    page.locator("#records-runs th button", has_text="seed").click()
    assert page.locator("[aria-sort]").count() == 1
    assert set(column(page, "seed")) == {"0"}


def test_searching_and_paging(page, frame):
    count = len(frame)
    failed = int(frame["failure"].notna().sum())
    assert failed > 0
    assert text(page, "count") == f"{count} of {count} runs, {failed} of them failed; rows 1 to 50 are below."
    page.locator("#records-next").click()
    assert "; rows 51 to 100 are below." in text(page, "count")
    page.locator("#records-search").fill("SNIP seed=3 0.98")
    wanted = frame.query("criterion == 'snip' and seed == 3 and sparsity == 0.98")
    assert text(page, "count").startswith(f"{len(wanted)} of {count} runs, 0 of them failed; rows 1 to ")
    assert sorted(column(page, "record")) == sorted(wanted["id"])
    page.locator("#records-search").fill("failed")
    assert column(page, "accuracy (%)") == failed * ["failed"]
    assert "failure The loss is nan" in text(page, "shared")  # of all of them: said once
    page.locator("#records-search").fill("control=shuffle")
    assert "control shuffle" in text(page, "shared")
    page.locator("#records-search").fill("nothing has this")
    assert text(page, "count") == f"0 of {count} runs, 0 of them failed."


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ("accuracy>47.5", "test_accuracy > 0.475"),
        ("accuracy<=45 sparsity>=0.98", "test_accuracy <= 0.45 and sparsity >= 0.98"),
        ("Seed>3", "seed > 3"),
        ("seed!=0 model=vgg19", "seed != 0 and model == 'vgg19'"),
        ("control!=none", "control != 'none'"),
        ("sparsity=0.980 warm-up<98", "sparsity == 0.98 and warmup < 98"),
        ("learning-rate<0.1", "lr < 0.1"),
        ("epochs>12", "epochs > 12"),
    ],
)
def test_searching_by_comparison(page, frame, words, query):
    page.locator("#records-search").fill(words)
    assert text(page, "count").startswith(f"{len(frame.query(query))} of {len(frame)} runs")
    assert "No column" not in text(page, "count")


def test_a_comparison_with_no_column_says_so(page, frame):
    page.locator("#records-search").fill("acuracy>60 seed=1")
    assert text(page, "count").startswith(f"0 of {len(frame)} runs")
    assert text(page, "count").endswith("No column is called as in acuracy>60.")


def test_columns_that_tell_rows_apart_are_shown_and_the_others_said(page):
    headings = page.locator("#records-runs thead th")
    page.locator("#records-search").fill("snip 0.9 seed=0 warm-up=98 model=resnet18 dataset=cifar10")
    shown = headings.all_inner_texts()
    assert {"record", "accuracy (%)", "control", "learning rate", "scope", "temperature", "lr drops"} <= set(shown)
    assert not {"model", "data set", "epochs", "device"} & set(shown)
    said = text(page, "shared")
    assert said.startswith("Same in every row: ")
    for words in (
        "data set cifar10",
        "model resnet18",
        "epochs 12",
        "device CPU (AMD EPYC)",
        "pruning rounds (each criterion's own)",
    ):
        assert words in said
    page.get_by_label("All columns").check()
    assert headings.count() > len(shown)
    assert text(page, "shared") == ""


def test_a_view_has_an_address(visit, page, built):
    page.locator("#records-none").click()
    page.get_by_label("SNIP", exact=True).check()
    page.get_by_label("FTS", exact=True).check()
    page.get_by_label("without").check()
    page.locator("#records-search").fill("seed=3 accuracy>40")
    page.locator("#records-runs th", has_text="accuracy").locator("button").click()
    there = visit(built)
    there.goto(page.url)
    there.reload()
    for name in ("drawn", "runs-drawn", "count", "shared"):
        assert text(there, name) == text(page, name)
    assert drawn(there) == drawn(page)
    assert column(there, "record") == column(page, "record")
    page.evaluate("location.hash = 'dataset=cifar10&model=vgg19&search=fts'")  # as a link on the page does
    page.wait_for_function("document.getElementById('records-model').value === 'vgg19'")
    assert set(column(page, "criterion")) == {"FTS"}
    assert len(drawn(page)) == 4
    page.evaluate("location.hash = 'dataset=nothing&criteria=nothing&sort=nothing'")  # no error
    page.wait_for_function("document.getElementById('records-search').value === ''")
    assert page.said == []


def test_the_table_can_follow_the_figure(page, frame):
    page.locator("#records-none").click()
    page.get_by_label("FTS", exact=True).check()
    page.locator("#records-follow").check()
    assert text(page, "count").startswith(f"25 of {len(frame)} runs, 0 of them failed; rows 1 to 25")
    assert set(column(page, "criterion")) == {"FTS"}
    page.get_by_label("without").check()
    assert "warm-up 0;" in text(page, "shared")


def test_a_record_is_a_click_away(page, built):
    link = page.locator("#records-runs tbody a").first
    name, path = link.inner_text(), (built.parent / link.get_attribute("href")).resolve()
    source = built.parents[3] / "results" / path.parent.parent.name / path.parent.name / f"{name}.json"
    assert path.read_bytes() == source.read_bytes()
    link.click()
    assert name in page.locator("body").inner_text()
