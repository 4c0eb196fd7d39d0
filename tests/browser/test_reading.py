"""What every page offers its reader: terms that say what they are, figures that enlarge, edges that show."""

import re

import pytest

from pai_lib import CRITERIA

pytestmark = pytest.mark.browser
FOUR = [(width, mode) for width in (375, 1280) for mode in ("light", "dark")]


@pytest.fixture(scope="module")
def rich(built):
    return built.with_name("rerun.html")


@pytest.fixture
def page(visit, rich):
    return visit(rich)


@pytest.mark.parametrize("scrolled", [0, 9999])
def test_the_page_s_own_entry_is_in_sight_wherever_the_sidebar_was(visit, rich, scrolled):
    page = visit(rich)
    page.set_viewport_size({"width": 1280, "height": 330})
    sidebar = page.locator("#pst-primary-sidebar")
    assert sidebar.evaluate("e => e.scrollHeight > 2 * e.clientHeight")
    sidebar.evaluate("(e, top) => { e.scrollTop = top }", scrolled)
    page.reload(wait_until="load")
    page.wait_for_function(
        """() => {
            const entry = document.querySelector("#pst-primary-sidebar a.current[href='#']");
            const line = entry.getBoundingClientRect();
            return line.top >= 100 && line.bottom <= innerHeight;
        }"""
    )


# --- terms


def test_the_first_mention_in_a_block_is_a_term_and_nothing_else_is(page):
    terms = page.locator("button.term")
    assert terms.all_inner_texts() == ["HP", "SNIP", "FTS", "HP"]  # not in code, maths, links, tables, captions
    paragraph = page.locator("p:has(> button.term)")
    assert "HP and SNIP, and HP again" in paragraph.first.inner_text()


def test_a_term_shifts_nothing(page):
    box = page.locator("p:has(> button.term)").first.bounding_box()
    page.evaluate("document.querySelectorAll('button.term').forEach(e => e.replaceWith(e.textContent))")
    assert page.locator("p", has_text="HP and SNIP").first.bounding_box() == box


def test_no_line_begins_with_the_comma_behind_a_term(page):
    assert page.locator(".term-hold").all_inner_texts() == ["SNIP,"]
    assert page.locator("code.short", has_text="FD").evaluate("e => getComputedStyle(e).whiteSpace") == "nowrap"


@pytest.mark.parametrize(("width", "mode"), FOUR)
def test_a_term_shows_name_formula_cost_and_the_way_to_the_glossary(visit, rich, width, mode):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(rich, width, mode, has_touch=width == 375)
    page.emulate_media(reduced_motion="reduce", color_scheme=mode)
    term, card = page.locator("button.term").first, page.locator(".term-card")
    page.locator("mjx-container[display]").wait_for()  # formulas are set
    height = page.evaluate("document.documentElement.scrollHeight")
    if width == 375:
        term.tap()
    else:
        term.hover()
    for words in (
        "Hutchinson pruning",
        "½θ²ĥ",
        "Cost: 21 gradients per image with ten probes",
        "HP in the glossary",
    ):
        assert words in card.inner_text()
    assert term.get_attribute("aria-expanded") == "true"
    box = card.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollHeight") == height
    found = Axe().run(page, context=".bd-article", options={"preload": False}).response
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []
    card.locator("a").click()
    assert page.url.endswith("book/glossary.html#term-HP")
    assert page.locator("#term-HP").inner_text().startswith("HP")


def test_a_term_works_by_keys(page):
    term, card = page.locator("button.term").first, page.locator(".term-card")
    for _ in range(80):
        page.keyboard.press("Tab")
        if term.evaluate("e => e === document.activeElement"):
            break
    assert card.is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "HP in the glossary"
    page.keyboard.press("Escape")
    assert card.count() == 0
    assert term.evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")
    assert card.is_visible()
    page.keyboard.press("Enter")
    assert card.count() == 0
    page.keyboard.press("Tab")  # to the next term, whose card it is then
    assert "SNIP" in card.inner_text()


def test_the_pointer_may_go_into_the_card_and_away(page):
    term, card = page.locator("button.term").first, page.locator(".term-card")
    term.hover()
    card.locator("a").hover()
    page.wait_for_timeout(400)
    assert card.is_visible()
    page.mouse.move(640, 880)
    page.wait_for_timeout(400)
    assert card.count() == 0


def test_the_glossary_has_every_criterion(visit, built):
    page = visit(built.with_name("glossary.html"))
    for rule in CRITERIA.values():
        entry = page.locator(f"dt#term-{re.sub(r'[^A-Za-z]+', '-', rule.label)}")
        assert entry.inner_text().startswith(rule.label)
        meaning = entry.locator("xpath=following-sibling::dd[1]").inner_text()
        assert meaning.startswith(rule.name)
        assert "gradient" in meaning


