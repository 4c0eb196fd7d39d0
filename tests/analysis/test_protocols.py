"""Runs are compared with those of their own protocol only, and what varies is what was asked for."""

import pandas as pd
import pytest
from synthetic_records import three_seeds

from pai_lib.analysis import protocols
from pai_lib.analysis.frames import data_note
from pai_lib.data.loading import dataset_names
from pai_lib.models import model_names


@pytest.fixture
def frame():
    return three_seeds()


def test_runs_of_different_protocols_are_kept_apart(frame):
    other = frame.assign(epochs=12)[frame["criterion"] == "snip"]
    control = frame.assign(control="shuffle")
    (words, rows), (_, fewer) = protocols.by_protocol(pd.concat([other, frame, control]))
    assert len(rows) == len(frame)
    assert len(fewer) == len(other)
    assert "160 epochs of sgd at batch 512" in words
    many = pd.concat([other.assign(seed=other["seed"] + 100 * i) for i in range(len(frame))])
    (_, first), (_, second) = protocols.by_protocol(pd.concat([many, frame]))
    assert (len(first), len(second)) == (len(frame), len(many))  # more criteria before more records
    assert protocols.by_protocol(frame[frame["criterion"] == "dense"]) == []  # nothing pruned, nothing to show
    assert protocols.by_protocol(frame.iloc[:0]) == []


def test_scoring_is_told_where_something_is_scored(frame):
    assert "; scores from " in protocols.in_words(frame)
    words = protocols.in_words(frame[frame["criterion"].eq("dense")])
    assert "batch-norm" not in words
    assert words.endswith(frame["precision"].iloc[0])


def test_what_is_known_of_the_data_is_said_and_keeps_runs_apart(frame):
    copy = frame.assign(fingerprint="0d8eb05a03b1d95838ca43b8c0b82c7b8b02a3d9faeb7cab7c9807270a149466")
    groups = protocols.by_protocol(pd.concat([frame, copy]))
    assert len(groups) == 2
    assert all("of CIFAR-10, 160 epochs of sgd" in words for words, _ in groups)
    notes = {data_note(rows["fingerprint"].iloc[0]) for _, rows in groups}
    assert notes == {"", " (every image re-encoded as JPEG)"}


def test_every_network_and_data_set_has_a_name_as_papers_write_it():
    names = {key: protocols.proper(key) for key in [*model_names(), *dataset_names()]}
    assert {names[key] for key in ("resnet50", "resnet50_imagenet")} == {"ResNet-50"}  # their stems differ
    assert names["vit_b_16"] == "ViT-B/16"
    assert names["tiny-imagenet-200"] == "Tiny ImageNet"
    assert {key for key, name in names.items() if key == name} == {"digits", "digits32"}
    mine = ("my_net", "birds-2024", "12", "resnet", "cifar", "my_imagenet", "imagenette", "a1b2", "#", "")
    assert all(protocols.proper(name) == name for name in mine)


def test_plain_runs_have_nothing_special_but_what_is_asked_for(frame):
    others = [{"control": "shuffle"}, {"scope": "erk"}, {"when": "trained"}, {"temperature": 1.0}, {"rounds": 2}]
    mixed = pd.concat([frame, *(frame.assign(**other) for other in others)])
    assert len(protocols.plain_runs(mixed)) == len(frame)
    assert set(protocols.plain_runs(mixed, scope="erk")["scope"]) == {"erk"}
    assert set(protocols.plain_runs(mixed, control=("none", "shuffle"))["control"]) == {"none", "shuffle"}


def test_twins_differ_in_one_setting_and_have_all_its_values(frame):
    cold = frame[(frame["criterion"] == "snip") & (frame["seed"] < 2)].assign(warmup=0)
    twins = protocols.twins(pd.concat([frame, cold], ignore_index=True), "warmup")
    assert set(twins["criterion"]) == {"snip"}
    assert set(twins["seed"]) == {0, 1}  # not the one that only one of the two values has
    assert twins["warmup"].value_counts().to_dict() == {98: 4, 0: 4}
    alone = cold.iloc[:1].assign(warmup=5)  # one seed of a third value takes no seed from the others
    assert protocols.twins(pd.concat([frame, cold, alone], ignore_index=True), "warmup").equals(twins)
    assert protocols.twins(frame, "warmup").empty
    assert protocols.twins(frame.iloc[:0], "warmup").empty
    other = cold.assign(epochs=12)  # differs in two
    assert protocols.twins(pd.concat([frame, other], ignore_index=True), "warmup").empty


def test_the_machines_are_named():
    runs = pd.DataFrame({"device": ["b", "a", None, "b"]})
    assert protocols.machines(runs) == "a, b"
    assert protocols.machines(runs.iloc[2:3]) == "a device that is not recorded"


def test_runs_of_other_data_are_no_twins(frame):
    other = frame.assign(warmup=0, fingerprint="ff" * 32)
    assert len(protocols.twins(pd.concat([frame, frame.assign(warmup=0)], ignore_index=True), "warmup"))
    assert protocols.twins(pd.concat([frame, other], ignore_index=True), "warmup").empty


def test_seeds_without_a_pruned_network_are_left_out(frame):
    ((_, rows), *_) = protocols.by_protocol(frame)
    alone = rows[rows["criterion"] == "dense"].head(1).assign(seed=99, id="alone")
    ((_, again), *_) = protocols.by_protocol(pd.concat([frame, alone]))
    assert len(again) == len(rows)
    assert 99 not in set(again["seed"])
