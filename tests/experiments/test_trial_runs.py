"""`pai trial`: which runs it makes, what it refuses before the first, and where their records go."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pai_lib as pai
from pai_lib.book import trials as command
from pai_lib.cli import main
from pai_lib.experiments import trial
from pai_lib.experiments.records import Store
from pai_lib.experiments.run import Work
from pai_lib.experiments.spec import CONTROLS
from pai_lib.experiments.sweep import sweep
from pai_lib.pruning.own import OwnFile, known

HEAD = "import torch\nimport pai_lib as pai\n"
MINE = HEAD + '@pai.criterion("mine", "Mine", "Mine", "", "")\ndef mine(weight, gradient):\n    return {}\n'
FLAT = HEAD + '@pai.profile("flat")\ndef flat(shapes, density):\n    return {}\n'
MAKE_PAGE_OF = command.make_page_of
GOOD = MINE.format("(weight * gradient).abs()")
TINY = """
base: {dataset: digits, model: resnet8, width: 2, samples_per_class: 1, warmup: 1, epochs: 1, batch_size: 512}
also:
- grid: {seed: [0, 1], criterion: [random, snip], sparsity: [0.9]}
- base: {criterion: dense, sparsity: 0}
- base: {sparsity: 0.9, criterion: random, scope: erk}
- base: {sparsity: 0.9, criterion: snip, warmup: 0}
- grid: {seed: [0], criterion: [random, snip], sparsity: [0.8]}
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A project with one small protocol, most of whose runs are recorded."""
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "campaigns" / "tiny.yaml").write_text(TINY)
    for module in (trial, command):
        monkeypatch.setattr(module, "default_results", lambda: tmp_path / "results")
    monkeypatch.setattr(command, "make_page_of", lambda *words: print("page of", words[0].name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The records of that project, made once."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "campaigns").mkdir()
    (root / "campaigns" / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "default_results", lambda: root / "results")
        for sparsity in (0.9, 0.8):
            sweep(trial.read_protocol("tiny", sparsity).specs, Store(root / "results"), quiet=True)
    return root / "results"


@pytest.fixture
def recorded(tree, results):
    shutil.copytree(results, tree / "results")
    return Store(tree / "results")


def test_ids_of_old_are_the_same():
    assert pai.RunSpec(dataset="digits", model="resnet8", sparsity=0.9).id == "0c6754f1fed4"
    assert pai.RunSpec(control="shuffle").id == "1ab1ad2dc7d7"
    assert CONTROLS[:4] == ("none", "shuffle", "reinit", "invert")


def test_other_samples_are_scored_and_all_else_is_equal():
    """Shared parts are kept apart: what one batch gave is not the other's."""
    data, shared = pai.load_data("digits"), pai.Shared()
    spec = pai.RunSpec(dataset="digits", model="resnet8", width=2, warmup=1, criterion="snip", sparsity=0.9)
    plain, other = (
        Work(replace(spec, control=control), data, torch.device("cpu"), shared=shared)
        for control in ("none", "resample")
    )
    assert not torch.equal(plain.batch.inputs, other.batch.inputs)
    assert torch.equal(plain.batch.labels.sort().values, other.batch.labels.sort().values)
    masks = []
    for work in (plain, other):
        work.go_on(None)
        masks.append(work.mask())
    weights = [dict(work.model.named_parameters()) for work in (plain, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert pai.jaccard(*masks) < 0.9
    alone = Work(replace(spec, control="resample"), data, torch.device("cpu"))
    alone.go_on(None)
    assert pai.jaccard(masks[1], alone.mask()) == 1


def test_a_protocol_is_the_base_of_a_campaign_at_one_sparsity(tree):
    protocol = trial.read_protocol("tiny", 0.9)
    assert protocol.seeds == [0, 1]
    assert sorted({(s.criterion, s.scope, s.warmup) for s in protocol.specs}) == [
        ("random", "erk", 1), ("random", "global", 1), ("snip", "global", 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"tiny has no runs of its base at sparsity 0.98: it has 0.8, 0.9\."):
        trial.read_protocol("tiny")
    with pytest.raises(ValueError, match=r"Unknown protocol 'tinny': did you mean 'tiny'\?"):
        trial.read_protocol("tinny")


def test_the_runs_that_the_verdict_rests_on_come_first(tree):
    protocol = trial.read_protocol("tiny", 0.9)
    noise = '@pai.criterion("lot", "Lot", "Lot", "", "")\ndef lot(noise):\n    return noise\n'
    flat = '@pai.profile("flat")\ndef flat(shapes, density):\n    return {}\n'
    with known(OwnFile("idea.py", GOOD + noise + flat)) as own:
        specs = trial.trial_specs(protocol, own)
    told = [(s.seed, s.criterion, s.scope, s.control) for s in specs]
    seed = [
        ("mine", "global", "none"), ("lot", "global", "none"), ("mine", "global", "shuffle"),
        ("lot", "global", "shuffle"), ("random", "flat", "none"),
    ]  # fmt: skip
    later = [("mine", "global", "reinit"), ("lot", "global", "reinit"), ("mine", "global", "resample")]
    assert told == [(n, *way) for part in (seed, later) for n in (0, 1) for way in part]


REFUSED = {
    MINE.format(
        "weight.mean()"
    ): r"idea.py, line 3: the scores of mine are \(\) for 'stem.0.weight', whose shape is",
    MINE.format("3"): "the scores of mine are int for",
    MINE.format("weight / 0 * 0"): "mine: The scores of 'stem.0.weight' hold NaN",
    MINE.format("weight * 0 + 1"): "the scores of mine are all equal",
    MINE.format("torch.rand_like(weight)"): "the scores of mine are not the same twice for one seed",
    MINE.format("weight.mul_(2)"): "mine changes the weights",
    MINE.format("weight > 0"): "torch.bool",
    MINE.format("weight + gradient[..., :2]"): "idea.py, line 5: RuntimeError: The size of tensor",
    FLAT.format("3"): "idea.py, line 3: the densities of flat must be a dictionary with a number from 0 to 1",
    FLAT.format("dict.fromkeys(shapes, 2)"): "the densities of flat must be a dictionary",
    FLAT.format("dict.fromkeys(shapes, float('nan'))"): "the densities of flat must be a dictionary",
    FLAT.format("dict.fromkeys(shapes, 0.5)"): "the densities of flat keep 0.5 of the network, not 0.1",
    FLAT.format("1 / 0"): "idea.py, line 5: ZeroDivisionError",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_scored_is_one_sentence_before_any_run(recorded, capsys, text):
    (recorded.root.parent / "idea.py").write_text(text)
    assert main(["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9"]) == 2
    said = capsys.readouterr()
    assert REFUSED[text].replace("\\", "") in said.err
    assert said.err.count("\n") == 1
    assert not (recorded.root.parent / "trials").exists()


def test_a_criterion_may_ask_for_the_row_norm(recorded, capsys):
    text = HEAD + MINE.removeprefix(HEAD).replace("gradient", "row_norm")
    (recorded.root.parent / "idea.py").write_text(text.format("weight.abs() / (row_norm + 1e-9)"))
    assert main(["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9", "--dry-run"]) == 0
    assert "2 runs: 2 to do." in capsys.readouterr().out  # of the calibration


@pytest.mark.parametrize("levels", ["none", "0.9,0.9"])
def test_levels_are_given_once_each(recorded, capsys, levels):
    (recorded.root.parent / "idea.py").write_text(GOOD)
    assert main(["trial", "idea.py", "--protocol", "tiny", "--sparsity", levels, "--dry-run"]) == 2
    assert "give one or more, each once" in capsys.readouterr().err


def test_nothing_recorded_is_said_before_any_run(tree, capsys):
    (tree / "idea.py").write_text(GOOD)
    assert main(["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9"]) == 2
    assert "Nothing is recorded of tiny" in capsys.readouterr().err


def test_a_trial_makes_its_own_runs_once_and_another_text_has_others(recorded, capsys):
    tree, words = recorded.root.parent, ["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9"]
    (tree / "idea.py").write_text(GOOD)
    before = sorted(recorded.root.rglob("*.json"))
    assert main([*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "2 runs: 2 done, 0 reused" in said  # of the calibration
    assert "8 runs: 8 done, 0 reused" in said
    assert "Mine: not judged" in said
    assert said.endswith("page of tiny\n")
    folder = tree / "trials" / OwnFile("idea.py", GOOD).title
    assert (folder / "idea.py").read_text() == GOOD
    (path, *_) = files = sorted(folder.rglob("digits/resnet8/*.json"))
    assert len(files) == 8
    (own,) = json.loads(path.read_text())["provenance"]["own"]
    assert own == {"name": "idea.py", "text": GOOD, "digest": OwnFile("", GOOD).digest}
    again = sorted((tree / "trials" / "calibration").rglob("*.json"))
    assert len(again) == 2
    assert all("own" not in json.loads(file.read_text())["provenance"] for file in again)
    assert sorted(recorded.root.rglob("*.json")) == before
    assert main([*words, "--quiet"]) == 0
    assert "8 runs: 0 done, 8 reused" in capsys.readouterr().out
    both = ["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9,0.8"]
    assert main([*both, "--quiet"]) == 0  # two protocols, in one folder
    said = capsys.readouterr().out
    assert "12 runs: 4 done, 8 reused" in said
    assert said.count("Mine: not judged") == said.count("page of tiny") == 2
    (tree / "notebooks").rmdir()  # as in an installed library
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("only a clone of the project has the notebook that makes it.\n")
    (tree / "idea.py").write_text(GOOD + "# another\n")
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "8 runs: 8 to do" in said
    assert said.count("to do, about ") == 8  # as the committed runs of the protocol took
    assert "mine" not in pai.CRITERIA


def test_a_budget_leaves_the_rest_and_the_page_for_later(recorded, capsys):
    (recorded.root.parent / "idea.py").write_text(GOOD)
    words = ["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9", "--quiet", "--budget", "1e-3"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "8 runs: 0 done, 0 reused, 0 failed, 8 left" in said
    assert "The same command goes on" in said
    assert "page of" not in said


@pytest.mark.slow
def test_workers_load_the_file_too(recorded, capsys):
    pytest.importorskip("distributed")
    (recorded.root.parent / "idea.py").write_text(GOOD)
    words = ["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9", "--quiet", "--workers", "1"]
    assert main(words) == 0
    assert "8 runs: 8 done" in capsys.readouterr().out


def test_records_of_two_data_sets_are_refused_before_any_run(recorded):
    protocol = trial.read_protocol("tiny", 0.9)
    records = protocol.records(recorded)
    other = replace(records[-1], data={**records[-1].data, "fingerprint": "e" * 64})
    with known(OwnFile("idea.py", GOOD)) as own, pytest.raises(ValueError, match="holds other data"):
        trial.check_trial(protocol, own, [*records[:-1], other])


def test_a_page_may_have_any_file_s_name(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(command, "build_book", lambda root, **options: made.append(options["run"]))
    protocol = SimpleNamespace(name="tiny", base=SimpleNamespace(sparsity=0.9))
    for stem in ("my idea", "_idée", "long" * 40):
        MAKE_PAGE_OF(protocol, Store(tmp_path / f"{stem}-0123456789ab"), f"{stem}.py")
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", run) for run in made)
    assert [run[-21:] for run in made] == ["-0123456789ab-tiny-0.9"[-21:]] * 3


def test_a_folder_of_records_without_campaigns_takes_no_protocol_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(trial, "default_results", lambda: Path("results"))
    assert trial.protocol_file("digits-trial").is_file()


def test_the_records_of_a_trial_are_exported(recorded, capsys, tmp_path):
    (recorded.root.parent / "idea.py").write_text(GOOD)
    assert main(["trial", "idea.py", "--protocol", "tiny", "--sparsity", "0.9", "--quiet"]) == 0
    (folder,) = (recorded.root.parent / "trials").glob("idea-*")
    assert main(["export", "t.csv", "--results", str(folder)]) == 0
    assert "t.csv: 8 records, 0 of failed runs" in capsys.readouterr().out
