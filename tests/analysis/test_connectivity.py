"""The heat maps of which masks are cut with and without the warm-up."""

import numpy as np
import pandas as pd

from pai_lib.analysis.mask_figures import WHEN_CUT, connectivity, empty_layers, in_words


def network(cut):
    """Rows of masks of one network; ``cut`` holds (criterion, sparsity, warmup, seed)."""
    rows = [
        {"criterion": c, "sparsity": s, "warmup": w, "seed": seed, "cut": (c, s, w, seed) in cut}
        for c in ("snip", "fisher_diag")
        for s in (0.98, 0.99)
        for w in (0, 98)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_each_state_is_counted_and_one_seed_is_enough():
    after = {("fisher_diag", 0.98, 98, 1)}
    both = {("fisher_diag", 0.99, 98, 0), ("fisher_diag", 0.99, 0, 0)}
    before = {("snip", 0.99, 0, 0)}
    figure, alt = connectivity({"net": network(after | both | before)})
    assert alt.endswith("net: 1, 1, 1, 1.")
    (shown,) = [axes for axes in figure.axes if axes.get_title() == "net"]
    drawn = shown.collections[0].get_array().reshape(2, 2).tolist()
    assert drawn == [[0, 2], [1, 3]]  # SNIP above FD, in the registry's order
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(WHEN_CUT)


def test_networks_of_other_criteria_share_their_rows_and_what_is_unknown_stays_blank():
    some = network(set())
    some = some[(some["criterion"] == "snip") | (some["warmup"] == 0)]  # FD without the warm-up only
    figure, alt = connectivity({"all": network(set()), "some": some})
    assert alt.endswith("all: 4, 0, 0, 0; some: 2, 0, 0, 0.")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["SNIP", "FD"]
    assert figure.axes[1].collections[0].get_array().mask.reshape(2, 2).tolist() == [[False] * 2, [True] * 2]


def test_empty_layers_are_counted_and_cut_masks_marked():
    rows = network({("fisher_diag", 0.98, 98, 1), ("snip", 0.99, 98, 1)})
    figure, alt = empty_layers(rows.assign(empty=2 * ((rows["criterion"] == "snip") & (rows["warmup"] == 98))))
    assert figure.get_suptitle().startswith("Numbers: layers left without a weight\n✂ = no path")
    warm = figure.axes[1]
    assert [text.get_text().strip() for text in warm.texts] == ["2", "2 ✂", "0 ✂", "0"]
    assert warm.xaxis.get_label_position() == "top"
    assert alt.endswith("after 98 batch-norm updates: SNIP 2; cut SNIP, FD.")


def test_the_first_sparsity_of_each_event_is_told():
    rows = network({("fisher_diag", 0.98, 98, 1), ("fisher_diag", 0.99, 98, 1)}).assign(empty=0)
    assert in_words(rows) == (
        "After 98 batch-norm updates, no criterion leaves a layer without a weight. "
        "Masks are *cut*, with no path from input to output left, by FD from sparsity 0.98 on."
    )
    rows = network(set()).assign(empty=0)
    rows.loc[(rows["criterion"] == "snip") & (rows["sparsity"] == 0.99), "empty"] = 3
    assert "layers are left without a weight by SNIP from sparsity 0.99 on; by FD never." in in_words(rows)
    assert in_words(rows).endswith("No mask is *cut*: each leaves a path from input to output.")
    assert in_words(rows[rows["warmup"] == 0]).startswith("Without warm-up, layers")


def test_warm_ups_of_other_criteria_and_sparsities_share_their_rows():
    rows = network(set()).assign(empty=0)
    rows = rows[(rows["criterion"] == "snip") | (rows["warmup"] == 98)]  # FD with the warm-up only
    rows.loc[(rows["criterion"] == "snip"), "empty"] = 2
    figure, _ = empty_layers(rows)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["SNIP", "FD"]
    for axes, masked in zip(figure.axes, ([False, True], [False, False]), strict=True):
        shown = axes.collections[0].get_array().reshape(2, 2)
        assert np.ma.getmaskarray(shown).any(axis=1).tolist() == masked
        assert shown[0].tolist() == [2, 2]


def test_a_criterion_without_all_sparsities_is_left_out_of_the_words():
    rows = network({("fisher_diag", 0.99, 98, 1)}).assign(empty=0)
    told = in_words(rows[(rows["criterion"] == "snip") | (rows["sparsity"] == 0.99)])
    assert "No mask is *cut*" in told
    assert told.endswith("FD is left out of this: not all sparsities are recorded.")
