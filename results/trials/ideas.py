"""Three ideas on trial in the book: one that works, a placebo dressed as one, one that fails."""

import torch

import pai_lib as pai


def over_the_rest(saliency):
    """Each score over the sum of those of its layer that are not lower, as LAMP (lee2021lamp)."""
    ranked, order = (saliency + 1e-20).flatten().sort()
    rest = ranked.flip(0).cumsum(0).flip(0)
    return torch.empty_like(ranked).scatter(0, order, ranked / rest).view_as(saliency)


LAYERWISE = r"s_i / \sum_{s_j \ge s_i} s_j,\; s = \theta^2 \hat F^{1/2}"


@pai.criterion("layerwise", "Layerwise", "Layer-adaptive curvature", LAYERWISE, "lee2021lamp")
def layerwise(weight, fisher):
    return over_the_rest(weight**2 * fisher.sqrt())


@pai.criterion(
    "explored", "Explored", "Exploring importance", r"\lvert\theta\rvert\, u,\; u \sim U(0, 1)", ""
)
def explored(weight, noise):
    return weight.abs() * noise


BY_SIZE = r"\lvert\theta\, g\rvert\, n_\ell / \overline{\lvert\theta\, g\rvert}"


@pai.criterion("by_size", "By size", "SNIP by the size of layers", BY_SIZE, "lee2019")
def by_size(weight, gradient):
    saliency = (weight * gradient).abs()
    return saliency / saliency.mean() * saliency.numel()
