r"""Sphinx extension: the criteria's short names as terms.

The directive ``{criteria-terms}`` lists them all in the glossary, from the library's registry, and
``{criteria-index}`` makes a short table that leads to these entries. On every page
``reading/terms.js`` makes the first mention in a paragraph a button that shows what it stands for:
name, formula, cost, and the way to the glossary.
"""

import json
import re
import unicodedata
from html import escape
from itertools import zip_longest
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

GLOSSARY = "book/glossary"
FOLDER = "reading-data"  # in the built book's _static
# Gradients (one forward pass, one back-propagation) an image: the chapter on cost counts them.
GRADIENTS = {
    "gradient": (1, ""),
    "hessian_gradient": (4, ""),
    "fisher": (1, ""),
    "hutchinson": (21, " with ten probes"),
    "row_norm": (21, " with ten probes"),
    "exact": (19 / 3, " with ten classes"),
}
IN_FULL = {  # where a name says too little
    "snip": "single-shot network pruning",
    "grasp": "gradient signal preservation",
    "scaled_noise": "fresh noise of the scale of HP's estimate",
    "weight_noise": "noise times θ² that has seen no data",
}
PLUS = ", with a plus as the released code has it in FTS and HTS ({doc}`audit`, section 10)"
# What the formulas of the registry are made of, in letters: a page need not have MathJax for them.
LETTERS = [
    (r"\\left|\\right|\\textstyle|\\mathcal|\\;", ""),
    (r"\\,", "\u2009"),
    (r"\\lvert|\\rvert", "|"),
    (r"\\tfrac12", "½"),
    (r"\\hat (\w)", "\\1\u0302"),
    (r"\\frac\{((?:[^{}]|\{[^{}]*\})*)\}\{([^{}]*)\}", r"(\1) / (\2)"),
    (r"\\sqrt\{((?:[^{}]|\{[^{}]*\})*)\}", r"√(\1)"),
    (r"\\(theta|xi|sum|partial|sim)", lambda match: {
        "theta": "θ", "xi": "ξ", "sum": "Σ", "partial": "∂", "sim": "∼"}[match[1]]),
    (r"_\{?(\w+)\}?\^2", r"<sub>\1</sub>²"),
    (r"\^2", "²"),
    (r"_\{(\w+)\}|_(\w)", lambda match: f"<sub>{match[1] or match[2]}</sub>"),
    (r"[{}\\]", ""),
    (r"(?<![+∼,-]) (?![+∼-])", ""),
    ("-", "−"),
]  # fmt: skip


def in_letters(formula: str) -> str:
    r"""Return a criterion's formula as HTML.

    >>> in_letters(r"\left\lvert\theta\, g + \tfrac12\theta^2 H_{ii}\right\rvert")
    '|θ\u2009g + ½θ²H<sub>ii</sub>|'
    """
    text = escape(formula)
    for pattern, letters in LETTERS:
        text = re.sub(pattern, letters, text)
    return unicodedata.normalize("NFC", text)


def cost(needs: tuple[str, ...]) -> str:
    """Return in words what scoring by these quantities costs."""
    if "flow" in needs:
        return "100 gradients of one input, and no data"
    counted = [GRADIENTS[need] for need in needs if need in GRADIENTS]
    if not counted:
        return "no gradient"
    total = sum(number for number, _ in counted)
    given = next(filter(None, (words for _, words in counted)), "")
    return f"{total:.2g} gradient{'s' * (total != 1)} per image{given}"


def terms() -> list[dict[str, str]]:
    """Return what is known of each criterion; ``short`` where its name is no ordinary word."""
    from pai_lib.pruning.criteria import CRITERIA

    return [
        {
            "label": rule.label,
            "name": full[:1].upper() + full[1:],
            "formula": in_letters(rule.formula),
            "cost": cost(rule.needs),
            "id": re.sub(r"\W+", "-", rule.label),
            "short": len(re.findall("[A-Z]", rule.label)) > 1,
        }
        for rule in CRITERIA.values()
        for full in [IN_FULL.get(rule.key, rule.name)]
    ]


class CriteriaTerms(SphinxDirective):
    """The criteria as entries of the glossary."""

    def run(self) -> list[nodes.Node]:
        """Return the entries: name, formula, cost, source."""
        from pai_lib.pruning.criteria import CRITERIA

        lines = ["```{glossary}"]
        for rule in CRITERIA.values():
            full = f", {IN_FULL[rule.key]}" if rule.key in IN_FULL else ""
            hot = f" at temperature {rule.temperature:g}" * (rule.temperature != 1)
            plus = PLUS if r"\theta\, g + \tfrac12" in rule.formula else ""
            lines += [
                rule.label,
                f"  {rule.name}{full}: ${rule.formula}${hot}{plus}; {cost(rule.needs)} "
                f"({{cite:t}}`{rule.source}`; `{rule.key}`, {{doc}}`criteria`).",
                "",
            ]
        return parsed(self, [*lines, "```"])


class CriteriaIndex(SphinxDirective):
    """A table of the criteria's short names, two a row, each a link to its entry."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        cells = [
            f"{{term}}`{term['label']}`" + f": {term['name']}" * (term["name"] != term["label"])
            for term in terms()
        ]
        half = -(-len(cells) // 2)
        rows = zip_longest(cells[:half], cells[half:], fillvalue="")
        lines = [f"{mark} - {cell}" for row in rows for mark, cell in zip("* ", row, strict=True)]
        return parsed(self, ["```{list-table}", *lines, "```"])


def parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    """Return what lines in MyST give in the place of a directive."""
    holder = nodes.Element()
    text = StringList(lines, source=directive.get_source_info()[0])
    directive.state.nested_parse(text, directive.content_offset, holder)
    return holder.children


def write_data(app: Sphinx) -> None:
    """Write what the script knows of the terms."""
    if app.builder.format == "html":
        folder = Path(app.outdir) / "_static" / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(terms(), ensure_ascii=False, separators=(",", ":"))
        (folder / "terms.js").write_text(f"window.TERMS = {text};\n", "utf-8")


def add_scripts(app: Sphinx, pagename: str, *_: object) -> None:
    """Load the script on every page that has text of the book."""
    if GLOSSARY in app.env.found_docs and pagename in app.env.found_docs:
        for name in (f"{FOLDER}/terms.js", "reading/terms.js"):
            app.add_js_file(name, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("criteria-terms", CriteriaTerms)
    app.add_directive("criteria-index", CriteriaIndex)
    app.connect("builder-inited", write_data)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
