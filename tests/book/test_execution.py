"""How far a notebook is: counted in its kernel, told by the process that executes it."""

import json
import time

from pai_lib.book import execution
from pai_lib.progress import PROGRESS_FILE, with_progress


def test_the_kernel_counts_in_a_file(tmp_path, monkeypatch):
    path = tmp_path / "count"
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    seen = []
    for item in with_progress("abc", "run"):
        seen.append((item, json.loads(path.read_text())))
    assert [item for item, _ in seen] == ["a", "b", "c"]
    assert [(told["unit"], told["number"], told["of"]) for _, told in seen] == [("run", n, 3) for n in (1, 2, 3)]
    assert seen[0][1]["left"] is None
    assert min(told["left"] for _, told in seen[1:]) >= 0
    assert not path.exists()  # the cell does something else now


def test_without_a_file_it_only_iterates(monkeypatch, capsys):
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    assert list(with_progress([1, 2], "run")) == [1, 2]
    assert capsys.readouterr() == ("", "")  # no terminal, no bar


def test_the_time_left_is_that_of_the_runs_so_far(tmp_path, monkeypatch):
    path, clock = tmp_path / "count", iter([0.0, 0.0, 10.0, 30.0])
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    left = [json.loads(path.read_text())["left"] for _ in with_progress(range(3), "run")]
    assert left == [None, 20.0, 15.0]


def test_what_is_told(tmp_path):
    watch, path = execution.Watch(2), tmp_path / "count"
    with watch.of("first", path) as tell:
        tell(3, 9)
        assert watch.text("first") == "first · cell 3 of 9"
        count = {"unit": "run", "number": 2, "of": 5, "left": 200.0}
        path.write_text(json.dumps(count))
        assert watch.text("first") == "first · cell 3 of 9 · run 2 of 5, about 3 min left"
        path.write_text(json.dumps({**count, "left": None}))
        assert watch.text("first") == "first · cell 3 of 9 · run 2 of 5"
        path.write_text("{")  # not a count: it is left out
        assert watch.text("first") == "first · cell 3 of 9"
    assert not path.exists()
    assert not watch.cells


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    with execution.Watch(1, interval=0.02) as watch, watch.of("first", tmp_path / "count") as tell:
        for cell in (1, 2):
            tell(cell, 2)
            time.sleep(0.5)
    assert capsys.readouterr().out == "first · cell 1 of 2\nfirst · cell 2 of 2\n"
    with execution.Watch(1, interval=60) as watch, watch.of("first", tmp_path / "count") as tell:
        tell(1, 2)
    assert capsys.readouterr().out == ""  # what is quick is not told
