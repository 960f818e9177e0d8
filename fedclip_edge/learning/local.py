"""One device's share of the learning, as an agent and a simulation both do it.

Law: what is random on a device follows from the plan's seed, the round and the device's id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedclip_edge.learning import methods, strategies
from fedclip_edge.learning.evaluation import Evaluation, evaluate
from fedclip_edge.records import Arrays, ClassTexts, Features, Model, Plan, Update

_UNBOUNDED, _ANY_WEIGHT = 1e8, 2**40  # far beyond what a device learns


class Sides(Protocol):
    """A device's features, apart."""

    @property
    def train(self) -> Features: ...

    @property
    def validation(self) -> Features: ...


def training_seed(seed: int, round: int, device: str) -> int:
    """What a device's shuffling in the round that follows `round` closed ones is drawn from."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{round}/{device}".encode()).digest()[:8], "big")


def fit(
    plan: Plan, model: Model, sides: Sides, classes: ClassTexts, state: Arrays, device: str
) -> tuple[Update, Arrays]:
    """The device's update to the round after `model`, and the state it keeps for the next."""
    seed = training_seed(plan.seed, model.round, device)
    return methods.fit(model, sides.train, sides.validation, classes, plan, state, seed)


def measure(model: Model, test: Features, classes: ClassTexts) -> Evaluation:
    """The model on test features; raises ValueError without any."""
    return evaluate(methods.predict(model, test.vectors, classes), test.labels)


@dataclass(eq=False)
class Alone:
    """A federation of one: what the same training gives a device without the fleet."""

    plan: Plan
    model: Model
    _state: Arrays = field(default_factory=dict)
    _server: Arrays = field(default_factory=dict)

    def train(self, sides: Sides, classes: ClassTexts, device: str) -> None:
        """One round."""
        update, self._state = fit(self.plan, self.model, sides, classes, self._state, device)
        # The plan's bounds are the fleet's, against devices that lie.
        total = strategies.total(replace(self.plan, max_norm=_UNBOUNDED, max_weight=_ANY_WEIGHT))
        total.add(update)
        combine = methods.get(self.plan.method).combine
        self.model, self._server = combine(self.model, total, self._server)


def alone(plan: Plan, classes: ClassTexts, dim: int) -> Alone:
    """A federation of one before its first round."""
    return Alone(plan, methods.initial(plan, classes, dim))
