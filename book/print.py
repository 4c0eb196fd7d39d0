"""Print the built book into one PDF, its pages in the order of the contents: `make pdf`."""

import io
import sys
from pathlib import Path

import yaml
from chromium import launched
from playwright.sync_api import sync_playwright
from pypdf import PdfWriter

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
MARGIN = {"top": "15mm", "bottom": "15mm", "left": "14mm", "right": "14mm"}
# Paper shows what a click would, but folded code.
READY = """async () => {
  document.documentElement.dataset.theme = 'light';
  for (const code of document.querySelectorAll('details.hide')) code.remove();
  for (const part of document.querySelectorAll('details')) part.open = true;
  for (const image of document.images) image.loading = 'eager';
  if (window.MathJax?.startup) await MathJax.startup.promise;
}"""


def pages() -> list[str]:
    """Names of the pages, below the built book and without an ending."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    listed = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [contents["root"], *(name.removesuffix(".ipynb") for name in listed)]


def print_book(target: Path, names: list[str]) -> int:
    """Write the pages of these names into one file with an outline; return its number of sheets."""
    writer = PdfWriter()
    with sync_playwright() as driver:
        chromium = launched(driver)
        page = chromium.new_page()
        page.set_default_timeout(120_000)
        page.emulate_media(media="print", color_scheme="light")
        for name in names:
            page.goto((HTML / f"{name}.html").as_uri())
            page.evaluate(READY)
            sheets = page.pdf(format="A4", print_background=True, margin=MARGIN)
            writer.append(io.BytesIO(sheets), outline_item=page.title().partition(" — ")[0])
        chromium.close()
    writer.write(target)
    return len(writer.pages)


if __name__ == "__main__":
    target = ROOT / "_build" / "book.pdf"
    print(f"{target}: {print_book(target, sys.argv[1:] or pages())} sheets")
