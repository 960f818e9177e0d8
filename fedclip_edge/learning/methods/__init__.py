"""One paper, one file; the registry of methods by name, and what is asked of all of them alike."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning.method import Method, Personal, State
from fedclip_edge.learning.methods import (
    clip_adapter,
    fedclip,
    linear,
    lowrank,
    prototypes,
    ridge,
    tip_adapter,
    zeroshot,
)
from fedclip_edge.records import F32, ClassTexts, Features, Layout, Model, Plan, Shapes, Update

_METHODS: Mapping[str, Method] = {
    "clip-adapter": clip_adapter,
    "fedclip": fedclip,
    "linear": linear,
    "lowrank": lowrank,
    "prototypes": prototypes,
    "ridge": ridge,
    "tip-adapter": tip_adapter,
    "zeroshot": zeroshot,
}
_PERSONAL: Mapping[str, Personal] = {"tip-adapter": tip_adapter}


def get(name: str) -> Method:
    """The method of that name; raises ConfigError naming the nearest one."""
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_METHODS)}"
    raise ConfigError(f"unknown method {name!r}; {hint}")


def names() -> tuple[str, ...]:
    """Every method there is."""
    return tuple(_METHODS)


def settled(plan: Plan) -> Plan:
    """The plan with the method's own number of rounds where it names none.

    Raises ConfigError for an unknown method, an option that it does not have, and more rounds than
    it takes.
    """
    method = get(plan.method)
    method.check_options(plan.options)
    traits = method.TRAITS
    if traits.one_round and plan.rounds > 1:
        raise ConfigError(
            f"{plan.method} is done after one round, and the plan has {plan.rounds}; "
            "write rounds = 1, or leave it out"
        )
    return plan if plan.rounds else replace(plan, rounds=traits.rounds)


def initial(plan: Plan, classes: ClassTexts, dim: int) -> Model:
    """The model of round 0. Raises ConfigError for an unknown method or option."""
    return get(plan.method).initial(classes, dim, plan.seed, plan.options)


def layout(plan: Plan, classes: ClassTexts, dim: int) -> Layout:
    """What every model and update of a plan holds; raises ConfigError as `initial`."""
    return get(plan.method).layout(initial(plan, classes, dim))


def shapes(plan: Plan, classes: ClassTexts, dim: int) -> Shapes:
    """The terms that every model of a plan has, by name; raises ConfigError as `initial`."""
    return layout(plan, classes, dim).model


def fit(
    model: Model,
    features: Features,
    validation: Features,
    classes: ClassTexts,
    plan: Plan,
    state: State,
    seed: int,
) -> tuple[Update, State]:
    """The method's own `fit`, on features that were checked.

    Raises DataError where features cannot be of these classes, or of one encoder.
    """
    check_features(features, classes, "training features")
    check_features(validation, classes, "validation features")
    if validation.encoder_id != features.encoder_id:
        raise DataError(
            f"training features are of encoder {features.encoder_id[:12]}, validation features of "
            f"{validation.encoder_id[:12]}; encode both with one bundle"
        )
    return get(plan.method).fit(model, features, validation, classes, plan, state, seed)


def check_features(features: Features, classes: ClassTexts, what: str) -> None:
    """Raises DataError where `features` are not as wide as the texts, or have other labels."""
    width, known = classes.vectors.shape[1], len(classes.names)
    if features.vectors.shape[1] != width:
        raise DataError(
            f"{what} have {features.vectors.shape[1]} numbers each, the class texts {width}: they "
            "are of another encoder; encode the pictures with the bundle of the class texts"
        )
    if len(features) and features.labels.max() >= known:
        raise DataError(
            f"{what} have the label {features.labels.max()}, and there are {known} classes (labels "
            f"0 to {known - 1}); give the labels in the order of the class list"
        )


def personal(
    model: Model, features: Features, validation: Features, classes: ClassTexts, plan: Plan
) -> Model | None:
    """The device's own model beside the shared one, where the method has such; it is never sent.

    Raises DataError as `fit`.
    """
    if plan.method not in _PERSONAL:
        return None
    check_features(features, classes, "training features")
    check_features(validation, classes, "validation features")
    return _PERSONAL[plan.method].personal(model, features, validation, classes, plan)


def shapes_beside(model: Model, plan: Plan, classes: ClassTexts, dim: int) -> Shapes:
    """What this model must hold: the shapes of the plan's, or of a device's own by its size.

    Raises ConfigError for the shared model of a personal method: it is zero-shot CLIP, and who
    names it means another.
    """
    if plan.method not in _PERSONAL:
        return shapes(plan, classes, dim)
    if not model.terms:
        raise ConfigError(
            f"{plan.method} keeps what it learns on each device, and the run's own model is "
            "zero-shot CLIP; name the personal.safetensors in the device's state_dir"
        )
    return _PERSONAL[plan.method].personal_shapes(model, classes, dim)


def predict(model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Logits (N, C) of raw features (N, D), as the model's own method computes them.

    Raises ConfigError for an unknown method.
    """
    method = get(model.method)
    import torch

    with torch.inference_mode():
        terms = {name: torch.tensor(term) for name, term in model.terms.items()}
        texts = torch.tensor(classes.vectors)  # (C, D)
        logits = method.logits(terms, torch.tensor(vectors), texts, classes.logit_scale)  # (N, C)
    return np.asarray(logits.numpy(), np.float32)
