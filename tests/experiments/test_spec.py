"""Specs: defaults and ids that must never change, and one clear sentence for each wrong field."""

import dataclasses
import json
import math
import pickle
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pai_lib.data.loading import dataset_names
from pai_lib.experiments.spec import CONTROLS, WHEN, RunSpec, check_name
from pai_lib.models import model_names
from pai_lib.pruning.criteria import CRITERIA
from pai_lib.pruning.ranking import scopes
from pai_lib.training.loop import OPTIMIZERS, PRECISIONS

# Frozen: ids hash what differs from these, so a changed default would orphan every record. A new field may be
# added at the end, with the old behaviour as its default.
DEFAULTS = {
    "dataset": "cifar10",
    "model": "resnet18",
    "width": None,
    "criterion": "hts",
    "variant": "cited",
    "sparsity": 0.98,
    "scope": "global",
    "samples_per_class": 10,
    "group": 1,
    "probes": 10,
    "temperature": None,
    "rounds": None,
    "warmup": 98,
    "control": "none",
    "epochs": 160,
    "batch_size": 512,
    "lr": 0.03,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_drops": (0.5, 0.75),
    "lr_drop_factor": 0.2,
    "precision": "float32",
    "seed": 0,
    "train_fraction": 1.0,
    "when": "init",
    "optimizer": "sgd",
    "schedule": "steps",
    "lr_warmup": 0,
    "label_smoothing": 0.0,
    "image_size": None,
}
IDS = {
    "44136fa355b3": {},
    "0c6754f1fed4": {"dataset": "digits", "model": "resnet8", "sparsity": 0.9},
    "1e5792df46fc": {"seed": 42},
    "e1b4f3627c88": {"criterion": "dense", "sparsity": 0.0},
    "0d1ea3ee2a38": {"lr_drops": (0.5,), "lr": 0.01},
    "390a2fcd567d": {"temperature": 1.0, "width": 16, "precision": "bf16", "control": "shuffle"},
    "c4a9bc48f7e1": {"optimizer": "adamw", "schedule": "cosine", "lr_warmup": 5, "label_smoothing": 0.1},
    "e9f8bc6b2e7e": {"criterion": "magnitude", "when": "trained", "image_size": 224},
    "7d3e5c4292ef": {"criterion": "synflow", "variant": "released", "sparsity": 0.8, "scope": "layer"},
}


def test_defaults_are_frozen():
    found = {field.name: field.default for field in fields(RunSpec)}
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS
    assert all(type(found[name]) is type(default) for name, default in DEFAULTS.items())


@pytest.mark.parametrize("name", IDS)
def test_ids_are_frozen(name):
    assert RunSpec(**IDS[name]).id == name


def test_the_id_covers_what_differs_and_nothing_else():
    others = {
        "dataset": "digits", "model": "vgg16", "width": 16, "criterion": "snip", "sparsity": 0.9, "scope": "layer",
        "samples_per_class": 1, "group": 2, "probes": 1, "temperature": 1.0, "rounds": 2, "warmup": 0,
        "control": "invert", "epochs": 1, "batch_size": 128, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0,
        "lr_drops": (), "lr_drop_factor": 0.1, "precision": "bf16", "seed": 1, "train_fraction": 0.5,
        "when": "trained", "optimizer": "adamw", "schedule": "cosine", "lr_warmup": 1, "label_smoothing": 0.1,
        "image_size": 64,
    }  # fmt: skip
    specs = [RunSpec(), RunSpec(criterion="grasp"), RunSpec(criterion="grasp", variant="released")]
    specs += [RunSpec(**{name: value}) for name, value in others.items()]
    assert {*others, "variant"} == {field.name for field in fields(RunSpec)}
    assert len({spec.id for spec in specs}) == len(specs)
    assert RunSpec(**DEFAULTS).id == RunSpec().id
    assert RunSpec(sparsity=0.9, seed=3).id == RunSpec(seed=3, sparsity=0.9).id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"lr": 1}, {"lr": 1.0}),
        ({"temperature": 200}, {"temperature": 200.0}),
        ({"train_fraction": 1}, {}),
        ({"lr_drops": [0.5, 0.75]}, {}),
        ({"weight_decay": -0.0}, {"weight_decay": 0}),
        ({"criterion": "dense", "sparsity": -0.0}, {"criterion": "dense", "sparsity": 0}),
    ],
)
def test_equal_values_are_the_same_run(one, other):
    assert RunSpec(**one) == RunSpec(**other)
    assert RunSpec(**one).id == RunSpec(**other).id
    assert json.dumps(RunSpec(**one).to_dict()) == json.dumps(RunSpec(**other).to_dict())


