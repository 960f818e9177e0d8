"""The registry of methods, and properties that every method must have."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkout import ROOT
from in_memory import class_texts, features, nothing
from torch import nn

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask, Method
from fedclip_edge.learning.methods import fedclip, zeroshot
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.records import Arrays, Features, Model, Plan, Scalar, Update

NAMES = sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(methods.__path__))
TRAINED = [name for name in NAMES if methods.plan_layout(Plan(name), class_texts(), 8).delta]
D = 16
CLASSES = class_texts(dim=D)
NOTHING = nothing(D)


def bytes_of(terms: Arrays) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in terms.items()}


def trained(method: Method, model: Model, plan: Plan, devices: int = 2) -> Model:
    """The model after one round with that many devices."""
    total = ExactSum(plan)
    for i in range(devices):
        update = methods.fit(
            LocalTask(plan, model, features(20 + i, i, CLASSES), NOTHING, CLASSES, i)
        )
        total.add(update)
    return methods.combine(model, total, {})[0]


# --- the registry --------------------------------------------------------------------------------


def test_fedclip_and_the_line_beside_it_are_there() -> None:
    assert {"fedclip", "zeroshot"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_registered_under_its_name(name: str) -> None:
    method = methods.get(name)
    assert method.name == name
    assert method.logits.__module__.endswith("." + name.replace("-", "_"))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown method 'fedclp'; did you mean 'fedclip'"):
        methods.get("fedclp")


def test_a_method_like_none_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"known names: .*fedclip.*zeroshot"):
        methods.get("qqqq")


def test_a_registered_method_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    mine = replace(zeroshot.METHOD, name="mine")
    methods.register(mine)
    assert methods.get("mine") is mine
    assert methods.names()[-1] == "mine"
    assert methods.with_defaults(Plan("mine")).rounds == 1


def test_a_registered_method_does_not_replace_another() -> None:
    with pytest.raises(ValueError, match="there is a method 'fedclip' already"):
        methods.register(replace(zeroshot.METHOD, name="fedclip"))
    assert methods.get("fedclip") is fedclip.METHOD


def test_the_coordinators_half_of_every_method_loads_no_torch() -> None:
    script = f"""
import sys
import numpy as np
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.records import ClassTexts, Plan, Update

classes = ClassTexts(("a", "b"), np.eye(2, 8, dtype=np.float32), 100.0, "")
for name in {NAMES!r}:
    method = methods.get(name)
    method.check_options({{}})
    model = method.initial(classes, 8, 0)
    total = ExactSum(Plan("fedclip"))
    its = method.layout(model)
    sums = {{name: np.zeros(shape, np.int64) for name, shape in its.sums.items()}}
    total.add(Update("sum", 1, {{name: model.parameters[name] for name in its.delta}}, sums))
    methods.combine(model, total, {{}})
