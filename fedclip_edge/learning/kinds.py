"""The three kinds of method. Each function makes a `Method` from what differs within its kind.

- averaged: devices train parameters by gradients and send the change; a strategy combines them.
- closed form: devices send exact moments (moments.py), and the coordinator solves once.
- untrained: devices send nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedclip_edge import log
from fedclip_edge.learning import mixture, moments, strategies
from fedclip_edge.learning.method import LocalTask, Logits, Method, Personal, Traits, Vote
from fedclip_edge.learning.moments import F64, Moments
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import Arrays, ClassTexts, Features, Layout, Model, Shapes, Sums, Update

# Models travel as float16 by default, which ends at 65504; CLIP's own logits are at most 100.
_LARGEST = 2.0**15
_INITIAL = "initial."  # prefix of the initial parameters among the arrays that are kept
# Takes the class texts, the width of the features, the seed and the options.
InitialParameters = Callable[[ClassTexts, int, int, Any], Arrays]


@dataclass(frozen=True)
class Ballot:
    """The candidates of a closed-form method."""

    shares: Mapping[str, tuple[float, ...]]  # as in `Method`
    # heads(initial, fitted, train, validation, options) returns the heads by label: fitted to the
    # moments `fitted`, with settings chosen on `train` and `validation`. `fitted` is `train` before
    # the vote, and the sum of both afterwards.
    heads: Callable[[Arrays, Moments, Moments, Moments, Any], Mapping[str, Arrays]]
    # unsolved(initial) returns the heads of a run without pictures: with these, every candidate is
    # the model of round 0, which is zero-shot CLIP.
    unsolved: Callable[[Arrays], Mapping[str, Arrays]]
    # merge(initial, heads, shares) returns one head that does the same as a mixture of the heads
    # and of the initial one. Without it the final model is a mixture.
    merge: Callable[[Arrays, Mapping[str, Arrays], Mapping[str, float]], Arrays] | None = None


def averaged(
    name: str,
    options: type[Training],
    initial_parameters: InitialParameters,
    logits: Logits,
    *,
    fixed: Collection[str] = (),
    per_class: Collection[str] = (),
) -> Method:
    """Make a method that is trained by gradients and averaged by the plan's strategy.

    All parameters are trained and sent, except those that `fixed` names. Those that `per_class`
    names have one row for each class. The loss is that of the options: cross-entropy, if they have
    no `loss`.
    """

    def layout(model: Model) -> Layout:
        shapes = _shapes(model)
        return Layout(shapes, {name: its for name, its in shapes.items() if name not in fixed})

    def fit(task: LocalTask, options: Training) -> Update:
        from fedclip_edge.learning.training import change

        return change(task, logits, options, fixed)

    def combine(model: Model, total: Total, state: State, options: Any) -> tuple[Model, State]:
        return strategies.step(model, total, state)

    def opened(
        model: Model, total: Total, state: State, options: Any
    ) -> tuple[Mapping[str, Arrays], State]:
        following, _ = combine(model, total, state, options)
        return {name: following.parameters}, {}

    def settle(
        heads: Mapping[str, Arrays], kept: State, shares: Mapping[str, float], options: Any
    ) -> tuple[Mapping[str, Arrays], Mapping[str, float]]:
        return heads, shares

    return Method(
        name,
        options,
        initial_parameters,
        layout,
        fit,
        combine,
        logits,
        Traits(is_averaged=True),
        vote=Vote(opened, settle, (mixture.ZERO_SHOT, name)),
        shares=mixes(name),
        per_class=per_class,
    )


def closed_form(
    name: str,
    options: type[Any],
    initial_parameters: InitialParameters,
    logits: Logits,
    solve: Callable[[Arrays, Moments, Moments, Any], Arrays],
    *,
    ballot: Ballot | None = None,
    learns_from_validation: bool = False,
) -> Method:
    """Make a method of one round that is solved from the sums of all devices.

    `solve` takes the initial parameters, the moments of all training and of all validation
    pictures, and the options; it returns the parameters of the result. There is at least one
    training picture; without any, the model stays as it is. A parameter `weight` is (C, D). The
    options have `min_per_class`.

    By default the vote compares zero-shot CLIP with mixes of zero-shot CLIP and the head of the
    training pictures.
    """
    standing = _one_head(name, solve) if ballot is None else ballot

    def layout(model: Model) -> Layout:
        classes, dim = model.parameters["weight"].shape
        return Layout(_shapes(model), {}, moments.sum_shapes(classes, dim))

    def fit(task: LocalTask, options: Any) -> Update:
        least = options.min_per_class
        return moments.update(task.train, task.validation, len(task.classes.names), least)

    def combine(model: Model, total: Total, state: State, options: Any) -> tuple[Model, State]:
        following = replace(model, round=model.round + 1)
        if not _has_pictures(total.sums, name):
            return following, state
        train, validation = moments.received(total.sums)
        found = solve(model.parameters, train, validation, options)
        return replace(following, parameters=found), state

    def opened(
        model: Model, total: Total, state: State, options: Any
    ) -> tuple[Mapping[str, Arrays], State]:
        initial = {_INITIAL + label: term for label, term in model.parameters.items()}
        kept: dict[str, NDArray[Any]] = {**total.sums, **initial}
        if not _has_pictures(total.sums, name):
            return standing.unsolved(model.parameters), kept
        train, validation = moments.received(total.sums)
        return standing.heads(model.parameters, train, train, validation, options), kept

    def settle(
        heads: Mapping[str, Arrays], kept: State, shares: Mapping[str, float], options: Any
    ) -> tuple[Mapping[str, Arrays], Mapping[str, float]]:
        initial = {
            label.removeprefix(_INITIAL): term
            for label, term in kept.items()
            if label.startswith(_INITIAL)
        }
        sums = {label: term for label, term in kept.items() if not label.startswith(_INITIAL)}
        if sums and sums["train.counts"].any():
            train, validation = moments.received(sums)
            both = moments.added(train, validation)
            heads = standing.heads(initial, both, train, validation, options)
        if standing.merge is None:
            return heads, shares
        return {name: standing.merge(initial, heads, shares)}, {name: 1.0}

    def means(kept: State) -> Features:
        counts = kept.get("train.counts", np.zeros(0, np.int64))  # (C,)
        here = np.flatnonzero(counts)
        if not len(here):
            return Features(np.zeros((0, 1), np.float32), here, "")
        vectors = kept["train.sums"][here] / counts[here, None]  # (P, D)
        return Features(vectors.astype(np.float32), here, "")

    return Method(
        name,
        options,
        initial_parameters,
        layout,
        fit,
        combine,
        logits,
        Traits(
            rounds=1,
            one_round=True,
            sends_moments=True,
            learns_from_validation=learns_from_validation,
        ),
        vote=Vote(
            opened,
            settle,
            (mixture.ZERO_SHOT, name) if standing.merge is None else (name,),
            means,
        ),
        shares=standing.shares,
    )


def _one_head(name: str, solve: Callable[[Arrays, Moments, Moments, Any], Arrays]) -> Ballot:
    def heads(
        initial: Arrays, fitted: Moments, train: Moments, validation: Moments, options: Any
    ) -> Mapping[str, Arrays]:
        return {name: solve(initial, fitted, validation, options)}

    return Ballot(mixes(name), heads, lambda initial: {name: initial})


def mixes(name: str) -> Mapping[str, tuple[float, ...]]:
    """Make the candidates of a single head: zero-shot CLIP, the default again, and four mixes."""
    shares = (0.0, 0.0, 0.25, 0.5, 0.75, 1.0)
    return {mixture.ZERO_SHOT: tuple(1 - share for share in shares), name: shares}


def _has_pictures(sums: Sums, name: str) -> bool:
    if sums and sums["train.counts"].any():
        return True
    log.event("solved_without_pictures", method=name, model="zero-shot")
    return False


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
