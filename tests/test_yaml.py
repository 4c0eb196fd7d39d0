"""Campaigns and chapters are read as YAML 1.2, with merges, and no key may stand twice."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pai_lib.book.chapters import load_chapters
from pai_lib.experiments.campaign import read_campaign
from pai_lib.files import load_yaml

BASE = "dataset: digits, model: resnet8, width: 2, criterion: snip, epochs: 1, sparsity: 0.9"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_yaml(path)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, None) for text in ("null", "Null", "NULL", "~", "")],
        *[(text, True) for text in ("true", "True", "TRUE")],
        *[(text, False) for text in ("false", "False", "FALSE")],
        *[("010", 10), ("001", 1), ("09", 9), ("+3", 3), ("-0", 0), ("0o10", 8), ("0x1F", 31), ("!!int 010", 10)],
        *[("1e-3", 0.001), ("1E3", 1000.0), ("-1.5", -1.5), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf)],
        *[(text, text) for text in "yes no on off y n Yes NO tRue 1:30 1:30:00 1_000 0b11 -0x1 1.5e = 1e".split()],
        *[(text, text) for text in ("2020-01-01", "2020-01-01 10:00:00", "1.2.3", "nan", "inf", "0o9", "+")],
        *[("'010'", "010"), ('"true"', "true"), ("!!str 1", "1"), ("{on: 010}", {"on": 10})],
        *[("!!float 1", 1.0), ("!!float -.INF", -math.inf), ("!!bool TRUE", True), ("!!str", "")],
        *[("!!int '0x1F'", 31), ("! 12", "12"), ("!!seq [1]", [1]), ("!!map {a: 1}", {"a": 1}), ("<<", "<<")],
        ("!!null ''", None),
        *[("%YAML 1.1\n---\nyes", "yes"), ("\ufeffyes", "yes")],
    ],
)  # fmt: skip
def test_scalars_are_those_of_the_core_schema(read, text, value):
    found = read(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {k: 1, l: 2}\nb: {<<: *a, l: 3}", {"k": 1, "l": 3}),
        ("a: &a {k: 1}\nc: &c {<<: *a, k: 2}\nb: {<<: *c, l: 3}", {"k": 2, "l": 3}),
        ("a: &a {k: 1}\nb: {l: 2, <<: [*a, {k: 5, m: 3}]}", {"k": 1, "l": 2, "m": 3}),
        ("a: &a [1]\nb: *a", [1]),
        ("b: {'<<': 3}", {"<<": 3}),
    ],
)
def test_anchors_and_merges(read, text, value):
    assert read(text)["b"] == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands there twice"),
        ("a:\n  b: {c: 1, d: [{e: 1, e: 2}]}", "line 2: 'e' stands there twice"),
        ("{a: 1, 'a': 2}", "'a' stands there twice"),
        ("{1: a, 0x1: b}", "'1' stands there twice"),
        ("{1: a, 1.0: b}", "'1.0' stands there twice"),
        *[(f"a:\n  b: !!bool {text}", f"line 2: '{text}' is no bool of YAML 1.2.")
          for text in ("yes", "On", "tRue", "1")],
        *[(f"!!int {text}", f"line 1: '{text}' is no int of YAML 1.2.")
          for text in "1_0 1:30 0b11 -0x1 1.5 ٣".split()],
        *[(f"!!float {text}", f"line 1: '{text}' is no float of")
          for text in "1_0.5 1:30 nan inf 0x1F .e1".split()],
        *[(f"!!{kind} ''", f"line 1: '' is no {kind} of YAML 1.2.") for kind in ("bool", "int", "float", "merge")],
        ("!!int ' 1 '", "line 1: ' 1 ' is no int of YAML 1.2."),
        ("!!null none", "line 1: 'none' is no null of YAML 1.2."),
        *[(f"a: 1\nb: !!{kind} {value}", f"line 2: the tag '{kind}' is none of YAML 1.2: leave it out.")
          for kind, value in [
              ("timestamp", "tomorrow"), ("timestamp", "2020-01-01"), ("set", "{a, b}"), ("omap", "[a: 1]"),
              ("pairs", "[a: 1]"), ("binary", "aGk="), ("value", "="), ("yaml", "x"),
              ("python/name:os.system", ""), ("python/tuple", "[1]"), ("python/object/apply:os.system", "[ls]")]],
        ("{!!set {a}: 1}", "the tag 'set' is none of YAML 1.2"),
        ("!own 1", "the tag '!own' is none of YAML 1.2"),
        ("!!int [1]", "expected a scalar node, but found sequence at line 1"),
        ("? a\n? a", "'a' stands there twice"),
        ("x: &x {k: 1}\ny: {<<: *x, j: 1, j: 2}", "line 2: 'j' stands there twice"),
        ("x: &x {k: 1}\ny: {<<: *x, <<: *x}", "line 2: '<<' stands there twice"),
        ("x: &x {k: 1, k: 2}\ny: {<<: *x}", "line 1: 'k' stands there twice"),
        ("a: [", "while parsing"),
        ("--- 1\n--- 2", "expected a single document"),
        ("a: *nowhere", "undefined alias 'nowhere'"),
        ("[" * 3000, "nested too deep"),
        (b"a: \xff", "invalid start byte"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_one_sentence(read, text, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


words = st.text(st.characters(codec="latin-1", exclude_categories=["C"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(words, inner)))
def test_json_is_yaml(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "x.yaml"
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    assert load_yaml(path) == value


def test_campaigns_and_chapters_have_one_reader(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"base: {{{BASE}}}\ngrid: {{seed: [001, 002, 010]}}\n")
    assert [spec.seed for spec in read_campaign(path)] == [1, 2, 10]
    path.write_text(f"base: &b {{{BASE}}}\nalso: [{{base: {{<<: *b, seed: 08}}}}, {{base: {{lr: 1e-2}}}}]\n")
    assert [(spec.seed, spec.lr) for spec in read_campaign(path)] == [(8, 0.03), (0, 0.01)]
    path.write_text(f"base: {{{BASE}, precision: off}}\n")
    with pytest.raises(ValueError, match="Unknown precision 'off'"):
        read_campaign(path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "a.ipynb").write_text("{}")
    chapters = tmp_path / "notebooks" / "chapters.yaml"
    chapters.write_text("chapters: {on: {notebook: a, parameters: {seed: 010, lr: 1e-3, name: no}}}")
    assert dict(load_chapters(tmp_path)["on"].parameters) == {"seed": 10, "lr": 0.001, "name": "no"}
    chapters.write_text("chapters:\n  a: {notebook: a}\n  a: {notebook: a}")
    with pytest.raises(ValueError, match=r"chapters\.yaml: line 2: 'a' stands there twice"):
        load_chapters(tmp_path)
    chapters.write_text("chapters: {a: {notebook: a, 1: 2, x: 3}}")
    with pytest.raises(ValueError, match="a has an unknown key 1"):
        load_chapters(tmp_path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("campaigns/*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_files_mean_the_same_to_both_versions(path):
    """No file here relies on what the versions of YAML differ in, except for numbers such as 1e-3."""
    old = yaml.safe_load(path.read_text("utf-8"))
    assert json.dumps(load_yaml(path)) == json.dumps(old)
