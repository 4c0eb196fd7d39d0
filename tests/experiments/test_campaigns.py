"""Campaign files: which runs they mean, in which order; one sentence for each mistake; plans and estimates."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SPEC

from pai_lib.experiments.campaign import Estimate, differing, lasting, named, read_campaign, show_plan
from pai_lib.experiments.records import Record, Store
from pai_lib.experiments.spec import RunSpec
from pai_lib.pruning.criteria import CRITERIA
from pai_lib.training.loop import learning_rate

CPU = torch.device("cpu")
BASE = "base: {dataset: digits, model: resnet8}\n"


def read(tmp_path, text):
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    return read_campaign(path)


def test_a_grid_is_crossed_and_the_last_list_varies_fastest(tmp_path):
    specs = read(tmp_path, BASE + "grid:\n  seed: [1, 0]\n  criterion: [snip, hts]\n  sparsity: [0.9, 0.5]\n")
    assert [(spec.seed, spec.criterion, spec.sparsity) for spec in specs] == [
        (1, "snip", 0.9), (1, "snip", 0.5), (1, "hts", 0.9), (1, "hts", 0.5),
        (0, "snip", 0.9), (0, "snip", 0.5), (0, "hts", 0.9), (0, "hts", 0.5),
    ]  # fmt: skip
    assert all((spec.dataset, spec.model, spec.epochs) == ("digits", "resnet8", 160) for spec in specs)


def test_further_pairs_add_to_the_first_base(tmp_path):
    text = """
        base: {dataset: digits, model: resnet8, epochs: 3}
        also:
        - base: {criterion: dense, sparsity: 0, epochs: 4}
          grid: {seed: [0, 1]}
        - grid: {criterion: [hts, hutchinson_diag], temperature: [1, 200]}
        - base: {lr: 1e-3, lr_drops: [], criterion: snip}
        - grid: {lr_drops: [[0.5], [0.25, 0.75]]}
    """
    like = RunSpec(dataset="digits", model="resnet8", epochs=3)
    dense = replace(like, criterion="dense", sparsity=0, epochs=4)
    assert read(tmp_path, text) == [
        dense, replace(dense, seed=1),
        replace(like, temperature=1), replace(like, temperature=200),
        replace(like, criterion="hutchinson_diag", temperature=1),
        replace(like, criterion="hutchinson_diag", temperature=200),
        replace(like, lr=0.001, lr_drops=(), criterion="snip"),
        replace(like, lr_drops=(0.5,)), replace(like, lr_drops=(0.25, 0.75)),
    ]  # fmt: skip
    assert read(tmp_path, "base: {dataset: digits, model: resnet8, epochs: 3}") == [like]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the campaign is empty."),
        ("- 1", "the campaign must hold names and values."),
        ("base: [", "while parsing"),
        (
            "grids: {seed: [0]}",
            "the campaign has no part 'grids': did you mean 'grid'? Known: kind, base, grid, also.",
        ),
        (BASE + "grid: {}", "grid is empty."),
        (BASE + "grid:", "grid is empty."),
        (BASE + "grid: {seed: []}", "grid: seed must be a list of at least one value, not []."),
        (BASE + "grid: {seed: 0}", "grid: seed must be a list of at least one value, not 0."),
        (BASE + "grid: [seed]", "grid must hold names and values."),
        (BASE + "grid: {sed: [0]}", "grid {sed: 0}: RunSpec has no field 'sed': did you mean 'seed'?"),
        ("base: {sparsty: 0.9}", "base {}: RunSpec has no field 'sparsty': did you mean 'sparsity'?"),
        (BASE + "grid: {seed: [0, one]}", "grid {seed: one}: seed='one': it must be of type int, not str."),
        (BASE + "grid: {lr: [fast]}", "grid {lr: fast}: lr='fast': it must be of type float, not str."),
        (BASE + "grid: {when: [init, later]}", "grid {when: later}: Unknown when 'later'"),
        (
            BASE + "grid: {criterion: [snip, dense], sparsity: [0.9]}",
            "grid {criterion: dense, sparsity: 0.9}: criterion='dense' with sparsity=0.9: the dense network is",
        ),
        (BASE + "grid: {seed: [0, 1, 0]}", "grid {seed: 0} means the same run as grid {seed: 0}."),
        (
            BASE + "grid: {seed: [0, 1]}\nalso: [{grid: {seed: [2, 1]}}]",
            "also[0].grid {seed: 1} means the same run as grid {seed: 1}.",
        ),
        (
            BASE + "also: [{grid: {sparsity: [0.98]}}, {base: {temperature: 200.0}}]",
            "also[1].base {} means the same run as also[0].grid {sparsity: 0.98}.",
        ),
        (BASE + "also: {grid: {seed: [0]}}", "also must be a list of pairs of base and grid."),
        (BASE + "also: [{grids: {seed: [0]}}]", "also[0] has no part 'grids'"),
        (BASE + "also: [{base: {}}]", "also[0].base is empty."),
        (BASE + "also: [3]", "also[0] must hold names and values."),
        (BASE + "grid:\n  seed: [0]\n  lr: [0.1]\n  seed: [1]", "line 3: 'seed' stands there twice."),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_entry(tmp_path, text, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'campaign.yaml'}: ")
    assert sentence in str(error.value)


SAME = {  # what does not matter to whom
    "probes": [key for key, rule in CRITERIA.items() if not {"hutchinson", "row_norm"} & set(rule.needs)],
    "group": [key for key, rule in CRITERIA.items() if not {"hutchinson", "row_norm", "fisher"} & set(rule.needs)],
    "samples_per_class": [key for key, rule in CRITERIA.items() if not rule.uses_data],
    "temperature": [key for key, rule in CRITERIA.items() if not rule.uses_data],
}


@pytest.mark.parametrize("key", CRITERIA)
@pytest.mark.parametrize("name", SAME)
def test_what_a_criterion_does_not_use_makes_no_other_run(tmp_path, name, key):
    text = f"{BASE}grid: {{criterion: [{key}], {name}: [4, 5]}}"
    if key in SAME[name]:
        with pytest.raises(ValueError, match="means the same run as"):
            read(tmp_path, text)
    else:
        assert len(read(tmp_path, text)) == 2


def test_the_dense_network_is_one_run_whatever_the_scores(tmp_path):
    text = f"{BASE}grid: {{criterion: [dense], sparsity: [0], NAME: [VALUES]}}"
    for name, values in (("probes", "1, 2"), ("scope", "global, layer"), ("rounds", "1, 2")):
        with pytest.raises(ValueError, match="means the same run as"):
            read(tmp_path, text.replace("NAME", name).replace("VALUES", values))
    assert len(read(tmp_path, text.replace("NAME", "warmup").replace("VALUES", "0, 98"))) == 2


@pytest.mark.parametrize("kind", ["runs", "masks"])
def test_an_architectures_own_width_is_one_whether_it_is_said_or_not(tmp_path, kind):
    base = "base: {dataset: digits, criteria: [snip], sparsities: [0.9]}" if kind == "masks" else BASE
    text = f"kind: {kind}\n{base}\ngrid: {{model: [resnet8], width: [null, 16]}}"
    with pytest.raises(ValueError, match=r"width: 16\} means the same run as grid \{.*width: None"):
        read(tmp_path, text)
    assert len(read(tmp_path, text.replace("16", "64"))) == 2


def test_without_drops_their_factor_makes_no_other_run(tmp_path):
    text = BASE + "grid: {lr_drops: [[]], lr_drop_factor: [0.1, 0.2]}"
    with pytest.raises(ValueError, match="means the same run as"):
        read(tmp_path, text)
    assert len(read(tmp_path, text.replace("[[]]", "[[0.5]]"))) == 2


# --- estimates and plans


def made(spec, training, scoring, finished="2026-01-01", device="CPU (x)", failure=None):
    result = {"training_seconds": training, "scoring_seconds": scoring, "test_accuracy": 0.5}
    return Record(spec, result, failure, {"fingerprint": "f"}, {"finished": finished, "device": device})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def test_an_estimate_scales_with_epochs_and_images(store):
    assert Estimate(store, CPU).seconds(SPEC) is None
    store.save(made(SPEC, 10.0, 3.0))  # one epoch of a fifth of the images
    store.save(made(replace(SPEC, criterion="hts"), 10.0, 5.0))
    store.save(made(replace(SPEC, seed=1), 1000.0, 1.0, failure={"reason": "NaN", "where": "epoch 1"}))
    store.save(made(replace(SPEC, seed=2), 1000.0, 1.0, device="NVIDIA H200"))
    estimate = Estimate(store, CPU)
    assert estimate.seconds(replace(SPEC, seed=9)) == pytest.approx(13)
    assert estimate.seconds(replace(SPEC, epochs=4, train_fraction=1.0)) == pytest.approx(10 * 4 * 5 + 3)
    assert estimate.seconds(replace(SPEC, criterion="hts", seed=9)) == pytest.approx(15)
    assert estimate.seconds(replace(SPEC, criterion="fts")) == pytest.approx(14)  # between the two that are known
    assert estimate.seconds(replace(SPEC, when="trained")) == pytest.approx(23)
    assert estimate.seconds(replace(SPEC, width=8)) is None
    assert estimate.seconds(replace(SPEC, model="resnet20")) is None
    assert Estimate(store, torch.device("cuda")).seconds(SPEC) == pytest.approx(1001)
    estimate.add(made(replace(SPEC, seed=3), 30.0, 3.0))
    assert estimate.seconds(SPEC) == pytest.approx(13)  # a median


def test_records_from_elsewhere_are_a_basis_until_there_are_later_ones(store, capsys):
    basis = [made(replace(SPEC, seed=seed), 100.0, 20.0) for seed in range(3)]
    assert Estimate(store, CPU, basis).seconds(SPEC) == pytest.approx(120)
    show_plan([SPEC], store, CPU, basis=basis)
    assert capsys.readouterr().out.splitlines()[0].endswith("to do, about 2 min")
    for seed in range(9):
        store.save(made(replace(SPEC, seed=seed), 10.0, 3.0, finished="2026-02-01"))
    assert Estimate(store, CPU, basis).seconds(SPEC) == pytest.approx(13)


def test_the_latest_runs_count(store):
    for seed in range(12):
        finished = f"2026-01-{20 - seed}"  # neither the order of ids nor that of saving
        store.save(made(replace(SPEC, seed=seed), 1.0 if seed < 9 else 100.0, 0.0, finished))
    assert Estimate(store, CPU).seconds(SPEC) == pytest.approx(1.0)


def test_a_plan_tells_what_is_there_and_what_is_to_do(store, capsys, monkeypatch):
    monkeypatch.setattr("pai_lib.data.loading.load_data", lambda *args: pytest.fail("data were read"))
    specs = [replace(SPEC, seed=seed) for seed in range(4)] + [replace(SPEC, width=8)]
    show_plan(specs, store, CPU)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{SPEC.id}  width=4  seed=0  to do"
    assert out[5:] == [
        "There is no basis to estimate 5 of them: nothing like it is recorded here.", "5 runs: 5 to do.",
    ]  # fmt: skip
    store.save(made(specs[0], 100.0, 20.0))
    store.save(made(specs[1], 1.0, 1.0, failure={"reason": "NaN", "where": "epoch 1"}))
    path = store.save(made(specs[2], 1.0, 1.0))
    path.write_text("{")
    show_plan(specs, store, CPU)
    out = capsys.readouterr().out.splitlines()
    ends = [line.rpartition("  ")[2] for line in out]
    assert ends[:2] == ["recorded", "failed"]
    assert out[2].startswith(f"{path} is not a readable record")
    assert ends[3:6] == ["to do, about 2 min", "to do, about 2 min", "to do"]
    assert out[6] == "What is left takes about 4 min in one process."
    assert out[7].startswith("There is no basis to estimate 1 of them")
    assert out[8] == "5 runs: 1 recorded, 1 failed, 3 to do."
    show_plan(specs, store, CPU, retry_failed=True)
    assert "takes about 6 min" in capsys.readouterr().out
    assert len(list(store.root.rglob("*"))) == 5  # nothing is written


def test_a_run_is_named_by_what_differs():
    specs = [SPEC, replace(SPEC, seed=1, lr=0.5)]
    assert differing(specs) == ["lr", "seed"]
    assert named(specs[1], differing(specs)) == f"{specs[1].id}  lr=0.5  seed=1"
    assert differing([SPEC]) == []
    assert [lasting(s) for s in (0, 89, 90, 3599, 36000)] == ["0 s", "89 s", "2 min", "1 h 0 min", "10 h 0 min"]


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "campaigns").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_campaigns_that_come_with_the_project(path):
    assert len(read_campaign(path)) >= 6
    comments = " ".join(line for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"\b[a-z]{2,}(?:19|20)\d\d\b", comments)) <= set(known)


def test_the_papers_protocol():
    specs = [spec for spec in read_campaign(ROOT / "campaigns" / "paper-cifar.yaml") if spec.dataset == "cifar10"]
    assert {(s.epochs, s.batch_size, s.lr, s.momentum, s.weight_decay, s.lr_drop_factor) for s in specs} == {
        (160, 512, 0.03, 0.9, 5e-4, 0.2)
    }
    assert {spec.seed for spec in specs} == {0, 42, 123}
    assert {spec.sparsity for spec in specs} == {0.0, 0.8, 0.9, 0.95, 0.98, 0.99}


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("paper-imagenet-resnet50", {0: 0.4 / 6, 5: 0.4, 29: 0.4, 30: 0.04, 60: 0.004, 80: 0.0004}),
        ("paper-imagenet-vit", {0: 0.001 / 6, 5: 0.001, 152: 0.001 * (1 + math.cos(math.pi * 147 / 295)) / 2}),
        ("v1-table", {59: 0.01, 60: 0.002, 119: 0.002, 120: 0.0004}),
    ],
)
def test_learning_rates_of_the_recipes(name, rates):
    spec = read_campaign(ROOT / "campaigns" / f"{name}.yaml")[0]
    for epoch, rate in rates.items():
        found = learning_rate(
            epoch, spec.epochs, spec.lr, spec.lr_drops, spec.lr_drop_factor, spec.schedule, spec.lr_warmup
        )
        assert found == pytest.approx(rate)
