"""Sphinx extension: the data of the page "The masks", made from ``results/masks/`` at every build.

``_static/masks-data/`` of the built book gets ``index.js`` (criteria, and the networks there are),
one ``<network>.js`` each, which the page loads when it is chosen, and the same as JSON.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from records_page import groups, interactive, looks
from sphinx.application import Sphinx

PAGE = "book/masks"
FOLDER = "masks-data"  # in the built book's _static
SCALES = "scales/scores.json"  # in results/: made by benchmarks/score_scales.py
SCRIPTS = (
    *(f"{FOLDER}/{name}.js" for name in ("index", "scales")),
    *(f"records/{name}.js" for name in ("charts", "profiles", "masks", "lottery")),
)

NETWORK = ["dataset", "model", "width", "image_size", "fingerprint"]
SCORING = ["batch_size", "samples_per_class", "group", "probes", "reference"]
IN_WORDS = {
    "batch_size": "batch size {}",
    "samples_per_class": "images a class {}",
    "group": "group size {}",
    "probes": "probes {}",
    "reference": "shares with {}",
}
REFERENCE = {"exact": "the exact diagonal", "mc": "the Monte-Carlo Gauss-Newton diagonal"}


def page_data(root: Path) -> tuple[dict, dict[str, dict]]:
    """Return the page's index, and by its key what is known of each network, in JSON types.

    Args:
        root: the folder of records; it may be empty or absent.
    """
    from pai_lib.analysis.frames import full_frame, masks_frame
    from pai_lib.experiments.records import RecordWarning, Store

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RecordWarning)
        made = Store(root).mask_records()
    unreadable = [str(warning.message).replace(f"{root}/", "") for warning in caught]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)  # the page of records tells of them
        runs = full_frame(Store(root).records())
    frame = masks_frame(made)
    sizes = {record.spec.id: record.result.get("layers") for record in made}
    trained = list(accuracies(runs, root)) if len(runs) else []
    networks: dict[str, dict] = {}
    for _, rows in frame.groupby(NETWORK, dropna=False, sort=False):
        first = rows.iloc[0]
        key = name = slug(first)
        while key in networks:  # the same network, other data
            key = f"{name}-{sum(other.startswith(name) for other in networks) + 1}"
        networks[key] = network(rows, sizes[first["id"]], runs, root) | {
            "accuracies": [
                found
                for kind, found in trained
                if all(
                    alike(kind[field], first[field]) for field in NETWORK if field != "image_size"
                )
            ]
        }
    order = sorted(networks, key=lambda key: -len(networks[key]["masks"]))  # most masks first
    named = [{"key": key, "title": networks[key]["title"]} for key in order]
    failed = sum(record.failure is not None for record in made)
    index = {"criteria": looks(), "networks": named, "unreadable": unreadable, "failed": failed}
    index["networks_by_key"] = {}  # what the page has loaded
    return index, networks


def alike(one: object, other: object) -> bool:
    """Tell whether two values of a field are the same, none being like none."""
    return bool(pd.isna(one) and pd.isna(other)) or one == other


def slug(row: pd.Series) -> str:
    """A network's name in the page's address."""
    parts = [row["dataset"], row["model"]]
    parts += [] if pd.isna(row["width"]) else [f"{row['width']:.0f}"]
    parts += [] if pd.isna(row["image_size"]) else [f"{row['image_size']:.0f}px"]
    return "-".join(parts)


def network(rows: pd.DataFrame, sizes: dict[str, int], runs: pd.DataFrame, root: Path) -> dict:
    """Return the layers of one network and its masks, over seeds: sums, so that they are whole."""
    from pai_lib.analysis.frames import masks_note
    from pai_lib.analysis.protocols import proper, width_in_words

    first = rows.iloc[0]
    dataset, width = proper(first["dataset"]), width_in_words(first)
    size = "" if pd.isna(first["image_size"]) else f", {first['image_size']:.0f} px"
    usual = rows.groupby(SCORING).size().idxmax()
    masks = []
    for keys, cell in rows.groupby(["criterion", "warmup", "sparsity", *SCORING]):
        criterion, warmup, sparsity, *scoring = keys
        parts = pd.DataFrame(cell["density"].tolist())[list(sizes)]
        counts = (parts * pd.Series(sizes)).round().astype(int)
        mask = {
            "criterion": criterion,
            "warmup": int(warmup),
            "sparsity": float(sparsity),
            "seeds": sorted(int(seed) for seed in cell["seed"]),
            "kept": [int(total) for total in counts.sum()],
            "empty": {layer: int(n) for layer, n in enumerate((counts == 0).sum()) if n},
            "cut": int(cell["cut"].sum()),
            "effective": round(float(cell["effective_sparsity"].mean()), 6),
            "shared": round(float(cell["shared"].mean()), 4),
        }
        if tuple(scoring) != tuple(usual):
            said = zip(SCORING, scoring, usual, strict=True)
            differing = [(name, value) for name, value, other in said if value != other]
            mask["scored"] = ", ".join(IN_WORDS[name].format(value) for name, value in differing)
        masks.append(mask)
    scored = dict(zip(SCORING, usual, strict=True))
    return {
        "title": f"{proper(first['model'])}, {width}, {dataset}{size}",
        "data": f"{dataset}{masks_note(first, runs, root)}",
        "scored": ", ".join(IN_WORDS[name].format(scored[name]) for name in SCORING[:-1]),
        "reference": REFERENCE[scored["reference"]],
        "layers": list(sizes),
        "sizes": list(sizes.values()),
        "masks": masks,
    }


def accuracies(frame: pd.DataFrame, root: Path) -> Iterator[tuple[pd.Series, dict]]:
    """Give each mean of plain runs, as the page of records has it, with a row of its runs."""
    for group in groups(frame, root):
        about = {name: group[name] for name in ("dataset", "model", "warmup", "protocol")}
        for point in group["points"]:
            yield frame.loc[group["rows"][0]], about | point


def write_data(app: Sphinx) -> None:
    """Write what the page needs, in place of what an earlier build wrote."""
    if app.builder.format != "html" or not (Path(app.srcdir) / f"{PAGE}.md").is_file():
        return
    root = Path(app.srcdir) / "results"
    folder = Path(app.outdir) / "_static" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    index, networks = page_data(root)
    scales = json.loads((root / SCALES).read_text("utf-8")) if (root / SCALES).is_file() else None
    write(folder / "index.js", "window.MASKS", index)
    write(folder / "scales.js", "window.SCALES", scales)
    for key, values in networks.items():
        write(folder / f"{key}.js", f"window.MASKS.networks_by_key[{json.dumps(key)}]", values)
    whole = json.dumps(networks, allow_nan=False)
    (folder / "masks.json").write_text(whole, "utf-8")


def write(path: Path, name: str, values: object) -> None:
    """Write a script that gives a variable its value: a page opened from disk may not fetch."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    path.write_text(f"{name} = {text};\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    return interactive(app, PAGE, SCRIPTS, write_data)
