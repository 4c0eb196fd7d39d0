"""Records to lines: the accuracy of every criterion against sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression

from ..pruning.criteria import criterion_label
from .figures import INK, criterion_styles
from .statistics import span
from .tables import in_order, summarize

# What has a colour where a figure has more criteria than a reader can tell apart.
COLOURED = "random snip synflow fisher_pruning hutchinson_diag hutchinson_pruning".split()
GREY = "#B5B5B5"


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
    ends = {}
    for key in keys:
        rows = summary[summary["criterion"] == key].sort_values("sparsity")
        label = f"{criterion_label(key)} ({span(rows['n'])})"
        mean, sd = 100 * rows["mean"], 100 * rows["sd"].fillna(0)
        if key == "dense":
            axes.axhline(mean.iloc[0], color="black", ls="--", lw=1)
            ends[label] = (len(levels) - 1, mean.iloc[0], "black")
            continue
        style = criterion_styles()[key]
        places = rows["sparsity"].map(levels.index)
        if key in coloured:
            axes.errorbar(places, mean, sd, lw=1.6, ms=6, capsize=2, alpha=0.9, **style)
        else:
            style["color"] = GREY
            axes.plot(places, mean, lw=1, ms=4, zorder=1, **style)
        ends[label] = (places.iloc[-1], mean.iloc[-1], style["color"])
    _name_failures(axes, summary, levels)
    axes.set_xticks(range(len(levels)), [f"{s:g}" for s in levels])
    axes.set(xlabel="sparsity (fraction of prunable weights removed)", ylabel="test accuracy (%)")
    axes.set_xlim(-0.2, len(levels) - 0.9)
    _name_ends(axes, ends)
    best = summary[summary["sparsity"] == levels[-1]].sort_values("mean", ascending=False)
    means = (100 * best["mean"]).map("{:.1f}".format)
    ranked = ", ".join(best["criterion"].map(criterion_label) + " " + means)
    alt = f"Test accuracy against sparsity for {what}. At sparsity {levels[-1]:g}, in percent: "
    return figure, f"{alt}{ranked}."


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float, Any]]) -> None:
    """Write labels right of the axes, each beside the end (x, y, colour) of its line, if in sight.

    They are moved as little as it takes for none to touch another: by isotonic regression.
    """
    low, high = axes.get_ylim()
    seen = {label: end for label, end in ends.items() if end[1] >= low}
    labels = sorted(seen, key=lambda label: seen[label][1])
    points = 72 * axes.bbox.height / axes.figure.dpi
    steps = 12.5 * (high - low) / points * np.arange(len(labels))
    heights = isotonic_regression([seen[label][1] for label in labels] - steps) + steps
    heights -= max(0, heights[-1] - high)
    for label, height in zip(labels, heights, strict=True):
        x, y, color = seen[label]
        axes.annotate(
            label,
            (x, y),
            (1.04, height),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
            color="#707070" if color == GREY else color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        )


def _name_failures(axes: Axes, summary: pd.DataFrame, levels: list[float]) -> None:
    """Name the few networks that learn nothing at the bottom: they would squeeze the others."""
    failed = (summary["sparsity"] > 0) & (summary["mean"] < summary["mean"].max() / 2)
    if not 0 < failed.sum() <= len(summary) / 4:
        return
    lowest = (summary["mean"] - summary["sd"].fillna(0))[~failed].min()
    bottom = 100 * lowest - 2
    axes.set_ylim(bottom=bottom)
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": "small", "color": INK}
    for line, (level, rows) in enumerate(summary[failed].groupby("sparsity", sort=False)):
        names = ", ".join(map(criterion_label, rows["criterion"]))
        text = f"↓ {names} {span(100 * rows['mean'])} %" + line * "\n"
        axes.text(levels.index(level) + 0.1, bottom, text, **style)
