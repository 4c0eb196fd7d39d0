"""Mask records to figures and tables: what each criterion leaves of one network at its own size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..pruning.criteria import criterion_label
from .figures import as_table
from .statistics import span
from .tables import by_criterion, in_order


def of_network(frame: pd.DataFrame, dataset: str, model: str) -> pd.DataFrame:
    """Rows of ``masks_frame`` of one network, at its own width, or at the widest that there is."""
    rows = frame[(frame["dataset"] == dataset) & (frame["model"] == model)]
    own = rows["width"].isna()
    return rows[own] if own.any() else rows[rows["width"] == rows["width"].max()]


def empty_layers(frame: pd.DataFrame) -> tuple[Figure, str]:
    """Heat maps of the number of empty layers, by criterion and sparsity, one a warm-up.

    A number is a mean over seeds; a cross marks masks of which one or more are cut.

    Args:
        frame: rows of ``masks_frame`` of one network.
    """
    updates = sorted(frame["warmup"].unique())
    counts = {count: _table(frame, count, "empty") for count in updates}
    rows = max(map(len, counts.values()))
    size = (1.4 + 2.9 * len(updates), 1.2 + 0.26 * rows)
    figure, grid = plt.subplots(1, len(updates), figsize=size, sharey=True, squeeze=False)
    most = max(table.max().max() for table in counts.values())
    scale = sns.light_palette("#D55E00", as_cmap=True)
    look: dict[str, Any] = {"cmap": scale, "vmin": 0, "vmax": max(most, 1), "linewidths": 0.5}
    said = []
    for axes, (count, table) in zip(grid[0], counts.items(), strict=True):
        cut = _table(frame, count, "cut").reindex_like(table) > 0
        text = table.map("{:.3g}".format, na_action="ignore").fillna("")
        text += cut.map(lambda any_cut: " ×" if any_cut else "")
        small = {"fmt": "", "annot_kws": {"fontsize": 8}, "yticklabels": True}
        sns.heatmap(table, annot=text, ax=axes, cbar=False, **look, **small)
        axes.set(xlabel="sparsity", ylabel="")
        as_table(axes)
        axes.set_title(f"after {count} updates" if count else "without warm-up", fontsize="medium")
        names = ", ".join(table.index[cut.any(axis=1)]) or "none"
        said.append(f"{axes.get_title()}: {', '.join(_emptied(table)) or 'none'}; cut {names}")
    alt = "Heat maps: empty layers by criterion and sparsity. Mean at the highest sparsity, "
    return figure, f"{alt}{'. '.join(said)}."


WHEN_CUT = {
    "connected with and without warm-up": "#E8E8E8",
    "cut after the warm-up only": "#D55E00",
    "cut without the warm-up only": "#0072B2",
    "cut with and without": "#000000",
}


def connectivity(networks: Mapping[str, pd.DataFrame]) -> tuple[Figure, str]:
    """Which masks leave no path from input to output, with and without warm-up: a panel a network.

    A mask counts as cut if it is in one or more of the seeds.

    Args:
        networks: title to the rows of ``masks_frame`` of one network, of two warm-ups each.
    """
    criteria = in_order(pd.concat(networks.values())["criterion"])
    names = [criterion_label(key) for key in criteria]
    tables = {title: _when_cut(frame).reindex(names) for title, frame in networks.items()}
    columns = min(len(tables), 3)
    rows = -(-len(tables) // columns)
    size = (1.2 + 2.1 * columns, rows * (1.0 + 0.2 * len(names)) + 0.5)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey="row", squeeze=False)
    look: dict[str, Any] = {"cmap": ListedColormap(list(WHEN_CUT.values())), "vmin": 0, "vmax": 3}
    said = []
    for axes in grid.flat[len(tables) :]:
        axes.set_axis_off()
    for axes, (title, table) in zip(grid.flat, tables.items(), strict=False):
        sns.heatmap(table, ax=axes, cbar=False, linewidths=0.5, yticklabels=True, **look)
        axes.set_title(title, fontsize="small")
        axes.set(xlabel="sparsity", ylabel="")
        as_table(axes)
        axes.tick_params(labelsize="small")
        counts = [int((table == code).sum().sum()) for code in range(4)]
        said.append(f"{title}: {', '.join(map(str, counts))}")
    handles = [Patch(color=colour, label=state) for state, colour in WHEN_CUT.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize="small")
    states = ", ".join(WHEN_CUT)
    return figure, f"Heat maps by criterion and sparsity. Cells {states}: {'; '.join(said)}."


def _when_cut(frame: pd.DataFrame) -> pd.DataFrame:
    """Number of the state in ``WHEN_CUT`` by criterion and sparsity; NaN unless both are known."""
    without, after = (_table(frame, updates, "cut") for updates in sorted(frame["warmup"].unique()))
    known = without.notna() & after.notna()
    return ((after > 0) * 1.0 + (without > 0) * 2.0).where(known)


def _table(frame: pd.DataFrame, warmup: int, what: str) -> pd.DataFrame:
    rows = frame[frame["warmup"] == warmup].astype({what: float})
    return by_criterion(rows.pivot_table(what, "criterion", "sparsity"))


def _emptied(table: pd.DataFrame) -> list[str]:
    highest = table[table.columns[-1]]
    return [f"{name} {count:.3g}" for name, count in highest.items() if count > 0]


def costs(frame: pd.DataFrame, sparsity: float, warmup: int) -> pd.DataFrame:
    """What the masks of one sparsity took and share: a row a criterion, means over seeds.

    Args:
        frame: rows of ``masks_frame`` of one network.
        sparsity: fraction removed.
        warmup: batch-norm updates before scoring.
    """
    rows = frame[(frame["sparsity"] == sparsity) & (frame["warmup"] == warmup)]
    groups = rows.assign(excess=rows["effective_sparsity"] - rows["sparsity"]).groupby("criterion")
    table = pd.DataFrame(
        {
            "shared with the reference, %": (100 * groups["shared"].mean()).map("{:.0f}".format),
            "effective − asked sparsity": groups["excess"].mean().map("{:.4f}".format),
            "seconds": groups["seconds"].median().map("{:.3g}".format),
            "seeds": groups["seed"].nunique(),
        }
    )
    return by_criterion(table)


def seeds(frame: pd.DataFrame) -> str:
    """From how few to how many seeds a criterion has."""
    return span(frame.groupby(["criterion", "warmup"])["seed"].nunique())
