"""Sphinx extension: the data of the page "The records", made from ``results/`` at every build.

Before the pages are read it writes to ``_static/records-data/`` of the built book: ``data.js``
(what the page's scripts draw; a script, since a page opened from disk may not fetch JSON),
``records.csv``, and a copy of each record. No other page loads the scripts and their style.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PAGE = "book/records"
FOLDER = "records-data"  # in the built book's _static

# Columns of the page's table, in order, of which a phone shows few: name in `full_frame`, heading.
COLUMNS = {
    "id": "record",
    "test_accuracy": "accuracy (%)",
    "criterion": "criterion",
    "sparsity": "sparsity",
    "seed": "seed",
    "warmup": "warm-up",
    "model": "model",
    "dataset": "data set",
    "width": "width",
    "control": "control",
    "scope": "scope",
    "variant": "variant",
    "when": "pruned at",
    "temperature": "temperature",
    "rounds": "pruning rounds",
    "collapsed": "collapsed layers",
    "epochs": "epochs",
    "train_images": "training images",
    "lr": "learning rate",
    "git": "revision",
    "device": "device",
    "failure": "failure",
}
# Of a protocol's fields, those that its words always name.
SAID = (
    "dataset model width train_images epochs batch_size lr precision samples_per_class group"
).split()
SCRIPTS = (
    f"{FOLDER}/data.js",
    *(f"records/{name}.js" for name in ("charts", "drawing", "figure", "table")),
)


def page_data(root: Path) -> tuple[dict, list]:
    """Return what the page shows, in plain JSON types, and the records.

    Args:
        root: the folder of records; it may be empty or absent.
    """
    from pai_lib.analysis.frames import full_frame
    from pai_lib.analysis.protocols import proper
    from pai_lib.experiments.records import RecordWarning, Store

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RecordWarning)
        records = Store(root).records()
    frame = full_frame(records)
    columns = COLUMNS | further(frame)
    table = frame[list(columns)].convert_dtypes().astype(object)
    data = {
        "columns": [{"key": key, "label": label} for key, label in columns.items()],
        "rows": [list(map(plain, row)) for row in table.where(table.notna(), None).values],
        "criteria": looks(),
        "proper": {name: proper(name) for name in (*frame["dataset"], *frame["model"])},
        "groups": groups(frame, root),
        "unreadable": [str(warning.message).replace(f"{root}/", "") for warning in caught],
    }
    return data, records


def plain(value: object) -> object:
    """Return a value of a table's cell as JSON has it: a list is ``0.5, 0.75``."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def further(frame: pd.DataFrame) -> dict[str, str]:
    """Return the other fields of a specification in which runs differ: they tell runs apart."""
    from pai_lib.experiments.spec import FIELDS

    others = [name for name in FIELDS if name not in COLUMNS]
    return {name: name.replace("_", " ") for name in others if len(set(frame[name].map(str))) > 1}


def looks() -> list[dict]:
    """Return key, label, colour and marker of every criterion, and of the dense network."""
    from pai_lib.analysis import figures
    from pai_lib.pruning.criteria import criterion_label

    return [
        {"key": key, "label": criterion_label(key), "color": look["color"]}
        | {"marker": outline(look["marker"])}
        for key, look in figures.criterion_styles().items()
    ]


def groups(frame: pd.DataFrame, root: Path) -> list[dict]:
    """Return one entry a protocol and warm-up; real images come first."""
    from pai_lib.analysis.frames import data_note
    from pai_lib.analysis.protocols import PROTOCOL, by_protocol

    protocols = [rows for _, rows in by_protocol(frame)]
    protocols.sort(key=lambda rows: rows["dataset"].iloc[0].startswith("digits"))
    keys = [tuple(rows.iloc[0][PROTOCOL].map(str)) for rows in protocols]
    kinds = {key: rows.iloc[0] for key, rows in zip(keys, protocols, strict=True)}
    names = dict(zip(kinds, in_words(list(kinds.values())), strict=True))
    entries = []
    for key, rows in zip(keys, protocols, strict=True):
        first = rows.iloc[0]
        entry = {
            "dataset": first["dataset"],
            "model": first["model"],
            "warmup": int(first["warmup"]),
            "protocol": names[key],
            "data": data_note(first["fingerprint"], root),
            "points": points(rows),
            "failed": int(rows["test_accuracy"].isna().sum()),
            "rows": [int(row) for row in rows.index],
        }
        entries.append(entry)
    return entries


