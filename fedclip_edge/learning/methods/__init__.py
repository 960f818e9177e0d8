"""The registry of methods by name, one file for each paper, and calls that work for all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedclip_edge.config.reading import unknown
from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning import gate, mixture, strategies
from fedclip_edge.learning.method import LocalTask, Logits, Method, scores
from fedclip_edge.learning.methods import (
    auto,
    clip_adapter,
    faa_clip,
    facmic,
    fedclip,
    fedot,
    gda,
    linear,
    lowrank,
    ridge,
    tip_adapter,
    tofa,
    zeroshot,
)
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.learning.unknown import rule_of, rule_shapes
from fedclip_edge.learning.unknown import scores as unknown_scores
from fedclip_edge.records import F32, ClassTexts, Features, Layout, Model, Plan, Shapes, Update

_METHODS: dict[str, Method] = {
    its.METHOD.name: its.METHOD
    for its in (
        auto,
        clip_adapter,
        faa_clip,
        facmic,
        fedclip,
        fedot,
        gda,
        linear,
        lowrank,
        ridge,
        tip_adapter,
        tofa,
        zeroshot,
    )
}


def get(name: str) -> Method:
    """Return the method `name`; raises ConfigError with the nearest name if there is none."""
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]


def names() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(_METHODS)


def register(method: Method) -> None:
    """Add a method to the table of this process; raises ValueError if its name is taken.

    It is for experiments in one process. A method for a fleet has a file in this package and an
    entry in the table, because the coordinator, the devices and worker processes all need it.
    """
    if method.name in _METHODS:
        raise ValueError(f"there is a method {method.name!r} already; choose another name")
    _METHODS[method.name] = method


def with_defaults(plan: Plan) -> Plan:
    """Check a plan and, if it gives no number of rounds, fill in the method's own number.

    Raises ConfigError for an unknown method, strategy or option, a value out of range, more rounds
    than the method allows, and settings that do not fit together.
    """
    method = get(plan.method)
    options = method.check_options(plan.options)
    traits = method.traits
    if traits.one_round and plan.rounds > 1:
        raise ConfigError(
            f"{plan.method} trains in a single round, but the plan has {plan.rounds} rounds; "
            "write rounds = 1, or leave it out"
        )
    strategies.options(plan)
    if plan.strategy != strategies.DEFAULT:
        _check_strategy(plan, options)
    if plan.personal_epochs and not (traits.is_averaged or traits.one_round):
        raise ConfigError(f"{plan.method} trains nothing; leave out personal_epochs")
    if plan.personal_epochs and method.personal is not None:
        raise ConfigError(
            f"{plan.method} already makes a personal model on each device; leave out personal_epochs"
        )
    if plan.personal_epochs and traits.learns_from_validation:
        raise ConfigError(
            f"{plan.method} learns from validation pictures too, so no picture is left that could "
            "choose a personal model; leave out personal_epochs"
        )
    if plan.personal_epochs > 1 and traits.one_round:
        raise ConfigError(
            f"{plan.method} computes its model in one step, so further epochs change nothing; "
            "write personal_epochs = 1"
        )
    plan = plan if plan.rounds else replace(plan, rounds=traits.rounds)
    if method.stages is not None:
        method.stages(plan)  # raises ConfigError
    return plan


def min_per_class(plan: Plan) -> int:
    """The plan's own floor on the pictures of a class; 1 for a method without such an option.

    Raises ConfigError for an unknown method or option, or a value out of range.
    """
    options = get(plan.method).check_options(plan.options)
    return int(getattr(options, "min_per_class", 1))


def _check_strategy(plan: Plan, options: object) -> None:
    if not get(plan.method).traits.is_averaged:
        raise ConfigError(
            f"the strategy {plan.strategy} combines changes of a model, but {plan.method} sends "
            "none; leave out strategy"
        )
    assert isinstance(options, Training)  # true for every averaged method
    strategy = strategies.get(plan.strategy)
    if strategy.is_uniform and options.weighting != "uniform":
        raise ConfigError(
            f"the strategy {plan.strategy} gives every device the same weight; write "
            'weighting = "uniform" under [plan.options]'
        )


def initial(plan: Plan, classes: ClassTexts, dim: int) -> Model:
    """Make the model of round 0 for features of width `dim`.

    Raises ConfigError for an unknown method or a bad option.
    """
    return get(plan.method).initial(classes, dim, plan.seed, plan.options)


def plan_layout(plan: Plan, classes: ClassTexts, dim: int) -> Layout:
    """Names and shapes in every model and update of a plan.

    Raises the errors of `initial`.
    """
    return get(plan.method).layout(initial(plan, classes, dim))


def shapes(plan: Plan, classes: ClassTexts, dim: int) -> Shapes:
    """Shapes of the parameters of every model of a plan; raises the errors of `initial`."""
    return plan_layout(plan, classes, dim).parameters


def fit(task: LocalTask) -> Update:
    """Check the features of a device, then make its update with the method of the plan.

    Raises DataError if the features do not fit the classes, if training and validation features are
    from different encoders, or if there are too many pictures for exact sums. Raises ConfigError
    for a bad option and if training diverges.
    """
    _check_task(task)
    plan, method = task.plan, get(task.plan.method)
    update = method.fit(task, method.check_options(plan.options))
    kind = strategies.get(plan.strategy).kind
    return replace(_capped(update, plan.max_weight), kind=kind)


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Make the model of the next round, and the coordinator's state, from all updates of a round.

    `state` holds float32 arrays by name, and is empty before the first round.
    """
    method = get(model.method)
    return method.combine(model, total, state, method.check_options(total.plan.options))


