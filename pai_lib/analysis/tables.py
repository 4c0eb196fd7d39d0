"""Records to tables and clauses: criteria in one order everywhere, under their labels."""

from collections.abc import Iterable

import pandas as pd

from ..pruning.criteria import CRITERIA, criterion_label
from .statistics import span


def in_order(keys: Iterable[str]) -> list[str]:
    """The keys of criteria, and of the dense network, in the order of every table and legend."""
    keys = set(keys)
    return [key for key in ("dense", *CRITERIA) if key in keys]


def by_criterion(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose index are keys of criteria, in their order and under their labels."""
    return table.loc[in_order(table.index)].rename(index=criterion_label).rename_axis(None)


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of the test accuracies, by criterion and sparsity."""
    known = frame.dropna(subset="test_accuracy")
    groups = known.groupby(["criterion", "sparsity"])["test_accuracy"]
    return groups.agg(mean="mean", sd="std", n="count").reset_index()


def accuracy_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Criteria by sparsities: mean ± standard deviation in percent; the mean alone where n is 1."""
    summary = summarize(frame)
    text = (100 * summary["mean"]).map("{:.2f}".format)
    spread = (100 * summary["sd"]).map(" ± {:.2f}".format, na_action="ignore").fillna("")
    summary["text"] = text + spread
    table = summary.pivot(index="criterion", columns="sparsity", values="text")
    table.columns = [f"sparsity {s:g}" for s in table.columns]
    return by_criterion(table.fillna("–"))


def best_and_worst(frame: pd.DataFrame) -> str:
    """One clause a sparsity: the criteria of highest and lowest mean accuracy, how many, and n."""
    summary = summarize(frame[frame["sparsity"] > 0])
    clauses = []
    for sparsity, rows in summary.groupby("sparsity"):
        best, worst = rows.loc[rows["mean"].idxmax()], rows.loc[rows["mean"].idxmin()]
        low = f"{criterion_label(worst['criterion'])} {100 * worst['mean']:.1f} %"
        high = f"{criterion_label(best['criterion'])} {100 * best['mean']:.1f} %"
        n = f"(n = {span(rows['n'])})"
        several = f"of {len(rows)} criteria {n} from {high} down to {low}"
        clauses.append(f"at sparsity {sparsity:g}, {several if len(rows) > 1 else f'{low} {n}'}")
    return "; ".join(clauses)