def points(rows: pd.DataFrame) -> list[dict]:
    """Return one entry a criterion and sparsity, with the numbers of ``tables.summarize``."""
    from pai_lib.analysis.tables import summarize

    finished = rows.dropna(subset="test_accuracy")
    seeds = finished.groupby(["criterion", "sparsity"])["seed"].apply(sorted)
    entries = []
    for cell in summarize(rows).itertuples(index=False):
        entry = {
            "criterion": cell.criterion,
            "sparsity": float(cell.sparsity),
            "mean": float(cell.mean),
            "sd": None if pd.isna(cell.sd) else float(cell.sd),
            "n": int(cell.n),
            "seeds": [int(seed) for seed in seeds[cell.criterion, cell.sparsity]],
        }
        entries.append(entry)
    return entries


def in_words(kinds: list[pd.Series]) -> list[str]:
    """Return a protocol's words for each: no two of one model and data set have the same."""
    from pai_lib.analysis.protocols import PROTOCOL, width_in_words

    words = []
    for kind in kinds:
        alike = [
            other
            for other in kinds
            if other["dataset"] == kind["dataset"] and other["model"] == kind["model"]
        ]
        differing = [name for name in PROTOCOL if len({str(other[name]) for other in alike}) > 1]
        count = kind["train_images"]
        images = "" if pd.isna(count) else f"{count:,.0f} training images"
        parts = [
            width_in_words(kind),
            images,
            f"{kind['epochs']} epochs at batch {kind['batch_size']}",
            f"learning rate {kind['lr']:g}",
            f"{kind['precision']}; scores from {kind['samples_per_class']} images a class"
            f" at group size {kind['group']}",
        ]
        parts += [
            f"{name.replace('_', ' ')} {kind[name]}" for name in differing if name not in SAID
        ]
        words.append(", ".join(filter(None, parts)))
    return words


def outline(marker: str) -> str:
    """Return a matplotlib marker of size 1 as the path of an SVG, whose y axis points down."""
    from matplotlib.markers import MarkerStyle

    style, letters = MarkerStyle(marker), {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    path = style.get_path().transformed(style.get_transform().scale(1, -1))
    return "".join(
        letters[code] + ("" if code == 79 else " ".join(f"{value:.4g}" for value in points))
        for points, code in path.iter_segments()
    )


def write_data(app: Sphinx) -> None:
    """Write what the page needs, in place of what an earlier build wrote."""
    from pai_lib.analysis.frames import records_csv
    from pai_lib.experiments.records import Store, records_frame

    if app.builder.format != "html" or not (Path(app.srcdir) / f"{PAGE}.md").is_file():
        return
    store = Store(Path(app.srcdir) / "results")
    folder = Path(app.outdir) / "_static" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data, records = page_data(store.root)
    script = f"window.RECORDS = {json.dumps(data, separators=(',', ':'), allow_nan=False)};\n"
    (folder / "data.js").write_text(script, "utf-8")
    (folder / "records.csv").write_bytes(records_csv(records))
    addresses = records_frame(records)[["dataset", "model", "id"]]  # as the table links to
    for record, address in zip(records, addresses.itertuples(index=False), strict=True):
        copy = folder / address.dataset / address.model / f"{address.id}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.path(record.spec), copy)


def interactive(
    app: Sphinx, page: str, scripts: Iterable[str], write: Callable[[Sphinx], None]
) -> dict[str, bool]:
    """Register a page that scripts draw from data, which are written at every build."""

    def outdated(app: Sphinx, env: BuildEnvironment, *_: set) -> list[str]:
        """Name the page: the addresses of its data end with checksums of them."""
        return [page] if page in env.found_docs else []

    def add_scripts(app: Sphinx, pagename: str, *_: object) -> None:
        """Load the scripts on this page only, after the page and in this order."""
        if pagename == page:
            app.add_css_file("records/records.css")
            for name in scripts:
                app.add_js_file(name, loading_method="defer")

    app.connect("builder-inited", write)
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    return interactive(app, PAGE, SCRIPTS, write_data)
