"""Random numbers from seeds, whatever the process has set or drawn before."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator

import torch

from .names import count_of

ONE_THREAD = threading.RLock()
"""Held while a setting of the whole process is changed: it is not to come back as another's."""


@contextlib.contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Draw float32 numbers of a seed on the CPU; random state and default dtype come back."""
    with default_dtype(torch.float32), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(count_of("seed", seed, 0))
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make floating-point tensors in this dtype where none is given."""
    with ONE_THREAD:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def random_stream(seed: int, purpose: str) -> torch.Generator:
    """CPU generator of a seed and a purpose: data order, probes and controls are independent.

    Raises:
        TypeError: for a seed that is no whole number.
        ValueError: for one below 0, or of 2**63 and more.
    """
    digest = hashlib.sha256(f"{purpose}/{count_of('seed', seed, 0)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
