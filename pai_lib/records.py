"""Records of runs, one JSON file each, and the store that keeps them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """What one run gave, and what made it. A failed run has a ``failure`` and no accuracy."""

    spec: RunSpec
    result: dict
    failure: dict | None
    data: dict
    provenance: dict

    def to_dict(self) -> dict:
        """The record as its JSON file holds it."""
        return {"schema": SCHEMA, "id": self.spec.id, **asdict(self), "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> Record:
        """Read a record's JSON content; ValueError if it is of another schema or does not fit its own id."""
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"schema {found!r}: this version reads schema {SCHEMA}.")
        kinds = {"spec": dict, "result": dict, "failure": dict | None, "data": dict, "provenance": dict, "id": str}
        for name, kind in kinds.items():
            if name not in values or not isinstance(values[name], kind):
                raise ValueError(f"it has no sound {name!r}.")
        parts = {name: values[name] for name in ("result", "failure", "data", "provenance")}
        record = cls(RunSpec.from_record(values["spec"]), **parts)
        if record.spec.id != values["id"]:
            raise ValueError(f"its id is {values['id']!r}, but its spec's is {record.spec.id!r}: it was edited.")
        return record


class Store:
    """A folder of records, one JSON file a run: ``<root>/<dataset>/<model>/<id>.json``."""

    def __init__(self, root: str | Path = "results"):
        self.root = Path(root)

    def path(self, spec: RunSpec) -> Path:
        """Where the record of a spec is, or would be."""
        return self.root / _short(spec.dataset) / spec.model / f"{spec.id}.json"

    def load(self, spec: RunSpec) -> Record | None:
        """The record of a spec, or ``None`` if there is none yet."""
        path = self.path(spec)
        return _read(path) if path.is_file() else None

    def save(self, record: Record) -> Path:
        """Write a record whole or not at all. ValueError if the file belongs to another spec."""
        path = self.path(record.spec)
        if path.is_file() and _read(path).spec != record.spec:
            raise ValueError(f"{path} holds the record of another spec: it is not overwritten.")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")  # mkstemp would hide it from others
        try:
            with temporary.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return path

    def records(self) -> list[Record]:
        """All records, in the order of their paths."""
        return [_read(path) for path in sorted(self.root.glob("*/*/*.json"))]

    def frame(self) -> pd.DataFrame:
        """``records_frame`` of all records."""
        return records_frame(self.records())


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: every field of its spec, its id, and the numbers of its result."""
    import pandas as pd  # here: it is a tenth of the time that importing the library takes

    rows = []
    for record in records:
        numbers = {k: v for k, v in record.result.items() if isinstance(v, int | float)}
        row = {"id": record.spec.id, **asdict(record.spec), **numbers}
        row["dataset"] = _short(record.spec.dataset)
        row["collapsed"] = len(record.result.get("collapsed", []))
        row["train_images"] = record.data.get("train")
        row["failure"] = record.failure["reason"] if record.failure else None
        rows.append(row)
    columns = ["id", *asdict(RunSpec()), "test_accuracy", "test_loss", "collapsed", "train_images", "failure"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))


def default_results() -> Path:
    """Where the committed records are: ``results/`` of the source tree, else of the current folder."""
    tree = Path(__file__).resolve().parent.parent / "results"
    return tree if tree.is_dir() else Path("results")


def _short(dataset: str) -> str:
    """Name of a data set in paths and tables: of a folder, its last part."""
    return Path(os.path.abspath(Path(dataset).expanduser())).name


def _read(path: Path) -> Record:
    try:
        return Record.from_dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not a readable record: {error}") from error
