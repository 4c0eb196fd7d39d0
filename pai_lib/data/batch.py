"""What a model is called with: one tensor or several, of N samples each, and their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor] | tuple[Tensor, ...]


class Batch(NamedTuple):
    """Inputs of a model, N samples along the first axis, and their labels (integers, N).

    A tensor is what the model is called with; of a mapping the tensors are its keyword arguments,
    of a tuple its positional ones. Those of a data set are normalised images (float32 N×C×H×W).
    """

    inputs: Any  # Inputs; of images a Tensor
    labels: Tensor

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on `device`."""
        labels: Any = None if self.labels is None else self.labels.to(device)
        return Batch(of_each(self.inputs, lambda tensor: tensor.to(device)), labels)


def each_of(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of inputs, in their order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def of_each(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """Return inputs of the same kind, with each tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(map(change, inputs)) if isinstance(inputs, tuple | list) else change(inputs)


def as_batch(batch: Any) -> Batch:
    """Make a `Batch` of what a DataLoader gives: inputs and labels, tensors or NumPy arrays.

    Raises TypeError for what is no such pair, ValueError for inputs of different numbers of
    samples.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__
        raise TypeError(f"The batch is a {kind}: it must be a pair of inputs and labels.")
    inputs, labels = of_each(batch[0], _input_tensor), batch[1]
    if isinstance(labels, np.ndarray | list | tuple | range):
        labels = _from_array(labels)
    sizes = [len(tensor) if tensor.ndim else 0 for tensor in each_of(inputs)]
    if len(set(sizes)) != 1 or not all(tensor.ndim for tensor in each_of(inputs)):
        raise ValueError(f"The inputs must have one number of samples, their first axis: {sizes}.")
    return Batch(inputs, labels)


def check_labels(labels: Any, samples: int) -> None:
    """Raise TypeError for what is no tensor, ValueError if not one integer for each sample."""
    if not isinstance(labels, Tensor):
        kind = type(labels).__name__
        raise TypeError(f"Labels must be a tensor or array of integers, not {kind}.")
    _check_dense(labels)
    integers = torch.can_cast(labels.dtype, torch.int64) and labels.dtype != torch.bool
    if labels.shape != (samples,) or not integers:
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"Labels must be {samples} integers, one a sample, not {kind}.")


def _input_tensor(value: Any) -> Tensor:
    tensor = _from_array(value) if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(tensor, np.ndarray | np.generic):
        raise TypeError(f"The inputs are of NumPy's type {value.dtype}: they must be numbers.")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"The inputs hold a {type(value).__name__}: each must be a tensor.")
    _check_dense(tensor)
    return tensor


def _check_dense(tensor: Tensor) -> None:
    """Raise ValueError for a tensor whose values are not there, or are not one after another."""
    if tensor.is_meta:
        raise ValueError("A tensor of the batch has no values: it is on the meta device.")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise ValueError(f"A tensor of the batch is of layout {tensor.layout}, not dense.")


def _from_array(values: Any) -> Any:
    """Tensor of an array or of numbers in a row; what is neither comes back."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of unequal lengths
        return values
    if array.dtype.kind not in "biufc":
        return values
    # A copy: PyTorch takes neither negative strides nor another byte order, and warns of what is
    # read-only.
    return torch.as_tensor(np.array(array, array.dtype.newbyteorder("="), order="C"), device="cpu")
