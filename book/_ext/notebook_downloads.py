"""Sphinx extension: notebooks to download that run as they are.

What the theme offers of an executed page is its source, with MyST's roles and this book's cells.
Here it is the page's notebook with the page's values; and there is an archive of all notebooks.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.application import Sphinx
from sphinx.config import Config

if TYPE_CHECKING:
    from pai_lib.book.chapters import Job

ARCHIVE = "_build/notebooks.zip"
README = """# The notebooks of *{title}*

```bash
{install}
jupyter lab
```

opens them from this folder. Edit the first cell of a notebook and run all.
"""


def runnable(job: Job) -> str:
    """Return the notebook that made a page, with the page's title and values and no outputs."""
    import nbformat

    from pai_lib.book.execution import injected
    from pai_lib.book.pages import set_title

    notebook = nbformat.read(job.chapter.notebook, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what is stored is of the defaults
            cell.outputs, cell.execution_count = [], None
    notebook = injected(notebook, job.values)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "values"  # papermill draws one
    set_title(notebook, job)
    return nbformat.writes(notebook) + "\n"


def archive(root: Path, title: str) -> bytes:
    """Return a zip file of all notebooks and of how to get what they need."""
    from pai_lib.book.pages import repository

    url, branch = repository(root)
    install = "pip install -e '.[book,lab]'  # in a clone of the repository"
    if url:
        install = f"pip install 'pai-lib[book,lab] @ git+{url}@{branch}'"
    files = {path.name: path.read_bytes() for path in (root / "notebooks").glob("*.ipynb")}
    files["README.md"] = README.format(title=title, install=install).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"notebooks/{name}")  # of 1980: the same files, the same bytes
            entry.external_attr = 0o644 << 16  # else nobody may read what is unpacked
            packed.writestr(entry, files[name], zipfile.ZIP_DEFLATED)
    return content.getvalue()


def pack(app: Sphinx, config: Config) -> None:
    """Write the archive to where pages link to it; one that has not changed keeps its time."""
    from pai_lib.files import write_whole

    path, content = Path(app.srcdir) / ARCHIVE, archive(Path(app.srcdir), config.html_title)
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def offer(app: Sphinx, exception: Exception | None) -> None:
    """Put the notebook that runs in the place where the theme's download button leads."""
    if exception is not None or app.builder.format != "html":
        return
    from pai_lib.book import chapters, keys

    root = Path(app.srcdir)
    sources = chapters.with_notebooks(root, chapters.load_chapters(root))
    for document in app.env.found_docs:
        page = document.removeprefix("book/")
        made = keys.stored(root, page)
        if made.get("chapter") in sources:
            run = page.removeprefix("runs/") if page.startswith("runs/") else None
            job = chapters.Job(sources[made["chapter"]], made["profile"], made["overrides"], run)
            (Path(app.outdir) / "_sources" / f"{document}.ipynb").write_text(runnable(job), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, after the chapters are executed."""
    app.connect("config-inited", pack, priority=200)
    app.connect("build-finished", offer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
