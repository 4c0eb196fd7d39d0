"""Records of runs, one JSON file each, and the store that keeps them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock

from ..data.loading import dataset_names
from ..files import write_whole
from .spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
DIGEST = b',\n "digest": "'  # ends a record's text; what stands before it is hashed


class RecordWarning(UserWarning):
    """A record cannot be read, or is of other data than those that are here now."""


@dataclass(frozen=True)
class Record:
    """What one run gave, and what made it. A failed run has a ``failure`` and no accuracy.

    Its spec knows the data by the fingerprint in ``data``, wherever they are now.

    ``result["peak_memory_bytes"]`` is, on a GPU, the most that tensors took during the run; on a
    CPU the most that the whole process took during it, libraries included, or ``None`` where the
    system does not tell that of a run alone. A run that went on from a checkpoint tells it of its
    last piece.
    """

    spec: RunSpec
    result: dict
    failure: dict | None
    data: dict
    provenance: dict

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "spec", self.spec.with_data(self.data.get("fingerprint", self.spec.dataset))
        )

    def to_dict(self) -> dict:
        """The record as its JSON file holds it."""
        return {"schema": SCHEMA, "id": self.spec.id, **asdict(self), "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, values: dict, intact: bool = False) -> Record:
        """Read a record's JSON content; ValueError if it is of another schema or does not fit its own id.

        A spec that is ``intact``, just as a run wrote it, need not be checked again.
        """
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"schema {found!r}: this version reads schema {SCHEMA}.")
        kinds = {
            "spec": dict,
            "result": dict,
            "failure": dict | None,
            "data": dict,
            "provenance": dict,
            "id": str,
        }
        for name, kind in kinds.items():
            if name not in values or not isinstance(values[name], kind):
                raise ValueError(f"it has no sound {name!r}.")
        parts = {name: values[name] for name in ("result", "failure", "data", "provenance")}
        intact = intact and values["spec"].keys() <= _DEFAULTS.keys()
        record = cls(
            _as_written(values["spec"]) if intact else RunSpec.from_record(values["spec"]), **parts
        )
        if (
            not (intact and record.spec.dataset in dataset_names())
            and (found := record.spec.id) != values["id"]
        ):
            object.__setattr__(record, "spec", _by_path(record.spec))
            if record.spec.id != values["id"]:
                raise ValueError(
                    f"its id is {values['id']!r}, but its spec's is {found!r}: it was edited."
                )
        return record


_DEFAULTS = {each.name: each.default for each in fields(RunSpec)}


def _as_written(values: dict) -> RunSpec:
    spec = object.__new__(RunSpec)  # checking the types of 10,000 specs takes seconds
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    vars(spec).update({**_DEFAULTS, **values, **lists})
    return spec


def _by_path(spec: RunSpec) -> RunSpec:
    """The spec with the id that a run on one's own data once had: by the path as it was spelt."""
    return spec.with_data(spec.dataset)