# --- wide things


def test_a_figure_enlarges_and_gives_the_focus_back(page):
    opener = page.get_by_role("button", name="Enlarge Fig. 1")
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    picture = dialog.locator("img")
    assert picture.get_attribute("alt") == "Accuracy against sparsity"
    natural = picture.evaluate("e => e.naturalWidth")
    assert picture.bounding_box()["width"] == pytest.approx(natural, abs=2)
    dialog.get_by_role("button", name="Larger").click()
    assert picture.bounding_box()["width"] == pytest.approx(1.5 * natural, abs=2)
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert opener.evaluate("e => e === document.activeElement")


def test_a_tapped_figure_can_be_moved_on_a_phone(visit, rich):
    page = visit(rich, 375, has_touch=True)
    page.locator("figure img").first.tap()
    place = page.locator("dialog[open] .enlarged")
    assert place.evaluate("e => e.scrollWidth > 1.5 * e.clientWidth")
    place.evaluate("e => e.scrollTo(300, 0)")
    assert place.evaluate("e => e.scrollLeft") == 300
    page.get_by_role("button", name="Close").tap()
    assert page.get_by_role("button", name="Enlarge Fig. 1").evaluate("e => e === document.activeElement")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_what_goes_on_beyond_the_edge_shows_it(visit, rich, mode):
    page = visit(rich, 375, mode)
    page.locator("mjx-container[display]").wait_for()
    for selector in (".highlight pre", ".pst-scrollable-table-container", "div.math mjx-container"):
        wide = page.locator(selector).first
        assert wide.evaluate("e => e.scrollWidth > e.clientWidth + 20"), selector
        assert wide.evaluate("e => getComputedStyle(e).backgroundAttachment") == "local, local, scroll, scroll"
    table = page.locator(".pst-scrollable-table-container").first
    names = table.locator("tbody tr > :first-child").first
    before = names.bounding_box()["x"]
    table.evaluate("e => e.scrollTo(200, 0)")
    assert names.bounding_box()["x"] == pytest.approx(before, abs=1.5)
    assert names.evaluate("e => getComputedStyle(e).backgroundColor").startswith("rgb(")  # nothing shines through
    over = "tr, thead, tbody, tr > :not(:first-child)"  # what would hide the shade
    for part in (table.locator(over), page.locator(".pst-scrollable-table-container table")):
        grounds = part.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
        assert set(grounds) == {"rgba(0, 0, 0, 0)"}
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_a_wide_figure_scrolls_below_its_button_and_above_its_caption(visit, rich):
    page = visit(rich, 375)
    frame = page.locator("figure .picture")
    frame.locator("img").first.evaluate("e => { e.style.setProperty('--least', '700px') }")
    assert frame.evaluate("e => e.scrollWidth > 1.5 * e.clientWidth")
    assert frame.evaluate("e => getComputedStyle(e).backgroundAttachment") == "local, local, scroll, scroll"
    page.evaluate("dispatchEvent(new Event('resize'))")
    assert frame.get_attribute("tabindex") == "0"
    parts = [page.locator("figcaption", has_text="HP in a caption"), page.locator("figure .enlarge")]
    before = [part.bounding_box() for part in parts]
    frame.evaluate("e => e.scrollTo(200, 0)")
    assert frame.evaluate("e => e.scrollLeft") == 200
    assert [part.bounding_box() for part in parts] == before
    assert all(box["x"] + box["width"] <= 375 for box in before)


def test_every_page_says_which_book_it_is_of(visit, rich):
    phone, name = visit(rich, 375).locator(".book-name a"), "Pruning at initialization, second order"
    assert phone.inner_text() == name
    assert phone.bounding_box()["y"] < 100
    phone.click()
    assert phone.page.url.endswith("book/intro.html")
    page = visit(rich)
    assert not page.locator(".book-name").is_visible()
    page.set_viewport_size({"width": 1280, "height": 400})
    page.locator("#pst-primary-sidebar").evaluate("e => e.scrollTo(0, 200)")
    for kept in (page.locator(".bd-sidebar-primary .logo__title"), page.locator(".search-button-field")):
        box = kept.bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] < 150


def test_the_footer_says_version_date_and_licence(page):
    said = page.locator("footer.bd-footer-content").inner_text()
    assert re.search(r"pai-lib \d+\.\d+\.\d+, built on \d{1,2} [A-Z][a-z]+ 20\d\d\. MIT License\.", said)
