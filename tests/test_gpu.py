"""A real GPU gives the CPU's numbers within rounding; and what only it can show: speed-ups, memory, waits.

``PAI_TEST_DEVICE=cpu`` runs the same tests on the CPU, to see that they run. Rounding: in float64, sums in another
order leave 1e-9 of the largest entry; in float32, without TF32, 1e-3 of the norm; bf16 has 8 bits.
"""

import os
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import SPEC
from own_models import MODELS, seeded
from torch import nn

import pai_lib as pai
from pai_lib.experiments import run as runs
from pai_lib.training.checkpoint import Checkpoint
from pai_lib.training.loop import TrainingStoppedError

DEVICE = torch.device(os.environ.get("PAI_TEST_DEVICE", "cuda"))
CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # what a GPU warns of has not been seen yet
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]
on_cuda = pytest.mark.skipif(not CUDA, reason="it is about CUDA")


@pytest.fixture(autouse=True)
def _true_float32():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in flags]
    for each in flags:
        each.allow_tf32 = False
    yield
    for each, value in zip(flags, before, strict=True):
        each.allow_tf32 = value


def in_float64(name):
    model, batch = seeded(name)
    return model.double(), pai.Batch(batch.inputs.double(), batch.labels)


def difference(found, expected):
    """Largest difference over the largest entry, over all parameters."""
    assert found.keys() == expected.keys()
    assert all(value.device.type == DEVICE.type for value in found.values())
    largest = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[n].cpu() - value).abs().max()) for n, value in expected.items()) / largest


ESTIMATORS = {
    "gradient": lambda model, batch: pai.gradient(model, batch, chunk=4),
    "hessian": lambda model, batch: pai.hessian_vector_product(model, batch, pai.gradient(model, batch)),
    "fisher": lambda model, batch: pai.fisher_diag(model, batch, chunk=4),
    "groups": lambda model, batch: pai.fisher_diag(model, batch, 4),
    "ggn": lambda model, batch: pai.ggn_diag(model, batch, chunk=4),
    "drawn": lambda model, batch: pai.ggn_diag(model, batch, "mc"),
    "exact": pai.exact_diag,
    "hutchinson": lambda model, batch: pai.hutchinson_diag(model, batch, 2, 3, distribution="normal"),
    "row norm": lambda model, batch: pai.hessian_row_norm(model, batch, 3, 1),
    "flow": pai.synaptic_flow,
}


def outcome(function, *inputs, **options):
    try:
        return function(*inputs, **options)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_in_float64(name, model):
    network, batch = in_float64(model)
    expected = outcome(ESTIMATORS[name], network, batch)
    found = outcome(ESTIMATORS[name], network.to(DEVICE), batch.to(DEVICE))
    if isinstance(expected, str):
        assert found == expected
    else:
        assert difference(found, expected) <= 1e-9


@pytest.mark.filterwarnings("ignore::UserWarning")  # of ties in scores so few
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("key", pai.CRITERIA)
def test_masks_of_every_criterion(key, model):
    network, batch = in_float64(model)
    expected = outcome(pai.prune, network, batch, key, 0.5)
    found = outcome(pai.prune, network.to(DEVICE), batch.to(DEVICE), key, 0.5)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert pai.jaccard(found, expected) >= 0.97  # of scores that are equal, rounding decides


@pytest.mark.parametrize("name", ["gradient", "fisher", "exact", "hutchinson"])
def test_estimators_in_float32(name):
    model, batch = seeded("convolutional")
    expected = ESTIMATORS[name](model, batch)
    found = ESTIMATORS[name](model.to(DEVICE), batch.to(DEVICE))
    for parameter, value in expected.items():
        assert (found[parameter].cpu() - value).norm() <= 1e-3 * value.norm()


@on_cuda
def test_a_generator_may_be_of_either_device():
    model, batch = in_float64("convolutional")
    for generator, device in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        there, of_it = model.to(device), batch.to(device)

        def drawn(generator=generator, there=there, of_it=of_it):
            source = torch.Generator(generator).manual_seed(3)
            options = {"generator": source}
            diagonals = [pai.ggn_diag(there, of_it, "mc", **options), pai.hutchinson_diag(there, of_it, **options)]
            mask = pai.prune(there, of_it, "random", 0.5, **options)
            return [*diagonals, mask, pai.shuffle_within_layers(mask, source)]

        for one, two in zip(drawn(), drawn(), strict=True):
            assert all(torch.allclose(one[n].double(), two[n].double()) for n in one)


