"""Mask records to figures and tables: what each criterion leaves of one network at its own size."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..pruning.criteria import criterion_label
from .accuracy_words import names
from .figures import as_table
from .protocols import after
from .statistics import span
from .tables import by_criterion, in_order

EMPTY = "Numbers: layers left without a weight\n✂ = no path from input to output is left"


def of_network(frame: pd.DataFrame, dataset: str, model: str) -> pd.DataFrame:
    """Rows of ``masks_frame`` of one network, at its own width, or at the widest that there is."""
    rows = frame[(frame["dataset"] == dataset) & (frame["model"] == model)]
    own = rows["width"].isna()
    return rows[own] if own.any() else rows[rows["width"] == rows["width"].max()]


def empty_layers(frame: pd.DataFrame) -> tuple[Figure, str]:
    """Heat maps of the number of empty layers, by criterion and sparsity, one a warm-up.

    A number is a mean over seeds; scissors mark masks of which one or more are cut.

    Args:
        frame: rows of ``masks_frame`` of one network.
    """
    updates, shape = sorted(frame["warmup"].unique()), _table(frame, "empty")
    counts = {count: _table(frame, "empty", count).reindex_like(shape) for count in updates}
    size = (1.4 + 2.9 * len(updates), 1.5 + 0.26 * len(shape))
    figure, grid = plt.subplots(1, len(updates), figsize=size, sharey=True, squeeze=False)
    most = max(table.max().max() for table in counts.values())
    scale = LinearSegmentedColormap.from_list("", ["#D55E0014", "#D55E00"])
    look = {"fmt": "", "annot_kws": {"fontsize": 8}, "cmap": scale, "vmax": max(most, 1)}
    said = []
    for axes, (count, table) in zip(grid[0], counts.items(), strict=True):
        cut = _table(frame, "cut", count).reindex_like(table) > 0
        text = table.map("{:.3g}".format, na_action="ignore").fillna("")
        text = text.mask(cut, text + " ✂")
        _by_sparsity(axes, table, annot=text, **look)
        axes.set_title(after(count), fontsize="medium")
        closed = ", ".join(table.index[cut.any(axis=1)]) or "none"
        emptied = [f"{name} {n:.3g}" for name, n in table.iloc[:, -1].items() if n > 0]
        said.append(f"{axes.get_title()}: {', '.join(emptied) or 'none'}; cut {closed}")
    figure.suptitle(EMPTY, x=0.02, ha="left", fontsize="small")  # in sight on a phone
    alt = "Heat maps: empty layers by criterion and sparsity. Mean at the highest sparsity, "
    return figure, f"{alt}{'. '.join(said)}."


def in_words(frame: pd.DataFrame) -> str:
    """From which sparsity on each criterion empties layers, and cuts the network: two sentences.

    What happens in one seed or more is told, of criteria that have every sparsity.

    Args:
        frame: rows of ``masks_frame`` of one network; those of the longest warm-up are told.
    """
    rows = frame[frame["warmup"] == frame["warmup"].max()]
    levels = rows.groupby("criterion")["sparsity"].nunique()
    partly = levels.index[levels < levels.max()]
    rows = rows[~rows["criterion"].isin(partly)]
    emptied, cut = rows[rows["empty"] > 0], rows[rows["cut"]]
    spared = set(rows["criterion"]) - set(emptied["criterion"])
    others = names(spared) if len(spared) < 4 else f"the other {len(spared)} criteria"
    text = "no criterion leaves a layer without a weight."
    if len(emptied):
        text = f"layers are left without a weight by {_first(emptied)}"
        text += f"; by {others} never." if spared else "."
    closed = "No mask is *cut*: each leaves a path from input to output."
    if len(cut):
        closed = f"Masks are *cut*, with no path from input to output left, by {_first(cut)}."
    told = f"{after(rows['warmup'].iloc[0]).capitalize()}, {text} {closed}"
    if len(partly):
        told += f" {names(partly)} {'are' if len(partly) > 1 else 'is'} left out of this: "
        told += "not all sparsities are recorded."
    return told


def _first(rows: pd.DataFrame) -> str:
    """Each criterion with its lowest sparsity: SNIP from sparsity 0.9, by FD from 0.95 on."""
    lowest = rows.groupby("criterion")["sparsity"].min()
    told = [f"{names(keys.index)} from {level:g}" for level, keys in lowest.groupby(lowest)]
    return f"{', by '.join(told)} on".replace("from", "from sparsity", 1)


def _by_sparsity(axes: Axes, table: pd.DataFrame, **look: Any) -> None:
    """Draw a heat map whose columns are named above, where a reader begins."""
    sns.heatmap(table, ax=axes, cbar=False, vmin=0, linewidths=0.5, yticklabels=True, **look)
    axes.set(xlabel="sparsity", ylabel="")
    as_table(axes)
    axes.tick_params(length=0, labelsize="small")
    axes.xaxis.label.set_fontsize("small")


WHEN_CUT = {
    "connected with and without warm-up": "#80808040",
    "cut after the warm-up only": "#D55E00",
    "cut without the warm-up only": "#1F78B4",
    "cut with and without": "#CC79A7",
}


def connectivity(networks: Mapping[str, pd.DataFrame]) -> tuple[Figure, str]:
    """Which masks leave no path from input to output, with and without warm-up: a panel a network.

    A mask counts as cut if it is in one or more of the seeds.

    Args:
        networks: title to the rows of ``masks_frame`` of one network, of two warm-ups each.
    """
    criteria = in_order(pd.concat(networks.values())["criterion"])
    labels = [criterion_label(key) for key in criteria]
    tables = {title: _when_cut(frame).reindex(labels) for title, frame in networks.items()}
    columns = min(len(tables), 3)
    rows = -(-len(tables) // columns)
    size = (1.2 + 2.4 * columns, rows * (1.1 + 0.2 * len(labels)) + 0.5)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey="row", squeeze=False)
    states, said = ListedColormap(list(WHEN_CUT.values())), []
    for axes in grid.flat[len(tables) :]:
        axes.set_axis_off()
    for axes, (title, table) in zip(grid.flat, tables.items(), strict=False):
        _by_sparsity(axes, table, cmap=states, vmax=3)
        axes.set_title(title, fontsize="small")
        counts = [int((table == code).sum().sum()) for code in range(4)]
        said.append(f"{title}: {', '.join(map(str, counts))}")
    handles = [Patch(color=colour, label=state) for state, colour in WHEN_CUT.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize="small")
    alt = f"Heat maps by criterion and sparsity. Cells {', '.join(WHEN_CUT)}: "
    return figure, f"{alt}{'; '.join(said)}."


def _when_cut(frame: pd.DataFrame) -> pd.DataFrame:
    """Number of the state in ``WHEN_CUT`` by criterion and sparsity; NaN unless both are known."""
    cold, warm = (_table(frame, "cut", updates) for updates in sorted(frame["warmup"].unique()))
    known = cold.notna() & warm.notna()
    return ((warm > 0) * 1.0 + (cold > 0) * 2.0).where(known)


def _table(frame: pd.DataFrame, what: str, warmup: int | None = None) -> pd.DataFrame:
    """Means by criterion and sparsity, of one warm-up or of all."""
    rows = frame[frame["warmup"] == warmup] if warmup is not None else frame
    rows = rows.astype({what: float})
    return by_criterion(rows.pivot_table(what, "criterion", "sparsity"))


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
