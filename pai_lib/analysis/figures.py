"""DataFrames and masks to figures: one palette, one marker a criterion everywhere, alt text for each.

Needs the book's packages (matplotlib, seaborn). Each function returns ``(figure, alt text)`` for
``show``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from ..curvature.calls import ByParameter
from ..pruning.criteria import CRITERIA, criterion_label
from ..pruning.masks import jaccard, layer_density
from .frames import data_note
from .verdicts import PLAIN, PROTOCOL, paired

# Okabe & Ito's colours and Tol's wine, which differ for colour-blind readers too: one a family of
# criteria, named after the quantity that the family rests on, in order of precedence.
_FAMILIES = {
    "exact": "#009E73",
    "hutchinson": "#D55E00",
    "row_norm": "#882255",
    "fisher": "#0072B2",
    "hessian_gradient": "#CC79A7",
    "gradient": "#E69F00",
    "flow": "#56B4E9",
    "weight": "#666666",
    "noise": "#A6A6A6",
}
_MARKERS = "osD^vPX*"
INK = "#333333"
FIGURES = "PAI_FIGURES"  # names a folder in which `show` keeps each figure as SVG too


def use_style() -> None:
    """Set the book's style: seaborn's, a white ground, sizes for a page about 750 pixels wide."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 160, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "legend.frameon": False, "figure.constrained_layout.use": True,
    })  # fmt: skip


def show(figure: Figure, alt: str, caption: str | None = None, name: str | None = None) -> None:
    """Display a figure with alt text, and a caption and label where the book shows them.

    Args:
        figure: is closed afterwards.
        alt: what a reader who cannot see the figure should know.
        caption: below the figure, MyST text.
        name: label for references, unique within the notebook.
    """
    from IPython.display import display

    if folder := os.environ.get(FIGURES):
        save(figure, Path(folder) / f"{name or 'figure'}.svg")
    drawn, kept = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    colours = Image.open(drawn).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    colours.save(
        kept, format="PNG", optimize=True
    )  # a third of the bytes, and the eye sees no difference
    said = {"alt": alt, "caption": caption, "name": name}
    display(
        {"image/png": base64.b64encode(kept.getvalue()).decode(), "text/plain": alt},
        raw=True,
        metadata={"image/png": {key: value for key, value in said.items() if value is not None}},
    )


def table(styled: Styler) -> None:
    """Display a styled table by the same text each time: pandas' own has a random name in it."""
    from IPython.display import display

    name = hashlib.sha256(styled.set_uuid("").to_html().encode()).hexdigest()[
        :8
    ]  # unique on the page
    display(
        {"text/html": styled.set_uuid(name).to_html(), "text/plain": styled.to_string()}, raw=True
    )


def glue(name: str, value: Any, display: bool = False) -> None:
    """Keep a value for the sentences of the pages, by MyST-NB's ``glue``; a number to six digits.

    More show no reader anything, and in double precision six are the same on every machine.
    """
    import myst_nb

    myst_nb.glue(
        name, float(f"{value:.6g}") if isinstance(value, float) else value, display=display
    )


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file of the kind that its name ends with: ``.svg``, ``.pdf``, ``.png``.

    Where ``$PAI_FIGURES`` names a folder, ``show`` saves every figure there, as ``<name>.svg``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    return path