def test_a_mask_from_a_file(tmp_path):
    model, batch = in_float64("convolutional")
    mask = pai.prune(model, batch, "snip", 0.5)
    pai.save_mask(mask, tmp_path / "mask")
    loaded, there = pai.load_mask(tmp_path / "mask"), model.to(DEVICE)
    own = pai.prune(there, batch.to(DEVICE), "snip", 0.5)
    assert pai.jaccard(own, loaded) == pai.shared_fraction(loaded, own) == 1
    assert pai.effective_sparsity(there, loaded, batch.to(DEVICE)) == pai.effective_sparsity(
        there, own, batch.to(DEVICE)
    )
    pruned = pai.to_torch_prune(there, loaded)
    assert pruned(batch.to(DEVICE).inputs).device.type == DEVICE.type
    assert all(not pruned.get_parameter(f"{n}_orig").isnan().any() for n in mask)


# --- training

RECIPES = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine"},
}


def fit(device, model="convolutional", **options):
    data = pai.load_data("digits").split(0.2)[0].to(device)
    network, batch = seeded(model)
    mask = pai.prune(network, batch, "random", 0.5)
    network.to(device)
    curves = pai.train(network, data, mask, epochs=2, batch_size=64, progress=False, **options)
    for name, kept in mask.items():
        assert not network.get_parameter(name)[~kept.to(device)].any()
    return curves


@pytest.mark.parametrize("recipe", RECIPES)
def test_fused_optimizers_descend_as_others_do(recipe):
    expected, found = fit("cpu", **RECIPES[recipe]), fit(DEVICE, **RECIPES[recipe])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert found["lr"] == expected["lr"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16_autocast(recipe):
    whole, half = fit(DEVICE, **RECIPES[recipe]), fit(DEVICE, precision="bf16", **RECIPES[recipe])
    assert half["loss"] == pytest.approx(whole["loss"], rel=5e-2)
    assert half["loss"] != whole["loss"]


@on_cuda  # on a CPU it compiles for minutes
@pytest.mark.skipif(not shutil.which("gcc"), reason="torch.compile needs a C compiler")
def test_a_compiled_model():
    plain, compiled = fit(DEVICE), fit(DEVICE, compile=True)
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=2e-2)


def perform(spec, **options):
    return runs.perform(spec, pai.load_data("digits"), DEVICE, **options)


KINDS = {
    "exact": {"criterion": "exact_taylor"},
    "trained": {"criterion": "magnitude", "when": "trained"},
    "erk": {"criterion": "random", "scope": "erk"},
    "rounds": {"criterion": "synflow", "rounds": 5},
    **{control: {"control": control} for control in ("invert", "shuffle", "reinit")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_record_of_a_run_on_the_cpu(kind):
    spec = replace(SPEC, **KINDS[kind])
    expected, found = runs.perform(spec, pai.load_data("digits"), torch.device("cpu")).result, perform(spec).result
    for key in ("parameters", "collapsed", "warmup_updates"):
        assert found[key] == expected[key]
    assert found["density"] == pytest.approx(expected["density"], abs=0.02)
    assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=0.1)


def test_a_run_goes_on(tmp_path):
    spec, path, asked = replace(SPEC, epochs=3), tmp_path / "run.safetensors", iter([False, True])
    whole = perform(spec)
    with pytest.raises(TrainingStoppedError):
        perform(spec, checkpoint=path, stop=lambda: next(asked))
    resumed = perform(spec, checkpoint=path)
    assert [piece["epoch"] for piece in resumed.provenance["resumed"]] == [1]
    assert resumed.result["density"] == whole.result["density"]
    # cuDNN's sums have no fixed order
    assert resumed.result["curves"]["loss"] == pytest.approx(whole.result["curves"]["loss"], rel=1e-2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_devices_own_random_state_goes_on(tmp_path, recipe):
    path, asked = tmp_path / "run.safetensors", iter([False, True])
    data = pai.load_data("digits").split(0.2)[0].to(DEVICE)

    def dropping(**options):
        torch.manual_seed(0)  # on every device
        layers = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)]
        options = {"epochs": 3, "batch_size": 64, "progress": False, **RECIPES[recipe], **options}
        return pai.train(nn.Sequential(*layers).to(DEVICE), data, **options)

    whole = dropping()
    with pytest.raises(TrainingStoppedError):
        dropping(checkpoint=Checkpoint(path, {}), stop=lambda: next(asked))
    torch.rand(3, device=DEVICE)
    assert dropping(checkpoint=Checkpoint(path, {}))["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@on_cuda
def test_peak_memory_is_the_runs_own():
    before = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    del before
    first, second = (perform(SPEC).result["peak_memory_bytes"] for _ in range(2))
    assert 0 < first < 2**30
    assert second == pytest.approx(first, rel=0.1)


@on_cuda
def test_the_host_does_not_wait_inside_an_epoch():
    there = seeded("convolutional")[0].to(DEVICE)
    data = pai.load_data("digits").split(0.2)[0].to(DEVICE)

    def waits(**options):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                pai.train(there, data, epochs=1, progress=False, precision="bf16", **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in seen)

    waits(batch_size=64)  # what is made once
    assert waits(batch_size=16) == waits(batch_size=64)
