"""Sphinx extension: what a page loads, how its figures look, and what it says about itself.

The theme loads 1.5 MB of icons as a script, the whole of MathJax with its menu, the search index on
every page, a script for live cells that this book does not use, and 0.5 MB of styles, most of them
for things that no page has. Here a page gets what it needs, all of it from the book's own folder.
"""

import base64
import hashlib
import io
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tinycss2
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.i18n import format_date

from pai_lib.analysis.dark import LETTERS

# MathJax in parts: TeX in, HTML out, and hidden MathML for screen readers.
MATHJAX = {"loader": {"load": ["input/tex", "output/chtml", "a11y/assistive-mml"]}}
SCRIPTS = (
    "_static",
    "_static/scripts",
    "_static/records",
    "_static/reading",
)  # folders of those that name classes
UNUSED = ("thebe", "design-tabs")  # live cells and tabs: no page has them
DESCRIPTION = 200  # characters
SHORT = 28  # characters of code that fit on a line of a phone
LEGIBLE = 9  # pixels that letters of a figure have at least
PICTURE = re.compile(r'<img ([^>]*src="([^"]*_images/)([^"/]+)"[^>]*)>')
# Names, brackets and spaces of code: they have the colour of all code.
PLAIN_CODE = re.compile(r'<span class="[npw]">([^<]*)</span>')
UNTOUCHED_OR_TEXT = re.compile(
    r"<(pre|code|dt|script|svg)\b.*?</\1>|<[^>]*>|\\\(.*?\\\)|\\\[.*?\\\]|(?P<text>[^<\\]+)",
    re.DOTALL,
)


def choose(app: Sphinx, config: Config) -> None:
    """Take this folder's page template, MathJax in parts, and one search field, not two."""
    config.templates_path.append(str(Path(__file__).with_name("templates")))
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = MATHJAX
    config.html_theme_options["navbar_persistent"] = []
    config.html_theme_options["extra_footer"] = imprint()
    config.html_theme_options["logo"] = {"text": config.html_title, "alt_text": ""}