def inline_svg(figure: Figure, alt: str) -> str:
    """Return a figure as SVG within a page: in the ink and the letters of the text around it, dark or light.

    Args:
        figure: is closed afterwards.
        alt: what a reader who cannot see the figure should know.
    """
    drawn = io.StringIO()
    with plt.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "pai"}
    ):  # the same figure gives the same text
        figure.savefig(
            drawn, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    plt.close(figure)
    text = re.sub(r"<metadata>.*?</metadata>", "", drawn.getvalue(), flags=re.DOTALL)
    start = f'<svg role="img" aria-label="{html.escape(alt)}" '
    text = re.sub(r'(?<= )(width|height)="[^"]*pt" ', "", text[text.index("<svg ") :], count=2)
    return (
        text.replace("<svg ", start, 1)
        .replace(INK, "currentColor")
        .replace("#000000", "currentColor")
    )


def family(key: str) -> str:
    """The quantity that a criterion rests on, which gives it its colour."""
    needs = CRITERIA[key].needs
    return next(name for name in _FAMILIES if name in needs)


def criterion_styles() -> dict[str, dict[str, Any]]:
    """Colour and marker of every criterion, of new ones too: colour by family, marker by place in it."""
    styles: dict[str, dict[str, Any]] = {"dense": {"color": "black", "marker": "_"}}
    seen: dict[str, int] = {}
    for key in CRITERIA:
        place = seen[family(key)] = seen.get(family(key), -1) + 1
        styles[key] = {"color": _FAMILIES[family(key)], "marker": _MARKERS[place % len(_MARKERS)]}
    return styles


def accuracy_against_sparsity(frame: pd.DataFrame, what: str) -> tuple[Figure, str]:
    """Accuracy of each criterion against sparsity: mean, range of one standard deviation, n in the legend.

    Args:
        frame: rows of ``Store.frame``: columns criterion, sparsity, test_accuracy (a fraction),
            seed.
        what: model and data in words, for the alt text.
    """
    styles, order = criterion_styles(), ["dense", *CRITERIA]
    summary = summarize(frame)
    levels = sorted(s for s in summary["sparsity"].unique() if s > 0)
    figure, axes = plt.subplots(figsize=(5.8, 4.6))
    place = {
        s: i for i, s in enumerate(levels)
    }  # evenly spaced: 0.98 and 0.99 are as far apart as 0.8 and 0.9
    shown = [key for key in order if key in set(summary["criterion"])]
    for i, key in enumerate(shown):
        rows = summary[summary["criterion"] == key].sort_values("sparsity")
        label = f"{criterion_label(key)} (n = {_range(rows['n'])})"
        if key == "dense":
            axes.axhline(100 * rows["mean"].iloc[0], color="black", ls="--", lw=1, label=label)
            continue
        nudge = (
            i - len(shown) / 2
        ) * 0.025  # so that bars of equal criteria do not cover each other
        axes.errorbar(
            [place[s] + nudge for s in rows["sparsity"]], 100 * rows["mean"], 100 * rows["sd"].fillna(0),
            label=label, lw=1.4, ms=6, capsize=2, alpha=0.9, **styles[key],
        )  # fmt: skip
    dead = (summary["sparsity"] > 0) & (summary["mean"] < summary["mean"].max() / 2)
    if (
        0 < dead.sum() <= len(summary) / 4
    ):  # networks that learn nothing must not squeeze the others together
        bottom = 100 * (summary["mean"] - summary["sd"].fillna(0))[~dead].min() - 2
        axes.set_ylim(bottom=bottom)
        for level, rows in summary[dead].groupby("sparsity"):
            names = ", ".join(map(criterion_label, rows["criterion"]))
            text = f"↓ {names} {_range(100 * rows['mean'])} %"
            axes.text(
                place[level] + 0.3,
                bottom,
                text,
                ha="right",
                va="bottom",
                fontsize="small",
                color=INK,
            )
    axes.set_xticks(range(len(levels)), [f"{s:g}" for s in levels])
    axes.set(xlabel="sparsity (fraction of prunable weights removed)", ylabel="test accuracy (%)")
    axes.set_xlim(-0.3, len(levels) - 0.7)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=3, fontsize="small")
    sns.despine(figure)
    best = summary[summary["sparsity"] == levels[-1]].sort_values("mean", ascending=False)
    ranked = ", ".join(
        f"{criterion_label(r.criterion)} {100 * r.mean:.1f}" for r in best.itertuples(index=False)
    )
    alt = f"Test accuracy against sparsity for {what}. At sparsity {levels[-1]:g}, in percent: {ranked}."
    return figure, alt


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low} to {high}"


