"""The ``pai`` command: one function a subcommand, each adding its own parser.

To add a subcommand, write ``add_<name>(commands)`` that makes a parser and sets its ``call``, and
list it in `SUBCOMMANDS`. Errors that a user can mend are one line on stderr and exit code 2; a run
that failed is 1. Any other exception is a mistake in the code, and shows its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import dis
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .analysis.frames import records_csv
from .book import building as book
from .book.chapters import PROFILES, find_root
from .book.listing import list_chapters
from .book.trials import put_on_trial
from .curvature.calls import exhausted
from .data.loading import check_data, dataset_names, load_data
from .experiments.campaign import Estimate, announce, outcome, read_campaign, show_plan
from .experiments.options import flag, in_options, read, text_of
from .experiments.records import Store
from .experiments.run import run
from .experiments.spec import FIELDS, RunSpec, check_name, is_list
from .experiments.sweep import SweepOptions, sweep
from .experiments.trial import SPARSITY
from .files import write_whole
from .names import closest
from .pruning.criteria import CRITERIA, criterion_label
from .pruning.own import OwnFile, known
from .training.device import keep_freed_memory, resolve_device


def add_book(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai book``."""
    parser = commands.add_parser("book", help="execute stale chapters and build the book")
    option = parser.add_argument
    option("--profile", choices=PROFILES, default="smoke", help="smoke: seconds on a CPU")
    about = "only this one: a chapter, or a notebook"
    option("--chapter", action="append", default=[], metavar="NAME", help=about)
    about = "a run with this value beside the chapter, for example -p sparsity=0.95"
    option("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE", help=about)
    about = "a YAML file of such values, name: value; -p counts more"
    option("--parameters", type=Path, metavar="FILE", help=about)
    option("--name", metavar="NAME", help="of the run (default: after chapter and values)")
    option("--list", action="store_true", help="list chapters, their parameters, and your runs")
    option("--no-build", action="store_true", help="execute only, build no pages")
    parser.set_defaults(call=run_book)


def run_book(args: argparse.Namespace) -> None:
    """Execute and build, or list the chapters."""
    root = find_root()
    given = [("-p", pair) for pair in args.pairs]
    given += [("--parameters", args.parameters), ("--name", args.name)]
    option = next((f"{name} {value}" for name, value in given if value), "")
    if option and (args.list or not args.chapter):
        raise ValueError(f"{option} needs --chapter NAME, no --list: it is for a notebook's run")
    if args.list:
        return list_chapters(root, args.chapter)
    build = not args.no_build
    asked = (args.profile, args.chapter, args.pairs, build, args.name, args.parameters)
    page = book.build_book(root, *asked)
    if build:
        print(f"The book is ready. Open {page.as_uri()}")


