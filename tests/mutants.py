"""Mutation tests of the library's core: change one thing, run the tests that execute it, and see one of them fail.

``python tests/mutants.py --sample 200`` draws mutants of ``CORE`` by a seed, tries each in a copy of the project,
and prints those that no test noticed as a diff. What was found is kept in ``_build/mutants/``, so that a second
call goes on where the first was stopped; a mutant that survived is tried again once a test has changed.

A mutant swaps an operator, moves a number by one, negates a condition, drops a keyword argument or a statement, or
returns None. Docstrings, annotations and the words of errors are left alone. Each runs in a fork of this process,
which has imported PyTorch already, with the quickest tests first.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "_build" / "mutants"
CORE = (
    "curvature/adjoints curvature/diagonals curvature/derivatives curvature/graph curvature/rows "
    "curvature/squares models pruning/criteria "
    "pruning/masks pruning/ranking training/checkpoint training/loop experiments/provenance experiments/run "
    "experiments/spec analysis/verdicts"
).split()
# These start processes, which would not run the mutant, build pages, or are about other files.
LEFT_OUT = (
    "benchmarks book campaigns cli compared_outputs contributing data elsewhere execution explorer figures gpu "
    "kernels killed_sweeps layout light_pages own_model reruns streams sweep workflows"
).split()
# What this process has imported already cannot be rewritten, of which pytest warns.
OPTIONS = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
ALLOWANCE = 20, 10  # CPU seconds, and times the tests' own: what a mutant may take before it counts as noticed

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Mutant(NamedTuple):
    """A change of one module: this span of its text becomes that text."""

    module: str
    line: int
    start: int  # of the span, in characters
    end: int
    text: str
    what: str
    lines: tuple[int, ...]  # of the statement: tests that execute one may notice; none if an import executes it

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    def key(self, source: str) -> str:
        digest = hashlib.sha256(self.apply(source).encode()).hexdigest()[:12]
        return f"{self.module}:{self.line}:{self.what}:{digest}"


# --- mutants


def changed(node: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield (what is replaced, new text, in words) for each mutant of one node."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            swapped = ast.copy_location(
                type(node)(**{**dict(ast.iter_fields(node)), "op": SWAPS[type(op)]()}), node
            )
            yield node, parenthesised(swapped), "operator"
        case ast.BoolOp():
            swapped = ast.BoolOp(SWAPS[type(node.op)](), node.values)
            yield node, parenthesised(swapped), "operator"
        case ast.Compare():
            swapped = ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
            yield node, parenthesised(swapped), "comparison"
        case ast.UnaryOp(op=ast.Not() | ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield node, parenthesised(node.operand), "sign"
        case ast.Constant(value=bool()):
            yield node, str(not node.value), "constant"
        case ast.Constant(value=int() | float()):
            yield node, f"({node.value + 1!r})", "constant"
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):  # these have been mutated as such
                yield test, f"(not ({ast.unparse(test)}))", "condition"
        case ast.comprehension(ifs=[test, *_]) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield test, f"(not ({ast.unparse(test)}))", "condition"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield node, "return None", "return"
        case ast.Call() if named := [k for k in node.keywords if k.arg]:
            for keyword in named:
                rest = [other for other in node.keywords if other is not keyword]
                yield node, ast.unparse(ast.Call(node.func, node.args, rest)), f"without {keyword.arg}"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            pass
    if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise) and not (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Yield)
    ):
        yield node, "pass", "statement"
    if isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple):
        yield node, "pass", "statement"


def parenthesised(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if isinstance(node, ast.stmt) else f"({text})"


def walk(node: ast.AST, lines: tuple[int, ...]) -> Iterator[tuple[ast.AST, tuple[int, ...]]]:
    """Yield the nodes whose change a test could notice, each with the lines of its statement in a function."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Raise) and node.exc is None):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.FunctionDef):
        if any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
            return
        lines = tuple(range(node.body[0].lineno, node.end_lineno + 1))  # its defaults show where it is called
    elif lines and isinstance(node, ast.stmt) and not isinstance(node, ast.ClassDef):
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else node.end_lineno
        lines = tuple(range(node.lineno, max(node.lineno, last) + 1))
    yield node, lines
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "exc", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk(child, lines)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    rows = source.splitlines()

    def place(line: int, column: int) -> int:  # columns of the tree are bytes
        return starts[line - 1] + len(rows[line - 1].encode()[:column].decode())

    found = {}
    for node, lines in walk(ast.parse(source), ()):
        for replaced, text, what in changed(node):
            start, end = (
                place(replaced.lineno, replaced.col_offset),
                place(replaced.end_lineno, replaced.end_col_offset),
            )
            mutant = Mutant(module, replaced.lineno, start, end, text, what, lines)
            found[mutant.apply(source)] = mutant
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


