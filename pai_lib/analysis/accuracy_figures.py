"""Records to lines: accuracy against sparsity, and profiles beside accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression

from ..experiments.records import Record
from ..pruning.criteria import criterion_label
from .figures import GREY, criterion_styles
from .statistics import span
from .tables import in_order, summarize

# From a line's end to its name: dotted, lest it reads as data.
LEADER = {"arrowstyle": "-", "lw": 0.8, "ls": ":", "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
# Beside its criterion's, what a profile or a mask made after training has for a look.
LOOKS = {"erk": {"ls": "--"}, "equal_worth": {"color": "#7F7F00"}, "trained": {"ls": "-."}}
# What has a colour where a figure has more criteria than a reader can tell apart.
COLOURED = "random snip synflow fisher_pruning hutchinson_diag hutchinson_pruning".split()


def against_sparsity(frame: pd.DataFrame, what: str) -> tuple[Figure, str]:
    """Accuracy of each criterion against sparsity: a line of means, named at its end, with its n.

    Where there are more than six criteria, those of ``COLOURED`` have colours, and bars for one
    standard deviation; the others are grey.

    Args:
        frame: rows of ``Store.frame``: columns criterion, sparsity, test_accuracy (a fraction),
            seed.
        what: model and data in words, for the alt text.
    """
    summary = summarize(frame)
    levels = sorted(summary.loc[summary["sparsity"] > 0, "sparsity"].unique())
    figure, axes = plt.subplots(figsize=(5.4, 4.6))
    keys = in_order(summary["criterion"])
    coloured = COLOURED if len(keys) > len(COLOURED) + 1 else keys
    ends, styles = {}, criterion_styles()
    for key in keys:
        rows = summary[summary["criterion"] == key].sort_values("sparsity")
        label = f"{criterion_label(key)} ({span(rows['n'])})"
        mean, sd = 100 * rows["mean"], 100 * rows["sd"].fillna(0)
        if key == "dense":
            axes.axhline(mean.iloc[0], color="black", ls="--", lw=1)
            ends[label] = (len(levels) - 1, mean.iloc[0], "black")
            continue
        style = styles[key]
        places = rows["sparsity"].map(levels.index)
        if key in coloured:
            style |= {"mfc": "none", "mew": 1.3}  # shows what it lies upon
            axes.errorbar(places, mean, sd, lw=1.6, ms=6, capsize=2, **style)
        else:
            style["color"] = GREY
            axes.plot(places, mean, lw=1, ms=4, zorder=1, **style)
        ends[label] = (places.iloc[-1], mean.iloc[-1], style["color"])
    axes.set_xticks(range(len(levels)), [f"{s:g}" for s in levels])
    axes.set(xlabel="sparsity (fraction of prunable weights removed)", ylabel="test accuracy (%)")
    _name_failures(axes, summary)
    axes.set_xlim(-0.2, len(levels) - 0.9)
    name_ends(axes, ends)
    best = summary[summary["sparsity"] == levels[-1]].sort_values("mean", ascending=False)
    means = (100 * best["mean"]).map("{:.1f}".format)
    ranked = ", ".join(best["criterion"].map(criterion_label) + " " + means)
    alt = f"Test accuracy against sparsity for {what}. At sparsity {levels[-1]:g}, in percent: "
    return figure, f"{alt}{ranked}."


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, float, Any]]) -> None:
    """Write labels right of the axes, each beside the end (x, y, colour) of its line, if in sight.

    They are moved as little as it takes for none to touch another: by isotonic regression.
    """
    to_fraction = axes.transScale + axes.transLimits  # of the axes, whatever their scale
    heights = {label: to_fraction.transform(end[:2])[1] for label, end in ends.items()}
    labels = sorted((label for label in ends if heights[label] >= 0), key=heights.__getitem__)
    steps = 12.5 / 72 * axes.figure.dpi / axes.bbox.height * np.arange(len(labels))  # 12.5 points
    places = [heights[label] for label in labels] - steps
    places = isotonic_regression(places, y_min=0.02, y_max=1 - steps[-1]) + steps
    for label, place in zip(labels, places, strict=True):
        x, y, color = ends[label]
        ink = "#707070" if color == GREY else color
        look: dict[str, Any] = {"color": ink, "arrowprops": {**LEADER, "color": color}}
        look |= {"textcoords": "axes fraction", "va": "center", "fontsize": "small"}
        axes.annotate(label, (x, y), (1.04, place), **look)


def _name_failures(axes: Axes, summary: pd.DataFrame) -> None:
    """Leave out the few networks that learn nothing, which squeeze the others; name them below."""
    failed = (summary["sparsity"] > 0) & (summary["mean"] < summary["mean"].max() / 2)
    if not 0 < failed.sum() <= len(summary) / 4:
        return
    lowest = (summary["mean"] - summary["sd"].fillna(0))[~failed].min()
    axes.set_ylim(bottom=100 * lowest - 2)
    for level, rows in summary[failed].groupby("sparsity"):
        names = ", ".join(map(criterion_label, rows["criterion"]))
        text = f"↓ at {level:g}: {names} {span(100 * rows['mean'])} %"
        axes.set_xlabel(f"{axes.get_xlabel()}\n{text}")


def profiles(groups: Mapping[str, Sequence[Record]]) -> tuple[Figure, str]:
    """The fraction of each layer that is kept, a line a way to prune, with its mean accuracy.

    Args:
        groups: label to the records of one network, of all seeds; means over them are drawn, the
            first above the others.
    """
    figure, axes = plt.subplots(figsize=(5.4, 4.2))
    ends, said, styles = {}, [], criterion_styles()
    for place, (label, records) in enumerate(groups.items()):
        results = [record.result for record in records]
        kept = np.mean([[*result["density"].values()] for result in results], axis=0)  # (layers,)
        percent = 100 * np.mean([result["test_accuracy"] for result in results])
        spec = records[0].spec
        style = {**styles[spec.criterion], **LOOKS.get(spec.scope, {}), **LOOKS.get(spec.when, {})}
        style |= {"zorder": 3 - 0.1 * place, "ms": 3.5 + 0.8 * place, "mfc": "none"}  # nested
        axes.plot(range(1, len(kept) + 1), kept, lw=1.4, **style)
        ends[f"{label}: {percent:.1f} %"] = (len(kept), kept[-1], style["color"])
        said.append(f"{label} {percent:.1f} %, kept {', '.join(f'{part:.2g}' for part in kept)}")
    axes.set_yscale("symlog", linthresh=1e-4, linscale=0.3)
    axes.set(xlabel="layer, from input to output", ylabel="fraction kept", ylim=(-2e-5, 1.5))
    name_ends(axes, ends)
    alt = "Fraction kept in each layer, beside accuracy after training. "
    return figure, f"{alt}{'; '.join(said)}."