def _capped(update: Update, most: int) -> Update:
    """Lower the weight of a delta to `most`; that of sums over pictures is their count."""
    if update.weight <= most or update.sums:
        return update
    part = np.float32(most / update.weight)
    return replace(update, weight=most, delta={n: part * term for n, term in update.delta.items()})


def _check_task(task: LocalTask) -> None:
    check_features(task.train, task.classes, "training features")
    check_features(task.validation, task.classes, "validation features")
    if task.validation.encoder_id != task.train.encoder_id:
        raise DataError(
            f"the training features are from the encoder {task.train.encoder_id[:12]}, but the "
            f"validation features from {task.validation.encoder_id[:12]}; encode both with one "
            "bundle"
        )


def check_features(features: Features, classes: ClassTexts, what: str) -> None:
    """Check that features have the width of the class texts and labels from 0 to C - 1.

    Raises DataError otherwise; `what` names the features in its message.
    """
    width, known = classes.vectors.shape[1], len(classes.names)
    if features.vectors.shape[1] != width:
        raise DataError(
            f"{what} have width {features.vectors.shape[1]}, but the class texts have width "
            f"{width}: they are from another encoder; encode the pictures with the bundle of the "
            "class texts"
        )
    if len(features) and features.labels.max() >= known:
        raise DataError(
            f"{what} have the label {features.labels.max()}, but there are only {known} classes "
            f"(labels 0 to {known - 1}); use the index of each class in the class list as its label"
        )


def personal(task: LocalTask) -> Model | None:
    """Make the device's own model if the method is personal, otherwise return None.

    The model is never sent. Raises DataError if the features do not fit the classes, and
    ConfigError for a bad option.
    """
    method = get(task.plan.method)
    if method.personal is None:
        return None
    _check_task(task)
    return method.personal.make(task, method.check_options(task.plan.options))


def shapes_beside(model: Model, plan: Plan, classes: ClassTexts, dim: int) -> Shapes:
    """Compute the shapes that the parameters of `model`, a model of the plan, must have.

    The model may be a shared one, a mixture (mixture.py) or a personal one (gate.py), and may have
    a rule for unknown pictures (unknown.py). The shapes of a personal model may depend on the
    number of pictures in it. Raises the errors of `initial`. Raises ConfigError for the shared
    model of a method whose shared model is zero-shot CLIP: the user probably meant the file of a
    device.
    """
    if get(plan.method).personal is not None and not model.parameters:
        raise ConfigError(
            f"{plan.method} keeps a separate model on each device, and the model of the run is "
            "zero-shot CLIP; give the personal.safetensors in a device's state_dir instead"
        )
    if not gate.is_in(model):
        return _shapes_of(model, plan, classes, dim)
    shared, own = (
        _shapes_of(part(model), plan, classes, dim) for part in (gate.shared_of, gate.own_of)
    )
    return gate.shapes(shared, own, len(classes.names), dim)


def _shapes_of(model: Model, plan: Plan, classes: ClassTexts, dim: int) -> Shapes:
    """Compute the shapes of a shared model, or of a device's own without its gate."""
    rule, own = rule_shapes(model.parameters), get(plan.method).personal
    if own is not None:
        return own.shapes(model, classes, dim) if model.parameters else {}
    if not mixture.is_one(model):
        return {**shapes(plan, classes, dim), **rule}
    labels = mixture.shares_of(model)
    heads = {label: _head(label, plan, classes, dim) for label in labels}
    return {**mixture.shapes(heads), **rule}


def _head(label: str, plan: Plan, classes: ClassTexts, dim: int) -> Shapes:
    """Compute the shapes of a member of a mixture; there are none in a member of another plan."""
    method = get(plan.method)
    for stage in (plan,) if method.stages is None else method.stages(plan):
        if stage.method == mixture.method_of(label):
            return shapes(stage, classes, dim)
    return {}


def predict(model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Compute logits float32 (N, C) of raw features float32 (N, D) with the model's own method.

    Raises ConfigError for an unknown method.
    """
    return scores(logits_of(model), model, vectors, classes)


def scores_of(model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Compute the scores float32 (N,) of unknown.py for raw features float32 (N, D).

    A model with a gate has those of the shared model in it, with which its rule was measured.
    Raises ConfigError for an unknown method.
    """
    logits = predict(gate.shared_of(model), vectors, classes)  # (N, C)
    zero_shot = predict(zeroshot.MODEL, vectors, classes)  # (N, C)
    gain = rule_of(model.parameters).gain
    return unknown_scores(logits, zero_shot, classes.logit_scale, gain)


def logits_of(model: Model) -> Logits:
    """Return the `logits` function for a model; raises ConfigError for an unknown method."""
    if gate.is_in(model):
        return gate.logits(logits_of(gate.shared_of(model)), logits_of(gate.own_of(model)))
    own = get(model.method).logits
    return mixture.logits(lambda name: get(name).logits) if mixture.is_one(model) else own