def test_a_spec_is_frozen_hashable_and_picklable():
    spec = RunSpec(seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.seed = 2
    assert len({spec, RunSpec(seed=1), RunSpec()}) == 2
    assert pickle.loads(pickle.dumps(spec)) == spec


WRONG = [
    ({"dataset": 10}, "dataset=10: it must be of type str, not int."),
    ({"model": "resnet19"}, "Unknown model 'resnet19': did you mean 'resnet18'?"),
    ({"width": 0}, "width=0: it must be at least 1."),
    ({"width": 16.0}, "width=16.0: it must be of type int, not float."),
    ({"criterion": "snap"}, "Unknown criterion 'snap': did you mean 'snip'?"),
    ({"criterion": None}, "criterion=None: it must be of type str, not NoneType."),
    ({"variant": "released"}, "Criterion 'hts' has no variant 'released'. Only these have it: grasp, synflow."),
    ({"variant": "own"}, "Criterion 'hts' has no variant 'own'."),
    ({"sparsity": 1}, "sparsity=1.0: it must be at least 0 and below 1"),
    ({"sparsity": -0.1}, "sparsity=-0.1: it must be at least 0 and below 1"),
    ({"sparsity": math.nan}, "sparsity=nan: it must be finite."),
    ({"sparsity": "0.9"}, "sparsity='0.9': it must be of type float, not str."),
    ({"sparsity": 0.0}, "criterion='hts' with sparsity=0.0: the dense network is"),
    ({"criterion": "dense"}, "criterion='dense' with sparsity=0.98: the dense network is"),
    ({"criterion": "dense", "sparsity": 0, "variant": "x"}, "criterion='dense' with variant='x'"),
    ({"criterion": "dense", "sparsity": 0, "control": "shuffle"}, "control='shuffle'"),
    ({"criterion": "dense", "sparsity": 0, "when": "trained"}, "when='trained': without a mask"),
    ({"scope": "local"}, "Unknown scope 'local'"),
    ({"samples_per_class": 0}, "samples_per_class=0: it must be at least 1."),
    ({"samples_per_class": True}, "samples_per_class=True: it must be of type int, not bool."),
    ({"group": 0}, "group=0: it must be at least 1."),
    ({"probes": -1}, "probes=-1: it must be at least 1."),
    ({"temperature": 0}, "temperature=0.0: it must be above 0."),
    ({"temperature": math.inf}, "temperature=inf: it must be finite."),
    ({"rounds": 0}, "rounds=0: it must be at least 1."),
    ({"rounds": 3, "control": "invert"}, "rounds=3 with control='invert'"),
    ({"warmup": -1}, "warmup=-1: it must be at least 0."),
    ({"control": "shufle"}, "Unknown control 'shufle': did you mean 'shuffle'?"),
    ({"epochs": 0}, "epochs=0: it must be at least 1."),
    ({"batch_size": 0}, "batch_size=0: it must be at least 1."),
    ({"lr": 0}, "lr=0.0: it must be above 0."),
    ({"lr": math.nan}, "lr=nan: it must be finite."),
    ({"momentum": -0.9}, "momentum=-0.9: it must be at least 0."),
    ({"weight_decay": math.nan}, "weight_decay=nan: it must be finite."),
    ({"lr_drops": (0.5, 1)}, "lr_drops=(0.5, 1.0): it must be above 0 and below 1, each a fraction of the run"),
    ({"lr_drops": 0.5}, "lr_drops=0.5: it must be a list of numbers, not float."),
    ({"lr_drops": (0.75, 0.5)}, "lr_drops=(0.75, 0.5): each must be above the last, as lr_drops=(0.5, 0.75)."),
    ({"lr_drops": (0.5, 0.5)}, "lr_drops=(0.5, 0.5): each must be above the last, as lr_drops=(0.5,)."),
    ({"lr_drops": {0.5, 0.75}}, "it must be a list of numbers, not set."),
    ({"lr_drops": "0.5"}, "lr_drops='0.5': it must be a list of numbers, not str."),
    ({"lr_drops": ("0.5",)}, "lr_drops=('0.5',): it must be a list of numbers"),
    ({"lr_drops": (math.nan,)}, "lr_drops=(nan,): it must be finite."),
    ({"lr_drop_factor": -1.0}, "lr_drop_factor=-1.0: it must be above 0."),
    ({"precision": "fp16"}, "Unknown precision 'fp16'"),
    ({"seed": -1}, "seed=-1: it must be at least 0."),
    ({"seed": 2**63}, f"seed={2**63}: it must be below 2**63."),
    ({"width": 2**63}, f"width={2**63}: it must be below 2**63."),
    ({"lr": 10**400}, f"lr={10**400}: it must be below 2**63."),
    ({"lr_drops": (0.5, 10**400)}, "it must be below 2**63."),
    ({"train_fraction": 0}, "train_fraction=0.0: it must be above 0 and at most 1."),
    ({"train_fraction": 1.5}, "train_fraction=1.5: it must be above 0 and at most 1."),
    ({"when": "never"}, "Unknown when 'never'"),
    ({"optimizer": "adam"}, "Unknown optimizer 'adam': did you mean 'adamw'?"),
    ({"optimizer": "adamw", "momentum": 1}, "momentum=1.0 with optimizer='adamw': it must be below 1."),
    ({"schedule": "cosin"}, "Unknown schedule 'cosin': did you mean 'cosine'?"),
    ({"schedule": "cosine", "lr_drops": (0.5,)}, "lr_drops=(0.5,) and lr_drop_factor=0.2 with schedule='cosine'"),
    ({"schedule": "cosine", "lr_drop_factor": 0.1}, "lr_drop_factor=0.1 with schedule='cosine'"),
    ({"lr_warmup": -1}, "lr_warmup=-1: it must be at least 0."),
    ({"lr_warmup": 5, "epochs": 5}, "lr_warmup=5 with epochs=5: it must be shorter."),
    ({"label_smoothing": 1}, "label_smoothing=1.0: it must be at least 0 and below 1."),
    ({"label_smoothing": -0.1}, "label_smoothing=-0.1: it must be at least 0 and below 1."),
    ({"image_size": 0}, "image_size=0: it must be at least 1."),
]


def test_every_field_has_a_wrong_value_here():
    assert {name for values, _ in WRONG for name in values} >= {field.name for field in fields(RunSpec)}


@pytest.mark.parametrize(("values", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_one_sentence_with_the_value(values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        RunSpec(**values)
    assert "\n" not in str(error.value)


def test_unknown_fields_name_the_nearest():
    with pytest.raises(ValueError, match="RunSpec has no field 'sparcity': did you mean 'sparsity'"):
        RunSpec.from_dict({"sparcity": 0.9})


def test_folders_are_found_where_the_loader_finds_them(tmp_path, monkeypatch):
    (tmp_path / "own-images").mkdir()
    check_name("dataset", str(tmp_path / "own-images"))
    with pytest.raises(ValueError, match="Unknown dataset 'own-images'"):
        check_name("dataset", "own-images")
    monkeypatch.setenv("PAI_DATA", str(tmp_path))
    check_name("dataset", "own-images")


def test_a_record_is_readable_without_its_folder_of_data(tmp_path):
    (tmp_path / "images").mkdir()
    spec = RunSpec(dataset=str(tmp_path / "images"), seed=2)
    (tmp_path / "images").rmdir()
    again = RunSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.with_data("f" * 64).id == spec.with_data("f" * 64).id
    with pytest.raises(ValueError, match=f"unknown dataset '{tmp_path / 'images'}'"):
        _ = again.id  # what they hold is not known


def numbers(low, high, **options):
    return st.floats(low, high, **options) | st.integers(math.ceil(low), math.floor(high)).filter(
        lambda n: low <= n <= high and not (n == low and options.get("exclude_min"))
    )


pruned = st.sampled_from([(key, variant) for key, rule in CRITERIA.items() for variant in rule.variants])
count = st.integers(1, 10**6)
valid = st.fixed_dictionaries(
    {},
    optional={
        "dataset": st.sampled_from(dataset_names()),
        "model": st.sampled_from(model_names()),
        "width": st.none() | count,
        "sparsity": st.floats(0.001, 0.9999),
        "scope": st.sampled_from(scopes()),
        "samples_per_class": count,
        "group": count,
        "probes": count,
        "temperature": st.none() | numbers(0, 1e6, exclude_min=True),
        "warmup": st.integers(0, 10**6),
        "control": st.sampled_from(CONTROLS),
        "epochs": count,
        "batch_size": count,
        "lr": numbers(0, 1e6, exclude_min=True),
        "momentum": numbers(0, 1).filter(lambda n: n < 1),
        "weight_decay": numbers(0, 1),
        "lr_drops": st.sets(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=3).map(sorted),
        "lr_drop_factor": numbers(0, 10, exclude_min=True),
        "precision": st.sampled_from(PRECISIONS),
        "seed": st.integers(0, 2**63 - 1),
        "train_fraction": numbers(0, 1, exclude_min=True),
        "when": st.sampled_from(WHEN),
        "optimizer": st.sampled_from(OPTIMIZERS),
        "label_smoothing": numbers(0, 1).filter(lambda n: n < 1),
        "image_size": st.none() | count,
    },
)


@given(valid, pruned)
def test_a_spec_survives_json(values, criterion):
    spec = RunSpec(criterion=criterion[0], variant=criterion[1], **values)
    text = json.dumps(spec.to_dict(), allow_nan=False)
    again = RunSpec.from_dict(json.loads(text))
    assert again == spec
    assert again.id == spec.id
    assert len(spec.to_dict()) == len(fields(RunSpec))
    assert re.fullmatch("[0-9a-f]{12}", spec.id)
