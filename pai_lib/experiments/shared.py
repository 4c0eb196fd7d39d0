"""What several runs have in common, computed once, and the clock that counts it for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..names import count_of
from ..pruning.scoring import Remember


class Shared:
    """Parts of runs that several have in common, kept for the next of them.

    A part is found again only under a key that holds everything that shaped it. A run that finds
    one counts the seconds that it took when it was computed, so that the times of a run are those
    of a run alone.

    Args:
        networks: number of networks whose parts are kept, the latest ones.

    >>> from pai_lib import RunSpec, run
    >>> shared = Shared()
    >>> small = {"dataset": "digits", "model": "resnet8", "width": 2, "epochs": 1}
    >>> for key in ("snip", "fts"):  # one warm-up, one gradient
    ...     record = run(RunSpec(**small, criterion=key), progress=False, shared=shared)
    >>> shared.seconds > 0
    True
    """

    def __init__(self, networks: int = 2):
        self.networks = count_of("networks", networks)
        self.parts: dict[Hashable, dict[Hashable, tuple[Any, float]]] = {}  # with their seconds
        self.seconds = 0.0  # saved so far

    def of(self, network: Hashable, device: torch.device) -> Remember:
        """Return ``remember(key, compute)`` of a network, which computes only what is not known."""
        parts = self.parts[network] = self.parts.pop(network, {})
        while len(self.parts) > self.networks:
            del self.parts[next(iter(self.parts))]

        def remember(key: Hashable, compute: Callable[[], Any]) -> Any:
            if key in parts:
                self.seconds += parts[key][1]
            else:
                start, saved = seconds(device), self.seconds
                value = compute()
                spent = seconds(device) - start
                parts[key] = value, spent + self.seconds - saved  # with what was found on the way
            return parts[key][0]

        return remember


def seconds(device: torch.device) -> float:
    """Time now, after what the device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
