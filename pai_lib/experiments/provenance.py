"""What made a result: revision, versions, device; and the section of a page that says so."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import hashlib
import importlib.metadata
import inspect
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..pruning.criteria import CRITERIA
from ..pruning.own import KNOWN, MODULE
from ..pruning.profiles import PROFILES
from .mask_spec import AnySpec
from .spec import RunSpec

LIBRARY = Path(__file__).resolve().parents[1]


def version(package: str) -> str:
    """Return the installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def device_name(device: str | torch.device) -> str:
    """Return the name of a GPU, or "CPU" with the processor's name where the system tells it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return f"CPU ({line.partition(':')[2].strip()})"
    return "CPU"


@cache
def git_revision(folder: Path = LIBRARY) -> tuple[str, bool | None]:
    """Return the revision of a folder, by default this library's, and whether it was changed.

    It is ``("unknown", None)`` for a folder that git does not track, such as an installed copy of
    the library that merely lies within some repository.
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


def run_provenance(
    device: torch.device,
    precision: str,
    started: str,
    resumed: list[dict[str, Any]],
    code: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What made a record: revision, versions, device, times; its earlier pieces; own code."""
    revision, dirty = git_revision()
    return {
        "git": revision,
        "dirty": dirty,
        "pai_lib": version("pai-lib"),
        "torch": torch.__version__,
        "device": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "started": started,
        "finished": now(),
        **({"resumed": resumed} if resumed else {}),
        **({"code": code} if code else {}),
        **({"own": [{"digest": own.digest, **vars(own)} for own in KNOWN]} if KNOWN else {}),
    }


def own_code(spec: AnySpec) -> dict[str, str]:
    """SHA-256 of the source of each function of one's own that a spec names, where it has one.

    Functions of a known own file are left out: ``run_provenance`` has its whole text.
    """
    functions: dict[str, Callable[..., Any]] = {}
    for key in (spec.criterion,) if isinstance(spec, RunSpec) else spec.criteria:
        if key in CRITERIA:
            functions[f"criterion {key}"] = CRITERIA[key].function
    if isinstance(spec, RunSpec) and spec.scope in PROFILES:
        functions[f"profile {spec.scope}"] = PROFILES[spec.scope]
    digests = {}
    for name, function in functions.items():
        if function.__module__.partition(".")[0] not in (__name__.partition(".")[0], MODULE):
            with contextlib.suppress(OSError, TypeError):  # an interpreter keeps no source
                source = inspect.getsource(function)
                digests[name] = hashlib.sha256(source.encode()).hexdigest()
    return digests


def reset_peak_memory(device: torch.device) -> bool:
    """Have the peak of memory begin anew; False where the system cannot."""
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
    """Return the most bytes since the reset: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
