"""DataFrames and masks to figures: one look a criterion everywhere, alt text for each.

Needs the book's packages (matplotlib, seaborn). Each figure comes with its alt text, for ``show``.
"""

import hashlib
import html
import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from sklearn.metrics import r2_score

from ..curvature.calls import ByParameter
from ..pruning.criteria import CRITERIA, criterion_label
from ..pruning.masks import jaccard, layer_density
from ..pruning.ranking import SparsityWarning
from .dark import GROUND, darken, ink_on_cells, png
from .statistics import paired

# Okabe & Ito's colours, two of them darker, and Tol's wine, which differ for colour-blind readers
# too: one a family of criteria, named after the quantity that it rests on, in order of precedence.
_FAMILIES = {
    "exact": "#009E73",
    "hutchinson": "#D55E00",
    "row_norm": "#882255",
    "fisher": "#0072B2",
    "hessian_gradient": "#CC79A7",
    "gradient": "#C88700",
    "flow": "#3A9BDC",
    "weight": "#666666",
    "noise": "#333333",
}
_MARKERS = "osD^vPX*"
INK = "#333333"
GREY = "#B5B5B5"


def use_style() -> None:
    """Set the book's style: seaborn's, a white ground, sizes for a page about 750 pixels wide.

    ``SparsityWarning`` is silenced: the pages say which layers are empty.
    """
    warnings.simplefilter("ignore", SparsityWarning)
    inked = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    off = ("axes.spines.top", "axes.spines.right", "legend.frameon")
    sizes = {"figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True}
    settings = sizes | dict.fromkeys(off, False) | dict.fromkeys(inked, INK)
    sns.set_theme(context="notebook", style="ticks", font_scale=1, rc=settings)


def show(figure: Figure, alt: str, caption: str | None = None, name: str | None = None) -> None:
    """Display a figure with alt text, and a caption and label where the book shows them.

    The output's metadata hold it for the dark pages as well.

    Args:
        figure: is closed afterwards.
        alt: what a reader who cannot see the figure should know.
        caption: below the figure, MyST text.
        name: label for references, unique within the notebook.
    """
    from IPython.display import display

    for part in figure.findobj(plt.Text):  # what Python computed has hyphens
        part.set_text(re.sub(r"(?<![^\s(])-(?=\d)", "−", part.get_text()))
    if folder := os.environ.get("PAI_FIGURES"):
        save(figure, Path(folder) / f"{name or 'figure'}.svg")
    image = png(figure, "white")
    darken(figure)
    texts = {"alt": alt, "caption": caption, "name": name, "dark": png(figure, GROUND)}
    plt.close(figure)
    display(
        {"image/png": image, "text/plain": alt},
        raw=True,
        metadata={"image/png": {key: text for key, text in texts.items() if text is not None}},
    )


def say(text: str) -> None:
    """Display a text in Markdown: a sentence with numbers of the cells above."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def table(styled: Styler) -> None:
    """Display a styled table by the same text each time: pandas' own has a random name in it."""
    from IPython.display import display

    content = styled.set_uuid("").to_html().encode()
    name = hashlib.sha256(content).hexdigest()[:8]  # unique on the page
    data = {"text/html": styled.set_uuid(name).to_html(), "text/plain": styled.to_string()}
    display(data, raw=True)


def glue(name: str, value: Any) -> None:
    """Keep a value for the sentences of the pages, by MyST-NB's ``glue``; a number to six digits.

    More show no reader anything, and in double precision six are the same on every machine.
    """
    import myst_nb

    rounded = float(f"{value:.6g}") if isinstance(value, float) else value
    myst_nb.glue(name, rounded, display=False)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file of the kind its name ends with: ``.svg``, ``.pdf``, ``.png``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    return path


def inline_svg(figure: Figure, alt: str) -> str:
    """Return a figure as SVG within a page: in the ink and the letters of the text around it.

    Args:
        figure: is closed afterwards.
        alt: what a reader who cannot see the figure should know.
    """
    drawn = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pai"}):  # the same text each time
        undated = {"Date": None}
        figure.savefig(drawn, format="svg", bbox_inches="tight", transparent=True, metadata=undated)
    plt.close(figure)
    text = re.sub(r"<metadata>.*?</metadata>", "", drawn.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg ") :]
    text = re.sub(r'(?<= )(width|height)="[^"]*pt" ', "", text, count=2)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
    return text.replace(INK, "currentColor").replace("#000000", "currentColor")


def family(key: str) -> str:
    """The quantity that a criterion rests on, which gives it its colour."""
    needs = CRITERIA[key].needs
    return next((name for name in _FAMILIES if name in needs), "noise")  # one's own may have none


def criterion_styles() -> dict[str, dict[str, Any]]:
    """Colour and marker of every criterion: colour by family, marker by its place in it."""
    styles: dict[str, dict[str, Any]] = {"dense": {"color": "black", "marker": "_"}}
    seen: dict[str, int] = {}
    for key in CRITERIA:
        place = seen[family(key)] = seen.get(family(key), -1) + 1
        styles[key] = {"color": _FAMILIES[family(key)], "marker": _MARKERS[place % len(_MARKERS)]}
    return styles


def accuracies_by_seed(
    accuracies: Mapping[str, pd.Series], criteria: Sequence[str]
) -> tuple[Figure, str]:
    """One row a way to prune: a dot for the accuracy of each seed, and a bar at their mean.

    Args:
        accuracies: label to accuracies in percent, by seed.
        criteria: the criterion of each, for its look.
    """
    figure, axes = _rows_of_dots(accuracies, criteria)
    axes.set_xlabel("test accuracy (%)")
    means = "; ".join(f"{label} {values.mean():.1f}" for label, values in accuracies.items())
    return figure, f"Test accuracy in percent, one dot a seed, bar at the mean. Means: {means}."


def paired_differences(
    differences: Mapping[str, pd.Series], what: str, criteria: Sequence[str] | None = None
) -> tuple[Figure, str]:
    """One row a comparison: a dot a seed, a bar for their mean and its 95 % t interval.

    Args:
        differences: criterion, or any label, to differences in percentage points, by seed.
        what: the differences in words, for the axis and the alt text.
        criteria: the criterion of each row, for its look, where the keys are other labels.
    """
    if criteria is None:
        criteria = list(differences)
        differences = {criterion_label(key): values for key, values in differences.items()}
    pairs = {label: paired(values) for label, values in differences.items()}
    rows = {f"{label} (n = {pairs[label].n})": values for label, values in differences.items()}
    figure, axes = _rows_of_dots(rows, criteria)
    axes.set_ylim(top=-1.3)
    axes.vlines(0, -0.5, len(rows) - 0.4, color=INK, lw=1)
    axes.text(0, -0.6, "no difference", ha="center", va="bottom", fontsize="small")
    styles = criterion_styles()
    for row, (key, pair) in enumerate(zip(criteria, pairs.values(), strict=True)):
        half = pair.half if pair.n > 1 else 0
        axes.errorbar(pair.mean, row, xerr=half, capsize=4, color=styles[key]["color"])
    beyond = _squeeze(axes, pd.concat(list(differences.values())).abs())
    axes.set_xlabel(f"{what}\n(percentage points{beyond})")
    said = "; ".join(f"{label} {pair}, n = {pair.n}" for label, pair in pairs.items())
    start = f"{what[0].upper()}{what[1:]} in percentage points, mean and 95 % interval: "
    return figure, f"{start}{said}."


def _rows_of_dots(rows: Mapping[str, pd.Series], criteria: Sequence[str]) -> tuple[Figure, Axes]:
    """One labelled row a series, from above: a dot for each value and a bar at their mean."""
    figure, axes = plt.subplots(figsize=(5.6, 1.1 + 0.3 * len(rows)))
    styles = criterion_styles()
    for row, (values, key) in enumerate(zip(rows.values(), criteria, strict=True)):
        known, color = values.dropna(), styles[key]["color"]
        axes.plot(known, [row] * len(known), ls="none", ms=5, alpha=0.5, **styles[key])
        axes.plot(known.mean(), row, marker="|", ms=14, mew=2, color=color)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axis_above(axes)
    return figure, axes


def axis_above(axes: Axes) -> None:
    """Put the x axis above: a reader who comes from there knows what a tall figure measures."""
    axes.xaxis.set(label_position="top", ticks_position="top")
    axes.xaxis.labelpad = 8
    axes.spines["bottom"].set_position(("axes", 1))


def _squeeze(axes: Axes, sizes: pd.Series) -> str:
    """Make the axis logarithmic far out if a failed network would squeeze the others; say so."""
    if not sizes.max() > 20:
        return ""
    near = 5 if sizes.median() < 5 else 10
    axes.set_xscale("symlog", linthresh=near, linscale=1.5)
    ticks = [-80, -near, -near / 2, 0, near / 2, near, 80]
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.minorticks_off()
    return f", logarithmic beyond ±{near}"


def small_multiples(
    frame: pd.DataFrame,
    columns: Sequence[str],
    looks: Mapping[str, Mapping[str, Any]],
    wrap: int = 2,
) -> tuple[Figure, dict[str, Axes]]:
    """Lines of means with their ranges, one panel a value: the figure, and the axes of each panel.

    Args:
        frame: one row a measurement.
        columns: of the frame: x, y, which line, and which panel.
        looks: line to colour, marker and dashes.
        wrap: panels beside each other.
    """
    x, y, line, panel = columns
    roles = {"x": x, "y": y, "hue": line, "style": line, "col": panel}
    spread = {"errorbar": ("pi", 100), "err_style": "bars"}
    layout = {"col_wrap": wrap, "height": 5.6 / wrap, "facet_kws": {"sharex": False}}
    styles = {
        "palette": {name: look["color"] for name, look in looks.items()},
        "markers": {name: look["marker"] for name, look in looks.items()},
        "dashes": {name: look.get("dashes", "") for name, look in looks.items()},
    }
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn has its own
        grid = sns.relplot(frame, **roles, **spread, **styles, kind="line", **layout)
    grid.set_titles("{col_name}")
    sns.move_legend(grid, "lower center", ncols=3, title=None, bbox_to_anchor=(0.5, 1))
    return grid.figure, grid.axes_dict


def layer_densities(masks: Mapping[str, ByParameter]) -> tuple[Figure, str]:
    """Heat map of the fraction of each layer that each criterion keeps, on a logarithmic scale.

    Args:
        masks: criterion, or a name of one's own, to mask.
    """
    values = pd.DataFrame({key: layer_density(mask) for key, mask in masks.items()}).T
    values.index = values.index.map(lambda key: criterion_label(key) if key in CRITERIA else key)
    values.columns = values.columns.str.removesuffix(".weight")
    floor = 10 ** np.floor(np.log10(values[values > 0].min().min()))
    text = values.map(lambda density: "" if density else "0")
    size = (7.2, 0.9 + 0.28 * len(masks))
    figure, axes = _heat_map(values, text, "fraction kept", size, norm=LogNorm(floor, 1))
    axes.set_xticklabels(axes.get_xticklabels(), rotation=45, ha="left", fontsize="small")
    counts = (values == 0).sum(axis="columns")
    emptied = ", ".join(f"{label} {count}" for label, count in counts.items() if count) or "none"
    layers, criteria = values.shape[::-1]
    alt = f"Heat map: fraction of weights kept in {layers} layers by {criteria} criteria. "
    return figure, f"{alt}Layers left empty: {emptied}."


def mask_overlap(masks: Mapping[str, ByParameter]) -> tuple[Figure, str]:
    """Matrix of Jaccard overlaps (kept by both over kept by either) between criteria's masks."""
    labels = [criterion_label(key) for key in masks]
    overlaps = [[jaccard(a, b) for b in masks.values()] for a in masks.values()]
    values = pd.DataFrame(overlaps, labels, labels)
    text = values.map(lambda overlap: f"{overlap:.2f}".removeprefix("0").replace("1.00", "1"))
    figure, axes = _heat_map(values, text, "Jaccard overlap", (7.2, 5.6), vmin=0, vmax=1)
    axes.set_aspect("equal")
    below = np.tril_indices(len(labels), -1)
    pairs = [(values.iat[i, j], labels[i], labels[j]) for i, j in zip(*below, strict=True)]
    top = ", ".join(f"{a} and {b} {v:.2f}" for v, a, b in sorted(pairs, reverse=True)[:3])
    alt = f"Matrix of overlaps between the masks of {len(labels)} criteria. The most alike: {top}."
    return figure, alt


def _heat_map(
    values: pd.DataFrame, text: pd.DataFrame, what: str, size: tuple[float, float], **scale: Any
) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=size)
    colours = plt.get_cmap("cividis").with_extremes(bad="#F2C6C0")  # zero, on a logarithmic scale
    small = {"fmt": "", "annot_kws": {"fontsize": 8}, "linewidths": 0.5}
    named = {"cbar_kws": {"label": what}, "xticklabels": True, "yticklabels": True}
    sns.heatmap(values, annot=text, cmap=colours, ax=axes, **small, **named, **scale)
    as_table(axes)
    return figure, axes


def as_table(axes: Axes) -> None:
    """Give a heat map its columns' names above, and numbers in the ink that contrasts more."""
    axis_above(axes)
    axes.tick_params(axis="x", rotation=90)
    ink_on_cells(axes, "white")


def predicted_against_true(
    panels: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
) -> tuple[Figure, str]:
    """Scatter of predicted against true loss change, one panel an expansion and one row a network.

    Args:
        panels: (row title, column title, predicted, true), row by row.
    """
    rows = list(dict.fromkeys(panel[0] for panel in panels))
    columns = list(dict.fromkeys(panel[1] for panel in panels))
    shared: dict[str, Any] = {"squeeze": False, "sharex": "row", "sharey": "row"}
    figure, grid = plt.subplots(len(rows), len(columns), figsize=(6.0, 2.4 * len(rows)), **shared)
    said = []
    look = {"s": 5, "alpha": 0.5, "lw": 0, "color": _FAMILIES["exact"], "rasterized": True}
    for title, expansion, predicted, true in panels:
        axes = grid[rows.index(title)][columns.index(expansion)]
        axes.scatter(true, predicted, **look)
        axes.axline((0, 0), slope=1, color=INK, lw=0.8, ls="--")
        explained = r2_score(true, predicted)
        axes.set_title(f"{expansion}\n$R^2$ = {explained:.3f}", fontsize="small")
        axes.locator_params(nbins=3)  # as they are: a factor above an axis would move its title
        said.append(f"{title}, {expansion.replace('$', '')}: R² {explained:.3f}")
    for axes, title in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(f"{title}\npredicted change", fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("true change of the loss", fontsize="small")
    alt = "Predicted against true loss change of removing each single weight. "
    return figure, f"{alt}{'; '.join(said)}."
