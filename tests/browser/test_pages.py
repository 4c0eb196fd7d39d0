"""Every page of the built book in a real browser: what it loads, how heavy it is, who can read it."""

import functools
import gzip
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
import yaml

from .conftest import HTML, PATIENCE, ROOT

pytestmark = pytest.mark.browser

MOST_BYTES = 1_500_000  # of a first visit, nothing compressed
PHONE = 375
STANDS_OUT = """width => [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > width + 0.5 && getComputedStyle(e).position !== 'fixed')
    .filter(e => { for (let p = e.parentElement; p; p = p.parentElement)
                       if (getComputedStyle(p).overflowX !== 'visible' && p !== document.body) return false;
                   return true; })
    .slice(0, 3).map(e => e.outerHTML.slice(0, 150))"""
# What axe-core finds in the theme's own markup and a page cannot mend: (rule, selector, reason). None at present.
THEME: tuple[tuple[str, str, str], ...] = ()


def names():
    """Return the pages of the table of contents, and those that Sphinx makes."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [toc["root"], *listed, "search", "genindex"]


@dataclass
class Visit:
    """What one visit of a page showed."""

    complaints: list[str] = field(default_factory=list)  # errors in the console, failed requests
    requests: list[str] = field(default_factory=list)
    without_alt: list[str] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=dict)  # of axe-core, by colour scheme
    without_caption: dict[str, list[str]] = field(default_factory=dict)  # figures, by colour scheme
    phone_width: int = 0
    stands_out: list[str] = field(default_factory=list)


def settle(page):
    """Wait until formulas are set and styles have changed."""
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.wait_for_load_state("networkidle")


def findings(page):
    """Return what axe-core calls serious or critical, one line each."""
    options = {"resultTypes": ["violations"], "preload": False}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:120]} {node['failureSummary'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
        if not any(each["id"] == rule and selector in str(node["target"]) for rule, selector, _ in THEME)
    ]


@pytest.fixture(scope="module")
def visits(site, browser):
    """Return a function that visits a page once, whatever the number of tests that ask for it."""
    from axe_playwright_python.base import AXE_SCRIPT

    @functools.cache
    def visit(name):
        seen = Visit()
        context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: said.type == "error" and seen.complaints.append(said.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("response", lambda it: it.status >= 400 and seen.complaints.append(f"{it.status} for {it.url}"))
        page.on("requestfailed", lambda request: seen.complaints.append(f"no answer for {request.url}"))
        page.goto(f"{site}{name}.html")
        settle(page)
        loaded = list(seen.requests)
        seen.without_alt = page.eval_on_selector_all(
            "img", "all => all.filter(e => !e.hasAttribute('alt')).map(e => e.outerHTML.slice(0, 150))"
        )
        page.evaluate(AXE_SCRIPT)
        for scheme in ("light", "dark"):
            page.evaluate("scheme => { document.documentElement.dataset.theme = scheme }", scheme)
            page.wait_for_timeout(300)  # some colours fade, whatever the reader's settings
            seen.findings[scheme] = findings(page)
            seen.without_caption[scheme] = page.eval_on_selector_all(
                "figcaption", "all => all.filter(e => !e.offsetHeight).map(e => e.textContent.slice(0, 80))"
            )
        page.set_viewport_size({"width": PHONE, "height": 800})
        page.wait_for_timeout(200)
        seen.phone_width = page.evaluate("document.documentElement.scrollWidth")
        seen.stands_out = page.evaluate(STANDS_OUT, PHONE)
        context.close()
        seen.requests = loaded
        return seen

    return visit


@pytest.mark.parametrize("name", names())
class TestEveryPage:
    def test_loads_without_complaint_from_here_alone(self, name, site, visits):
        seen = visits(name)
        assert not seen.complaints
        elsewhere = [url for url in seen.requests if not url.startswith((site, "data:", "blob:"))]
        assert not elsewhere
        assert len(seen.requests) > 5  # it was seen at all

    def test_is_light(self, name, site, visits):
        sizes = {}
        for url in visits(name).requests:
            path = HTML / unquote(urlsplit(url).path).lstrip("/")
            if url.startswith(site) and path.is_file():
                sizes[path.relative_to(HTML).as_posix()] = path.stat().st_size
        heaviest = sorted(((size, path) for path, size in sizes.items()), reverse=True)[:5]
        packed = sum(len(gzip.compress((HTML / path).read_bytes(), 6)) for path in sizes)
        print(f"{name}: {len(sizes)} files, {sum(sizes.values()):,} bytes, {packed:,} compressed")
        assert sizes[f"{name}.html"]
        assert sum(sizes.values()) <= MOST_BYTES, heaviest

    def test_fits_a_phone(self, name, visits):
        seen = visits(name)
        assert seen.phone_width <= PHONE, f"{seen.phone_width} pixels wide because of {seen.stands_out}"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_is_accessible(self, name, scheme, visits):
        assert not visits(name).findings[scheme]

    def test_describes_its_pictures(self, name, visits):
        assert not visits(name).without_alt
        assert visits(name).without_caption == {"light": [], "dark": []}


class _Links(HTMLParser):
    """The addresses that a page links to, and the places within it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.places |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links += [values[key] for key in ("href", "src") if values.get(key)]


