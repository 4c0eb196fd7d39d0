"""Sphinx extension: the directive ``{rooms}`` draws which folder of the library imports which.

The picture is made from the imports as they are when the page is built, in the order that
``tests/test_layout.py`` holds: an import against it would be drawn on the right, in red.
"""

from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).resolve().parents[2] / "pai_lib"
ROOMS = {
    "names": "did you mean; checks of what is given",
    "files": "written whole or not at all; YAML",
    "draws": "random streams from seeds",
    "progress": "one bar a call",
    "data": "data sets, folders of images, batches",
    "models": "architectures",
    "curvature": "gradients, Hessian products, diagonals",
    "pruning": "criteria, scores, masks",
    "training": "the loop, the device, checkpoints",
    "experiments": "runs, records, sweeps",
    "analysis": "intervals, verdicts, figures",
    "book": "notebooks, chapters, pages",
    "cli": "pai, the command",
}
ORDER = list(ROOMS)
ROW, TOP, LEFT, WIDTH = 34, 20, 130, 560


def room(path: Path) -> str:
    """Return the folder, or the file beside the folders, that a path is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def arrows() -> set[tuple[str, str]]:
    """Return each pair of rooms of which the first imports from the second."""
    from pai_lib.book.keys import library_imports

    pairs = set()
    for path in PACKAGE.rglob("*.py"):
        package = ".".join(path.relative_to(PACKAGE.parent).parts[:-1])
        for name in library_imports(path.read_text("utf-8"), package):
            pairs.add((room(path), name.split(".")[1]))
    return {(user, used) for user, used in pairs if user != used and {user, used} <= set(ORDER)}


def arc(user: str, used: str) -> str:
    """Draw an arrow from a room to one that it imports from."""
    start, end = (TOP + ROW * ORDER.index(name) for name in (user, used))
    side = -1 if end < start else 1
    x = LEFT - 8 if side < 0 else WIDTH - 120
    reach = x + side * (14 + abs(start - end) * 0.3)
    kind = "" if side < 0 else ' class="against"'
    path = f"M{x},{start} C{reach:.0f},{start} {reach:.0f},{end} {x},{end}"
    return f'<path{kind} d="{path}" marker-end="url(#tip)"><title>{user} uses {used}</title></path>'


def picture() -> str:
    """Return the rooms in their order with their arrows, as SVG in the page's colours."""
    height = TOP + ROW * len(ORDER)
    pairs = sorted(arrows())
    rows = [
        f'<text x="{LEFT}" y="{TOP + ROW * i + 5}"><tspan class="room">{name}</tspan>'
        f'<tspan x="{LEFT + 100}">{escape(what)}</tspan></text>'
        for i, (name, what) in enumerate(ROOMS.items())
    ]
    said = "; ".join(
        f"{name} uses {', '.join(used for user, used in pairs if user == name) or 'nothing'}"
        for name in ORDER
    )
    return f"""<div class="rooms">
<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}.">
<style>.rooms {{ overflow-x: auto }}
.rooms svg {{ min-width: 460px; max-width: 720px; width: 100% }}
.rooms text {{ fill: currentColor; font: 13px sans-serif }} .rooms .room {{ font-weight: bold }}
.rooms path {{ fill: none; stroke: currentColor; opacity: 0.45 }}
.rooms path:hover {{ opacity: 1; stroke-width: 2 }}
.rooms path.against {{ stroke: #d62728; opacity: 1 }}</style>
<defs>
<marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6"
 orient="auto">
<path d="M0,0 L6,3 L0,6 z" style="fill: currentColor; stroke: none; opacity: 1"/></marker></defs>
{"".join(arc(*pair) for pair in pairs)}{"".join(rows)}</svg></div>"""


class Rooms(SphinxDirective):
    """Draw the rooms."""

    def run(self) -> list[nodes.Node]:
        """Return the picture, and have the page depend on every file of the library."""
        for path in PACKAGE.rglob("*.py"):
            self.env.note_dependency(str(path))
        return [nodes.raw("", picture(), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("rooms", Rooms)
    return {"parallel_read_safe": True}