class Store:
    """A folder of records, one JSON file a run: ``<root>/<dataset>/<model>/<id>.json``.

    A run on one's own data is one record, however their path is spelt; its folder has the name they
    had first.

    A file ends with a ``digest``, the SHA-256 of the text before it, so that an edit by hand is
    noticed. Locks and checkpoints of unfinished runs are in ``<root>/.checkpoints``.
    """

    def __init__(self, root: str | Path = "results"):
        self.root = Path(root)

    def path(self, spec: RunSpec) -> Path:
        """Where the record of a spec is, or would be. One's own data are read for it, see ``RunSpec.data``."""
        name = f"{spec.model}/{spec.id}.json"
        known = [] if spec.dataset in dataset_names() else sorted(self.root.glob(f"*/{name}"))
        return known[0] if known else self.root / _short(spec.dataset) / name

    def checkpoint(self, spec: RunSpec) -> Path:
        """Where the checkpoint of an unfinished run is, or would be."""
        return self.root / ".checkpoints" / f"{spec.id}.safetensors"

    def lock(self, spec: RunSpec) -> FileLock:
        """Lock of a run among processes; the system releases it when its process ends, however that is."""
        return FileLock(self.root / ".checkpoints" / f"{spec.id}.lock")

    def tidy(self, spec: RunSpec) -> None:
        """Remove what a process that was killed while it wrote has left of a run; for the holder of its lock."""
        for path in (self.path(spec), self.checkpoint(spec)):
            for rest in path.parent.glob(f".{path.stem}.*.tmp"):
                rest.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raise OSError with a clear sentence unless files can be written here."""
        probe = self.root / ".checkpoints" / "writable"
        try:
            write_whole(probe, b"")
            probe.unlink(missing_ok=True)  # another process may be probing
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise OSError(f"The results folder {self.root} is not writable: {reason}.") from error

    def load(self, spec: RunSpec) -> Record | None:
        """The record of a spec, or ``None`` if there is none yet. ValueError if it cannot be read."""
        path = self.path(spec)
        if path.is_file() or spec.dataset in dataset_names():
            return _read(path) if path.is_file() else None
        older = self.path(_by_path(spec))
        known = _read(older) if older.is_file() else None
        return known if known and known.data.get("fingerprint") == spec.data else None

    def find(self, spec: RunSpec, fingerprint: str) -> Record | None:
        """The record of a spec for the same data; one that is not, or cannot be read, is named in a warning."""
        spec = spec.with_data(fingerprint)
        try:
            known = self.load(spec)
        except ValueError as error:
            warnings.warn(f"{error} It is not used.", RecordWarning, stacklevel=2)
            return None
        if known is not None and known.data.get("fingerprint") != fingerprint:
            text = f"{self.path(spec)} was made with other data than those that are here now. It is not used."
            warnings.warn(text, RecordWarning, stacklevel=2)
            return None
        return known

    def save(self, record: Record) -> Path:
        """Write a record whole or not at all.

        A file that cannot be read, or is of other data, is set aside under a name that ends in
        ``.unreadable`` or ``.data-<fingerprint>``, never overwritten. ValueError if the file
        belongs to another spec.
        """
        path = self.path(record.spec)
        text = json.dumps(record.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        content = text.removesuffix("\n}").encode()
        digest = hashlib.sha256(content).hexdigest().encode()
        if path.is_file():
            try:
                known = _read(path)
            except ValueError:
                _set_aside(path, "unreadable")
            else:
                if known.spec.id != record.spec.id:
                    raise ValueError(
                        f"{path} holds the record of another spec: it is not overwritten."
                    )
                if (fingerprint := known.data.get("fingerprint")) != record.data.get("fingerprint"):
                    _set_aside(path, f"data-{str(fingerprint)[:12]}")
        write_whole(path, content + DIGEST + digest + b'"\n}\n')
        return path

    def records(self) -> list[Record]:
        """All records, in the order of their paths; one that cannot be read, or again, is named in a warning."""
        found, paths = [], dict[str, Path]()
        for path in sorted(self.root.glob("*/*/*.json")):
            try:
                record = _read(path)
                if record.spec.dataset not in dataset_names():
                    spec = record.spec.with_data(
                        record.data.get("fingerprint", record.spec.dataset)
                    )
                    if (known := paths.setdefault(spec.id, path)) is not path:
                        raise ValueError(f"{path} records the same run as {known}.")
                found.append(record)
            except ValueError as error:
                warnings.warn(f"{error} It is left out.", RecordWarning, stacklevel=2)
        return found

    def frame(self) -> pd.DataFrame:
        """``records_frame`` of all records, which knows where they are: ``frame.attrs["results"]``."""
        frame = records_frame(self.records())
        frame.attrs["results"] = str(self.root)
        return frame


def _set_aside(path: Path, why: str) -> None:
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.{why}" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            path.rename(aside)
            warnings.warn(f"{path} is set aside as {aside.name}.", RecordWarning, stacklevel=3)
            return


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: every field of its spec, its id, and the numbers of its result.

    The same data have one name in all rows, that of the first of them.
    """
    import pandas as pd  # here: it is a tenth of the time that importing the library takes

    rows, records = [], list(records)
    names: dict[str, str] = {}
    for record in records:
        spec = record.spec
        numbers = {k: v for k, v in record.result.items() if isinstance(v, int | float)}
        row = {"id": spec.id, **{name: getattr(spec, name) for name in _DEFAULTS}, **numbers}
        own = spec.dataset not in dataset_names()
        data = record.data.get("fingerprint", spec.dataset) if own else spec.dataset
        row["dataset"] = names.setdefault(data, _short(spec.dataset))
        row["collapsed"] = len(record.result.get("collapsed", []))
        row["train_images"], row["fingerprint"] = (
            record.data.get("train"),
            record.data.get("fingerprint"),
        )
        row["device"] = record.provenance.get("device")
        row["failure"] = record.failure["reason"] if record.failure else None
        rows.append(row)
    results = "test_accuracy test_loss collapsed train_images fingerprint device failure"
    columns = ["id", *asdict(RunSpec()), *results.split()]
    return pd.DataFrame(
        rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    )


MADE_BY = "git dirty pai_lib torch device threads started finished".split()


def full_frame(records: Iterable[Record]) -> pd.DataFrame:
    """``records_frame``, where a run failed, its test images, and what made the record."""
    records = list(records)
    frame = records_frame(records)
    frame["failure_where"] = [record.failure and record.failure.get("where") for record in records]
    frame["test_images"] = [record.data.get("test") for record in records]
    for name in MADE_BY:
        frame[name] = [record.provenance.get(name) for record in records]
    return frame


def records_csv(records: Iterable[Record]) -> bytes:
    """``full_frame`` as CSV in UTF-8: numbers to the last digit, nothing for ``None``, a list as ``0.5,0.75``."""
    frame = full_frame(records).convert_dtypes()  # whole numbers stay whole beside None
    frame["lr_drops"] = [",".join(f"{drop:g}" for drop in drops) for drops in frame["lr_drops"]]
    return frame.to_csv(index=False, lineterminator="\n").encode()


def default_results() -> Path:
    """Where the committed records are: ``results/`` of the source tree, else of the current folder."""
    tree = Path(__file__).resolve().parents[2] / "results"
    return tree if tree.is_dir() else Path("results")


def _short(dataset: str) -> str:
    """Name of a data set in paths and tables: of a folder, its last part."""
    return Path(os.path.abspath(Path(dataset).expanduser())).name


def _read(path: Path) -> Record:
    try:
        text = path.read_bytes().replace(b"\r\n", b"\n")  # git may have changed the ends of lines
        values = json.loads(text)
        digest = isinstance(values, dict) and values.get("digest")  # older records have none
        if digest and digest != hashlib.sha256(text.rpartition(DIGEST)[0]).hexdigest():
            raise ValueError("its digest does not fit its content: it was edited")
        return Record.from_dict(values, intact=bool(digest))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a readable record: {str(error).removesuffix('.')}."
        ) from error


def data_note(fingerprint: str | None, results: str | Path | None = None) -> str:
    """What is known of the data with this fingerprint, in brackets after a space; or nothing.

    Args:
        fingerprint: of the data.
        results: folder of the records that are shown, whose ``data.yaml`` is read; else
            ``default_results()``.
    """
    path = Path(default_results() if results is None else results) / "data.yaml"
    known = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    return f" ({known[fingerprint]})" if fingerprint in known else ""