print(sorted({{"torch", "onnxruntime", "paho"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr.strip(), done.returncode) == ("[]", 0)  # logs go to standard output


# --- properties of every method ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_initial_model_is_the_seeds(name: str) -> None:
    method = methods.get(name)
    model = method.initial(CLASSES, D, 3)
    assert (model.method, model.round) == (name, 0)
    assert bytes_of(model.parameters) == bytes_of(method.initial(CLASSES, D, 3).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_sends_what_the_layout_says(name: str) -> None:
    """The wire format accepts nothing else."""
    method, plan = methods.get(name), Plan(name)
    model = method.initial(CLASSES, D, 0)
    before = bytes_of(model.parameters)
    update = methods.fit(LocalTask(plan, model, features(20, 1, CLASSES), NOTHING, CLASSES, 1))
    its = method.layout(model)
    assert {n: t.shape for n, t in model.parameters.items()} == its.parameters
    assert {n: t.shape for n, t in update.delta.items()} == its.delta
    assert {n: t.shape for n, t in update.sums.items()} == its.sums
    assert bytes_of(model.parameters) == before
    ExactSum(plan).check(update)  # no error: the update is within the default bounds


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_update(name: str) -> None:
    method, data = methods.get(name), features(40, 1, CLASSES)
    model = method.initial(CLASSES, D, 0)

    def update(seed: int) -> Update:
        return methods.fit(LocalTask(Plan(name), model, data, NOTHING, CLASSES, seed))

    assert bytes_of(update(1).delta) == bytes_of(update(1).delta)
    assert {n: s.tobytes() for n, s in update(1).sums.items()} == {
        n: s.tobytes() for n, s in update(1).sums.items()
    }
    if name in TRAINED:
        assert bytes_of(update(1).delta) != bytes_of(update(2).delta)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_gives_the_next_model(name: str) -> None:
    method, plan = methods.get(name), Plan(name)
    model = method.initial(CLASSES, D, 0)
    following = trained(method, model, plan)
    assert (following.method, following.round) == (name, 1)
    assert {n: t.shape for n, t in following.parameters.items()} == {
        n: t.shape for n, t in model.parameters.items()
    }
    if model.parameters:
        assert bytes_of(following.parameters) != bytes_of(model.parameters)
    if not method.traits.one_round:
        assert trained(method, following, plan).round == 2


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_logits_of_every_picture(name: str) -> None:
    method = methods.get(name)
    model = trained(method, method.initial(CLASSES, D, 0), Plan(name))
    data = features(60, 9, CLASSES, noise=0.2)
    before = data.vectors.tobytes()
    logits = methods.predict(model, data.vectors, CLASSES)
    assert logits.shape == (60, len(CLASSES.names))
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.mean(logits.argmax(axis=1) == data.labels) > 0.8
    assert data.vectors.tobytes() == before
    assert methods.predict(model, data.vectors[:0], CLASSES).shape == (0, len(CLASSES.names))


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_the_methods_own_formula_in_torch(name: str) -> None:
    """Training differentiates the formula with torch, and the classifier exports it."""
    method = methods.get(name)
    model = trained(method, method.initial(CLASSES, D, 0), Plan(name))
    vectors = features(9, 2, CLASSES).vectors
    terms = {n: torch.tensor(term, requires_grad=True) for n, term in model.parameters.items()}
    texts = torch.tensor(CLASSES.vectors)
    logits = method.logits(TORCH, terms, torch.tensor(vectors), texts, CLASSES.logit_scale)
    found = methods.predict(model, vectors, CLASSES)
    np.testing.assert_allclose(found, logits.detach().numpy(), rtol=0, atol=1e-4)
    alone = [methods.predict(model, row[None], CLASSES)[0] for row in vectors]
    np.testing.assert_allclose(np.stack(alone), logits.detach().numpy(), atol=1e-3)
    if name in TRAINED:
        sent = [terms[n] for n in method.layout(model).delta]
        gradients = torch.autograd.grad(logits.square().sum(), sent)
        assert all(gradient.any() for gradient in gradients)


def test_a_model_of_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown method 'fedclp'"):
        methods.predict(Model("fedclp", 0, {}), features(2, 1, CLASSES).vectors, CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_without_options_is_good(name: str) -> None:
    methods.get(name).check_options({})


@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_a_method_does_not_have_is_refused(name: str) -> None:
    method = methods.get(name)
    with pytest.raises(ConfigError, match=f"{name} options: unknown key 'qqqq'"):
        method.check_options({"qqqq": 1})


# --- fedclip -------------------------------------------------------------------------------------


def test_fedclip_starts_as_torchs_linear_does() -> None:
    """The reference's state_dict: uniform within 1/sqrt(D), and different for each seed."""
    dim = 64
    terms = fedclip.METHOD.initial(CLASSES, dim, 3).parameters
    gate = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=1))
    assert {n: t.shape for n, t in terms.items()} == {
        n: tuple(t.shape) for n, t in gate.state_dict().items()
    }
    bound = 1 / np.sqrt(dim)
    for name, term in terms.items():
        assert term.dtype == np.float32
        assert np.abs(term).max() <= np.float32(bound)
        assert np.abs(term).max() > 0.9 * bound
        assert abs(float(term.mean())) < 0.2 * bound
        # The deviation of a uniform distribution; 64 to 4096 draws are within a quarter of it.
        assert float(term.std()) == pytest.approx(bound / np.sqrt(3), rel=0.25)
        assert bytes_of(fedclip.METHOD.initial(CLASSES, dim, 4).parameters)[name] != term.tobytes()
    assert bytes_of(terms)["0.weight"] != bytes_of(terms)["2.weight"]


def test_fedclip_at_its_start_is_nearly_zero_shot() -> None:
    """The initial gate is nearly uniform, so features keep their direction: cosine 0.99."""
    dim = 512
    classes = class_texts(dim=dim)
    data = features(50, 1, classes, noise=0.02)
    model = fedclip.METHOD.initial(classes, dim, 0)
    asked = (data.vectors, classes)
    zero_shot = methods.predict(zeroshot.MODEL, *asked)
    difference = np.abs(methods.predict(model, *asked) - zero_shot)
    assert 0.01 < difference.max() < 0.1 * classes.logit_scale


@pytest.mark.parametrize(("weighting", "weight"), [("uniform", 1), ("pictures", 40)])
def test_fedclip_sends_the_weighted_change(weighting: str, weight: int) -> None:
    model, data = fedclip.METHOD.initial(CLASSES, D, 0), features(40, 1, CLASSES)
    plain = methods.fit(LocalTask(Plan("fedclip"), model, data, NOTHING, CLASSES, 1))
    update = methods.fit(
        LocalTask(
            Plan("fedclip", options={"weighting": weighting}), model, data, NOTHING, CLASSES, 1
        )
    )
    assert (update.kind, update.weight, plain.weight) == ("sum", weight, 1)
    for name, term in update.delta.items():
        np.testing.assert_array_equal(term, np.float32(weight) * plain.delta[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1e-3}, "unknown key 'learning_rate'"),
        ({"weight_decy": 0.1}, "unknown key 'weight_decy'; did you mean 'weight_decay'"),
        ({"epoch": 2}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"lr": 0.0}, "lr: expected above 0 and at most 1, got 0.0"),
        ({"lr": -1e-3}, "lr: expected above 0"),
        ({"lr": 1.5}, "lr: expected above 0 and at most 1"),
        ({"lr": float("nan")}, "lr: expected above 0"),
        ({"lr": "fast"}, "lr: expected float, got str 'fast'"),
        ({"eps": 0.0}, "eps: expected above 0"),
        ({"beta1": 1.0}, "beta1, beta2: expected at least 0 and below 1, got 1.0 and"),
        ({"beta2": -0.1}, "beta1, beta2: expected"),
        ({"weight_decay": -0.1}, "weight_decay: expected 0 to 10, got -0.1"),
        ({"weight_decay": float("inf")}, "weight_decay: expected 0 to 10"),
        ({"batch_size": 1}, "batch_size: expected 2 or more, got 1"),
        ({"batch_size": 32.0}, "batch_size: expected int, got float"),
        ({"batch_size": True}, "batch_size: expected int, got bool"),
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"loss": "triplet"}, "loss: expected 'contrastive' or .*, got 'triplet'"),
        ({"optimizer": "rmsprop"}, "optimizer: expected 'adam' or .*'sgd', got 'rmsprop'"),
        ({"proximal_mu": -1.0}, "proximal_mu: expected 0 to 1e6, got -1.0"),
        ({"weighting": "n"}, "weighting: expected 'uniform' or 'pictures', got 'n'"),
    ],
)
def test_fedclip_says_what_is_wrong_with_an_option(
    options: dict[str, Scalar], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"fedclip options: {message}"):
        fedclip.METHOD.check_options(options)


