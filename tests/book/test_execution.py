"""How far a notebook is: counted in its kernel, told by the process that executes it."""

import json
import time
from types import SimpleNamespace

import pytest

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


@pytest.fixture
def progress(tmp_path):
    cells = [SimpleNamespace(source=f"\n{number} + 1\nlast line") for number in range(9)]
    return execution.Progress("first", SimpleNamespace(cells=cells), tmp_path / "count", kernel=None)


def test_what_is_told(progress):
    watch = execution.Watch(2)
    with watch.over(progress):
        assert progress.place() == "its kernel's start"
        progress.begin_cell(None, cell_index=2)
        assert progress.text() == "first · cell 3 of 9"
        assert progress.place() == "cell 3 ('2 + 1')"
        count = {"unit": "run", "number": 2, "of": 5, "left": 200.0}
        progress.file.write_text(json.dumps(count))
        assert progress.text() == "first · cell 3 of 9 · run 2 of 5, about 3 min left"
        progress.file.write_text(json.dumps({**count, "left": None}))
        assert progress.text() == "first · cell 3 of 9 · run 2 of 5"
        progress.file.write_text("{")  # not a count: it is left out
        assert progress.text() == "first · cell 3 of 9"
    assert not progress.file.exists()
    assert not watch.under_way


def test_lines_where_there_is_no_terminal(progress, monkeypatch, capsys):
    def task(watch):
        with watch.over(progress):
            for cell in (0, 1):
                progress.begin_cell(None, cell)
                time.sleep(2.5)

    monkeypatch.setattr(execution, "INTERVAL", 0.02)
    execution.execute_together([task], workers=1)
    assert capsys.readouterr().out == "first · cell 1 of 9\nfirst · cell 2 of 9\n"


def test_what_is_quick_is_not_told(progress, capsys):
    watch = execution.Watch(1)
    with watch.over(progress):
        progress.begin_cell(None, cell_index=0)
        watch.tell()
    assert capsys.readouterr().out == ""


def test_failures_are_told_at_the_end_and_other_errors_at_once():
    def failing(watch):
        raise execution.ChapterError("one")

    def wrong(watch):
        raise ZeroDivisionError

    done = []
    with pytest.raises(execution.ChapterError, match=r"^one; one$"):
        execution.execute_together([failing, failing, done.append], workers=1)
    assert len(done) == 1
    with pytest.raises(ZeroDivisionError):
        execution.execute_together([wrong, lambda watch: time.sleep(4), done.append], workers=1)
    assert len(done) == 1
