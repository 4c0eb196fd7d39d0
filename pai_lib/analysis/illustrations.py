"""What several chapters illustrate with: sentences, small networks and their whole Hessians.

Needs the book's packages (IPython, matplotlib).
"""

import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from ..curvature.calls import ByParameter
from ..data.batch import Batch
from ..data.dataset import Dataset
from ..draws import random_stream
from ..experiments.records import default_results


def flat(tensors: ByParameter) -> np.ndarray:
    """All entries of ``{parameter name: tensor}`` as one float64 vector."""
    return torch.cat([t.detach().flatten() for t in tensors.values()]).double().cpu().numpy()


def double_batch(data: Dataset, samples_per_class: int, seed: int = 0) -> Batch:
    """The data's scoring batch in float64, in which no machine's rounding moves a result."""
    images, labels = data.scoring_batch(samples_per_class, seed)
    return Batch(images.double(), labels)


def small_network(
    hidden: Sequence[int], seed: int = 0, inputs: int = 64, classes: int = 10
) -> nn.Sequential:
    """A float64 network of linear layers with ReLUs between them, for small images.

    >>> small_network([16])
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=64, out_features=16, bias=True)
      (2): ReLU()
      (3): Linear(in_features=16, out_features=10, bias=True)
    )
    """
    layers: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for units, more in itertools.pairwise([inputs, *hidden]):
            layers += [nn.Linear(units, more), nn.ReLU()]
        layers.append(nn.Linear(hidden[-1], classes))
    return nn.Sequential(*layers).double()


def trained(
    model: nn.Module,
    data: Dataset,
    steps: Iterable[int],
    lr: float,
    seed: int,
    weight_decay: float = 0.0,
    shuffle: bool = True,
) -> Iterator[nn.Module]:
    """Train in place by SGD (momentum 0.9, 64 images a step), in the precision of the weights.

    Args:
        model: in place; see there.
        data: training images.
        steps: numbers of steps, ascending, after which the model is yielded.
        lr: learning rate.
        seed: of the order of the images.
        weight_decay: on every parameter.
        shuffle: False goes through the images in the order of the data set in each epoch.
    """
    stream, dtype = random_stream(seed, "order"), next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=weight_decay)

    def epoch() -> Iterable[Any]:
        if shuffle:
            return data.epoch(64, stream)
        images = data.normalize(data.train_images)
        return zip(images.split(64), data.train_labels.split(64), strict=True)

    batches = (batch for _ in itertools.count() for batch in epoch())
    for done, target in itertools.pairwise([0, *steps]):
        model.train()
        for images, labels in itertools.islice(batches, target - done):
            optimizer.zero_grad()
            F.cross_entropy(model(images.to(dtype)), labels).backward()
            optimizer.step()
        yield model


def of_weights(
    model: nn.Module, names: Iterable[str]
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The named weights as one vector P, and the logits N×C as a function of it and of inputs."""
    weights = {name: model.get_parameter(name).detach() for name in names}
    sizes = [weight.numel() for weight in weights.values()]

    def logits(vector: Tensor, inputs: Tensor) -> Tensor:
        parts = zip(weights.items(), vector.split(sizes), strict=True)
        state = {name: part.view_as(weight) for (name, weight), part in parts}
        return torch.func.functional_call(model, state, (inputs,))

    return torch.cat([weight.flatten() for weight in weights.values()]), logits


def dense_hessian(
    model: nn.Module, batch: Batch, names: Iterable[str], temperature: float = 1.0
) -> Tensor:
    """Every second derivative P×P of the mean cross-entropy by the named weights."""
    theta, logits = of_weights(model, names)

    def loss(vector: Tensor) -> Tensor:
        return F.cross_entropy(logits(vector, batch.inputs) / temperature, batch.labels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.func's own
        return torch.func.hessian(loss)(theta).detach()


def saliency(model: nn.Module, diagonal: ByParameter) -> ByParameter:
    """½ θ² d of every weight: Optimal Brain Damage's score, with any diagonal d in place of H's."""
    weights = {name: model.get_parameter(name).detach() for name in diagonal}
    return {name: weight**2 * diagonal[name] / 2 for name, weight in weights.items()}


def legend_above(figure: Figure, columns: int, title: str | None = None) -> None:
    """Put one legend above all panels; what several panels show comes once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    place: Any = {"loc": "outside upper center", "ncols": columns, "fontsize": "small"}
    figure.legend(entries.values(), entries.keys(), title=title, **place)


def only_ticks(axes: Axes, values: Iterable[float], labels: Iterable[Any] | None = None) -> None:
    """Mark these values of a logarithmic x axis and no others."""
    values = list(values)
    axes.set_xticks(values, [str(label) for label in labels or values])
    axes.xaxis.set_minor_locator(NullLocator())


def benchmarks(pattern: str) -> list[dict[str, Any]]:
    """The committed measurements of ``benchmarks/`` in files of this pattern."""
    folder = default_results().parent / "benchmarks"
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(pattern))]


def machine_of(benchmark: dict[str, Any]) -> str:
    """The machine of a measurement in words."""
    machine = benchmark["machine"]
    where = f"{machine['gpu']} beside {machine['cpu']}" if machine["gpu"] else machine["cpu"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"{where}, {threads}, torch {machine['torch']}"
