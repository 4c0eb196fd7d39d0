"""CONTRIBUTING.md, followed word for word in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")

ROOT = Path(__file__).parents[1]
NEEDED = "pai_lib notebooks book tests results pyproject.toml README.md _toc.yml _config.yml CITATION.cff".split()


def blocks(section):
    """Return (language, text) of every fenced block of a section."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^```(\w+)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    assert found
    assert sum(len(block.splitlines()) for _, block in found) < 20
    return found


class Project:
    """A copy of the project in which the documented steps are taken."""

    def __init__(self, folder):
        self.folder, self.data = folder / "project", folder / "data"
        self.data.mkdir()
        left = shutil.ignore_patterns("__pycache__", "*.part", ".checkpoints")
        for path in map(ROOT.joinpath, NEEDED):
            if path.is_dir():
                shutil.copytree(path, self.folder / path.name, ignore=left)
            else:
                shutil.copy(path, self.folder)
        for path in (self.folder / "book").glob("*.ipynb"):
            path.unlink()

    def run(self, *command):
        """Run a command in the copy, which stands before any installed library; return what it printed."""
        path = {"PYTHONPATH": str(self.folder), "PAI_DATA": str(self.data), "OMP_NUM_THREADS": "1"}
        options = {"cwd": self.folder, "env": os.environ | path, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *command], **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def follow(self, section):
        """Take the steps of a section: a block goes to the file that it names, else it is run."""
        for language, block in blocks(section):
            first, _, rest = block.partition("\n")
            if first.startswith("# ") and (self.folder / first[2:]).is_file():
                with (self.folder / first[2:]).open("a", encoding="utf-8") as file:
                    file.write(f"\n\n{rest}" if language == "python" else rest)
            elif language == "python":
                self.run("-c", block)
            else:
                assert language == "bash"
                for line in block.splitlines():
                    program, *words = line.split()
                    assert program == "pai"
                    words += ["--no-build"] * (words[0] == "book")  # else all other chapters are executed, too
                    self.run("-m", "pai_lib.cli", *words)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


CHECK = """
import pai_lib as pai
from pai_lib.cli import main
assert pai.__file__.startswith({folder!r}), pai.__file__
model, data = pai.build_model("resnet8", 10, in_channels=1), pai.load_data("digits")
scores = pai.score(model, data.scoring_batch(1), "taylor_squared")
snip = pai.score(model, data.scoring_batch(1), "snip")
print(list(scores) == list(snip) and all(scores[n].allclose(each.square()) for n, each in snip.items()))
print(pai.load_data("blobs").train_images.shape, "blobs" in pai.dataset_names())
for words in (["criteria"], ["data", "check", "blobs"]):
    assert main(words) == 0
"""


def test_a_criterion_and_a_data_set_are_added_as_written(project):
    project.follow("Add a criterion")
    project.follow("Add a data set")
    x, y = np.random.default_rng(0).integers(0, 256, (20, 8, 6, 3), dtype=np.uint8), np.arange(20) % 2
    np.savez(project.data / "blobs.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    told = project.run("-c", CHECK.format(folder=str(project.folder)))
    assert told.splitlines()[:2] == ["True", "torch.Size([20, 3, 8, 6]) True"]
    (row,) = re.findall(r"^taylor_squared .*$", told, re.MULTILINE)
    assert "Squared Taylor term" in row
    assert "molchanov2019" in row
    assert "\nblobs: 20 training and 4 test images, 3×8×6, 2 classes\n" in told
    assert told.endswith(f"read from {project.data / 'blobs.npz'}\n")
    # the library's own tests of a criterion, and of its shape
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-k", "taylor_squared or test_layout"]
    told = project.run(*words, "tests/pruning/test_criteria.py", "tests/test_layout.py", "-vv")
    assert len(re.findall("taylor_squared.* PASSED", told)) >= 5
    assert "tests/test_layout.py::" in told


def test_a_chapter_is_added_as_written(project):
    project.follow("Add a chapter")
    source = nbformat.read(project.folder / "notebooks" / "kept.ipynb", 4)
    assert source.cells[-1].outputs[0].text == "10% are kept\n"
    page = nbformat.read(project.folder / "book" / "kept.ipynb", 4)
    assert page.metadata.pai.profile == "smoke"
    assert any("10% are kept" in out.get("text", "") for cell in page.cells for out in cell.get("outputs", []))


def test_every_chapter_file_of_the_table_of_contents_has_its_line():
    """The steps of a chapter name two files: so it is for the chapters there are."""
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    chapters = (ROOT / "notebooks" / "chapters.yaml").read_text("utf-8")
    names = re.findall(r"^  ([\w-]+):$", chapters.partition("\nchapters:\n")[2], re.MULTILINE)
    assert names
    pages = {path.stem for path in (ROOT / "book").glob("*.md")}
    assert set(names) == set(re.findall(r"file: book/(\w+)", toc)) - pages
