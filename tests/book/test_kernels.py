"""What a kernel runs, and how it ends: this checkout's library; within seconds of one Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from project import CHECK, REPO, made, write_chapters, write_notebook

import pai_lib
from pai_lib import cli
from pai_lib.book import building as book
from pai_lib.book import chapters, execution, keys

HERE = os.path.dirname(pai_lib.__file__)


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def run(*words):
    return cli.main(["book", "--no-build", "--chapter", *words])


# --- the library


def other_checkout(folder):
    """A checkout whose library does nothing but say that it ran."""
    (folder / "pai_lib").mkdir(parents=True)
    (folder / "pai_lib" / "__init__.py").write_text("check_parameters = lambda names: print('the other one')")
    (folder / "pyproject.toml").write_text("")
    return folder


def test_chapters_of_another_checkout_are_refused(root, capsys):
    other_checkout(root / "x")
    shutil.move(root / "x" / "pai_lib", root / "pai_lib")
    for words in (["book"], ["book", "--list"], ["book", "--no-build"], ["notebooks"]):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert f"the chapters in {root} need its own pai_lib, not that in {REPO}: install this one" in error
        assert error.count("\n") == 1
    assert not (root / "_build").exists()
    assert (root / "notebooks" / "tiny.ipynb").read_text().count("the other one") == 0


def test_the_kernel_runs_the_library_that_runs_it(root, monkeypatch, tmp_path_factory):
    other = other_checkout(tmp_path_factory.mktemp("other"))
    monkeypatch.setenv("PYTHONPATH", str(other))  # as an environment of another checkout
    monkeypatch.setenv("PAI_DATA", "data")
    last = "import os\nimport pai_lib\nprint(pai_lib.__file__, os.environ['PAI_DATA'])"
    write_notebook(root / "notebooks" / "tiny.ipynb", last=last, check=CHECK)
    assert run("first") == 0
    page = made(root)
    code = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    assert code[-1]["outputs"][0]["text"] == [f"{os.path.join(HERE, '__init__.py')} {root / 'data'}\n"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert "the other one" not in str(page)


def test_other_kernels_of_that_name_do_not_count(root, monkeypatch):
    kernel = root / "share" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(root / "share"))
    assert run("first") == 0


# --- Ctrl-C


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize(
    "code", ["import time; time.sleep(600)", "while True:\n    pass"], ids=["sleeping", "busy"]
)
def test_one_interrupt_ends_within_seconds(root, code):
    wait = f"import os, pathlib\npathlib.Path('../pid').write_text(str(os.getpid()))\n{code}"
    write_notebook(root / "notebooks" / "tiny.ipynb", last=wait)
    write_chapters(root, "chapters: {first: {notebook: tiny}, second: {notebook: tiny}, third: {notebook: tiny}}")
    command = [sys.executable, "-m", "pai_lib.cli", "book", "--no-build"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, start_new_session=True
    )
    try:
        for _ in range(1200):
            if (root / "pid").is_file() and (root / "pid").read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "pai: interrupted: ending the notebooks under way" in err
    assert "Traceback" not in err
    assert "executed" not in out
    with pytest.raises(ProcessLookupError):
        os.kill(int((root / "pid").read_text()), 0)
    assert list((root / "book").glob("*.ipynb")) == []


def test_stopping_ends_kernels_and_lets_none_begin(root):
    job = chapters.Job(chapters.load_chapters(root)["first"], "smoke", {})
    watch = execution.Watch(1)
    watch.stop()
    with pytest.raises(book.ChapterError, match="first: interrupted"):
        book.execute(root, job, watch)
    assert not (root / "book" / "first.ipynb").exists()


# --- pages of one's own data


@pytest.fixture
def quickly(monkeypatch):
    """Put notebooks in their places as if they had been executed."""
    from project import nbformat

    monkeypatch.setattr(book, "run_notebook", lambda root, source, *_: (nbformat.read(source, 4), 0.25))


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_page_of_data_that_changed_is_made_again(quickly, root, monkeypatch, kind, capsys):
    write_notebook(root / "notebooks" / "tiny.ipynb", 'dataset: str = "digits"  # x\nfail: bool = False')
    write_chapters(root, "chapters: {first: {notebook: tiny}}")
    data = root / "birds" if kind == "folder" else root / "birds.npz"

    def change(value):
        if kind == "folder":
            (data / "owl").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (value, 0, 0)).save(data / "owl" / "0.png")
        else:
            np.savez(data, x_train=np.full(9, value))

    def stale():
        return [job.page for job in keys.stale_jobs(root, chapters.load_chapters(root))]

    change(1)
    assert run("first", "-p", f"dataset={data.name}", "--name", "mine") == 0
    book.build_book(root, html=False)
    assert stale() == []
    change(2)
    assert stale() == ["runs/mine"]
    book.build_book(root, html=False)
    assert "executed runs/mine" in capsys.readouterr().out
    assert stale() == []
    os.utime(data / "owl" / "0.png" if kind == "folder" else data, (1, 1))
    assert stale() == ["runs/mine"]
    book.build_book(root, html=False)
    data.rename(root / "unplugged")
    assert stale() == []  # nothing newer is known
    (root / "unplugged").rename(data)
    assert stale() == []


# --- lists of pages


@pytest.mark.parametrize(
    ("toc", "missing"),
    [
        ("root: book/intro\nchapters:\n- file: book/first\n", "second"),
        ("root: book/first\nchapters:\n- file: book/second\n", None),
        ("root: book/intro\nchapters:\n- file: book/first.ipynb\n- file: book/second.ipynb\n", None),
        (
            "root: book/intro\nparts:\n- chapters:\n  - file: book/first\n    sections: [{file: book/second}]\n",
            None,
        ),
        ("root: book/intro\nchapters:\n- glob: book/*\n", None),
        ("root: book/intro\nchapters:\n- file: book/firsts\n- file: book/second\n", "first"),
        ("root: book/intro\nchapters:\n- url: book/first\n- file: book/second\n", "first"),
        ("", "first"),
    ],
)
def test_a_chapter_in_no_list_of_pages_is_an_error(root, monkeypatch, capsys, toc, missing):
    write_chapters(root, "chapters: {first: {notebook: tiny}, second: {notebook: tiny}}")
    (root / "_toc.yml").write_text(toc)
    begun = []
    monkeypatch.setattr(book, "execute_all", lambda root, jobs: begun.append(len(jobs)))
    monkeypatch.setattr(book, "run_jupyter_book", lambda root, clean: None)
    assert cli.main(["book"]) == (2 if missing else 0)
    out, err = capsys.readouterr()
    assert begun == ([] if missing else [2])
    assert ("ready" in out) != bool(missing)
    sentence = (
        f"pai: error: _toc.yml holds no page of the chapter {missing}: add '- file: book/{missing}' to a part\n"
    )
    assert err == (sentence if missing else "")


def test_every_chapter_of_the_project_is_in_its_list():
    book.check_contents(REPO, REPO / "_toc.yml")