def test_fedclips_defaults_are_the_references() -> None:
    options = fedclip.METHOD.check_options({})
    assert (options.lr, options.beta1, options.beta2, options.eps) == (5e-5, 0.9, 0.98, 1e-6)
    assert (options.weight_decay, options.batch_size, options.epochs) == (0.2, 32, 1)
    assert (options.loss, options.optimizer) == ("contrastive", "adam")
    assert (options.weighting, options.proximal_mu) == ("uniform", 0.0)


def test_fit_takes_the_plans_options() -> None:
    model, data = fedclip.METHOD.initial(CLASSES, D, 0), features(40, 1, CLASSES)
    with pytest.raises(ConfigError, match="unknown key 'lrr'; did you mean 'lr'"):
        methods.fit(
            LocalTask(Plan("fedclip", options={"lrr": 1.0}), model, data, NOTHING, CLASSES, 1)
        )


@pytest.mark.one_python
def test_diverged_training_is_said_not_sent() -> None:
    model = fedclip.METHOD.initial(CLASSES, D, 0)
    plan = Plan(
        "fedclip", options={"optimizer": "adamw", "lr": 1.0, "weight_decay": 10.0, "epochs": 60}
    )
    with pytest.raises(ConfigError, match=r"diverged in round 1 \(.*; lower lr"):
        methods.fit(LocalTask(plan, model, features(40, 0, CLASSES), NOTHING, CLASSES, 1))