# --- runs of the tests, each in a fork


def forked(work, *args, limit: float | None = None) -> int | None:
    """Return the exit status of ``work(*args)`` in a fork, None if it ran out of CPU seconds or crashed."""

    def quietly() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(int(work(*args)))

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    process.join(None if limit is None else 60 + 20 * limit)  # it may wait for what will not come
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode if (process.exitcode or 0) >= 0 else None


class Chosen:
    """Of the tests that pytest collects only these, in this order."""

    def __init__(self, names: list[str]):
        self.place = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid])


class Recorder:
    """Notes the seconds of each test that passes, and which lines of the library it executes."""

    def __init__(self, copy: Path):
        from coverage import Coverage

        self.copy = copy
        self.coverage = Coverage(data_file=None, source=[str(copy / "pai_lib")], config_file=False)
        self.tests: dict[str, dict] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        start = time.process_time()
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        self.tests.setdefault(item.nodeid, {})["seconds"] = round(time.process_time() - start, 3)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.tests.setdefault(report.nodeid, {})["passed"] = True

    def write(self, path: Path) -> None:
        data = self.coverage.get_data()
        for nodeid, test in self.tests.items():
            data.set_query_context(nodeid)
            library = self.copy / "pai_lib"
            lines = {
                Path(file).relative_to(library).with_suffix("").as_posix(): data.lines(file)
                for file in data.measured_files()
            }
            test["lines"] = {module: sorted(found) for module, found in lines.items() if module in CORE and found}
        kept = {nodeid: test for nodeid, test in self.tests.items() if test.pop("passed", False)}
        path.write_text(json.dumps(kept))


def enter(copy: Path) -> None:
    """Make this process, a fork, import the copy."""
    os.chdir(copy)
    os.environ |= {
        "CI": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(copy),
    }  # CI: Hypothesis draws the same examples
    sys.path[:0] = [str(copy)]
    sys.dont_write_bytecode = True


def record(copy: Path, file: str, path: Path) -> int:
    enter(copy)
    recorder = Recorder(copy)
    recorder.coverage.start()
    code = pytest.main([*OPTIONS, file], plugins=[recorder])
    recorder.coverage.stop()
    recorder.write(path)
    return code


def attempt(copy: Path, names: list[str]) -> int:
    enter(copy)
    files = sorted({name.partition("::")[0] for name in names})
    code = pytest.main(["-x", *OPTIONS, *files], plugins=[Chosen(names)])
    return code if sys.modules["pai_lib"].__file__ == str(copy / "pai_lib" / "__init__.py") else 99


def test_files(copy: Path) -> list[str]:
    tests = [
        p for p in sorted((copy / "tests").rglob("test_*.py")) if p.stem.removeprefix("test_") not in LEFT_OUT
    ]
    return [str(path.relative_to(copy)) for path in [*tests, *(copy / "pai_lib" / f"{name}.py" for name in CORE)]]


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def covered(copy: Path) -> dict[str, dict]:
    """Return the tests with their seconds and lines; files whose tests were recorded before are not run again."""
    tests: dict[str, dict] = {}
    library = digest(*sorted((copy / "pai_lib").rglob("*.py")), copy / "tests" / "conftest.py")
    for file in test_files(copy):
        path = FOUND / f"{Path(file).stem}-{digest(copy / file)}-{library}.json"
        if not path.is_file():
            print(f"recording which lines {file} executes", flush=True)
            forked(record, copy, file, path)
        if path.is_file():
            tests |= json.loads(path.read_text())
        else:
            print(f"{file} is left out: it does not end in a fork of this process", flush=True)
    return tests