def test_no_link_is_broken(site):
    pages = {path: _Links(path) for path in HTML.rglob("*.html") if "_static" not in path.parts}
    broken = []
    for path, found in pages.items():
        here = "file://" + path.as_posix()
        for link in found.links:
            address, anchor = urldefrag(urljoin(here, link))
            if not address.startswith("file://"):
                continue
            target = HTML.__class__(unquote(urlsplit(address).path))
            view = "=" in anchor and target.stem in ("records", "masks")  # what these pages show, not a place
            if not target.is_file() or (
                target in pages and anchor and not view and unquote(anchor) not in pages[target].places
            ):
                broken.append(f"{path.relative_to(HTML)}: {link}")
    assert len(pages) >= len(names())
    assert not broken


def test_the_first_screen_has_question_verdicts_and_figure(site, page):
    page.goto(f"{site}book/intro.html")
    settle(page)
    question, badges = page.locator(".bd-article h1"), page.locator(".front .claim .verdict-badge")
    assert "?" in question.inner_text()
    assert badges.count() == 5
    figure = page.locator(".front figure svg")
    for shown in (question, badges.first, badges.last):
        box = shown.bounding_box()
        assert box["y"] + box["height"] <= 800
    if figure.count():  # none before the first record
        assert figure.get_attribute("aria-label")
        assert figure.bounding_box()["y"] < 400
    page.set_viewport_size({"width": PHONE, "height": 812})
    assert badges.first.bounding_box()["y"] < 812
    assert question.bounding_box()["y"] < badges.first.bounding_box()["y"]


def test_the_search_finds_a_word_without_another_host(site, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site}search.html?q=Rademacher")
    page.wait_for_selector("#search-results li a")
    assert any(
        "hutchinson" in link for link in page.eval_on_selector_all("#search-results a", "a => a.map(e => e.href)")
    )
    assert all(url.startswith((site, "data:")) for url in asked)


def test_excerpts_of_the_search_are_text_and_the_icon_leaves_the_query_free(site, page):
    for words in ("sparsity", "Hessian"):  # words that stand beside formulas and in code
        page.goto(f"{site}search.html?q={words}")
        page.wait_for_selector("#search-results li p.context")
        page.wait_for_function("!Search._pulse_status || Search._pulse_status < 0")
        page.wait_for_load_state("networkidle")
        excerpts = page.locator("#search-results p.context").all_inner_texts()
        assert len(excerpts) > 5
        for excerpt in excerpts:
            assert not re.search(r"\\\(|\\\[|\$|\\[a-z]{2}|\bimport \w|def \w+\(|window\.|\{\w+\}`", excerpt), (
                excerpt
            )
    field, icon = (
        page.locator(".bd-article-container input[name=q], .bd-search-container input[name=q]"),
        page.locator(".bd-search-container .fa-magnifying-glass"),
    )
    inner = field.first.evaluate(
        "e => e.getBoundingClientRect().left + parseFloat(getComputedStyle(e).paddingLeft)"
    )
    box = icon.first.bounding_box()
    assert box["x"] + box["width"] <= inner


def test_figures_follow_the_theme(site, page):
    page.goto(f"{site}book/evidence.html")
    settle(page)
    names = "img.only-light", "img.only-dark"
    light, dark = (page.locator(f".bd-article {name}") for name in names)
    assert light.count() == dark.count() > 0
    for scheme, shown, hidden in (("light", light, dark), ("dark", dark, light)):
        page.evaluate("scheme => { document.documentElement.dataset.theme = scheme }", scheme)
        assert shown.first.is_visible()
        assert not hidden.first.is_visible()
        assert shown.first.get_attribute("alt")
    dark.first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.bd-article img.only-dark').naturalWidth > 0")
    corner = page.evaluate("""() => {
        const image = document.querySelector('.bd-article img.only-dark');
        const canvas = document.createElement('canvas').getContext('2d');
        canvas.drawImage(image, 0, 0);
        return [...canvas.getImageData(2, 2, 1, 1).data];
    }""")
    assert max(corner[:3]) < 64


def test_folded_code_opens(site, page):
    page.goto(f"{site}book/evidence.html")
    folded = page.locator("details:has(.highlight)").first
    assert not folded.locator("pre").first.is_visible()
    folded.locator("summary").click()
    assert folded.locator("pre").first.is_visible()


def test_the_keyboard_reaches_the_text_first_and_shows_where_it_is(site, page):
    page.goto(f"{site}book/evidence.html")
    settle(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
        outline = page.evaluate(
            "(s => s.outlineStyle + ' ' + s.outlineWidth)(getComputedStyle(document.activeElement))"
        )
        assert not outline.startswith("none"), reached[-1]
    assert len(set(reached)) > 8  # it goes on


def test_a_dark_setting_gives_a_dark_page(site, browser):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{site}book/intro.html")
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[
        :3
    ]
    assert max(red, green, blue) < 64
    context.close()


def test_a_page_introduces_itself(site, page):
    page.goto(f"{site}book/evidence.html")
    said = page.eval_on_selector_all(
        "meta[property^='og:']", "all => all.map(e => [e.attributes.property.value, e.content])"
    )
    said = dict(said)
    assert said["og:title"] == page.locator(".bd-article h1").evaluate("e => e.firstChild.textContent")
    assert len(said["og:description"]) > 40
    icon = page.locator("link[rel='icon']").get_attribute("href")
    assert (HTML / "book" / icon).resolve().is_file()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_printed_tables_show_that_they_go_on(visit, mode):
    """The theme gives those that are no plain DataFrame a ground of its own in the dark."""
    page = visit(HTML / "book" / "cost.html", 375, mode)
    wide = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1)"
    grounds = f"{wide}.map(e => getComputedStyle(e).backgroundAttachment)"
    found = page.locator(".cell_output .text_html").evaluate_all(grounds)
    assert set(found) == {"local, local, scroll, scroll"}
