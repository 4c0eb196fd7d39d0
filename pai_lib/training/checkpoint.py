"""The checkpoint of an unfinished run, a safetensors file that is whole or not there."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from ..files import plain_copy, tensors_of, write_whole


class CheckpointWarning(UserWarning):
    """A checkpoint is not used, or could not be written."""


class Checkpoint:
    """State of an unfinished run, in one safetensors file: nothing is unpickled.

    What belongs to the run is in ``values`` (JSON, kept in the file's header) and ``tensors``; what
    belongs to the training that is under way goes in and out by ``keep`` and ``restore``. A file
    that is damaged, or was made for another ``key``, is named in a ``CheckpointWarning`` and not
    used.

    Args:
        path: the file, read now if it is there; with ``None`` nothing is written.
        key: what the state belongs to, in plain JSON types.
        interval: seconds from one file to the next, at least.
    """

    def __init__(self, path: Path | None, key: dict[str, Any], interval: float = 60.0):
        self.path, self.key, self.interval = path, key, interval
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.training: dict[str, Any] = {}  # epoch, curves, seconds of the training under way
        self._state: dict[str, Tensor] = {}
        self._written = time.monotonic()
        if path is not None and path.is_file():
            try:
                self._read()
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                reason = str(error) or type(error).__name__
                sentence = f"The checkpoint {path} is not used: {reason}"
                warnings.warn(sentence, CheckpointWarning, stacklevel=2)

    def _read(self) -> None:
        with safe_open(self.path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
            key = header.get("key") if isinstance(header, dict) else header
            if key != self.key:
                raise ValueError(f"it belongs to {key}, not to {self.key}.")
            tensors = tensors_of(file)
        values, training = header["values"], header["training"]
        if header.get("tensors", len(tensors)) != len(tensors) or not (
            isinstance(values, dict) and "epoch" in training
        ):
            raise ValueError("a part of it is missing.")
        self.values, self.training = values, training
        self._state = _below("training/", tensors)
        self.tensors = {n: t for n, t in tensors.items() if not n.startswith("training/")}

    @property
    def due(self) -> bool:
        """Whether the last file is older than the interval."""
        return time.monotonic() - self._written >= self.interval

    def keep(
        self, model: nn.Module, optimizer: Optimizer, order: torch.Generator, **training: Any
    ) -> None:
        """Write all that the next epoch depends on, and what is to be told of the epochs before it.

        Args:
            model: its parameters and buffers.
            optimizer: its state of each parameter.
            order: generator of the batches.
            **training: JSON values, above all ``epoch``.
        """
        if self.path is None:
            return
        state = {f"model/{name}": tensor for name, tensor in _tensors(model).items()}
        for index, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor):
                    state[f"optimizer/{index}/{name}"] = value
        state |= {"random/order": order.get_state(), "random/cpu": torch.get_rng_state()}
        device = _device(optimizer)
        if device.type != "cpu":
            state[f"random/{device.type}"] = torch.get_device_module(device).get_rng_state(device)
        tensors = self.tensors | {f"training/{name}": tensor for name, tensor in state.items()}
        plain = {name: plain_copy(tensor) for name, tensor in tensors.items()}
        parts = {"key": self.key, "values": self.values, "training": training}
        header = json.dumps({**parts, "tensors": len(plain)})
        try:
            write_whole(self.path, save(plain, {"checkpoint": header}))
        except OSError as error:  # the run itself may yet succeed
            sentence = f"A checkpoint could not be written: {error}"
            warnings.warn(sentence, CheckpointWarning, stacklevel=3)
        self._written = time.monotonic()

    def restore(self, model: nn.Module, optimizer: Optimizer, order: torch.Generator) -> None:
        """Put back what ``keep`` wrote. Raises ValueError if that was another network's."""
        weights, saved = _tensors(model), _below("model/", self._state)
        if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in saved.items()}:
            other = "is of a network with other names or shapes"
            raise ValueError(f"The checkpoint {self.path} {other}.")
        for name, tensor in saved.items():
            weights[name].copy_(tensor)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for path, tensor in _below("optimizer/", self._state).items():
            index, name = path.split("/")
            if name != "step":  # in the layout of its parameter: kernels may differ by that
                like = torch.empty_like(parameters[int(index)])
                tensor = like.copy_(tensor)
            moments.setdefault(int(index), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        random, device = _below("random/", self._state), _device(optimizer)
        order.set_state(random["order"])
        torch.set_rng_state(random["cpu"])
        if device.type != "cpu" and device.type in random:
            torch.get_device_module(device).set_rng_state(random[device.type], device)
        self._state = {}

    def next_phase(self, tensors: dict[str, Tensor]) -> None:
        """Forget the training that has ended, and keep ``tensors`` from now on."""
        self.training, self._state, self.tensors = {}, {}, tensors


def _below(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names start so, by the rest of their names."""
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Memory of parameters and buffers, those of no state_dict too; of several names once."""

    def memory(tensor: Tensor) -> Tensor:  # an expanded axis repeats it
        for axis, stride in enumerate(tensor.stride()):
            tensor = tensor.narrow(axis, 0, min(1, tensor.shape[axis])) if stride == 0 else tensor
        return tensor

    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: memory(tensor.detach()) for name, tensor in tensors}


def _device(optimizer: Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device


def epochs_done(path: Path) -> int:
    """Epochs that a checkpoint has behind it, in all phases; 0 if it is damaged or not there."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["checkpoint"])
        dense_curves = header["values"]["result"].get("dense_curves", {"loss": []})
        return header["training"]["epoch"] + len(dense_curves["loss"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return 0