# --- rounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_that_names_no_rounds_gets_the_methods_own(name: str) -> None:
    own = methods.get(name).traits.rounds
    assert methods.with_defaults(Plan(name)).rounds == own >= 1
    assert methods.with_defaults(Plan(name, rounds=own)) == Plan(name, rounds=own)


@pytest.mark.parametrize("name", NAMES)
def test_more_rounds_than_a_method_takes_are_refused(name: str) -> None:
    if methods.get(name).traits.one_round:
        with pytest.raises(ConfigError, match=f"{name} trains in a single round.*write rounds = 1"):
            methods.with_defaults(Plan(name, rounds=2))
    else:
        assert methods.with_defaults(Plan(name, rounds=2)).rounds == 2


def test_a_plan_is_refused_for_its_method_and_its_options() -> None:
    with pytest.raises(ConfigError, match="unknown method 'fedclp'"):
        methods.with_defaults(Plan("fedclp"))
    with pytest.raises(ConfigError, match="zeroshot options: unknown key 'lr'"):
        methods.with_defaults(Plan("zeroshot", {"lr": 0.1}))


# --- invalid features ----------------------------------------------------------------------------


def fit_of(train: Features, validation: Features) -> None:
    methods.fit(
        LocalTask(
            Plan("fedclip"), fedclip.METHOD.initial(CLASSES, D, 0), train, validation, CLASSES, 0
        )
    )


def test_a_label_outside_the_class_list_is_refused() -> None:
    data = features(20, 1, CLASSES)
    beyond = Features(data.vectors, np.full(20, len(CLASSES.names), np.int64), data.encoder_id)
    for sides, what in (((beyond, data), "training"), ((data, beyond), "validation")):
        with pytest.raises(
            DataError, match=rf"{what} features have the label 3, but there are only 3"
        ):
            fit_of(*sides)


def test_features_of_another_encoder_are_refused() -> None:
    data = features(20, 1, CLASSES)
    with pytest.raises(
        DataError, match=r"have width 16, but the class texts have width 8: .*another encoder"
    ):
        methods.check_features(data, class_texts(dim=8), "training features")
    with pytest.raises(
        DataError, match="from the encoder eeeeeeeeeeee, but the validation features from fff"
    ):
        fit_of(data, Features(data.vectors, data.labels, "f" * 64))


# --- devices with little to learn from -----------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_change_nothing(name: str, count: int) -> None:
    plan = Plan(name, {"weighting": "pictures"})
    model, data = methods.initial(plan, CLASSES, D), features(count, 1, CLASSES)
    update = methods.fit(LocalTask(plan, model, data, NOTHING, CLASSES, 0))
    assert update.weight == 1
    assert not any(term.any() for term in update.delta.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_device_of_one_class_takes_part(name: str) -> None:
    plan, data = Plan(name), features(60, 1, CLASSES)
    one = data.labels == 1
    only = Features(data.vectors[one], data.labels[one], data.encoder_id)
    model, total = methods.initial(plan, CLASSES, D), ExactSum(plan)
    for side in (only, features(60, 2, CLASSES)):
        total.add(methods.fit(LocalTask(plan, model, side, NOTHING, CLASSES, 0)))
    following, _ = methods.combine(model, total, {})
    logits = methods.predict(following, data.vectors, CLASSES)
    assert np.isfinite(logits).all()
    assert np.mean(logits.argmax(axis=1) == data.labels) > 0.5


def test_features_that_are_no_numbers_are_refused() -> None:
    data = features(4, 1, CLASSES)
    data.vectors[2, 3] = np.nan
    with pytest.raises(ValueError, match="feature vectors: contains NaN or infinity"):
        Features(data.vectors, data.labels, data.encoder_id)
