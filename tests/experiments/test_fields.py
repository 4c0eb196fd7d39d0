"""Every field of a specification changes what it is about, and nothing that comes before it in a run.

Each run is observed stage by stage; two specs that differ in one field must differ in the stages named here and be
equal to the last bit in all others. What the values mean is checked against loops and calls written out here.
"""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from conftest import quick

import pai_lib as pai
from pai_lib.experiments import run as runs
from pai_lib.experiments.spec import RunSpec, choices

BASE = RunSpec(
    dataset="digits", model="resnet8", width=2, criterion="hts", sparsity=0.5, samples_per_class=3, group=5,
    probes=2, temperature=1.0, warmup=2, epochs=4, batch_size=32, lr=0.1, train_fraction=0.1,
)  # fmt: skip
GRASP = replace(BASE, criterion="grasp")

# The stages of a run in their order: training and test images; the scoring batch; the network as it is built;
# batch-norm statistics and mask at scoring; the weights that training begins with; the logits of its first three
# steps; the learning rate of each epoch; the number of steps; the test loss.
STAGES = "images samples network statistics mask weights first second third rates steps result".split()
MASKED = {"mask", "first", "second", "third", "result"}  # a network trained under another mask
SEEN = {"samples", "statistics"} | MASKED  # other images, the same initial weights
BUILT = {"network", "statistics", "weights"} | MASKED
MOVED = {"second", "third", "result"}  # another first step, or the same with another length
PACED = {"rates", "result"}

CHANGES = [
    ("dataset", "digits32", {"images", "samples"} | BUILT),  # three channels
    ("model", "resnet20", BUILT),
    ("width", 3, BUILT),
    ("criterion", "snip", MASKED),
    ("variant", "released", MASKED),
    ("sparsity", 0.6, MASKED),
    ("scope", "layer", MASKED),
    ("scope", "erk", MASKED),
    ("scope", "smart_ratio", MASKED),
    ("scope", "equal", MASKED),
    ("scope", "equal_worth", MASKED),
    ("scope", "equal_worth_unsigned", MASKED),
    ("samples_per_class", 4, {"samples"} | MASKED),
    ("group", 4, MASKED),
    ("probes", 3, MASKED),
    ("temperature", 3.0, MASKED),
    ("rounds", 2, MASKED),
    ("warmup", 3, {"statistics"} | MASKED),
    ("control", "shuffle", MASKED),
    ("control", "invert", MASKED),
    ("control", "resample", {"samples"} | MASKED),
    ("control", "reinit", {"weights", "first", "second", "third", "result"}),
    ("epochs", 5, {"steps"} | PACED),
    ("batch_size", 40, {"statistics", "steps"} | MASKED),
    ("lr", 0.2, PACED | MOVED),
    ("momentum", 0.5, {"third", "result"}),
    ("weight_decay", 0.1, MOVED),
    ("lr_drops", (0.25,), PACED),
    ("lr_drop_factor", 0.5, PACED),
    ("precision", "bf16", {"first"} | MOVED),
    ("seed", 1, {"samples"} | BUILT),
    ("train_fraction", 0.12, {"images", "steps"} | SEEN),
    ("when", "trained", {"statistics", "weights"} | MASKED),
    ("optimizer", "adamw", MOVED),
    ("schedule", "cosine", PACED),
    ("lr_warmup", 1, PACED | MOVED),
    ("label_smoothing", 0.2, MOVED),
    ("image_size", 12, {"images"} | SEEN),
]


def copied(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors}


def observed(spec):
    """Run a spec and return what was seen at each stage."""
    seen, logits = {}, []

    def note(out):
        logits.append(out.detach().float())

    def build_model(*args, **options):
        model = plain["build_model"](*args, **options)
        model.register_forward_hook(lambda model, _, out: note(out) if model.training else None)
        seen.setdefault("network", copied(model.state_dict().items()))
        return model

    def effective_sparsity(model, mask, batch):
        seen.update(samples=list(batch), statistics=copied(model.named_buffers()), mask=mask)
        return plain["effective_sparsity"](model, mask, batch)

    def train(model, data, mask, **options):
        logits.clear()
        seen["images"] = [data.train_images, data.train_labels, data.test_images, data.test_labels]
        seen["weights"] = copied(model.named_parameters())
        return plain["train"](model, data, mask, **options)

    wrapped = {function.__name__: function for function in (build_model, effective_sparsity, train)}
    plain = {name: getattr(runs, name) for name in wrapped}
    with pytest.MonkeyPatch.context() as patch:
        for name, function in wrapped.items():
            patch.setattr(runs, name, function)
        result = quick(spec).result
    steps = dict(zip(("first", "second", "third"), logits, strict=False))
    return {**seen, **steps, "rates": result["curves"]["lr"], "steps": len(logits), "result": result["test_loss"]}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture(scope="module")
