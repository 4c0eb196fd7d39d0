"""The built book on localhost, and a real browser: run `make book` first, and have Chromium installed.

python -m pytest -m browser tests/browser
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "book"))
from chromium import launched, served

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
SEEDS = 5  # of the invented records
PATIENCE = 120_000  # milliseconds: a machine may be busy


@pytest.fixture(scope="session")
def site():
    """Return the address of the built book, with a slash at its end."""
    if not (HTML / "book" / "intro.html").is_file():
        pytest.fail("The book is not built: _build/html/book/intro.html is missing. Run `make book` first.")
    with served(HTML) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    """Return a Chromium without a window."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("Playwright is missing: pip install -c constraints.txt -e '.[browser]'")
    with sync_playwright() as driver:
        chromium = launched(driver)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """Return a tab 1280 pixels wide and 800 high, with nothing cached or stored."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    yield tab
    context.close()


@pytest.fixture
def visit(browser):
    """``visit(path, width, mode)`` opens a page; what it complains of is in ``page.said``."""
    contexts = []

    def opened(path, width=1280, mode="light", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=mode, accept_downloads=True, **options
        )
        context.set_default_timeout(120_000)  # milliseconds: the machine may be busy
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri(), wait_until="domcontentloaded")  # by then the page's own scripts have run
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Return the page of records of a book of about a thousand of them."""
    from .small_book import build

    return build(tmp_path_factory.mktemp("book"), SEEDS)
