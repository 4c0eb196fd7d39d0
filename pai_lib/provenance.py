"""What made a result: revision, versions, device; and the section of a page that says so."""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import yaml

from .parameters import notebook_parameters, text_of
from .training import compiled

LIBRARY = Path(__file__).resolve().parent


def version(package: str) -> str:
    """Return the installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def device_name(device: str | torch.device) -> str:
    """Return the name of a GPU, or "CPU" with the processor's own name where the system tells it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"
    return f"CPU ({name})"


@cache
def git_revision(folder: Path = LIBRARY) -> tuple[str, bool | None]:
    """Return the revision of a folder and whether it has local changes; by default, of this library's.

    It is ``("unknown", None)`` for a folder that git does not track, such as an installed copy of the library
    that merely lies within some repository.
    """

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", ".")
        return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def now() -> str:
    """Time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def run_provenance(device: torch.device, precision: str, started: str, resumed: list[dict]) -> dict:
    """What made a record: revision, versions, device, times; and the same of the pieces before the last one."""
    revision, dirty = git_revision()
    return {
        "git": revision,
        "dirty": dirty,
        "pai_lib": version("pai-lib"),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "started": started,
        "finished": now(),
        **({"compiled": True} if compiled() else {}),
        **({"resumed": resumed} if resumed else {}),
    }


def reset_peak_memory(device: torch.device) -> bool:
    """Have the peak of memory begin anew, without what is no longer used; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps what an earlier run has freed
        Path("/proc/self/clear_refs").write_text("5")  # Linux: proc_pid_clear_refs(5)
    except (OSError, AttributeError):
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Return the most bytes since the reset: that tensors took on a GPU, and that the process took on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


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
    plain = f"papermill {source} out.ipynb" + (f" -y {shlex.quote(text_of(values))}" if values else "")
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