def add_notebooks(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai notebooks``."""
    about = "re-execute notebook sources, keep the compared outputs"
    parser = commands.add_parser("notebooks", help=about)
    about = "notebooks to update (default: all)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=about)
    parser.set_defaults(call=lambda args: book.update_notebooks(find_root(), args.names))


def add_run(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai run``, with an option for each field of `RunSpec`."""
    parser = commands.add_parser("run", help="prune, train and test one network; write its record")
    for name, field in FIELDS.items():
        metavar = "X,X" if is_list(name) else METAVARS[field.metadata["kind"]]
        about = f"{field.metadata['help']} (default: {text_of(field.default)})".replace("%", "%%")
        form = {"metavar": metavar, "help": about, "default": argparse.SUPPRESS}
        parser.add_argument(flag(name), type=partial(read, field), **form)
    _add_results(parser)
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    parser.set_defaults(call=run_one)


METAVARS = {str: "NAME", int: "N", float: "X"}
RESULTS = "results"
DEVICE: Any = {"metavar": "cpu|cuda", "help": "default: cuda where there is one"}


def _add_results(parser: argparse.ArgumentParser) -> None:
    about = f"records (default: {RESULTS})"
    parser.add_argument("--results", default=RESULTS, metavar="DIR", help=about)


def run_one(args: argparse.Namespace) -> int:
    """Run one spec, or find its record, and print a line about it."""
    values = {name: value for name, value in vars(args).items() if name in FIELDS}
    if values.get("criterion") == "dense":
        values.setdefault("sparsity", 0.0)
    spec = RunSpec(**values)
    check_name("dataset", spec.dataset)
    store, before = _store(args), None
    with contextlib.suppress(ValueError):  # the run says what is wrong
        before = store.load(spec)
    keep_freed_memory()
    if not args.quiet and before is None:
        announce([spec], Estimate(store, resolve_device(args.device)))
    record = run(spec, store, device=args.device, progress=not args.quiet)
    start = f"{record.spec.id}  {criterion_label(spec.criterion)}  sparsity {spec.sparsity}"
    end = f"{store.path(record.spec)} ({'reused' if record == before else 'new'})"
    print(f"{start}  {outcome(record)}  {end}")
    return 1 if record.failure else 0


def _store(args: argparse.Namespace) -> Store:
    """The records of ``--results``: a folder that is there, or the usual one."""
    if not args.results or (args.results != RESULTS and not Path(args.results).is_dir()):
        missing = f"--results {args.results}: there is no such folder"
        raise ValueError(f"{missing}; make it first, or correct its name")
    return Store(args.results)


def add_sweep(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai sweep``."""
    parser = commands.add_parser("sweep", help="do the runs of a campaign that have no record yet")
    parser.add_argument("campaign", metavar="FILE", help="YAML with base, grid, also and kind")
    _add_results(parser)
    _add_engine(parser)
    parser.set_defaults(call=run_campaign)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """Add where runs are done, and how many."""
    option = parser.add_argument
    option("--device", **DEVICE)
    option("--dry-run", action="store_true", help="list the runs and how long they would take")
    about = "start nothing that would end later"
    option("--budget", type=partial(read, FIELDS["lr"]), metavar="SECONDS", help=about)
    option("--retry-failed", action="store_true", help="repeat the runs that failed")
    option("--quiet", action="store_true", help="print the counts only")
    option = parser.add_mutually_exclusive_group().add_argument
    about = "so many processes on this machine, by Dask"
    option("--workers", type=partial(read, FIELDS["epochs"]), metavar="N", help=about)
    option("--scheduler", metavar="tcp://HOST:PORT", help="of a Dask cluster in a trusted network")


def _engine(args: argparse.Namespace) -> SweepOptions:
    options: Any = {name: vars(args)[name] for name in SweepOptions.__annotations__}
    return options


def run_campaign(args: argparse.Namespace) -> int:
    """Do a campaign, or say what it would do."""
    path = Path(args.campaign)
    if not path.exists():
        there = {file.stem: file for file in sorted(Path("campaigns").glob("*.yaml"))}
        close = closest(path.stem, there)
        hint = f": did you mean {there[close]}?" if close else ""
        raise ValueError(f"there is no file {path}{hint}")
    specs, store = read_campaign(path), _store(args)
    if args.dry_run:
        show_plan(specs, store, resolve_device(args.device), args.retry_failed)
        return 0
    keep_freed_memory()
    return _status(sweep(specs, store, **_engine(args)))


def _status(counts: Mapping[str, int]) -> int:
    return 130 if counts["interrupted"] else 1 if counts["failed"] else 0


def add_trial(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai trial``."""
    about = "judge your own criterion beside all that are recorded, and make its page"
    parser = commands.add_parser("trial", help=about)
    option = parser.add_argument
    option("file", metavar="FILE.py", help="your functions under @pai.criterion or @pai.profile")
    about = "whose records it is compared with: a file of campaigns/ (default: digits-trial)"
    option("--protocol", default="digits-trial", metavar="NAME", help=about)
    levels = partial(read, FIELDS["lr_drops"])
    about = "fractions removed, a page each (default: 0.98)"
    option("--sparsity", type=levels, default=(SPARSITY,), metavar="X,X", help=about)
    about = "where your records are kept (default: trials)"
    option("--trials", type=Path, default="trials", metavar="DIR", help=about)
    _add_engine(parser)
    parser.set_defaults(call=run_trial)


def run_trial(args: argparse.Namespace) -> int:
    """Put a file's functions on trial."""
    keep_freed_memory()
    asked = OwnFile.read(args.file), args.protocol, args.sparsity, args.trials
    return _status(put_on_trial(*asked, dry_run=args.dry_run, **_engine(args)))


def add_export(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai export``."""
    parser = commands.add_parser("export", help="write all records as one CSV file")
    about = "one row a record, failed runs too"
    parser.add_argument("file", type=Path, metavar="FILE.csv", help=about)
    _add_results(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.csv if it is there")
    parser.set_defaults(call=run_export)


def run_export(args: argparse.Namespace) -> None:
    """Write the records' CSV, whole or not at all."""
    if args.file.exists() and not args.file.is_file():
        raise ValueError(f"{args.file} is a folder or a device: give the name of a file")
    if not args.file.parent.is_dir():
        raise ValueError(f"{args.file}: there is no folder {args.file.parent}")
    if args.file.exists() and not args.overwrite:
        there = f"{args.file} is there already"
        raise ValueError(f"{there}: give another name, or --overwrite to replace it")
    store = _store(args)
    files = map(OwnFile.read, store.root.glob("*.py"))
    own = next((file for file in files if file.title == store.root.name), None)  # of a trial
    with known(own) if own else contextlib.nullcontext():
        records = store.records()
    if not records:
        raise ValueError(f"{args.results} holds no records: give their folder with --results DIR")
    write_whole(args.file.resolve(), records_csv(records))  # a link stays one
    failed = sum(record.failure is not None for record in records)
    print(f"{args.file}: {len(records)} records, {failed} of failed runs")


def add_data(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai data``."""
    parser = commands.add_parser("data", help="fetch or check a data set")
    about = "fetch: load it, from the net if need be"
    parser.add_argument("action", choices=("fetch", "check"), help=about)
    about = f"{', '.join(dataset_names())}, or a folder of class folders"
    parser.add_argument("name", metavar="NAME", help=about)
    size = FIELDS["image_size"]
    about = size.metadata["help"]
    parser.add_argument("--image-size", type=partial(read, size), metavar="N", help=about)
    parser.set_defaults(call=run_data)


def run_data(args: argparse.Namespace) -> None:
    """Say where a data set is, or what it holds."""
    if args.action == "check":
        print(check_data(args.name, image_size=args.image_size))
    else:
        data = load_data(args.name, image_size=args.image_size)
        print(f"{args.name} is ready: read from {data.location}")


def add_criteria(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``pai criteria``."""
    parser = commands.add_parser("criteria", help="list the pruning criteria")
    parser.set_defaults(call=list_criteria)


def list_criteria(args: argparse.Namespace) -> None:
    """Print the registry as a table."""
    columns = "key label name temperature rounds variants source".split()
    rows = [columns]
    for rule in CRITERIA.values():
        temperature, variants = f"{rule.temperature:g}", ", ".join(rule.variants)
        values = {**vars(rule), "temperature": temperature, "variants": variants}
        rows.append([str(values[column]) for column in columns])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


SUBCOMMANDS = (
    *(add_book, add_notebooks, add_run, add_sweep, add_trial, add_export, add_data),
    add_criteria,
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the command: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message."""
        raise ValueError(message)


def _make_parser() -> Parser:
    """Return the parser of the command and its subcommands."""
    parser = Parser(prog="pai", description="Pruning at initialization: book, runs, data.")
    version = f"pai {sys.modules[__package__].__version__}"
    parser.add_argument("--version", action="version", version=version)
    parser.set_defaults(call=lambda args: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    for add in SUBCOMMANDS:
        add(commands)
    for command in (parser, *commands.choices.values()):
        command.allow_abbrev = False
        about = "show where an error comes from, as PAI_TRACEBACK=1 in the environment does"
        command.add_argument("--traceback", action="store_true", help=about)
    return parser


def _is_meant(error: Exception) -> bool:
    """Tell whether an error is a sentence for who typed the command, and no mistake in the code.

    A raise statement made it, in this library if it is no ValueError: what the interpreter raises
    itself (a conversion, an index) nobody has worded. Files, their content and what is too large
    are always the user's. What ended a sweep has a note that names its run, and is shown whole.
    """
    if getattr(error, "__notes__", ()):
        return False
    if isinstance(error, OSError | UnicodeError) or exhausted(error):
        return True
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    if at is None or dis.opname[at.tb_frame.f_code.co_code[at.tb_lasti]] != "RAISE_VARARGS":
        return False
    file = Path(at.tb_frame.f_code.co_filename)
    return isinstance(error, ValueError) or file.is_relative_to(Path(__file__).parent)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    with contextlib.suppress(AttributeError):  # where there is none, or another kind
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return _call(_make_parser(), words)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of what SIGPIPE ends: work may be left
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if not _is_meant(error):
            raise
        if "--traceback" in words or os.environ.get("PAI_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        command = next((word for word in words if not word.startswith("-")), "")
        text = in_options(str(error)) if command == "run" else str(error)
        if isinstance(error, OSError) and error.filename is not None:  # without "[Errno 2]"
            text = f"{error.strerror}: {str(error.filename)!r}"
        if exhausted(error):
            text = f"Memory is exhausted. {error}"
        print(f"pai: error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).startswith("pai_lib"):
            raise
        print(f"pai: error: {error}: the book needs pip install -e '.[book]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pai: interrupted", file=sys.stderr)
        return 130


def _check_once(args: argparse.Namespace, words: list[str]) -> None:
    """Raise ValueError for an option that is given twice, unless its values make a list."""
    single = {flag(name): value for name, value in vars(args).items() if type(value) is not list}
    given: dict[str, str] = {}
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, text = word.partition("=")
        if option in single:
            said = option if single[option] is True else f"{option} {text if equals else following}"
            if option in given:
                raise ValueError(f"{said}: it is given twice, first as {given[option]}")
            given[option] = said


def _call(parser: Parser, words: list[str]) -> int:
    """Do what the words of a command say; return its exit code."""
    args, rest = parser.parse_known_args(words)
    _check_once(args, words)
    if rest:
        fields = FIELDS if args.call is run_one else ()
        close = closest(rest[0], map(flag, {*vars(args), *fields, "help", "version"} - {"call"}))
        hint = f": did you mean {close!r}?" if close else ""
        raise ValueError(f"unknown argument {rest[0]!r}{hint}")
    with warnings.catch_warnings():
        told = partial(print, "pai: warning:", file=sys.stderr)
        warnings.showwarning = lambda said, *_, **__: told(said)
        status = args.call(args) or 0
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())
