"""Sphinx extension: execute missing or stale chapters before the pages are read.

With it, plain ``jupyter-book build .`` makes the whole book in a fresh clone. Your runs of chapters
get a part of the table of contents. It also drops Sphinx's cache when an executed chapter has
changed: pages that quote its numbers would otherwise keep the old ones.
"""

import os
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

STAMP = "chapters.sha256"  # in Sphinx's cache folder: the chapters it was made from


def execute(app: Sphinx, config: Config) -> None:
    """Execute what is missing or stale, then forget what Sphinx remembers of older chapters."""
    try:
        from pai_lib.book import building as book
        from pai_lib.book import chapters, keys
    except ImportError as error:
        message = f"{error}: install the project first, pip install -e '.[book]'"
        raise ExtensionError(message) from error
    root = Path(app.srcdir)
    toc = root / config["external_toc_path"]
    if book.CHAPTERS_READY not in os.environ:
        try:
            book.check_contents(root, toc)
            book.execute_all(root, keys.stale_jobs(root, chapters.load_chapters(root)))
        except (book.ChapterError, ValueError, OSError) as error:
            raise ExtensionError(str(error)) from error
    if config["html_theme_options"].get("repository_url"):  # there is something to link to
        config["html_theme_options"] |= {"use_repository_button": True, "use_issues_button": True}
    built = Path(app.outdir).parent
    config["external_toc_path"] = book.contents(root, toc, built).as_posix()
    stamp = Path(app.doctreedir) / STAMP
    if not stamp.is_file() or stamp.read_text() != keys.chapters_digest(root):
        runs = Path(app.outdir) / "book" / chapters.RUNS  # pages of some may be gone
        for outdated in (Path(app.doctreedir), built / "jupyter_execute", runs):
            shutil.rmtree(outdated, ignore_errors=True)
        Path(app.doctreedir).mkdir(parents=True)


def remember(app: Sphinx, exception: Exception | None) -> None:
    """Note which chapters the pages were built from."""
    from pai_lib.book import keys

    if exception is None:
        (Path(app.doctreedir) / STAMP).write_text(keys.chapters_digest(Path(app.srcdir)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, before the table of contents looks for the files (priority 900)."""
    app.connect("config-inited", execute, priority=100)
    app.connect("build-finished", remember)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
