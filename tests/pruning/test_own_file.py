"""A file of one's own: known within the block, to nothing else, and refused with the line where it is wrong."""

import sys

import pytest

import pai_lib as pai
from pai_lib.pruning.own import KNOWN, MODULE, OwnFile, known
from pai_lib.pruning.profiles import PROFILES
from pai_lib.pruning.ranking import scopes

HEAD = "import pai_lib as pai\n"
MINE = '@pai.criterion("mine", "Mine", "Mine", "", "")\ndef mine(weight):\n    return weight.abs()\n'
EXIT = HEAD + MINE + "raise SystemExit(0)\n"
FLAT = '@pai.profile("flat")\ndef flat(shapes, density):\n    return dict.fromkeys(shapes, density)\n'


def test_its_functions_are_known_within_the_block_alone():
    before, file = (dict(pai.CRITERIA), dict(PROFILES)), OwnFile("idea.py", HEAD + MINE + FLAT)
    with known(file) as own:
        assert own.keys == ("mine", "flat")
        assert [file] == KNOWN
        assert pai.RunSpec(criterion="mine", scope="flat").scope == "flat"
        assert "flat" in scopes()
        model, data = pai.build_model("resnet8", 10, in_channels=1), pai.load_data("digits")
        mask = pai.prune(model, data.scoring_batch(1), "mine", 0.9, scope="flat")
        assert set(pai.layer_density(mask)) == set(pai.prunable(model))
    assert before == (pai.CRITERIA, PROFILES)
    assert not KNOWN
    with pytest.raises(ValueError, match="Unknown criterion 'mine'"):
        pai.RunSpec(criterion="mine")
    with pytest.raises(ValueError, match="Unknown scope 'flat'"):
        pai.RunSpec(scope="flat")


def test_the_title_is_of_the_text_and_not_of_the_folder(tmp_path):
    (tmp_path / "idea.py").write_text(HEAD + MINE)
    one, two = OwnFile.read(tmp_path / "idea.py"), OwnFile("idea.py", HEAD + MINE)
    assert one.title == two.title
    assert one.title != OwnFile("idea.py", HEAD + MINE + "\n").title
    assert one.title.startswith("idea-")


def named(change):
    return HEAD + MINE.replace(*change)


WRONG = {
    "x = 1\n": r"^idea.py registers no function: decorate one with @pai.criterion",
    named(('"mine"', '"snip"')): r"^idea.py, line 2: the name 'snip' exists already: give another",
    HEAD + FLAT.replace('"flat"', '"erk"'): r"^idea.py, line 2: the name 'erk' exists already",
    named(('"mine"', '"dense"')): "the name 'dense' exists already",
    named(('"mine"', '"a/b"')): "'a/b' names files, too",
    named(("weight)", "weigth)")): r"^idea.py, line 2: mine asks for 'weigth': did you mean 'weight'\?",
    named(('"Mine"', '"SNIP"')): "the label 'SNIP' is that of 'snip'",
    HEAD + "\n1 / 0\n": r"^idea.py, line 3: ZeroDivisionError: division by zero$",
    HEAD + "def f(:\n": r"^idea.py, line 2: SyntaxError: invalid syntax$",
    HEAD + "pai.criterion('mine')(len)\n": r"^idea.py, line 2: TypeError: .*missing 4 required",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_file_is_one_sentence_and_leaves_nothing(text):
    before = dict(pai.CRITERIA), dict(PROFILES)
    with pytest.raises(ValueError, match=WRONG[text]), known(OwnFile("idea.py", text)):
        pass
    assert before == (pai.CRITERIA, PROFILES)
    assert not KNOWN


def test_an_error_within_the_block_leaves_nothing_either():
    with pytest.raises(KeyError), known(OwnFile("idea.py", HEAD + MINE)):
        raise KeyError
    assert "mine" not in pai.CRITERIA
    assert not KNOWN


def test_a_file_is_a_module_of_its_own_while_it_is_known():
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEAD
    text += "@dataclass\nclass Part:\n    size: int = 1\n" + MINE
    with known(OwnFile("idea.py", text)) as own:
        assert own.keys == ("mine",)
        assert MODULE in sys.modules
    assert MODULE not in sys.modules


def test_an_exit_in_a_file_is_an_error_of_the_file():
    with pytest.raises(ValueError, match=r"^idea.py, line 5: SystemExit: 0$"), known(OwnFile("idea.py", EXIT)):
        pass


def test_a_files_letters_are_utf_8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "idea.py"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + MINE).encode())
    assert OwnFile.read(path).text == HEAD + MINE
    path.write_bytes(b"# caf\xe9")
    with pytest.raises(ValueError, match=r"idea\.py is not UTF-8"):
        OwnFile.read(path)


def test_a_file_is_compiled_by_itself_and_imports_what_lies_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("FACTOR = 2\n")
    text = (
        HEAD + "from beside import FACTOR\n" + MINE + "def f(x: int): ...\nassert f.__annotations__['x'] is int\n"
    )
    before = list(sys.path)
    with known(OwnFile(str(tmp_path / "idea.py"), text)) as own:
        assert own.criteria == ("mine",)
    assert sys.path == before
    sys.modules.pop("beside", None)


def test_a_null_byte_is_told(tmp_path):
    (tmp_path / "idea.py").write_bytes(b"import pai_lib\n\0")
    with pytest.raises(ValueError, match=r"idea\.py holds a null byte"):
        OwnFile.read(tmp_path / "idea.py")