def complete(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Drop unused scripts and styles, defer pictures, describe the page by its first paragraph."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if not _is_unused(file)]
    paragraph = None if doctree is None else doctree.next_node(nodes.paragraph)
    words = "" if paragraph is None else paragraph.astext()
    context["description"] = textwrap.shorten(words, DESCRIPTION, placeholder=" …")
    if "body" in context:
        files = {name: Path(app.srcdir) / source for source, name in app.builder.images.items()}
        dark = dark_pictures(Path(app.env.doc2path(page)))
        images = Path(app.outdir) / app.builder.imagedir

        def shown(match: re.Match) -> str:
            attributes, folder, name = match.groups()
            there = files.get(name)
            if (stem := Path(name).stem) not in dark or there is None:
                return f'<span class="picture"><img {_size(there)}{attributes}></span>'
            images.mkdir(parents=True, exist_ok=True)
            (images / f"{stem}-dark.png").write_bytes(dark[stem])
            size = _size(io.BytesIO(dark[stem]))
            other = attributes.replace(folder + name, f"{folder}{stem}-dark.png")
            light = f'<img class="only-light" {_size(there)}{attributes}>'
            both = f'{light}<img class="only-dark" {size}{other}>'
            return f'<span class="picture">{both}</span>'

        body = PICTURE.sub(shown, context["body"])
        # docutils writes a role that no longer exists: an entry of a list is a listitem
        body = body.replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = PLAIN_CODE.sub(r"\1", UNTOUCHED_OR_TEXT.sub(_typeset, body))


def _typeset(match: re.Match) -> str:
    """Set what Python computed as print would: minus signs, and no line break within a quantity.

    Nor is there one within short code.
    """
    if match[1] == "code" and len(re.sub("<[^>]*>", "", match[0])) <= SHORT:
        return match[0].replace('class="', 'class="short ', 1)
    text = match["text"] or ""
    text = re.sub(r"(?<![^\s(])-(?=\d)", "−", text)
    text = re.sub(r"(?<=±) (?=\d)|(?<=\d) (?=±)|(?:(?<=\d)|^) (?=%)", "\u00a0", text)
    text = re.sub(r"(?<=\w)/(?=[\w-]+\.[a-z])", "/<wbr>", text)  # a path breaks before its file
    text = re.sub(r"(?<=\d)e[+]?(-?)0?(\d+)\b", _power, text)
    return re.sub(r"\b([npT]) = (?=\d|$)", "\\1\u00a0=\u00a0", text) or match[0]


def _power(match: re.Match) -> str:
    """A power of ten, as print has it."""
    return f"\u00b710<sup>{match[1].replace('-', '−')}{match[2]}</sup>"


def imprint() -> str:
    """The footer of every page: which version, when it was built, and the licence."""
    from pai_lib import __version__

    day = format_date("%d %B %Y", language="en").lstrip("0")
    return f"<p>pai-lib {__version__}, built on {day}. MIT License.</p>"


def dark_pictures(path: Path) -> dict[str, bytes]:
    """Return an executed notebook's figures for the dark pages, by the SHA-256 of the light ones.

    The files that MyST-NB writes have this for a name.
    """
    if path.suffix != ".ipynb":
        return {}
    pictures = {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        for out in cell.get("outputs", []):
            dark = out.get("metadata", {}).get("image/png", {}).get("dark")
            if dark:
                light = base64.b64decode("".join(out["data"]["image/png"]))
                pictures[hashlib.sha256(light).hexdigest()] = base64.b64decode(dark)
    return pictures


def _size(file: Path | io.BytesIO | None) -> str:
    """A picture's attributes: it loads when it comes near, into a place of its size."""
    if file is None or getattr(file, "suffix", ".png") != ".png":
        return 'loading="lazy" '
    with Image.open(file) as image:
        size = f'width="{image.width}" height="{image.height}"'
        letters = float(image.text.get(LETTERS, "inf"))
        return f'loading="lazy" {size} style="--least: {LEGIBLE * image.width / letters:.0f}px" '


def add_scripts(app: Sphinx, pagename: str, *_: object) -> None:
    """Load what figures and the sidebar need; and, where one searches, what mends excerpts."""
    if pagename in app.env.found_docs:
        app.add_js_file("reading/figures.js", loading_method="defer")
        app.add_js_file("reading/sidebar.js", loading_method="defer")
    if pagename == "search":
        app.add_js_file("reading/search.js", loading_method="defer")


def _is_unused(file: Any) -> bool:
    """Tell whether a script or a style, a file or text within the page, is for what no page has."""
    text = f"{file.filename} {file.attributes.get('body', '')}"
    return any(name in text for name in UNUSED)


def prune_styles(app: Sphinx, exception: Exception | None) -> None:
    """Drop the style rules for classes that neither a page nor a script names: 340 KB of 500."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    pages = [*out.glob("*.html"), *out.glob("book/**/*.html")]
    scripts = [file for folder in SCRIPTS for file in out.glob(f"{folder}/*.js")]
    words = set()
    for path in (*pages, *scripts):
        words.update(re.findall(r"[A-Za-z_-][\w-]*", path.read_text("utf-8")))
    for path in (*out.glob("_static/*.css"), *out.glob("_static/styles/*.css")):
        rules = tinycss2.parse_stylesheet(path.read_text("utf-8"), skip_comments=True)
        path.write_text("\n".join(kept(rules, words)) + "\n", "utf-8")


def kept(rules: list[Any], words: set[str]) -> Iterator[str]:
    """Give the rules, as text, that can apply where only these words are class names."""
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = re.sub(r":not\([^()]*\)", "", tinycss2.serialize(rule.prelude)).split(",")
            if any(_can_apply(selector, words) for selector in selectors):
                yield rule.serialize()
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            inner = tinycss2.parse_rule_list(rule.content, skip_comments=True)
            if within := "\n".join(kept(inner, words)):
                yield f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{within}}}"
        elif rule.type != "whitespace":
            yield rule.serialize()


def _can_apply(selector: str, words: set[str]) -> bool:
    """Tell whether every class that a selector asks for, whole or in part, is among the words."""
    parts = re.findall(r"\[class\*=[\"']?([\w-]+)", selector)
    classes = re.findall(r"\.(-?[A-Za-z_][\w-]*)", selector)
    return words.issuperset(classes) and all(any(part in word for word in words) for part in parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, after the extensions that set what is changed here."""
    app.connect("config-inited", choose, priority=900)
    app.connect("html-page-context", add_scripts)
    app.connect("html-page-context", complete, priority=900)
    app.connect("build-finished", prune_styles, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