def may_notice(mutant: Mutant, tests: dict[str, dict], limit: float) -> dict[str, float]:
    """Return the tests that execute a mutant's statement; of one that an import executes, all of the module's.

    An import executes a line once, for whichever test comes first, so these are the tests that execute any line of
    the module, and those of its own file, which may only read what is defined. The own file's come first, of each
    test function one before the second of any, the quickest first; up to ``limit`` seconds in all.
    """
    lines, own = set(mutant.lines), f"test_{Path(mutant.module).name}.py"
    hit = {n: t["seconds"] for n, t in tests.items() if lines & set(t["lines"].get(mutant.module, ()))}
    if not hit:
        hit = {n: t["seconds"] for n, t in tests.items() if mutant.module in t["lines"] or own in n}
    turns: Counter[str] = Counter()
    order = []
    for name in sorted(hit, key=lambda name: hit[name]):
        turns[function := name.partition("[")[0]] += 1
        order.append((own not in name, turns[function], hit[name], name))
    chosen, total = {}, 0.0
    for *_, seconds, name in sorted(order):
        total += seconds
        if total <= limit or not chosen:
            chosen[name] = seconds
    return chosen


# --- the command


def difference(mutant: Mutant, source: str) -> str:
    changed = mutant.apply(source).splitlines()
    lines = difflib.unified_diff(source.splitlines(), changed, lineterm="", n=0)
    return "\n".join(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=200, help="mutants to try; 0 is all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--seconds", type=float, default=1e6, help="of the tests tried on one mutant; the quickest"
    )
    parser.add_argument("--modules", nargs="+", choices=CORE, default=CORE, metavar="MODULE", help=", ".join(CORE))
    args = parser.parse_args()
    for name in ("coverage", "hypothesis", "pandas", "scipy.stats", "sklearn.datasets", "torch", "torchvision"):
        importlib.import_module(name)
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    sources = {name: (ROOT / "pai_lib" / f"{name}.py").read_text("utf-8") for name in args.modules}
    every = [mutant for name, source in sources.items() for mutant in mutants_of(name, source)]
    drawn = random.Random(args.seed).sample(every, min(args.sample or len(every), len(every)))
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / ROOT.name
        shutil.copytree(
            ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "_build", "__pycache__")
        )
        tests = covered(copy)
        state = f"{digest(*(copy / file for file in test_files(copy)))} {args.seconds:g}"  # of what survived
        for number, mutant in enumerate(drawn, 1):
            source = sources[mutant.module]
            known = results.get(key := mutant.key(source))
            if known is None or known not in ("noticed", state):
                seconds = may_notice(mutant, tests, args.seconds)
                target = copy / "pai_lib" / f"{mutant.module}.py"
                target.write_text(mutant.apply(source), "utf-8")
                code = forked(
                    attempt, copy, list(seconds), limit=ALLOWANCE[0] + ALLOWANCE[1] * sum(seconds.values())
                )
                target.write_text(source, "utf-8")
                if code == 99:
                    raise RuntimeError("the tests imported another pai_lib than the copy's")
                results[key] = known = state if code in (0, 5) else "noticed"  # 5: no test executes it
                path.write_text(json.dumps(results, indent=0))
            if known != "noticed":
                survivors.append(mutant)
                where = f"pai_lib/{mutant.module}.py:{mutant.line}"
                print(f"{number}/{len(drawn)} survived: {where}\n{difference(mutant, source)}", flush=True)
    share = f"{len(survivors)} of {len(drawn)} mutants survived ({len(survivors) / len(drawn):.1%})"
    print(f"{share}, drawn from {len(every)} in {len(args.modules)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
