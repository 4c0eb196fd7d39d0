"""Records as the tables that pages and files show, and notes on their data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..experiments.mask_spec import SHARED
from ..experiments.records import MaskRecord, Record, default_results, records_frame
from ..files import load_yaml

if TYPE_CHECKING:
    import pandas as pd


def full_frame(records: Iterable[Record]) -> pd.DataFrame:
    """``records_frame``, where a run failed, its test images, and what made the record."""
    records = list(records)
    frame = records_frame(records)
    frame["failure_where"] = [record.failure and record.failure.get("where") for record in records]
    frame["test_images"] = [record.data.get("test") for record in records]
    for name in "git dirty pai_lib torch device threads started finished".split():
        frame[name] = [record.provenance.get(name) for record in records]
    return frame


def records_csv(records: Iterable[Record]) -> bytes:
    """``full_frame`` as CSV in UTF-8.

    Numbers are whole to the last digit, ``None`` is empty, and a list is ``0.5,0.75``.
    """
    frame = full_frame(records).convert_dtypes()  # whole numbers stay whole beside None
    frame["lr_drops"] = [",".join(map(repr, drops)) for drops in frame["lr_drops"]]
    return frame.to_csv(index=False, lineterminator="\n").encode()


def masks_frame(records: Iterable[MaskRecord]) -> pd.DataFrame:
    """One row a mask: the fields of its spec, its criterion and sparsity, and what it leaves.

    Args:
        records: as ``Store.mask_records()`` gives them; those of failed work have no masks.

    Returns:
        Beside the numbers of ``MaskRecord``, of each mask ``cut`` (no path leads from input to
        output), ``empty``, the number of layers with no weight left, and ``density``, the profile
        {layer: fraction kept}.
    """
    import pandas as pd  # as in ``records_frame``

    made = "criterion sparsity cut empty effective_sparsity shared seconds density".split()
    of_all = "warmup_updates warmup_seconds peak_memory_bytes".split()
    rows = []
    for record in records:
        spec, result = record.spec, record.result
        fields = {name: getattr(spec, name) for name in (*SHARED, "reference")}
        about = {"fingerprint": record.data["fingerprint"], "device": record.provenance["device"]}
        for mask in result.get("masks", []):
            left = zip(result["layers"].items(), mask["kept"], strict=True)
            density = {layer: kept / size for (layer, size), kept in left}
            told = {
                "cut": mask["effective_sparsity"] == 1,
                "empty": sum(part == 0 for part in density.values()),
                "density": density,
            }
            whole = {name: result[name] for name in of_all}
            rows.append({"id": spec.id, **fields, **mask, **told, **whole, **about})
    columns = ["id", *SHARED, "reference", *made, *of_all, "fingerprint", "device"]
    return pd.DataFrame(rows, columns=columns)


def data_note(fingerprint: str | None, results: str | Path | None = None) -> str:
    """What is known of the data with this fingerprint, in brackets after a space; or nothing.

    Args:
        fingerprint: of the data.
        results: folder of the records that are shown, whose ``data.yaml`` is read; else
            ``default_results()``.
    """
    path = Path(default_results() if results is None else results) / "data.yaml"
    known = load_yaml(path) if path.is_file() else {}
    if not isinstance(known, dict):
        raise ValueError(f"{path}: it must hold lines of a fingerprint: what the data are.")
    return f" ({known[fingerprint]})" if fingerprint in known else ""


def masks_note(mask: pd.Series, runs: pd.DataFrame, results: str | Path | None = None) -> str:
    """``data_note`` of a row of ``masks_frame``, whose images may be those of runs, enlarged.

    Args:
        mask: the row.
        runs: rows of ``records_frame``.
        results: as ``data_note``.
    """
    import pandas as pd

    if pd.isna(mask["image_size"]):
        return data_note(mask["fingerprint"], results)
    small = runs[(runs["dataset"] == mask["dataset"]) & runs["image_size"].isna()]
    note = data_note(small["fingerprint"].iloc[0], results) if len(small) else ""
    return f" at {mask['image_size']:.0f} pixels{note}"
