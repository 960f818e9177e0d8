"""The three kinds of method. Each function makes a `Method` from what differs within its kind.

- averaged: devices train parameters by gradients and send the change; a strategy combines them.
- closed form: devices send exact moments (moments.py), and the coordinator solves once.
- untrained: devices send nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning import moments, strategies
from fedclip_edge.learning.method import LocalTask, Logits, Method, Personal, Traits
from fedclip_edge.learning.moments import F64, Moments
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import Arrays, ClassTexts, Layout, Model, Shapes, Update

# Models travel as float16 by default, which ends at 65504; CLIP's own logits are at most 100.
_LARGEST = 2.0**15
# Takes the class texts, the width of the features, the seed and the options.
InitialParameters = Callable[[ClassTexts, int, int, Any], Arrays]


def averaged(
    name: str,
    options: type[Training],
    initial_parameters: InitialParameters,
    logits: Logits,
    *,
    fixed: Collection[str] = (),
) -> Method:
    """Make a method that is trained by gradients and averaged by the plan's strategy.

    All parameters are trained and sent, except those that `fixed` names. The loss is that of the
    options: cross-entropy, if they have no `loss`.
    """

    def layout(model: Model) -> Layout:
        shapes = _shapes(model)
        return Layout(shapes, {name: its for name, its in shapes.items() if name not in fixed})

    def fit(task: LocalTask, options: Training) -> Update:
        from fedclip_edge.learning.training import change

        return change(task, logits, options, fixed)

    def combine(model: Model, total: Total, state: State, options: Any) -> tuple[Model, State]:
        return strategies.step(model, total, state)

    traits = Traits(is_averaged=True)
    return Method(name, options, initial_parameters, layout, fit, combine, logits, traits)


def closed_form(
    name: str,
    options: type[Any],
    initial_parameters: InitialParameters,
    logits: Logits,
    solve: Callable[[Arrays, Moments, Moments, Any], Arrays],
    *,
    learns_from_validation: bool = False,
) -> Method:
    """Make a method of one round that is solved from the sums of all devices.

    `solve` takes the initial parameters, the moments of all training and of all validation
    pictures, and the options; it returns the parameters of the result. There is at least one
    training picture; without any, the model stays as it is. A parameter `weight` is (C, D). The
    options have `min_per_class`.
    """

    def layout(model: Model) -> Layout:
        classes, dim = model.parameters["weight"].shape
        return Layout(_shapes(model), {}, moments.sum_shapes(classes, dim))

    def fit(task: LocalTask, options: Any) -> Update:
        least = options.min_per_class
        return moments.update(task.train, task.validation, len(task.classes.names), least)

    def combine(model: Model, total: Total, state: State, options: Any) -> tuple[Model, State]:
        following = replace(model, round=model.round + 1)
        if not total.sums or not total.sums["train.counts"].any():
            log.event("solved_without_pictures", method=name, model="zero-shot")
            return following, state
        train, validation = moments.received(total.sums)
        found = solve(model.parameters, train, validation, options)
        return replace(following, parameters=found), state

    traits = Traits(
        rounds=1,
        one_round=True,
        sends_moments=True,
        learns_from_validation=learns_from_validation,
    )
    return Method(name, options, initial_parameters, layout, fit, combine, logits, traits)


def within_float16(weight: F64, bias: F64) -> tuple[F64, F64]:
    """Scale a linear head (C, D) and its bias (C,) down if float16 cannot hold their numbers.

    The scale changes no prediction. Without it, a codec would clip single numbers, which does.
    """
    largest = max(float(np.abs(weight).max()), float(np.abs(bias).max()))
    scale = min(1.0, _LARGEST / largest) if largest else 1.0
    return scale * weight, scale * bias


def untrained(
    name: str, options: type[Any], logits: Logits, personal: Personal | None = None
) -> Method:
    """Make a method whose shared model has no parameters, and whose devices send nothing.

    With `personal` each device keeps a model of its own.
    """

    def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Any) -> Arrays:
        return {}

    def layout(model: Model) -> Layout:
        return Layout({}, {})

    def fit(task: LocalTask, options: Any) -> Update:
        return Update("sum", 1, {})

    def combine(model: Model, total: Total, state: State, options: Any) -> tuple[Model, State]:
        return replace(model, round=model.round + 1), state

    is_personal = personal is not None
    traits = Traits(rounds=1, one_round=is_personal, is_personal=is_personal)
    return Method(name, options, initial_parameters, layout, fit, combine, logits, traits, personal)


def _shapes(model: Model) -> Shapes:
    return {name: term.shape for name, term in model.parameters.items()}
