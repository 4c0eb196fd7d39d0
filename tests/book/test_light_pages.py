"""The pages load less, and what they need stays."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

tinycss2 = pytest.importorskip("tinycss2", reason="the book's packages")
FILE = Path(__file__).parents[2] / "book" / "_ext" / "light_pages.py"
SPEC = importlib.util.spec_from_file_location("light_pages", FILE)
light_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(light_pages)


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        ("a:hover { color: red }", True),
        (".shown { color: red }", True),
        (".gone { color: red }", False),
        (".gone, .shown { color: red }", True),
        (".shown .gone { color: red }", False),
        (".shown:not(.gone) { color: red }", True),
        (".-Color[class*='-C7'] { color: red }", False),
        (".-Color[class*=-C1] { color: red }", True),
        ("@media print { .gone { color: red } }", False),
        ("@media print { .gone { color: red } .shown { color: red } }", True),
        ("@font-face { src: url(gone.woff2) }", True),
        ("@keyframes gone { from { top: 0 } }", True),
    ],
)
def test_rules_stay_that_can_apply(rule, stays):
    rules = tinycss2.parse_stylesheet(rule, skip_whitespace=True)
    left = "".join(light_pages.kept(rules, {"shown", "-Color", "-C12"}))
    assert bool(left) == stays
    assert ".gone {" not in left or ", .shown" in left


@pytest.mark.parametrize(
    ("computed", "printed"),
    [
        ("R² <b>-0.02</b> (-1)", "R² <b>−0.02</b> (−1)"),
        ("pages 1-2, x-3, 2026-11-05", "pages 1-2, x-3, 2026-11-05"),
        ("1.0 ± 2.0", "1.0\u00a0±\u00a02.0"),
        ("<b>14</b> % of 5 %", "<b>14</b>\u00a0% of 5\u00a0%"),
        ("n = <b>5</b>, p = 9.6e-05", "n\u00a0=\u00a0<b>5</b>, p\u00a0=\u00a09.6·10<sup>−5</sup>"),
        ("7.04e+03", "7.04·10<sup>3</sup>"),
        ("at campaigns/masks.yaml or 8 GB/s.", "at campaigns/<wbr>masks.yaml or 8 GB/s."),
        ('<code class="a">pai <b>book</b></code>', '<code class="short a">pai <b>book</b></code>'),
        (f'<code class="a">{29 * "x"}</code>', f'<code class="a">{29 * "x"}</code>'),
        *[
            (kept, kept)
            for kept in ("<code>n = -1</code>", r"\(T = 200\)", "<pre>-1 ± 2 1e-3</pre>", '<a id="x -1">')
        ],
    ],
)
def test_computed_text_looks_like_print(computed, printed):
    assert light_pages.UNTOUCHED_OR_TEXT.sub(light_pages._typeset, computed) == printed


def test_half_of_a_block_stays():
    rules = tinycss2.parse_stylesheet("@media (min-width: 9px) { .gone { top: 0 } .shown { top: 0 } }")
    (left,) = light_pages.kept(rules, {"shown"})
    assert "(min-width: 9px)" in left
    assert ".shown { top: 0 }" in left
    assert ".gone" not in left


def test_what_any_page_or_script_names_keeps_its_style(tmp_path):
    places = {"index.html": "a1", "book/x.html": "a2", "book/runs/y.html": "a3", "_static/s.js": "a4"}
    places |= {"_static/scripts/s.js": "a5", "_static/records/s.js": "a6"}
    for place, word in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"'{word}'")
    style = tmp_path / "_static" / "style.css"
    style.write_text("".join(f".a{i} {{ top: 0 }}\n" for i in range(8)))
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    light_pages.prune_styles(app, None)
    assert [line[:3] for line in style.read_text().splitlines()] == [f".{word}" for word in places.values()]
