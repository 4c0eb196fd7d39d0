"""The first sentences of an accuracy chapter: what the records reach, and no more than their seeds tell."""

import re

import pandas as pd
import pytest
from synthetic_records import three_seeds

from pai_lib.analysis import accuracy_words
from pai_lib.analysis.accuracy_words import lead

EIGHT_CLASSES = "6d69dbd602dbc42618168573476fb1a24d29c03d4534db7fcad2569d85833d78"


def runs(dense=0.6, n=1, **accuracies):
    """Rows of runs at sparsity 0.98 under these criteria, of accuracies that differ a little from seed to seed."""
    known = three_seeds().iloc[0]
    rows = [{**known, "criterion": "dense", "sparsity": 0.0, "seed": s, "test_accuracy": dense} for s in range(n)]
    for place, (key, accuracy) in enumerate(accuracies.items()):
        for seed in range(n):
            off = 0.001 * int("31415926535897"[2 * place + seed]) * (n > 1)
            made = {"criterion": key, "sparsity": 0.98, "seed": seed, "test_accuracy": accuracy + off}
            rows.append({**known, **made, "effective_sparsity": 0.98, "width": 16.0})
    frame = pd.DataFrame(rows).assign(width=16.0)
    return frame.assign(id=[str(row) for row in range(len(frame))])


def test_of_several_seeds_criteria_and_placebos_are_told_apart():
    text = lead(runs(n=5, snip=0.5, fts=0.4, hts=0.5, hutchinson_pruning=0.55, scaled_noise=0.58))
    assert "At a reduced scale (width 16, " in text
    assert re.search(r"from 58\.. % \(Scaled noise\) down to 40\.. % \(FTS\), the dense network 60\.0 %\.", text)
    assert (
        "of 3 others on equal seeds (5) 1 (HP) is shown to be better, 1 (FTS) is worse, 1 not told apart (HTS: "
    ) in text
    assert "points before correction for 4 comparisons)" in text
    assert text.endswith(". Scaled noise, a [placebo](term:placebo), is shown to be better.")
    assert "behind" not in text
    assert "one seed" not in text


def test_one_seed_shows_a_direction():
    text = lead(runs(snip=0.5, fts=0.4, hts=0.1))
    assert "SNIP is the yardstick" not in text
    told = "Nothing is decided by this: each has a single seed, and others may end in another order."
    assert text.endswith(told)


def test_without_a_dense_network_nothing_is_said_of_it():
    rows = runs(snip=0.5, fts=0.4)
    assert "dense" not in lead(rows[rows["criterion"] != "dense"])


def test_one_pruned_network_is_not_spoken_of_in_the_plural():
    text = lead(runs(random=0.3))
    assert "Random pruning to sparsity 0.98 reaches 30.0 %, the dense network 60.0 %." in text
    assert text.endswith("No other way to prune is recorded, so nothing is answered here.")


@pytest.mark.parametrize(("dense", "said"), [(0.45, True), (0.6, False)])
def test_a_dense_network_behind_a_pruned_one_has_not_learnt_yet(dense, said):
    assert ("the dense network is not trained well here" in lead(runs(dense=dense, snip=0.5, fts=0.4))) == said


def test_networks_of_cut_masks_are_at_chance():
    rows = runs(snip=0.5, fisher_diag=0.1, exact_diag=0.1)
    assert "chance" not in lead(rows)
    rows.loc[rows["test_accuracy"] == 0.1, "effective_sparsity"] = 1.0
    assert "down to 10.0 % (FD and ED: chance, as no path is left from input to output)" in lead(rows)


def test_a_part_of_the_classes_is_another_question():
    assert "fewer classes" not in lead(runs(snip=0.5, fts=0.4))
    text = lead(runs(snip=0.5, fts=0.4).assign(fingerprint=EIGHT_CLASSES))
    assert "The data are 8 of the 200 classes, 400 test images: fewer classes make higher accuracies." in text


def test_without_the_yardstick_nothing_is_compared_with_it():
    text = lead(runs(n=2, fts=0.5, hts=0.4))
    assert text.endswith("No criterion shares two seeds with SNIP, the yardstick elsewhere in this book.")


def test_names_are_in_the_table_s_order():
    assert accuracy_words.names(["snip", "random", "fts"]) == "Random, SNIP and FTS"
    assert accuracy_words.names([]) == ""


def test_fewer_than_five_seeds_are_not_tested():
    text = lead(runs(n=3, snip=0.5, fts=0.4, hts=0.6))
    assert "of 2 others on equal seeds (3) 1 had a higher mean: HTS. Fewer than 5 seeds show a direction" in text
    assert "shown to be" not in text


def test_comparisons_that_have_one_seed_are_not_counted():
    rows = runs(n=5, snip=0.5, fts=0.4, hts=0.505)
    alone = rows[(rows["criterion"] == "fts") & (rows["seed"] > 0)].index
    text = lead(rows.drop(alone))
    assert "of 1 other on equal seeds (5)" in text
    assert "3 comparisons" not in text