def base():
    return {spec: observed(spec) for spec in (BASE, GRASP)}


def test_every_field_and_every_choice_is_in_the_table():
    assert {name for name, _, _ in CHANGES} == {field.name for field in fields(RunSpec)}
    for name in ("scope", "control", "precision", "when", "optimizer", "schedule"):
        assert {value for field, value, _ in CHANGES if field == name} == {*choices(name)} - {getattr(BASE, name)}


def test_a_run_is_the_same_twice(base):
    assert list(base[BASE]) != []
    assert set(base[BASE]) == set(STAGES)
    again = observed(BASE)
    assert [stage for stage in STAGES if not same(base[BASE][stage], again[stage])] == []


@pytest.mark.parametrize(("name", "value", "stages"), CHANGES, ids=[f"{each[0]}-{each[1]}" for each in CHANGES])
def test_a_field_changes_what_it_is_about_and_nothing_else(base, name, value, stages):
    before = GRASP if name == "variant" else BASE
    changed = observed(replace(before, **{name: value}))
    assert {stage for stage in STAGES if not same(base[before][stage], changed[stage])} == stages


# --- what the values mean


SCORING = [
    {},
    {"criterion": "fisher_pruning", "group": 4, "temperature": 5.0},
    {"criterion": "hutchinson_pruning", "group": 7, "probes": 5, "temperature": None},
    {"criterion": "scaled_noise", "group": 30, "probes": 3, "scope": "layer"},
    {"criterion": "grasp", "variant": "released", "temperature": None, "sparsity": 0.7},
    {"criterion": "synflow", "variant": "released", "rounds": 5, "scope": "erk"},
    {"criterion": "exact_taylor", "rounds": 3, "temperature": 2.0, "samples_per_class": 4},
    {"criterion": "random", "seed": 7},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pai_lib.TiedScoresWarning")  # synaptic flow is zero where nothing passes
@pytest.mark.parametrize("values", SCORING, ids=lambda values: values.get("criterion", "hts"))
def test_a_runs_mask_is_that_of_calls_by_hand(values):
    spec = replace(BASE, **values)
    data = pai.load_data("digits").split(0.1)[0]
    model = pai.build_model("resnet8", 10, in_channels=1, width=2, seed=spec.seed)
    pai.warm_up(model, data, 2, 32, spec.seed)
    rule = pai.CRITERIA[spec.criterion]
    scoring = {"group": 5, "probes": 2, "temperature": 1.0, "variant": "cited"}
    options = {name: values.get(name, value) for name, value in scoring.items()}
    rounds, scope = values.get("rounds") or rule.rounds, values.get("scope", "global")
    batch = data.scoring_batch(values.get("samples_per_class", 3), spec.seed)
    generator = pai.random_stream(spec.seed, "scores")
    mask, sparsity = {}, values.get("sparsity", 0.5)
    initial = copied(model.named_parameters())
    for k in range(1, rounds + 1):
        scores = pai.score(model, batch, spec.criterion, generator=generator, **options)
        for name, kept in mask.items():
            scores[name][~kept] = -torch.inf
        density = 1 - sparsity ** (k / rounds) if spec.criterion == "synflow" else (1 - sparsity) ** (k / rounds)
        removed = sparsity if k == rounds else 1 - density
        finite = {name: score.clamp(min=torch.finfo(score.dtype).min) for name, score in scores.items()}
        mask = pai.make_mask(finite, removed, scope)
        with torch.no_grad():
            for name, kept in mask.items():
                model.get_parameter(name).copy_(initial[name] * kept)
    assert same(observed(spec)["mask"], mask)


def descended(model, data, spec, rates):
    """SGD with momentum and coupled weight decay, or AdamW, from their definitions, one step after the other."""
    theta = dict(model.named_parameters())
    first, second, step = dict.fromkeys(theta, 0.0), dict.fromkeys(theta, 0.0), 0
    order = pai.random_stream(spec.seed, "order")
    model.train()
    for rate in rates:
        for inputs, labels in data.epoch(spec.batch_size, order):
            step += 1
            target = F.one_hot(labels, 10) * (1 - spec.label_smoothing) + spec.label_smoothing / 10
            loss = -(target * model(inputs).log_softmax(1)).sum(1).mean()
            grads = torch.autograd.grad(loss, list(theta.values()))
            with torch.no_grad():
                for (name, p), g in zip(theta.items(), grads, strict=True):
                    if spec.optimizer == "sgd":
                        first[name] = spec.momentum * first[name] + g + spec.weight_decay * p
                        p -= rate * first[name]
                        continue
                    first[name] = spec.momentum * first[name] + (1 - spec.momentum) * g
                    second[name] = 0.999 * second[name] + 0.001 * g**2
                    size = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                    p *= 1 - rate * spec.weight_decay
                    p -= rate * first[name] / (1 - spec.momentum**step) / size


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"momentum": 0.0, "weight_decay": 0.0}, [0.1, 0.1, 0.02, 0.004]),
        ({"momentum": 0.5, "lr": 0.05, "lr_drops": (0.25,), "lr_drop_factor": 0.5}, [0.05, 0.025, 0.025, 0.025]),
        ({"weight_decay": 0.05, "epochs": 2, "batch_size": 50, "seed": 3}, [0.1, 0.02]),
        ({"label_smoothing": 0.3, "lr_warmup": 1, "lr_drops": ()}, [0.05, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine", "epochs": 2, "momentum": 0.8}, [0.1, 0.05]),
        ({"optimizer": "adamw", "momentum": 0.3, "lr": 0.01, "epochs": 1, "lr_drops": ()}, [0.01]),
        ({"optimizer": "adamw", "weight_decay": 5.0, "lr": 0.01, "epochs": 1, "lr_drops": ()}, [0.01]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_training_is_the_optimizers_definition_with_the_specs_values(values, rates):
    spec = replace(BASE, criterion="dense", sparsity=0.0, **values)
    data = pai.load_data("digits").split(0.1)[0]
    trained, reference = (pai.build_model("resnet8", 10, in_channels=1, width=2, seed=spec.seed) for _ in range(2))
    options = {name: getattr(spec, name) for name in runs._TRAINING}
    curves = pai.train(trained, data, None, batch_size=spec.batch_size, seed=spec.seed, progress=False, **options)
    descended(reference, data, spec, rates)
    assert curves["lr"] == pytest.approx(rates)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), p, rtol=1e-3, atol=1e-4)


# --- the last value that is allowed, and the first that is not


BOUNDS = [
    ("width", 1, 0),
    ("sparsity", 1e-9, -1e-9),
    ("sparsity", 1 - 1e-9, 1.0),
    ("samples_per_class", 1, 0),
    ("group", 1, 0),
    ("probes", 1, 0),
    ("temperature", 1e-9, 0.0),
    ("rounds", 1, 0),
    ("warmup", 0, -1),
    ("epochs", 1, 0),
    ("batch_size", 1, 0),
    ("lr", 1e-9, 0.0),
    ("momentum", 0.0, -1e-9),
    ("weight_decay", 0.0, -1e-9),
    ("lr_drops", (1e-9,), (0.0,)),
    ("lr_drops", (0.5, 1 - 1e-9), (0.5, 1.0)),
    ("lr_drop_factor", 1e-9, 0.0),
    ("seed", 0, -1),
    ("seed", 2**63 - 1, 2**63),
    ("train_fraction", 1e-9, 0.0),
    ("train_fraction", 1.0, 1 + 1e-9),
    ("lr_warmup", 0, -1),
    ("lr_warmup", 159, 160),
    ("label_smoothing", 0.0, -1e-9),
    ("label_smoothing", 1 - 1e-9, 1.0),
    ("image_size", 1, 0),
]


@pytest.mark.parametrize(("name", "allowed", "refused"), BOUNDS)
def test_a_bound_is_where_it_is_said_to_be(name, allowed, refused):
    assert getattr(RunSpec(**{name: allowed}), name) == allowed
    with pytest.raises(ValueError, match=f"{name}="):
        RunSpec(**{name: refused})


def test_every_number_has_bounds():
    numbers = {field.name for field in fields(RunSpec) if "int" in field.type or "float" in field.type}
    assert {name for name, _, _ in BOUNDS} == numbers


def test_bounds_that_depend_on_another_field():
    assert RunSpec(optimizer="adamw", momentum=1 - 1e-9).momentum < 1
    assert RunSpec(momentum=1.0).momentum == 1
    for rounds in (None, 1):
        assert RunSpec(control="invert", rounds=rounds).rounds == rounds
    for wrong in ({"optimizer": "adamw", "momentum": 1.0}, {"control": "invert", "rounds": 2}):
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            RunSpec(**wrong)
