"""The ``pai`` command: one function a subcommand, each adding its own parser.

To add a subcommand, write ``add_<name>(commands)`` that makes a parser and sets its ``call``, and list it
in `SUBCOMMANDS`. Errors that a user can mend are one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pai_lib import book
from pai_lib.parameters import notebook_parameters, text_of


def add_book(commands: argparse._SubParsersAction) -> None:
    """Add ``pai book``."""
    parser = commands.add_parser("book", help="execute stale chapters and build the book")
    parser.add_argument("--profile", choices=book.PROFILES, default="smoke", help="smoke: seconds on a CPU")
    parser.add_argument("--chapter", action="append", default=[], metavar="NAME", help="only this one")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE",
                        help="a parameter of the chosen chapter, for example -p sparsity=0.95")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list chapters and their parameters")
    parser.add_argument("--no-build", action="store_true", help="execute only, build no pages")
    parser.set_defaults(call=run_book)


def run_book(args: argparse.Namespace) -> None:
    """Execute and build, or list the chapters."""
    root = book.find_root()
    if args.list:
        return list_chapters(root)
    if args.pairs and not args.chapter:
        raise ValueError(f"-p {args.pairs[0]} needs --chapter NAME: parameters belong to a notebook")
    page = book.build_book(root, args.profile, args.chapter, args.pairs, html=not args.no_build)
    if not args.no_build:
        print(f"The book is ready. Open {page.as_uri()}")


def list_chapters(root: Path) -> None:
    """Print each chapter, its notebook, and the notebook's parameters."""
    for chapter in book.load_chapters(root).values():
        print(f"{chapter.name}  (notebooks/{chapter.notebook.name})")
        values = chapter.values("smoke", {})
        for name, parameter in notebook_parameters(chapter.notebook).items():
            default = text_of(values.get(name, parameter.default))
            print(f"    {name}: {parameter.annotation} = {default:<12}  {parameter.help}")


def add_notebooks(commands: argparse._SubParsersAction) -> None:
    """Add ``pai notebooks``."""
    parser = commands.add_parser("notebooks", help="re-execute notebook sources, keep the compared outputs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks to update (default: all)")
    parser.set_defaults(call=lambda args: book.update_notebooks(book.find_root(), args.names))


SUBCOMMANDS = (add_book, add_notebooks)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="pai", description="Pruning at initialization: book, runs, data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in SUBCOMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        args.call(args)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        print(f"pai: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"pai: error: {error}: the book needs pip install -e '.[book]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pai: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
