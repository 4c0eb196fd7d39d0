"""Which changes make a chapter stale: those of what its notebook can import, and of nothing else."""

import json
import subprocess
import sys

import pytest
from project import CHECK, REPO, write_notebook

import pai_lib
from pai_lib.book import chapters, keys

TINY = {
    "__init__.py": '"""The library."""\nfrom .data.batch import Batch\n__version__ = "0"\n',
    "cli.py": "from .book import building\n",
    "data/__init__.py": "",
    "data/batch.py": "from ..draws import draw\n\n\nclass Batch:\n    size = 1  # images\n",
    "data/folders.py": "x = 1\n",
    "draws.py": "def draw():\n    import pai_lib.names\n",
    "names.py": "x = 1\n",
    "analysis/__init__.py": "",
    "analysis/figures.py": "from . import colours\n",
    "analysis/colours.py": "x = 1\n",
    "analysis/verdicts.py": "x = 1\n",
    "book/__init__.py": "",
    "book/building.py": "x = 1\n",
    "book/execution.py": "x = 1\n",
    "book/pages.py": "from .chapters import x\n",
    "book/chapters.py": "x = 1\n",
}
LAST = "from pai_lib.analysis import figures\n%time 1 + 1\n1 + 1"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library with the files of TINY, in place of this one."""
    folder = tmp_path / "elsewhere" / "pai_lib"
    for name, text in TINY.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(keys, "LIBRARY", folder)
    keys._files_of.cache_clear()
    yield folder
    keys._files_of.cache_clear()


@pytest.fixture
def digest(root):
    write_notebook(root / "notebooks" / "tiny.ipynb", last=LAST, check=CHECK)
    chapter = chapters.load_chapters(root)["first"]
    return lambda: keys.code_digest(chapter)


IMPORTED = ["__init__", "data/batch", "draws", "names", "analysis/figures", "analysis/colours"]
IMPORTED += ["data/__init__", "book/execution", "book/pages", "book/chapters"]


@pytest.mark.parametrize("name", IMPORTED)
def test_what_a_notebook_can_import_makes_it_stale(library, digest, name):
    before, path = digest(), library / f"{name}.py"
    path.write_text(path.read_text() + "\nprint()\n")
    assert digest() != before


@pytest.mark.parametrize("name", ["cli", "data/folders", "analysis/verdicts", "book/building"])
def test_what_it_cannot_import_does_not(library, digest, name):
    before, path = digest(), library / f"{name}.py"
    path.write_text(path.read_text() + "\nprint()\n")
    (library / "analysis" / "new.py").write_text("x = 1\n")
    assert digest() == before


def test_comments_and_docstrings_do_not_count(library, digest):
    before, path = digest(), library / "data" / "batch.py"
    said = path.read_text().replace("# images", "# pictures").replace(":\n", ':\n    """Some."""\n\n')
    assert said.count("pictures") == said.count("Some") == 1
    path.write_text(f'"""A batch."""\n{said}')
    assert digest() == before
    path.write_text(said.replace("size = 1", "size = 2"))
    assert digest() != before


def test_comments_count_where_the_page_shows_them(library, root, digest):
    last = "import inspect\ninspect.getsource(pai.Batch)"
    write_notebook(root / "notebooks" / "tiny.ipynb", last=last, check=CHECK)
    before, path = digest(), library / "data" / "batch.py"
    path.write_text(path.read_text().replace("# images", "# pictures"))
    assert digest() != before


@pytest.mark.parametrize("last", ["from pai_lib.analysis import (", "%%bash\nls", "files = !ls"])
def test_a_cell_that_is_no_python_has_a_digest_too(library, root, digest, last):
    before = digest()
    write_notebook(root / "notebooks" / "tiny.ipynb", last=last, check=CHECK)
    assert digest() != before


def test_of_this_library(root):
    files = {str(path.relative_to(keys.LIBRARY)) for path in keys.imported_files(["import pai_lib"])}
    assert "curvature/hutchinson.py" in files
    assert not {"cli.py", "analysis/figures.py", "book/building.py", "experiments/sweep.py"} & files
    for path in (REPO / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert keys.LIBRARY / "cli.py" not in keys.imported_files(code)


def test_everything_that_is_imported_is_found():
    """Against Python itself: what `import pai_lib` has loaded."""
    program = "import sys, pai_lib\n"
    program += "print(*[m.__file__ for n, m in sys.modules.items() if n.startswith('pai_lib')])"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert pai_lib.__file__ in loaded
    assert set(loaded) <= {str(path) for path in keys.imported_files(["import pai_lib"])}


def test_files_and_records_that_are_given_make_a_page_stale(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "idea.py").write_text("x = 1\n")
    job = chapters.Job(
        chapters.load_chapters(REPO)["trial"],
        "smoke",
        {"file": str(tmp_path / "idea.py"), "records": str(tmp_path / "records")},
        "mine",
    )
    seen = {keys.data_digest(job)}
    (tmp_path / "records" / "one.json").write_text("{}")
    seen.add(keys.data_digest(job))
    (tmp_path / "idea.py").write_text("x = 10\n")
    seen.add(keys.data_digest(job))
    assert len(seen) == 3
