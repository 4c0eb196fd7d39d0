"""What the chapters illustrate with, checked against the library where a chapter would not notice an error."""

import matplotlib as mpl
import numpy as np
import pytest
import torch

import pai_lib as pai
from pai_lib.analysis import figures
from pai_lib.analysis import illustrations as lab

mpl.use("Agg")


@pytest.fixture(scope="module")
def data():
    return pai.load_data("digits")


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_the_dense_hessian_has_the_exact_diagonal(data, temperature):
    network, batch = lab.small_network([4, 3]), lab.double_batch(data, 2)
    names = pai.prunable(network)
    hessian = lab.dense_hessian(network, batch, names, temperature)
    exact = lab.flat(pai.exact_diag(network, batch, temperature=temperature))
    np.testing.assert_allclose(hessian.diag(), exact, rtol=1e-10, atol=1e-18)
    assert torch.allclose(hessian, hessian.T)


def test_a_small_network_is_made_by_its_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, other = lab.small_network([3], seed=1), lab.small_network([3], seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1].weight, lab.small_network([3], seed=1)[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


@pytest.mark.parametrize("shuffle", [True, False])
def test_training_yields_after_the_steps_that_were_asked_for(data, shuffle):
    def weights(steps):
        networks = lab.trained(lab.small_network([3]), data, steps, 0.1, seed=0, shuffle=shuffle)
        return [network[1].weight.detach().clone() for network in networks]

    start, few, many = weights([0, 2, 30])
    assert torch.equal(start, lab.small_network([3])[1].weight)
    assert torch.equal(many, weights([30])[0])
    assert not torch.equal(few, many)


def test_training_is_that_of_the_library(data):
    network, other = (lab.small_network([3]) for _ in range(2))
    steps = -(-len(data.train_labels) // 64)
    next(lab.trained(network, data, [steps], 0.1, seed=0, weight_decay=5e-4))
    pai.train(other, data, epochs=1, batch_size=64, lr=0.1, seed=0, progress=False)
    np.testing.assert_allclose(network[1].weight.detach(), other[1].weight.detach(), atol=1e-12)


def test_saliency_is_obd_with_a_given_diagonal(data):
    network, batch = lab.small_network([3]), lab.double_batch(data, 1)
    scores = pai.score(network, batch, "exact_pruning")
    made = lab.saliency(network, pai.exact_diag(network, batch))
    np.testing.assert_allclose(lab.flat(made), lab.flat(scores))


def test_a_legend_names_once_what_several_panels_show():
    figure, grid = figures.plt.subplots(1, 2)
    for axes in grid:
        axes.plot([1, 10], [1, 2], label="one")
        lab.only_ticks(axes, [1, 10], ["1/1", "10/1"])
    grid[1].plot([1, 10], [2, 1], label="other")
    lab.legend_above(figure, 2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    assert [label.get_text() for label in grid[0].get_xticklabels()] == ["1/1", "10/1"]
    figures.plt.close(figure)


def test_a_sentence_is_shown_as_markdown(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    figures.say("one **two**")
    assert [sentence.data for sentence in shown] == ["one **two**"]


def test_every_committed_benchmark_names_its_machine():
    for benchmark in lab.benchmarks("curvature-*.json") + lab.benchmarks("estimators-*.json"):
        assert "torch" in lab.machine_of(benchmark)
