"""What was registered before the runs, and what the records said: literals, never to be edited.

A contrast or a verdict that changes is a change of what was claimed. New ones are added below, before their runs.
"""

import pytest

from pai_lib.analysis.verdicts import CONTRASTS, LEVEL, MARGIN, SEEDS, by_seed, judge
from pai_lib.experiments.records import Store, default_results

FIRST_ORDER, TAYLOR = ("grad_norm", "snip"), ("fts",)
FISHER, HUTCHINSON = ("fisher_diag", "fisher_pruning"), ("hutchinson_diag", "hutchinson_pruning")
SEE_DATA = (
    "grad_norm", "snip", "grasp", "fts", "fisher_diag", "fisher_pruning", "hutchinson_diag", "hutchinson_pruning",
    "hts",
)  # fmt: skip
REGISTERED = [
    (
        "identify",
        "Fisher and Hutchinson diagonals identify the weights to keep better than first-order scores do.",
        {"criterion": FISHER + HUTCHINSON, "sparsity": 0.98},
        {"criterion": FIRST_ORDER, "sparsity": 0.98},
        False,
    ),
    (
        "warm-up",
        "Updating the batch-norm statistics first improves the criteria that see data.",
        {"criterion": SEE_DATA, "sparsity": 0.98},
        {"criterion": SEE_DATA, "sparsity": 0.98, "warmup": 0},
        False,
    ),
    (
        "hutchinson",
        "Hutchinson-based criteria match or beat other methods of pruning at initialization.",
        {"criterion": ("hutchinson_diag", "hutchinson_pruning", "hts"), "sparsity": 0.98},
        {"criterion": ("snip", "grasp", "synflow"), "sparsity": 0.98},
        True,
    ),
    (
        "after-training",
        "After the warm-up, at high sparsity, the Hutchinson diagonal beats magnitude pruning after training.",
        {"criterion": ("hutchinson_diag",), "sparsity": 0.98},
        {"criterion": ("magnitude",), "sparsity": 0.98, "when": "trained"},
        False,
    ),
    (
        "fts",
        "FTS is competitive with the state of the art at extreme sparsity.",
        {"criterion": TAYLOR, "sparsity": 0.99},
        {"criterion": ("snip", "synflow"), "sparsity": 0.99},
        True,
    ),
]

# The protocol of the first campaign, whose seeds 0 to 4 the verdicts were given on.
PROTOCOL = {
    "dataset": "cifar10", "model": "resnet18", "width": 16, "samples_per_class": 10, "group": 1, "probes": 10,
    "epochs": 12, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "lr_drop_factor": 0.2,
    "precision": "bf16", "train_fraction": 0.2, "optimizer": "sgd", "schedule": "steps", "train_images": 10_000,
    "fingerprint": "8e0fd2049422ac93fb59165923dd39825d38f2d2b4cf14",
}  # fmt: skip
# Verdict, differences of seeds 0 to 4 in points, their mean, its 95 % t interval, p after Holm's correction.
VERDICTS = {
    "identify": (
        "not supported",
        [-9.855, -1.5625, -8.1975, -7.285, -8.8175],
        -7.1435,
        (-11.1876, -3.0994),
        0.016039,
    ),
    "warm-up": (
        "not supported",
        [-4.2522, -5.9989, -5.7078, -3.9522, -5.0444],
        -4.9911,
        (-6.0943, -3.8880),
        0.000924,
    ),
    "hutchinson": ("supported", [6.2033, 4.7733, 5.1867, 5.7233, 5.9067], 5.5587, (4.8457, 6.2717), 0.0000957),
    "after-training": ("not supported", [-8.41, -5.14, -8.96, -6.5, -8.41], -7.484, (-9.4819, -5.4861), 0.001448),
    "fts": ("supported", [0.49, 1.365, 3.85, 2.585, -0.13], 1.632, (-0.3612, 3.6252), 0.041155),
}


@pytest.fixture(scope="module")
def first_campaign():
    frame = Store(default_results()).frame()
    for name, value in PROTOCOL.items():
        frame = frame[frame[name].str.startswith(value) if name == "fingerprint" else frame[name] == value]
    return frame[frame["seed"] < 5]


def test_the_contrasts_are_those_that_were_registered():
    assert [(c.key, c.claim, c.treated, c.baseline, c.match) for c in CONTRASTS] == REGISTERED
    assert (MARGIN, LEVEL, SEEDS) == (0.5, 0.05, 5)


def test_the_committed_records_give_the_verdicts_that_were_given(first_campaign):
    verdicts = judge(first_campaign)
    assert [each.contrast.key for each in verdicts] == list(VERDICTS)
    for each in verdicts:
        word, differences, mean, interval, p = VERDICTS[each.contrast.key]
        assert (each.verdict, each.n, list(each.differences)) == (word, 5, [0, 1, 2, 3, 4])
        assert list(each.differences.values()) == pytest.approx(differences, abs=6e-5)
        assert each.mean == pytest.approx(mean, abs=6e-5)
        assert (each.low, each.high) == pytest.approx(interval, abs=6e-5)
        assert each.p == pytest.approx(p, rel=6e-4)


def test_a_seed_counts_for_a_claim_by_the_mean_of_its_criteria(first_campaign):
    """By hand, for the claim with the most criteria on both sides."""
    rows = first_campaign[(first_campaign["sparsity"] == 0.98) & (first_campaign["control"] == "none")]
    rows = rows[(rows["when"] == "init") & (rows["scope"] == "global") & (rows["variant"] == "cited")]
    rows = rows[rows["temperature"].isna() & rows["rounds"].isna()]
    accuracy = {(r.criterion, r.seed, r.warmup): r.test_accuracy for r in rows.itertuples()}
    for warmup in (98, 0):
        found = by_seed(first_campaign, {"criterion": SEE_DATA, "sparsity": 0.98, "warmup": warmup})
        expected = {seed: sum(accuracy[key, seed, warmup] for key in SEE_DATA) / 9 for seed in range(5)}
        assert found.to_dict() == pytest.approx(expected, abs=1e-12)
