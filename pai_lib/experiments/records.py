"""Records of runs and of masks, one JSON file each, and the store that keeps them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, overload

from filelock import FileLock

from ..data.loading import dataset_names
from ..files import write_whole
from .mask_spec import AnySpec, MaskSpec
from .provenance import own_code
from .spec import FIELDS, RunSpec, Spec

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
DIGEST = b',\n "digest": "'  # ends a record's text; what stands before it is hashed


class RecordWarning(UserWarning):
    """A record cannot be read, or is of other data or own code than those that are here now."""


@dataclass(frozen=True)
class _Record:
    """What a spec gave, and what made it."""

    spec: Spec
    result: dict[str, Any]
    failure: dict[str, Any] | None
    data: dict[str, Any]
    provenance: dict[str, Any]

    of: ClassVar[type[AnySpec]]

    def __post_init__(self) -> None:
        fingerprint = self.data.get("fingerprint", self.spec.dataset)
        object.__setattr__(self, "spec", self.spec.with_data(fingerprint))

    def to_dict(self) -> dict[str, Any]:
        """The record as its JSON file holds it."""
        kind = {} if self.of is RunSpec else {"kind": self.of.kind}
        names = {"schema": SCHEMA, **kind, "id": self.spec.id}
        return {**names, **asdict(self), "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read a record's JSON content.

        Raises:
            ValueError: for another schema or kind, or an id that is not its spec's.
        """
        schema = values.get("schema") if isinstance(values, dict) else type(values).__name__
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r}: this version reads schema {SCHEMA}.")
        kind = values.get("kind", RunSpec.kind)
        if kind != cls.of.kind:
            raise ValueError(f"it records {kind}, not {cls.of.kind}.")
        kinds: dict[str, Any] = dict.fromkeys(("spec", "result", "data", "provenance"), dict)
        for name, sound in {**kinds, "failure": dict | None}.items():
            if not isinstance(values.get(name, ""), sound):
                raise ValueError(f"it has no sound {name!r}.")
        for part, names, sound in _SOUND:
            held = values[part] or {}
            for name in held.keys() & names.split():
                if not isinstance(held[name], sound) or held[name] != held[name]:  # NaN
                    raise ValueError(f"it has no sound {name!r}.")
        parts = {name: values[name] for name in ("result", "failure", "data", "provenance")}
        record = cls(cls.of.from_dict(values["spec"]), **parts)
        if (identity := values.get("id")) != record.spec.id:
            spec = f"its spec's is {record.spec.id!r}"
            raise ValueError(f"its id is {identity!r}, but {spec}: it was edited.")
        return record


# Of what kind is what pages and estimates read of a record.
_SOUND: tuple[tuple[str, str, Any], ...] = (
    ("result", "test_accuracy test_loss training_seconds scoring_seconds seconds", int | float),
    ("result", "collapsed masks", list),
    ("result", "density layers curves", dict),
    ("provenance", "code", dict),
    ("failure", "reason where", str),
)


@dataclass(frozen=True)
class Record(_Record):
    """What one run gave, and what made it. A failed run has a ``failure`` and no accuracy.

    Its spec knows the data by the fingerprint in ``data``, wherever they are now.

    ``result["peak_memory_bytes"]`` is, on a GPU, the most that tensors took during the run; on a
    CPU the most that the whole process took during it, libraries included, or ``None`` where the
    system does not tell that of a run alone. A run that went on from a checkpoint tells it of its
    last piece.
    """

    spec: RunSpec
    of = RunSpec


@dataclass(frozen=True)
class MaskRecord(_Record):
    """The masks of one network, without training, and what made them.

    ``result`` holds ``layers``, the number of prunable weights in each, and ``masks``, a list: for
    each ``criterion`` and ``sparsity`` the number of weights ``kept`` in each of these layers,
    ``effective_sparsity`` (1 for a mask that is cut), ``shared``, the part of the kept weights that
    the mask of the spec's reference keeps, too, and ``seconds`` of its own scoring and ranking, as
    if it were alone; ``warmup_seconds`` come before them. ``seconds`` are those that the record
    took. ``peak_memory_bytes`` is that of all of it, told as in ``Record``.
    """

    spec: MaskSpec
    of = MaskSpec


