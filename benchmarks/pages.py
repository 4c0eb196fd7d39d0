"""Measure the built book in Chromium, page by page: what a reader loads, waits for, and can read.

    python benchmarks/pages.py [PAGE ...] [--html _build/html] [--json FILE]

Of each page: bytes of a first visit, nothing compressed (at most 1.5 MB); seconds until everything is loaded;
what axe-core calls serious or critical, in the light and in the dark; blocks wider than their column at 1,280 and
at 375 pixels, those that scroll by themselves and those that widen the page; the smallest letters of figures at
375 pixels, in pixels (a picture says at which width its smallest have nine).
It needs the packages of `pip install -e '.[browser]'` and Chromium, on the PATH or in PAI_CHROMIUM.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "book"))
from chromium import launched, served

MOST_BYTES = 1_500_000
LEGIBLE = 9  # pixels
BLOCKS = "pre, table, div.math, mjx-container, figure, img, svg, .output"
WIDE = """width => {
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const wide = [...document.querySelectorAll('.bd-article *')]
    .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && scrolls(e));
  const out = [...document.querySelectorAll('.bd-article :is(BLOCKS)')].filter(e => {
    if (e.getBoundingClientRect().right <= width + 0.5) return false;
    for (let p = e; p; p = p.parentElement) if (scrolls(p)) return false;
    return true; });
  return [wide.length, out.length, document.documentElement.scrollWidth > width];
}""".replace("BLOCKS", BLOCKS)
LETTERS = """legible => Math.min(...[...document.querySelectorAll('.bd-article :is(img, svg)')].flatMap(e => {
  if (!e.getClientRects().length || e.closest('button, label, .records-options')) return [];
  const least = parseFloat(e.style.getPropertyValue('--least'));
  if (e.naturalWidth) {
    const style = getComputedStyle(e);
    const drawn = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return least ? [legible * drawn / least] : [];
  }
  return [...e.querySelectorAll('text')]
    .map(t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().b, t.getScreenCTM().d));
}))"""


def measure(context, site: str, name: str, axe: str) -> dict:
    """What one visit of a page gives."""
    page = context.new_page()
    page.set_default_timeout(300_000)
    loaded: dict[str, int] = {}
    page.on("response", lambda answer: loaded.setdefault(answer.url, int(answer.headers.get("content-length", 0))))
    start = time.perf_counter()
    page.goto(f"{site}{name}.html")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.wait_for_load_state("networkidle")
    found: dict = {"page": name, "bytes": sum(loaded.values()), "seconds": round(time.perf_counter() - start, 2)}
    page.evaluate(axe)
    findings = 0
    for scheme in ("light", "dark"):
        page.evaluate("scheme => { document.documentElement.dataset.theme = scheme }", scheme)
        page.wait_for_timeout(300)
        said = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")["violations"]
        findings += sum(len(each["nodes"]) for each in said if each["impact"] in ("serious", "critical"))
    found["axe"] = findings
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(300)
        found[f"scroll at {width}"], found[f"out at {width}"], found[f"page wide at {width}"] = page.evaluate(
            WIDE, width
        )
    # Pictures load when they come near.
    page.evaluate("document.querySelectorAll('img').forEach(e => { e.loading = 'eager' })")
    page.wait_for_load_state("networkidle")
    smallest = page.evaluate(LETTERS, LEGIBLE)
    found["letters at 375"] = round(smallest, 1) if math.isfinite(smallest) else None  # no figure
    page.close()
    return found


def main(arguments: list[str] | None = None) -> list[dict]:
    from axe_playwright_python.base import AXE_SCRIPT
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pages", nargs="*", help="as book/intro; all without")
    parser.add_argument("--html", type=Path, default=Path("_build/html"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    names = options.pages or [
        *sorted(
            path.relative_to(options.html).with_suffix("").as_posix() for path in options.html.glob("book/*.html")
        ),
        "search",
    ]
    rows = []
    with served(options.html) as site, sync_playwright() as driver:
        browser = launched(driver)
        for name in names:
            context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
            rows.append(measure(context, site, name, AXE_SCRIPT))
            print("; ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            context.close()
        browser.close()
    heavy = [row["page"] for row in rows if row["bytes"] > MOST_BYTES]
    heaviest = max(row["bytes"] for row in rows)
    print(f"{len(rows)} pages; heaviest {heaviest:,} bytes; above the limit: {heavy or 'none'}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
