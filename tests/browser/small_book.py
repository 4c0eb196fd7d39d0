"""A book of a front page, the pages of records and of masks, and a few more: built from invented records."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from synthetic_records import write_masks, write_records

REPO = Path(__file__).parents[2]
PAGES = ("records", "masks", "glossary")
# What these link to; the first one has something of all that a page's scripts look for.
STUBS = (
    "rerun bn_warmup criteria hutchinson obd_saliency empirical_fisher pat audit controls signal_or_noise cost "
    "profile"
)
RICH = """# Running it again

{cite}`wang2020` HP and SNIP, and HP again, beside `FD` and [GN](masks.md). $HP$ is maths; *FTS* is not.

- In a list, HP once more.

| criterion | a column that is long enough | another column that is long enough | and one more of them | last |
|---|---|---|---|---|
| HP | 1.234567890123 | 2.345678901234 | 3.456789012345 | 4 |

```python
a_line_of_code = "that is much wider than any column of a page, " + "so that it scrolls", "HP", "to its end"
```

$$
a_1 + a_2 + a_3 + a_4 + a_5 + a_6 + a_7 + a_8 + a_9 + a_{10} + a_{11} + a_{12} + a_{13} + a_{14} + a_{15} = b
$$

```{figure} _static/readme.png
:alt: Accuracy against sparsity
:name: a-picture

HP in a caption.
```

```{bibliography}
:all:
```
"""


def build(root, seeds):
    """Build the book; return the page of records."""
    for folder in ("_ext", "_static"):
        shutil.copytree(REPO / "book" / folder, root / "book" / folder)
    shutil.copy(REPO / "_config.yml", root)
    for name in (*(f"{page}.md" for page in PAGES), "references.bib"):
        shutil.copy(REPO / "book" / name, root / "book")
    (root / "book" / "intro.md").write_text("# Front\n")
    for name in STUBS.split():
        (root / "book" / f"{name}.md").write_text(f"# About {name}\n\nHP.\n")
    (root / "book" / "rerun.md").write_text(RICH)
    toc = [f"- file: book/{page}" for page in (*PAGES, *STUBS.split())]
    (root / "_toc.yml").write_text("\n".join(["format: jb-book", "root: book/intro", "chapters:", *toc, ""]))
    (root / "notebooks").mkdir()
    (root / "notebooks" / "chapters.yaml").write_text("chapters: {}\n")
    if seeds:
        write_records(root / "results", seeds)
        write_masks(root / "results")
        shutil.copytree(REPO / "results" / "scales", root / "results" / "scales")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-W", "-n", "--keep-going", "-q"]
    environ = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "_build" / "html" / "book" / "records.html"