def paired_differences(
    differences: Mapping[str, pd.Series], looks: Mapping[str, Mapping[str, Any]], what: str
) -> tuple[Figure, str]:
    """One row a comparison: a dot for the difference of each seed, a bar for their mean and its 95 % t interval.

    Args:
        differences: label to differences in percentage points, by seed.
        looks: label to colour and marker.
        what: the differences in words, for the axis and the alt text.
    """
    figure, axes = plt.subplots(figsize=(5.6, 1.1 + 0.3 * len(differences)))
    axes.axvline(0, color=INK, lw=1)
    said, labels = [], []
    for y, (label, values) in enumerate(differences.items()):
        values, found = values.dropna(), paired(values)
        axes.plot(values, [y] * found.n, ls="none", ms=5, alpha=0.5, **looks[label])
        half = found.half if found.n > 1 else 0
        axes.errorbar(
            found.mean, y, xerr=half, fmt="|", ms=14, mew=2, capsize=4, color=looks[label]["color"]
        )
        labels.append(f"{label} (n = {found.n})")
        said.append(f"{label} {found}, n = {found.n}")
    axes.set_yticks(range(len(labels)), labels)
    beyond, sizes = "", pd.concat(list(differences.values())).abs()
    if sizes.max() > 20:  # a network that learns nothing must not squeeze the others together
        near = 5 if sizes.median() < 5 else 10
        axes.set_xscale("symlog", linthresh=near, linscale=1.5)
        axes.xaxis.set_major_locator(
            plt.FixedLocator([-80, -30, -10, -5, -2.5, 0, 2.5, 5, 10, 30, 80])
        )
        axes.xaxis.set_major_formatter(plt.FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))
        axes.xaxis.set_minor_locator(plt.NullLocator())
        beyond = f", logarithmic beyond ±{near}"
    axes.set(xlabel=f"{what}\n(percentage points{beyond})", ylim=(len(labels) - 0.4, -0.6))
    return (
        figure,
        f"{what[0].upper()}{what[1:]} in percentage points, mean and 95 % interval: {'; '.join(said)}.",
    )


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds of the test accuracy, by criterion and sparsity."""
    groups = frame.dropna(subset="test_accuracy").groupby(["criterion", "sparsity"])[
        "test_accuracy"
    ]
    return groups.agg(mean="mean", sd="std", n="count").reset_index()


def accuracy_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Criteria by sparsities: mean ± standard deviation in percent; the mean alone where n is 1."""

    def cell(row: pd.Series) -> str:
        spread = "" if row["n"] < 2 else f" ± {100 * row['sd']:.2f}"
        return f"{100 * row['mean']:.2f}{spread}"

    summary = summarize(frame)
    summary["text"] = summary.apply(cell, axis=1)
    table = summary.pivot(index="criterion", columns="sparsity", values="text").fillna("–")
    order = [key for key in ("dense", *CRITERIA) if key in table.index]
    table = table.loc[order].rename(index=criterion_label)
    table.columns = [f"sparsity {s:g}" for s in table.columns]
    table.index.name = None
    return table


