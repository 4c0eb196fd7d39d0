"""Files that are whole or not there: masks, and the checkpoint of an unfinished run, in safetensors."""

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

from ..files import plain_copy, write_whole


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
                text = f"The checkpoint {self.path} is not used: {error or type(error).__name__}"
                warnings.warn(text, CheckpointWarning, stacklevel=2)

    def _read(self) -> None:
        with safe_open(self.path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
            if header.get("key") != self.key:
                raise ValueError(f"it belongs to {header.get('key')}, not to {self.key}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        self.values, self.training = header["values"], header["training"]
        self._state = {name: t for name, t in tensors.items() if name.startswith("training/")}
        self.tensors = {name: t for name, t in tensors.items() if name not in self._state}

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
        for index, values in optimizer.state_dict()["state"].items():
            state |= {
                f"optimizer/{index}/{name}": t
                for name, t in values.items()
                if isinstance(t, Tensor)
            }
        state |= {"random/order": order.get_state(), "random/cpu": torch.get_rng_state()}
        if (device := _device(optimizer)).type != "cpu":
            state[f"random/{device.type}"] = torch.get_device_module(device).get_rng_state(device)
        tensors = {**self.tensors, **{f"training/{name}": tensor for name, tensor in state.items()}}
        header = json.dumps({"key": self.key, "values": self.values, "training": training})
        plain = {name: plain_copy(tensor) for name, tensor in tensors.items()}
        try:
            write_whole(self.path, save(plain, {"checkpoint": header}))
        except OSError as error:  # the run itself may yet succeed
            warnings.warn(
                f"A checkpoint could not be written: {error}", CheckpointWarning, stacklevel=3
            )
        self._written = time.monotonic()

    def restore(self, model: nn.Module, optimizer: Optimizer, order: torch.Generator) -> None:
        """Put back what ``keep`` wrote. Raises ValueError if that was another network's."""
        state: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        for path, tensor in self._state.items():
            _, part, name = path.split("/", 2)
            state[part][name] = tensor
        own = _tensors(model)
        if {name: t.shape for name, t in own.items()} != {
            name: t.shape for name, t in state["model"].items()
        }:
            raise ValueError(
                f"The checkpoint {self.path} is of a network with other names or shapes."
            )
        for name, tensor in state["model"].items():
            own[name].copy_(tensor)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for path, tensor in state["optimizer"].items():
            index, name = path.split("/")
            like = parameters[int(index)]
            if (
                tensor.shape == like.shape and name != "step"
            ):  # with its strides: kernels may differ by them
                tensor = torch.empty_like(like, memory_format=torch.preserve_format).copy_(tensor)
            moments.setdefault(int(index), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        order.set_state(state["random"]["order"])
        torch.set_rng_state(state["random"]["cpu"])
        device = _device(optimizer)
        if device.type != "cpu" and device.type in state["random"]:
            torch.get_device_module(device).set_rng_state(state["random"][device.type], device)
        self._state = {}

    def next_phase(self, tensors: dict[str, Tensor]) -> None:
        """Forget the training that has ended, and keep ``tensors`` from now on."""
        self.training, self._state, self.tensors = {}, {}, tensors


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Memory of parameters and buffers, also of those that no state_dict holds; that of several names once."""

    def memory(tensor: Tensor) -> Tensor:  # an expanded axis repeats it
        for axis, stride in enumerate(tensor.stride()):
            tensor = tensor.narrow(axis, 0, min(1, tensor.shape[axis])) if stride == 0 else tensor
        return tensor

    return {
        name: memory(t.detach()) for name, t in (*model.named_parameters(), *model.named_buffers())
    }


def _device(optimizer: Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device


def epochs_done(path: Path) -> int:
    """Epochs of training that a checkpoint has behind it, in all phases; 0 if there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["checkpoint"])
        return header["training"]["epoch"] + len(
            header["values"]["result"].get("dense_curves", {}).get("loss", [])
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return 0
