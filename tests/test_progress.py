"""One bar a call, on stderr, only where somebody sees it, and only when it takes long."""

import io
import threading

import pytest
import torch
from conftest import batch_of
from torch import nn

import pai_lib as pai
from pai_lib import progress
from pai_lib.progress import Bar, steps, with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """Return what appears on a terminal where every call is long."""
    terminal = Terminal()
    monkeypatch.setattr(progress, "DELAY", -1.0)
    monkeypatch.delenv(progress.PROGRESS_FILE, raising=False)
    tqdm = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **options: tqdm(file=terminal, mininterval=0, **options))
    return terminal.getvalue


def lines(text):
    """Return what was to be seen, one after another; a bar is wiped off at its end."""
    return [line for line in text.replace("\r", "\n").split("\n") if line.strip()]


def test_the_outermost_loop_is_the_bar_and_the_others_stand_behind_it(shown):
    with Bar("outer"):
        for _ in steps(range(2), "round"):
            with Bar("inner"):
                for _ in steps(range(3), "probe"):
                    pass
    seen = lines(shown())
    assert all(line.startswith("outer:") for line in seen)
    assert any("1/2" in line for line in seen)
    assert any("probe 2 of 3" in line for line in seen)
    assert shown().rstrip(" ").endswith("\r")  # wiped off


def test_a_loop_of_one_leaves_the_bar_to_those_within_it(shown):
    with Bar("outer"):
        for _ in steps(range(1), "round"):
            list(steps(range(3), "probe"))
    assert any("2/3" in line and "probe" in line for line in lines(shown()))


def test_loops_outside_of_a_call_show_nothing(shown):
    assert list(steps([1, 2, 3], "thing")) == [1, 2, 3]
    assert shown() == ""


@pytest.mark.parametrize("hidden", ["progress=False", "short", "no terminal", "executed"])
def test_nothing_is_shown(hidden, shown, monkeypatch):
    if hidden == "short":
        monkeypatch.setattr(progress, "DELAY", 60.0)
    if hidden == "no terminal":
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    if hidden == "executed":
        monkeypatch.setattr("builtins.get_ipython", None, raising=False)
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
        monkeypatch.setenv(progress.PROGRESS_FILE, "file")
    with Bar("outer", show=hidden != "progress=False"):
        with Bar("inner"):
            list(steps(range(3), "probe"))
        list(steps(range(3), "probe"))
    assert shown() == ""


def test_a_notebook_shows_bars(shown, monkeypatch):
    monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    monkeypatch.setattr("builtins.get_ipython", None, raising=False)
    with Bar("outer"):
        list(steps(range(3), "probe"))
    assert "outer" in shown()


def test_a_failed_call_takes_its_bar_along(shown):
    def fail():
        with Bar("failing"):
            for step in steps(range(3), "probe"):
                if step:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:  # whose traceback holds the loop
        fail()
    assert shown().rstrip(" ").endswith("\r")
    with Bar("next"):
        list(steps(range(3), "probe"))
    assert any(line.startswith("next:") for line in lines(shown()))
    assert error.value.args == ()


def test_threads_have_their_own(shown):
    def other():
        with Bar("other"):
            list(steps(range(3), "probe"))

    with Bar("here"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "other" in shown()


MODEL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
BATCH = batch_of(6, 4)


def test_pruning_and_scoring_show_one_bar(shown):
    pai.prune(MODEL, BATCH, "synflow", 0.5, rounds=5)
    seen = lines(shown())
    assert all(line.startswith("pruning:") for line in seen)
    assert any("4/5" in line for line in seen)
    pai.score_many(MODEL, BATCH, ["snip", "fts"])
    assert any(line.startswith("scoring:") and "1/2" in line for line in lines(shown()))


def test_a_call_is_the_same_with_and_without_its_bar(shown):
    with_bar = pai.prune(MODEL, BATCH, "synflow", 0.5, rounds=5)
    before = shown()
    without = pai.prune(MODEL, BATCH, "synflow", 0.5, rounds=5, progress=False)
    pai.score(MODEL, BATCH, "snip", progress=False)
    assert shown() == before
    assert all(torch.equal(with_bar[name], without[name]) for name in with_bar)


def test_a_short_call_starts_no_bar_at_all(monkeypatch):
    monkeypatch.setattr(progress, "tqdm", None)
    pai.prune(MODEL, BATCH, "synflow", 0.5, rounds=5)


def test_a_loop_over_runs_tells_a_file(tmp_path, monkeypatch):
    file = tmp_path / "progress"
    monkeypatch.setenv(progress.PROGRESS_FILE, str(file))
    seen = [file.read_text() for _ in with_progress([1, 2], "run")]
    assert '"number": 2, "of": 2' in seen[1]
    assert not file.exists()