def protocols(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split records of pruned networks into groups made by one protocol, largest first: (its words, its rows).

    Only plain runs: no control, cited variants at their own temperature and rounds, global scope.
    """
    if frame.empty:
        return []
    plain = frame[frame["temperature"].isna() & frame["rounds"].isna()]
    for name, value in PLAIN.items():
        plain = plain[plain[name] == value]
    plain = plain.assign(lr_drops=plain["lr_drops"].map(tuple))
    groups = [rows for _, rows in plain.groupby([*PROTOCOL, "warmup"], dropna=False)]
    groups = sorted(
        (rows for rows in groups if (rows["sparsity"] > 0).any()), key=len, reverse=True
    )
    return [(_in_words(rows.iloc[0], frame.attrs.get("results")), rows) for rows in groups]


def _in_words(how: pd.Series, results: str | None) -> str:
    size = "its own width" if pd.isna(how["width"]) else f"width {how['width']:.0f}"
    data = how["dataset"] + data_note(how["fingerprint"], results)
    return (
        f"{how['model']} ({size}) on {how['train_images']:,.0f} training images of "
        f"{data}, {how['epochs']} epochs of {how['optimizer']} at "
        f"batch {how['batch_size']}, learning rate {how['lr']:g}, {how['precision']}; "
        f"scores from {how['samples_per_class']} images a class at group size {how['group']}, after "
        f"{how['warmup']} batch-norm updates"
    )


def best_and_worst(frame: pd.DataFrame) -> str:
    """One clause a sparsity: the criteria with the highest and lowest mean accuracy, of how many, and n."""
    means, clauses = summarize(frame), []
    for sparsity, rows in means[means["sparsity"] > 0].groupby("sparsity"):
        ends = rows.sort_values("mean", ascending=False).iloc[[0, -1]].itertuples()
        high, low = (f"{criterion_label(r.criterion)} {100 * r.mean:.1f} %" for r in ends)
        n = (
            f"{rows['n'].min()} to {rows['n'].max()}"
            if rows["n"].nunique() > 1
            else rows["n"].min()
        )
        said = (
            f"of {len(rows)} criteria (n = {n}) from {high} down to {low}"
            if len(rows) > 1
            else f"{low} (n = {n})"
        )
        clauses.append(f"at sparsity {sparsity:g}, {said}")
    return "; ".join(clauses)


def layer_densities(masks: Mapping[str, ByParameter]) -> tuple[Figure, str]:
    """Heat map of the fraction of each layer that each criterion keeps, on a logarithmic scale.

    Args:
        masks: criterion to mask.
    """
    values = pd.DataFrame(
        {criterion_label(key): layer_density(mask) for key, mask in masks.items()}
    ).T
    layers = [name.removesuffix(".weight") for name in values.columns]
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.28 * len(masks)))
    floor = 10 ** np.floor(np.log10(values[values > 0].min().min()))
    sns.heatmap(
        values, norm=plt.matplotlib.colors.LogNorm(floor, 1), cmap="cividis", ax=axes, mask=values == 0,
        linewidths=0.5, cbar_kws={"label": "fraction kept"}, xticklabels=layers, yticklabels=True,
    )  # fmt: skip
    axes.set_facecolor("#F2C6C0")
    for row, column in zip(*np.nonzero(values.to_numpy() == 0), strict=True):
        axes.text(column + 0.5, row + 0.5, "0", ha="center", va="center", fontsize="small")
    axes.set_xticklabels(axes.get_xticklabels(), rotation=45, ha="right", fontsize="small")
    empty = {label: int((row == 0).sum()) for label, row in values.iterrows()}
    emptied = ", ".join(f"{label} {count}" for label, count in empty.items() if count) or "none"
    alt = f"Heat map: fraction of weights kept in {len(layers)} layers by {len(masks)} criteria. "
    return figure, alt + f"Layers left empty: {emptied}."


def mask_overlap(masks: Mapping[str, ByParameter]) -> tuple[Figure, str]:
    """Matrix of Jaccard overlaps (kept by both over kept by either) between the masks of all criteria."""
    keys = list(masks)
    values = pd.DataFrame(
        [[jaccard(masks[a], masks[b]) for b in keys] for a in keys],
        index=[criterion_label(k) for k in keys], columns=[criterion_label(k) for k in keys],
    )  # fmt: skip
    figure, axes = plt.subplots(figsize=(7.2, 5.6))
    sns.heatmap(
        values, annot=values.map(lambda v: f"{v:.2f}".removeprefix("0")), fmt="", cmap="cividis", vmin=0, vmax=1,
        annot_kws={"fontsize": 7}, cbar_kws={"label": "Jaccard overlap"}, ax=axes, square=True,
    )  # fmt: skip
    pairs = [
        (values.iat[i, j], values.index[i], values.index[j])
        for i in range(len(keys))
        for j in range(i)
    ]
    top = ", ".join(f"{a} and {b} {v:.2f}" for v, a, b in sorted(pairs, reverse=True)[:3])
    return (
        figure,
        f"Matrix of overlaps between the masks of {len(keys)} criteria. The most alike: {top}.",
    )


def predicted_against_true(
    panels: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
) -> tuple[Figure, str]:
    """Scatter of predicted against true loss change, one panel an expansion and one row a network.

    Args:
        panels: (row title, column title, predicted, true), row by row.
    """
    rows = list(dict.fromkeys(panel[0] for panel in panels))
    columns = list(dict.fromkeys(panel[1] for panel in panels))
    size = (6.0, 2.4 * len(rows))
    figure, grid = plt.subplots(
        len(rows), len(columns), figsize=size, squeeze=False, sharex="row", sharey="row"
    )
    said = []
    for title, expansion, predicted, true in panels:
        axes = grid[rows.index(title)][columns.index(expansion)]
        axes.scatter(
            true, predicted, s=5, alpha=0.5, lw=0, color=_FAMILIES["exact"], rasterized=True
        )
        low, high = float(np.min(true)), float(np.max(true))
        axes.plot([low, high], [low, high], color=INK, lw=0.8, ls="--")
        explained = fraction_explained(predicted, true)
        axes.set_title(f"{expansion}\n$R^2$ = {explained:.3f}", fontsize="small")
        axes.ticklabel_format(style="sci", scilimits=(-2, 2))
        said.append(f"{title}, {expansion.replace('$', '')}: R² {explained:.3f}")
    for axes, title in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(f"{title}\npredicted change", fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("true change of the loss", fontsize="small")
    return (
        figure,
        "Predicted against true loss change of removing each single weight. "
        + "; ".join(said)
        + ".",
    )


def fraction_explained(predicted: np.ndarray, true: np.ndarray) -> float:
    """R² of a prediction taken as it is (no fitted slope): 1 − Σ(true − predicted)²/Σ(true − mean)².

    >>> fraction_explained(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    1.0
    """
    return float(1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())