AnyRecord = Record | MaskRecord
R = TypeVar("R", bound=_Record)


class Store:
    """A folder of records, one JSON file a run: ``<root>/<dataset>/<model>/<id>.json``.

    Those of masks are apart, in ``<root>/masks/<dataset>/<model>/<id>.json``.

    A run on one's own data is one record, however their path is spelt; its folder has the name they
    had first.

    A file ends with a ``digest``, the SHA-256 of the text before it, so that an edit by hand is
    noticed. Locks and checkpoints of unfinished runs are in ``<root>/.checkpoints``.
    """

    def __init__(self, root: str | Path = "results"):
        self.root = Path(root)

    def path(self, spec: AnySpec) -> Path:
        """Where the record of a spec is, or would be; see ``RunSpec.data``."""
        folder, name = self.folder(type(spec)), f"{spec.model}/{spec.id}.json"
        known = [] if spec.dataset in dataset_names() else sorted(folder.glob(f"*/{name}"))
        return known[0] if known else folder / _short(spec.dataset) / name

    def folder(self, of: type[AnySpec]) -> Path:
        """Where the records of this kind of spec are, in a folder a data set."""
        return self.root if of is RunSpec else self.root / of.kind

    def checkpoint(self, spec: AnySpec) -> Path:
        """Where the checkpoint of an unfinished run is, or would be."""
        return self.root / ".checkpoints" / f"{spec.id}.safetensors"

    def lock(self, spec: AnySpec) -> FileLock:
        """Lock of a run among processes; however one ends, the system then releases it."""
        return FileLock(self.root / ".checkpoints" / f"{spec.id}.lock")

    def tidy(self, spec: AnySpec) -> None:
        """Remove half-written files of a run, for the holder of its lock."""
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

    @overload
    def load(self, spec: RunSpec) -> Record | None: ...
    @overload
    def load(self, spec: MaskSpec) -> MaskRecord | None: ...
    def load(self, spec: AnySpec) -> AnyRecord | None:
        """The record of a spec, or ``None`` without one; ValueError if it cannot be read."""
        path = self.path(spec)
        if not path.is_file():
            return None
        return _read(path, MaskRecord) if isinstance(spec, MaskSpec) else _read(path, Record)

    def find(self, spec: AnySpec, fingerprint: str) -> AnyRecord | None:
        """The record of a spec; one of other data or own code, or unreadable, is only warned of."""
        spec = spec.with_data(fingerprint)
        try:
            record = self.load(spec)
        except ValueError as error:
            _warn(f"{error} It is not used.")
            return None
        if record is None:
            return None
        if record.data.get("fingerprint") != fingerprint:
            other = "with other data than those that are"
        elif changed := _changed(record, own_code(spec)):
            other = f"by another {changed} than the one that is"
        else:
            return record
        _warn(f"{self.path(spec)} was made {other} here now. It is not used.")
        return None

    def save(self, record: AnyRecord) -> Path:
        """Write a record whole or not at all.

        A file that cannot be read, or is of other data or code, is set aside under a name that
        ends in ``.unreadable``, ``.data-<fingerprint>`` or ``.code-<digest>``, never overwritten.
        ValueError if the file belongs to another spec.
        """
        path = self.path(record.spec)
        text = json.dumps(record.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        content = text.removesuffix("\n}").encode()
        digest = hashlib.sha256(content).hexdigest().encode()
        if path.is_file():
            _make_room(path, record)
        write_whole(path, content + DIGEST + digest + b'"\n}\n')
        return path

    def records(self) -> list[Record]:
        """All records of runs by path; one that is unreadable or comes again is only warned of."""
        return self._all(Record)

    def mask_records(self) -> list[MaskRecord]:
        """All records of masks by path, with the same warnings."""
        return self._all(MaskRecord)

    def _all(self, kind: type[R]) -> list[R]:
        records, paths = [], dict[str, Path]()
        for path in sorted(self.folder(kind.of).glob("*/*/[!.]*.json")):
            try:
                record = _read(path, kind)
            except (ValueError, OSError) as error:
                reason = f"{path}: {error.strerror}." if isinstance(error, OSError) else error
                _warn(f"{reason} It is left out.")
                continue
            first = paths.setdefault(path.stem, path)
            if first is path:
                records.append(record)
            else:
                _warn(f"{path} records the same run as {first}. It is left out.")
        return records

    def frame(self) -> pd.DataFrame:
        """``records_frame`` of all records."""
        return records_frame(self.records())


def _warn(text: str) -> None:
    warnings.warn(text, RecordWarning, stacklevel=3)


def failed(
    spec: AnySpec, failure: dict[str, Any], fingerprint: str, made: dict[str, Any]
) -> AnyRecord:
    """The record of work that failed before it gave anything."""
    kind: Any = MaskRecord if isinstance(spec, MaskSpec) else Record
    return kind(spec, {}, failure, {"fingerprint": fingerprint}, made)


def _changed(record: AnyRecord, code: dict[str, str]) -> str:
    """A function of one's own whose source is another than this, of those that both know."""
    before = record.provenance.get("code", {})
    return next((name for name in code if before.get(name, code[name]) != code[name]), "")


def _make_room(path: Path, record: AnyRecord) -> None:
    """Set aside what is in the place of a record and is another, or nothing that can be read."""
    try:
        there = _read(path, type(record))
    except ValueError:
        why = "unreadable"
    else:
        if there.spec.id != record.spec.id:
            raise ValueError(f"{path} holds the record of another spec: it is not overwritten.")
        fingerprint = there.data.get("fingerprint")
        why = f"data-{str(fingerprint)[:12]}"
        if fingerprint == record.data.get("fingerprint"):
            changed = _changed(there, record.provenance.get("code", {}))
            if not changed:
                return
            why = f"code-{there.provenance['code'][changed][:12]}"
    aside, number = path.with_name(f"{path.name}.{why}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{why}-{number}")
    path.rename(aside)
    _warn(f"{path} is set aside as {aside.name}.")


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: every field of its spec, its id, and the numbers of its result.

    The same data have one name in all rows, that of the first of them.
    """
    import pandas as pd  # here: it is a tenth of the time that importing the library takes

    rows = []
    names: dict[str, str] = {}
    for record in records:
        spec = record.spec
        fields = {name: getattr(spec, name) for name in FIELDS}
        numbers = {k: v for k, v in record.result.items() if isinstance(v, int | float)}
        others = {
            "dataset": names.setdefault(spec.data, _short(spec.dataset)),
            "collapsed": len(record.result.get("collapsed", [])),
            "train_images": record.data.get("train"),
            "fingerprint": record.data.get("fingerprint"),
            "device": record.provenance.get("device"),
            "failure": record.failure["reason"] if record.failure else None,
        }
        rows.append({"id": spec.id, **fields, **numbers, **others})
    results = "test_accuracy test_loss collapsed train_images fingerprint device failure"
    columns = dict.fromkeys(["id", *FIELDS, *results.split(), *itertools.chain(*rows)])
    return pd.DataFrame(rows, columns=list(columns))


def default_results() -> Path:
    """Where the committed records are: ``results/`` of the source tree, of this folder or a wheel.

    The campaigns and measurements beside them are there, too.
    """
    return next((place for place in results_folders() if place.is_dir()), Path("results"))


def results_folders() -> list[Path]:
    """Where committed records may be, in the order in which they are looked for."""
    library = Path(__file__).resolve().parents[1]
    return [library.parent / "results", Path("results"), library / "committed" / "results"]


def _short(dataset: str) -> str:
    """Name of a data set in paths and tables: of a folder, its last part."""
    return Path(os.path.abspath(os.path.expanduser(dataset))).name


def _read(path: Path, kind: type[R]) -> R:
    try:
        text = path.read_bytes().replace(b"\r\n", b"\n")  # git may have changed the ends of lines
        values = json.loads(text)
        digest = isinstance(values, dict) and values.get("digest")  # older records have none
        if digest and digest != hashlib.sha256(text.rpartition(DIGEST)[0]).hexdigest():
            raise ValueError("its digest does not fit its content: it was edited")
        return kind.from_dict(values)
    except (ValueError, RecursionError) as error:
        reason = str(error).removesuffix(".")
        raise ValueError(f"{path} is not a readable record: {reason}.") from error
