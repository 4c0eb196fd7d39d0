"""The section of a page that says how it was made, and links to its notebook."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import yaml

from ..experiments.provenance import (
    device_name,
    git_revision,
    version,
)
from .parameters import notebook_parameters, text_of


def repository(root: Path) -> tuple[str, str]:
    """Address and branch of the repository, from ``_config.yml``; the address is empty where it has none."""
    path = root / "_config.yml"
    settings = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    found = settings.get("repository") or {}
    return (found.get("url") or "").rstrip("/").removesuffix(".git"), found.get("branch") or "main"


def how_to_get(root: Path) -> str:
    """Return the sentence of a notebook that does not find this library."""
    url, _ = repository(root)
    if not url:
        how = "clone the repository, run  pip install -e '.[book]'  in its folder, restart the kernel."
    else:
        how = f"run  !git clone --depth 1 {url} pai && pip install './pai[book]'  and  %cd pai  above."
    return f"pai_lib is missing: {how}"


def notebook_links(root: Path, source: str) -> str:
    """Return links to a notebook: to download it and, where the repository is on GitHub, to run it elsewhere."""
    url, branch = repository(root)
    links = f"{{download}}`{source} </{source}>`"
    if project := re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", url):
        colab = f"https://colab.research.google.com/github/{project[1]}/blob/{branch}/{source}"
        binder = f"https://mybinder.org/v2/gh/{project[1]}/{quote(branch, safe='')}?urlpath=lab/tree/{source}"
        links += f"; run it on [Colab]({colab}) or [Binder]({binder})"
    return links


def page_section(
    root: Path,
    notebook: Path,
    values: Mapping[str, Any],
    command: str,
    title: str,
) -> str:
    """Return the section of a page that says how it was made and how to make it again.

    Args:
        root: folder of the project.
        notebook: the source, below `root`.
        values: of the parameters that were given; the others had the notebook's defaults.
        command: that makes the page again.
        title: of the box that holds it all.
    """
    declared = notebook_parameters(notebook)
    effective = {name: values.get(name, p.default) for name, p in declared.items()}
    cells = [
        (f"`{name}`", f"`{text_of(effective[name])}`", f"`{text_of(p.default)}`", p.help)
        for name, p in declared.items()
    ]
    rows = "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in cells)
    packages = ("pai-lib", "torch", "seaborn", "papermill", "jupyter-book")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cpu = effective.get("device") == "cpu" or not torch.cuda.is_available()
    revision, changed = git_revision(root)
    source = notebook.relative_to(root).as_posix()
    plain = f"papermill {source} out.ipynb" + (
        f" -y {shlex.quote(text_of(values))}" if values else ""
    )
    return f"""## How this page was made

:::{{dropdown}} {title}: parameters, versions, how to run it again
| parameter | value here | default | meaning |
|---|---|---|---|
{rows}

- Device: {device_name("cpu" if cpu else "cuda")}
- Versions: Python {platform.python_version()}, {versions}
- Revision: {revision}{" with local changes" if changed else ""}
- Notebook: {notebook_links(root, source)}

To run it again, or with other values, give `-p name=value`:

```bash
{command}
# or the notebook alone, without the book:
{plain}
```
:::"""
