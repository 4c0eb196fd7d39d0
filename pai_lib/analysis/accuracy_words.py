"""Records of one network to sentences: what networks reach, and what their seeds can tell."""

from collections.abc import Iterable, Mapping

import pandas as pd

from ..pruning.criteria import criterion_label
from .frames import data_note
from .protocols import width_in_words
from .statistics import differences_by_sparsity, in_a_list, most_pairs, paired, span, told_apart
from .tables import in_order, summarize
from .verdicts import SEEDS

REFERENCE = "snip"  # needs one gradient and no curvature, which the others have to be worth
PLACEBOS = ("scaled_noise", "weight_noise")  # no criteria, see the book's glossary
FEW = f"Fewer than {SEEDS} seeds show a direction and test nothing."


def reference(rows: pd.DataFrame) -> str:
    """SNIP, or Random where all of SNIP's masks are cut: to beat chance shows nothing."""
    own = rows.loc[rows["criterion"] == REFERENCE, "effective_sparsity"]
    return "random" if len(own) and (own == 1).all() else REFERENCE


def pairs_with_reference(rows: pd.DataFrame) -> dict[float, dict[str, pd.Series]]:
    """``differences_by_sparsity`` of each criterion with the reference."""
    return differences_by_sparsity(rows, rows[rows["criterion"] == reference(rows)])


def lead(rows: pd.DataFrame) -> str:
    """What networks reach, at the sparsity with the most pairs, and what the seeds tell of it.

    Args:
        rows: plain runs of one protocol, as ``by_protocol`` gives them.
    """
    pairs = pairs_with_reference(rows)
    at = most_pairs(pairs) or rows["sparsity"].max()
    pruned, run = rows[rows["sparsity"] == at], rows.iloc[0]
    means = 100 * summarize(pruned).set_index("criterion")["mean"]
    dense = 100 * rows.loc[rows["criterion"] == "dense", "test_accuracy"].mean()
    size = f"{width_in_words(run)}, {run['train_images']:,.0f} training images, "
    size += f"{run['epochs']} epochs"
    scale = "Here" if pd.isna(run["width"]) else "At a reduced scale"
    of_dense = "" if pd.isna(dense) else f", the dense network {dense:.1f} %"
    sentences = [f"{scale} ({size}) {_levels(means, pruned)}{of_dense}."]
    best = 100 * summarize(rows[rows["sparsity"] > 0]).set_index(["sparsity", "criterion"])["mean"]
    if dense < best.max():
        level, key = best.idxmax()
        which = f"{criterion_label(key)} at sparsity {level:g} ({best.max():.1f} %)"
        sentences.append(
            f"That is less than {'the best pruned one' if level == at else which}: either the "
            "dense network is not trained well here, or pruning helps where images are few; these "
            "runs do not tell."
        )
    note = data_note(run["fingerprint"]).removeprefix(" (").removesuffix(")")
    if "classes" in note:  # another question than that of the data's name
        sentences.append(f"The data are {note}: fewer classes make higher accuracies.")
    return " ".join([*sentences, _told(pruned, pairs.get(at, {}), reference(rows))])


def _levels(means: pd.Series, pruned: pd.DataFrame) -> str:
    """From which accuracy down to which the pruned networks of one sparsity reach."""
    at, best = pruned["sparsity"].iloc[0], means.idxmax()
    if len(means) == 1:
        name = criterion_label(best)
        return f"{name} pruning to sparsity {at:g} reaches {means[best]:.1f} %"
    lowest = means.index[means < means.min() + 0.05]
    worst = names(lowest)
    if (pruned.loc[pruned["criterion"].isin(lowest), "effective_sparsity"] == 1).all():
        worst += ": chance, as no path is left from input to output"
    return (
        f"networks pruned to sparsity {at:g} reach from {means[best]:.1f} % "
        f"({criterion_label(best)}) down to {means.min():.1f} % ({worst})"
    )


def _told(pruned: pd.DataFrame, pairs: Mapping[str, pd.Series], yardstick: str) -> str:
    """What the seeds tell of the criteria at one sparsity: with one seed, nothing."""
    groups = told_apart(pairs)
    if any(groups.values()):
        better, worse, unsettled = (
            [key for key in keys if key not in PLACEBOS] for keys in groups.values()
        )
        tested = {key: pairs[key] for keys in groups.values() for key in keys}
        counts = pd.Series([differences.count() for differences in tested.values()])
        n, others = span(counts), len(better + worse + unsettled)
        text = "SNIP is the yardstick, a first-order criterion that needs one gradient"
        if yardstick != REFERENCE:
            text = f"SNIP is cut, so that {criterion_label(yardstick)} is the yardstick here"
        text += f": of {others} other{'s' * (others > 1)} on equal seeds ({n}) "
        if counts.max() < SEEDS:
            ahead = [key for key in better + worse + unsettled if pairs[key].mean() > 0]
            which = f": {names(ahead)}" if ahead else ""
            single = [key for key in pairs if key not in (*tested, *PLACEBOS)]
            if single:
                which += f"; {names(single)} {'have' if len(single) > 1 else 'has'} one seed"
            return f"{text}{len(ahead) or 'none'} had a higher mean{which}. {FEW}"
        text += f"{counted(better)} shown to be better, {counted(worse)} worse, "
        text += f"{len(unsettled) or 'none'} not told apart"
        if unsettled:
            first = max(unsettled, key=lambda key: pairs[key].mean())
            most = paired(pairs[first])
            text += f" ({criterion_label(first)}: {most} points"
            text += f" before correction for {len(tested)} comparisons"
            alone = {key: paired(pairs[key]).told for key in unsettled}
            for word, told in {"ahead": "better than", "behind": "worse than"}.items():
                if keys := [key for key in unsettled if alone[key] == told]:
                    text += f"; {word} by a test of its own: {names(keys)}"
            if "better than" in alone.values():
                text += "; [What the evidence says](evidence.ipynb) corrects for fewer"
            text += ")"
        for key in [key for key in PLACEBOS if key in groups["better"]]:
            text += f". {criterion_label(key)}, a [placebo](term:placebo), is shown to be better"
        return f"{text}."
    if pruned["seed"].nunique() > 1:
        return "No criterion shares two seeds with SNIP, the yardstick elsewhere in this book."
    if pruned["criterion"].nunique() == 1:
        return "No other way to prune is recorded, so nothing is answered here."
    return (
        "Nothing is decided by this: each has a single seed, and others may end in another order."
    )


def names(keys: Iterable[str]) -> str:
    """Labels of criteria in their order, as a list in words."""
    return in_a_list([criterion_label(key) for key in in_order(keys)])


def counted(keys: list[str]) -> str:
    """How many, with the verb; and which, where they are few."""
    if not keys:
        return "none is"
    which = f" ({names(keys)})" if len(keys) < 3 else ""
    return f"{len(keys)}{which} {'is' if len(keys) == 1 else 'are'}"
