"""The ``pai`` command: runs, data, criteria; one line for each error; no package that it does not need."""

import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

import pai_lib
from pai_lib import cli
from pai_lib.experiments import options
from pai_lib.experiments.records import Store
from pai_lib.experiments.spec import RunSpec
from pai_lib.pruning.criteria import CRITERIA, criterion_label

QUICK = (
    "run --dataset digits --model resnet8 --width 2 --criterion snip --sparsity 0.9 --samples-per-class 2 "
    "--warmup 1 --epochs 1 --batch-size 64 --train-fraction 0.1 --device cpu --quiet"
).split()


def call(capsys, *words):
    code = cli.main([*words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(monkeypatch, *words):
    """Return the spec that ``pai run`` makes of its arguments."""
    seen = []

    def stop(spec, *args, **options):
        seen.append(spec)
        raise ValueError("stop")

    monkeypatch.setattr(cli, "run", stop)
    cli.main(["run", *words])
    return seen[0]


def test_a_run_writes_its_record_and_says_so(capsys, elsewhere):
    code, out, err = call(capsys, *QUICK)
    (record,) = Store("results").records()
    path = Store("results").path(record.spec)
    assert code == 0
    assert err == ""
    accuracy = f"{100 * record.result['test_accuracy']:.2f}"
    start = f"{record.spec.id}  SNIP  sparsity 0.9  test accuracy {accuracy} %  "
    assert out.startswith(start)
    assert out.endswith(f" s  {path} (new)\n")
    assert (elsewhere / "results" / "digits" / "resnet8" / f"{record.spec.id}.json").is_file()
    code, again, _ = call(capsys, *QUICK)
    assert (code, again) == (0, out.replace("(new)", "(reused)"))
    (elsewhere / "other").mkdir()
    code, out, _ = call(capsys, *QUICK, "--results", "other")
    assert out.endswith("(new)\n")
    assert len(Store("other").records()) == 1


def test_a_failed_run_is_exit_code_one(capsys):
    words = " ".join(QUICK).replace("--epochs 1", "--epochs 4").split()
    code, out, _ = call(capsys, *words, "--lr", "1e12")
    assert code == 1
    assert "  failed in " in out
    assert "accuracy" not in out
    assert Store().records()[0].failure


def test_without_options_it_is_the_default_spec(monkeypatch):
    assert parsed(monkeypatch) == RunSpec()


def test_every_field_has_its_option(monkeypatch):
    values = {
        "dataset": "digits", "model": "resnet8", "width": 3, "criterion": "synflow", "variant": "released",
        "sparsity": 0.5, "scope": "layer", "samples_per_class": 2, "group": 3, "probes": 4, "temperature": 1.5,
        "rounds": 6, "warmup": 7, "control": "reinit", "epochs": 8, "batch_size": 9, "lr": 1e-3, "momentum": 0.1,
        "weight_decay": 0.0, "lr_drops": (0.5, 0.75), "lr_drop_factor": 0.2, "precision": "bf16", "seed": 42,
        "train_fraction": 0.5, "when": "trained", "optimizer": "adamw", "schedule": "cosine", "lr_warmup": 1,
        "label_smoothing": 0.1, "image_size": 32,
    }  # fmt: skip
    assert set(values) == {each.name for each in fields(RunSpec)}
    words = []
    for name, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    assert parsed(monkeypatch, *words) == RunSpec(**values)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("--width none --temperature None --rounds none", {}),
        ("--lr-drops none", {"lr_drops": ()}),
        ("--lr-drops 0.5", {"lr_drops": (0.5,)}),
        ("--control none", {}),
        ("--lr 1", {"lr": 1.0}),
        ("--criterion dense --sparsity 0", {"criterion": "dense", "sparsity": 0}),
        ("--criterion dense", {"criterion": "dense", "sparsity": 0}),  # it can be nothing else
    ],
)
def test_none_and_lists(monkeypatch, words, values):
    assert parsed(monkeypatch, *words.split()) == RunSpec(**values)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("rum", "invalid choice: 'rum'"),
        ("run --sparsty 0.9", "unknown argument '--sparsty': did you mean '--sparsity'?"),
        ("--versoin", "unknown argument '--versoin': did you mean '--version'?"),
        ("run --hlep", "unknown argument '--hlep': did you mean '--help'?"),
        ("run --spars 0.9", "unknown argument '--spars': did you mean '--sparsity'?"),
        ("run --lr fast", "argument --lr: 'fast' is not a number"),
        ("run --epochs 1.5", "argument --epochs: '1.5' is not a whole number"),
        ("run --seed 1_0", "argument --seed: '1_0' is not a whole number"),
        ("run --lr ٣", "argument --lr: '٣' is not a number"),
        ("sweep x.yaml --budget 1_0", "argument --budget: '1_0' is not a number"),
        ("sweep x.yaml --workers 1_0", "argument --workers: '1_0' is not a whole number"),
        ("run --epochs none", "argument --epochs: 'none' is not a whole number"),
        ("run --width wide", "argument --width: 'wide' is not a whole number or none"),
        ("run --lr-drops 0.5;0.75", "'0.5;0.75' is not numbers with commas between them"),
        ("run --lr-drops 1.5", "--lr-drops 1.5: it must be above 0 and below 1, each a fraction of the run"),
        ("run --sparsity 1", "--sparsity 1.0: it must be at least 0 and below 1"),
        ("run --sparsity nan", "argument --sparsity: 'nan' is not a number"),
        ("run --criterion dense --sparsity 0.9", "--criterion dense with --sparsity 0.9: the dense network is"),
        ("run --results reslts", "--results reslts: there is no such folder; make it first, or correct its name"),
        ("run --seed", "argument --seed: expected one argument"),
        ("run --criterion snap", "Unknown criterion 'snap': did you mean 'snip'?"),
        ("run --dataset cifer10", "Unknown dataset 'cifer10': did you mean 'cifar10'?"),
        ("run --dataset digits --model resnet8 --device gpu", 'device="gpu": it must be "cpu" or "cuda"'),
        ("run --dataset digits --model vgg11 --quiet --width 1", "images of 8×8 are too small"),
        ("run --dataset digits --model resnet8 --samples-per-class 999", "--samples-per-class 999 must be 1 to"),
        ("data check cifer10", "unknown dataset 'cifer10' (did you mean 'cifar10'?)"),
        ("data fetch nowhere", "unknown dataset 'nowhere'"),
        ("data look digits", "invalid choice: 'look'"),
        ("data check", "the following arguments are required: NAME"),
        ("criteria all", "unknown argument 'all'"),
        ("run --seed 1 --seed 2", "--seed 2: it is given twice, first as --seed 1"),
        ("run --seed=1 --quiet --seed 1", "--seed 1: it is given twice, first as --seed 1"),
        (
            "run --lr-drops 0.5 --lr-drops 0.25,0.5",
            "--lr-drops 0.25,0.5: it is given twice, first as --lr-drops 0.5",
        ),
        ("run --quiet --quiet", "--quiet: it is given twice, first as --quiet"),
        ("run --lr-drops 0.75,0.5", "--lr-drops 0.75,0.5: each must be above the last, as --lr-drops 0.5,0.75."),
        ("sweep x.yaml --budget 1 --budget 2", "--budget 2: it is given twice, first as --budget 1"),
        ("sweep x.yaml --workers 1 --workers 2", "--workers 2: it is given twice"),
        (
            "trial x.py --sparsity 0.9 --sparsity 0.98",
            "--sparsity 0.98: it is given twice, first as --sparsity 0.9",
        ),
        (
            "book --chapter warmup --chapter audit --name x --name y",
            "--name y: it is given twice, first as --name x",
        ),
        ("book --profile smoke --profile smoke", "--profile smoke: it is given twice"),
        ("export x.csv --results a --results b", "--results b: it is given twice, first as --results a"),
    ],
)
def test_errors_are_one_line_and_exit_code_two(capsys, elsewhere, words, sentence):
    code, out, err = call(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("pai: error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_options_that_make_a_list_are_given_as_often_as_one_likes():
    words = "book --chapter one --chapter two -p a=1 -p a=2".split()
    args = cli._make_parser().parse_args(words)
    assert (args.chapter, args.pairs) == (["one", "two"], ["a=1", "a=2"])


def test_an_error_of_several_lines_is_told_in_one(capsys, monkeypatch):
    def fail(*args, **options):
        raise ValueError("out of memory\n  tried to allocate\n")

    monkeypatch.setattr(cli, "run", fail)
    assert call(capsys, "run") == (2, "", "pai: error: out of memory tried to allocate\n")


@pytest.mark.parametrize(
    "words",
    ["--width 1000000", f"--width {10**18}", "--image-size 1000000", f"--image-size {10**18}"],
)
def test_what_no_memory_holds_is_said_before_work_starts(capsys, elsewhere, words):
    code, out, err = call(capsys, *f"run --dataset digits --model vgg19 {words} --epochs 1".split())
    assert (code, out) == (2, "")
    assert re.match(r"pai: error: (Memory is exhausted\. |.*Memory has no room for images of )", err)
    assert err.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_exhausted_memory_is_told_without_a_traceback(capsys, monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(cli, "run", fail)
    assert call(capsys, "run") == (2, "", "pai: error: Memory is exhausted.\n")


def test_alone_it_shows_its_help(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert out.startswith("usage: pai ")
    assert all(command in out for command in ("book", "notebooks", "run", "sweep", "export", "data", "criteria"))


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pai {pai_lib.__version__}\n"


def test_a_sentence_is_one_wherever_it_is_raised(monkeypatch, capsys, tmp_path):
    def fail(*args, **options):
        with open(tmp_path / "x", "w"):
            try:
                raise ValueError("so it is")
            finally:
                str(tmp_path)

    monkeypatch.setattr(cli, "run", fail)
    assert call(capsys, "run") == (2, "", "pai: error: so it is\n")


def bugs():
    yield "a key", lambda: {}["a"]
    yield "an index", lambda: [][0]
    yield "a conversion", lambda: int("a")
    yield "an attribute", lambda: None.a
    yield "a call", lambda: len(3)
    yield "a name", lambda: nowhere  # noqa: F821
    yield "a shape", lambda: torch.zeros(2) @ torch.zeros(3)
    yield "an array", lambda: np.zeros(2) + np.zeros(3)
    yield "an import", lambda: importlib.import_module("pai_lib.nowhere")
    yield "a search", lambda: [].index(1)


@pytest.mark.parametrize("bug", [pytest.param(bug, id=name) for name, bug in bugs()])
def test_a_mistake_in_the_code_is_not_taken_for_one_of_the_users(monkeypatch, capsys, bug):
    monkeypatch.setattr(cli, "run", lambda *args, **options: bug())
    with pytest.raises(Exception) as error:  # noqa: PT011
        cli.main(["run"])
    assert not isinstance(error.value, SystemExit)
    assert capsys.readouterr().err == ""


def test_an_error_of_another_library_that_is_no_value_error_is_a_mistake(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        cli.main(["run"])


def test_a_traceback_reaches_whoever_typed_the_command():
    program = "import sys\nfrom pai_lib import cli\ncli.run = lambda *a, **b: {}['a']\nsys.exit(cli.main(['run']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("KeyError: 'a'\n")


@pytest.mark.parametrize(
    "words", ["data check nowhere --traceback", "--traceback data check nowhere", "rum --traceback"]
)
def test_a_switch_shows_where_a_sentence_comes_from(capsys, words):
    code, out, err = call(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("pai: error: ")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_is_the_same_switch(capsys, monkeypatch, value, shown):
    monkeypatch.setenv("PAI_TRACEBACK", value) if value is not None else monkeypatch.delenv(
        "PAI_TRACEBACK", raising=False
    )
    assert call(capsys, "data", "check", "nowhere")[2].startswith("Traceback") is shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("export results", "results is a folder or a device: give the name of a file"),
        ("export pipe --overwrite", "pipe is a folder or a device: give the name of a file"),
        ("export taken.csv", "taken.csv is there already: give another name, or --overwrite to replace it"),
        ("export taken.csv/x.csv", "taken.csv/x.csv: there is no folder taken.csv"),
        ("export x.csv --results taken.csv", "--results taken.csv: there is no such folder"),
        ("export x.csv --results nowhere", "--results nowhere: there is no such folder"),
        ("export nowhere/x.csv", "nowhere/x.csv: there is no folder nowhere"),
        ("sweep results", "Is a directory: 'results'"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(capsys, elsewhere, words, sentence):
    call(capsys, *QUICK)
    (elsewhere / "taken.csv").write_text("mine")
    os.mkfifo(elsewhere / "pipe")
    before = sorted(elsewhere.rglob("*"))
    code, out, err = call(capsys, *words.split())
    assert (code, out) == (2, "")
    assert (elsewhere / "pipe").is_fifo()
    assert err.startswith(f"pai: error: {sentence}")
    assert err.count("\n") == 1
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.filterwarnings("default::pai_lib.experiments.records.RecordWarning")  # the command shows them
def test_a_tampered_record_is_named(capsys):
    call(capsys, *QUICK)
    (record,) = Store().records()
    path = Store().path(record.spec)
    text = json.dumps(record.to_dict() | {"schema": 7})
    path.write_text(text)
    code, out, err = call(capsys, *QUICK)
    assert code == 0
    assert out.endswith(" (new)\n")
    named = (
        f"pai: warning: {path} is not a readable record: schema 7: this version reads schema 1. It is not used."
    )
    assert err.splitlines()[0] == named
    assert err.splitlines()[-1] == f"pai: warning: {path} is set aside as {path.name}.unreadable."
    assert path.with_name(f"{path.name}.unreadable").read_text() == text


def test_interrupted(capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    assert call(capsys, "run") == (130, "", "pai: interrupted\n")


# --- sweeps


@pytest.fixture
def campaign(elsewhere):
    base = {name: value for name, value in parse(QUICK).items() if name not in ("sparsity", "seed")}
    path = elsewhere / "campaign.yaml"
    path.write_text(json.dumps({"base": base, "grid": {"seed": [0, 1], "sparsity": [0.5, 0.9]}}))  # JSON is YAML
    return path


def parse(words):
    """Return the fields of the words of ``pai run``."""
    args = dict(zip(words[1::2], words[2::2], strict=False))
    names = {f"--{each.name.replace('_', '-')}": each for each in fields(RunSpec)}
    return {names[word].name: options.read(names[word], text) for word, text in args.items() if word in names}


def test_a_sweep_does_what_is_left_and_counts(capsys, campaign):
    words = ["sweep", str(campaign), "--device", "cpu"]
    code, out, _ = call(capsys, *words, "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == "4 runs: 4 to do."
    assert not (campaign.parent / "results").exists()
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "4 runs: 4 done, 0 reused, 0 failed, 0 left."
    assert len(Store().records()) == 4
    assert call(capsys, *words, "--quiet") == (0, "4 runs: 0 done, 4 reused, 0 failed, 0 left.\n", "")
    code, out, _ = call(capsys, *words, "--dry-run")
    assert out.splitlines()[-1] == "4 runs: 4 recorded."


def test_a_sweep_with_a_failure_is_exit_code_one(capsys, campaign):
    campaign.write_text(campaign.read_text().replace('"epochs": 1', '"epochs": 4, "lr": 1e12'))
    words = ["sweep", str(campaign), "--device", "cpu", "--quiet"]
    assert call(capsys, *words) == (1, "4 runs: 0 done, 0 reused, 4 failed, 0 left.\n", "")
    assert call(capsys, *words) == (1, "4 runs: 0 done, 0 reused, 4 failed, 0 left.\n", "")
    _, out, _ = call(capsys, *words, "--dry-run", "--retry-failed")
    assert out.splitlines()[-1] == "4 runs: 4 failed."


def test_the_options_of_a_sweep(capsys, campaign, monkeypatch):
    given = {}

    def note(specs, store, **options):
        given.update(options, specs=len(specs), root=str(store.root))
        return Counter(interrupted=1)

    monkeypatch.setattr(cli, "sweep", note)
    (campaign.parent / "other").mkdir()
    words = "--results other --device cpu --budget 60 --retry-failed --scheduler tcp://127.0.0.1:8786 --quiet"
    assert call(capsys, "sweep", str(campaign), *words.split())[0] == 130
    assert given == {
        "specs": 4, "root": "other", "device": "cpu", "budget": 60.0, "retry_failed": True, "workers": None,
        "scheduler": "tcp://127.0.0.1:8786", "quiet": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sweep", "the following arguments are required: FILE"),
        ("sweep nowhere.yaml", "there is no file nowhere.yaml"),
        ("sweep digitz", "there is no file digitz: did you mean campaigns/digits.yaml?"),
        ("sweep campaign.yaml --results reslts", "--results reslts: there is no such folder"),
        ("sweep campaign.yaml --budget soon", "argument --budget: 'soon' is not a number"),
        ("sweep campaign.yaml --budget 0", "budget=0.0: it must be above 0"),
        ("sweep campaign.yaml --workers 0", "workers=0: it must be above 0"),
        ("sweep campaign.yaml --workers 2 --scheduler tcp://a:1", "not allowed with argument"),
        ("sweep campaign.yaml --dryrun", "unknown argument '--dryrun': did you mean '--dry-run'?"),
        ("sweep campaign.yaml --device gpu", 'device="gpu": it must be "cpu" or "cuda"'),
        ("sweep campaign.yaml --results campaign.yaml", "--results campaign.yaml: there is no such folder"),
    ],
)
def test_errors_of_a_sweep(capsys, campaign, words, sentence):
    (campaign.parent / "campaigns").mkdir()
    (campaign.parent / "campaigns" / "digits.yaml").touch()
    code, out, err = call(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("pai: error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert list(campaign.parent.rglob("*.json")) == []


def test_what_takes_long_is_announced(capsys, campaign, monkeypatch):
    monkeypatch.setattr("pai_lib.experiments.campaign.Estimate.seconds", lambda self, spec: 400.0)
    assert call(capsys, "sweep", str(campaign), "--budget", "1")[1].startswith(
        "4 runs to do: about 27 min in one process.\n"
    )
    assert "to do" not in call(capsys, *QUICK)[1]  # under ten minutes
    monkeypatch.setattr("pai_lib.experiments.campaign.Estimate.seconds", lambda self, spec: 4000.0)
    loud = [word for word in QUICK if word != "--quiet"]
    assert call(capsys, *loud, "--seed", "3")[1].startswith("1 run to do: about 1 h 7 min in one process.\n")


def test_data_is_checked_and_fetched(capsys):
    code, out, _ = call(capsys, "data", "check", "digits")
    assert code == 0
    assert out.startswith("digits: 1437 training and 360 test images, 1×8×8, 10 classes\nfingerprint ")
    assert call(capsys, "data", "fetch", "digits") == (0, "digits is ready: read from scikit-learn\n", "")


def test_criteria_are_a_table_of_the_registry(capsys):
    code, out, _ = call(capsys, "criteria")
    header, *rows = out.splitlines()
    assert code == 0
    assert header.split() == "key label name temperature rounds variants source".split()
    assert [row.split()[0] for row in rows] == list(CRITERIA)
    starts = [header.index(f"  {word}") for word in header.split()[1:]]
    assert all(row[start : start + 2] == "  " for row in rows for start in starts)
    grasp = next(row for row in rows if row.startswith("grasp"))
    assert grasp.split() == "grasp GraSP GraSP 200 1 cited, released wang2020".split()


def test_help_tells_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for each in fields(RunSpec):
        assert each.metadata["help"] in out
    assert "(default: 0.5,0.75)" in out


def test_labels():
    assert criterion_label("dense") == "Dense"


# --- imports

JUPYTER = (
    "papermill nbformat nbclient IPython ipykernel ipywidgets jupyter_book jupyter_client jupyter_core".split()
)
PROGRAM = """
import sys
{code}
loaded = {{name.partition(".")[0] for name in sys.modules}}
sys.exit(", ".join(sorted(loaded & set({forbidden}))) or 0)
"""


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        (
            "import pai_lib",
            [*JUPYTER, *"matplotlib seaborn sklearn scipy distributed torchvision PIL".split()],
        ),
        (
            f"from pai_lib import cli\nassert cli.main({QUICK}) == 0\nassert cli.main(['criteria']) == 0\n"
            "assert cli.main(['data', 'check', 'digits']) == 0",
            JUPYTER,
        ),
    ],
    ids=["library", "commands"],
)
def test_imports_nothing_it_does_not_need(code, forbidden):
    program = PROGRAM.format(code=code, forbidden=forbidden)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_images_of_different_sizes_are_checked_at_one(capsys, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for side in range(5, 12):
            noise = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{side}.png")
    assert call(capsys, "data", "check", str(tmp_path))[0] == 2
    code, out, _ = call(capsys, "data", "check", str(tmp_path), "--image-size", "4")
    assert code == 0
    assert "3×4×4" in out


def test_links_that_lead_nowhere_are_left_out_and_a_link_to_a_file_stays_one(capsys, elsewhere):
    assert call(capsys, *QUICK)[0] == 0
    folder = elsewhere / "results" / "digits" / "resnet8"
    (folder / ".#lock.json").symlink_to("user@host.1:2")
    (folder / "gone.json").symlink_to("nowhere")
    (elsewhere / "real.csv").write_text("old")
    (elsewhere / "link.csv").symlink_to("real.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = call(capsys, "export", "link.csv", "--overwrite")
    assert (code, out) == (0, "link.csv: 1 records, 0 of failed runs\n")
    assert err.count("\n") == err.count("gone.json: No such file or directory. It is left out.") == 1
    assert (elsewhere / "link.csv").is_symlink()
    assert (elsewhere / "real.csv").read_text().startswith("id,")


def test_paths_that_cannot_be_are_unknown_data(capsys, elsewhere):
    (elsewhere / "loop").symlink_to("loop")
    for name in ("~nobodyx/pets", "loop"):
        code, _, err = call(capsys, "data", "check", name)
        assert (code, err.count("\n")) == (2, 1)
        assert f"unknown dataset '{name}'" in err
    code, _, err = call(capsys, "run", "--dataset", "seed=3/petz")
    assert (code, "Unknown dataset 'seed=3/petz'" in err) == (2, True)
    code, _, err = call(capsys, *QUICK, "--results", "")
    assert (code, "there is no such folder" in err) == (2, True)


def test_a_reader_that_has_seen_enough_is_no_success():
    command = f"{sys.executable} -m pai_lib.cli criteria"
    # It reads nothing, and waits until the other end has it all to write.
    script = f"{command} | sleep 0; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "141\n"
    closed = subprocess.run(["bash", "-c", f"{command} >&-; echo $? >&2"], capture_output=True, text=True)
    assert closed.stderr == "0\n"
