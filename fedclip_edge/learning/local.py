"""Training and evaluation on one device, for the agent and the simulation.

Law: all randomness on a device follows from the plan's seed, the round and the device's id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedclip_edge.learning import methods
from fedclip_edge.learning.evaluation import Evaluation, evaluate
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State
from fedclip_edge.learning.unknown import Separation, histogram, rule_of
from fedclip_edge.records import MAX_WEIGHT, ClassTexts, Features, Model, Plan, Update

MIN_VOTES = 5  # validation pictures that a device votes with, at least
_UNBOUNDED = 1e8  # far above any real update


class Sides(Protocol):
    """A device's features, split into training and validation pictures."""

    @property
    def train(self) -> Features: ...

    @property
    def validation(self) -> Features: ...


def training_seed(seed: int, round: int, device: str) -> int:
    """Derive a device's 64-bit seed for the round after `round` closed rounds."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{round}/{device}".encode()).digest()[:8], "big")


def task_of(plan: Plan, model: Model, sides: Sides, classes: ClassTexts, device: str) -> LocalTask:
    """Make the task of a device for the round after `model`."""
    seed = training_seed(plan.seed, model.round, device)
    return LocalTask(plan, model, sides.train, sides.validation, classes, seed)


def answer(
    schedule: Schedule, model: Model, sides: Sides, device: str, min_votes: int = MIN_VOTES
) -> Update:
    """Compute the device's answer to the exchange after `model`: an update, or a vote.

    A vote over fewer than `min_votes` validation pictures is empty. Raises the errors of
    `methods.fit`.
    """
    task = task_of(schedule.plan, model, sides, schedule.classes, device)
    return schedule.answer(task, min_votes)


def measure(model: Model, test: Features, classes: ClassTexts) -> Evaluation:
    """Evaluate a model on raw test features float32 (N, D) with labels int64 (N,).

    Raises ValueError without test pictures, and ConfigError for an unknown method.
    """
    return evaluate(methods.predict(model, test.vectors, classes), test.labels)


def separate(model: Model, test: Features, others: Features, classes: ClassTexts) -> Separation:
    """Compare the scores of raw test features with those of pictures of no class (unknown.py).

    The labels are not used. Raises ConfigError for an unknown method.
    """
    known, unknown = (
        histogram(methods.scores_of(model, its.vectors, classes)) for its in (test, others)
    )
    return Separation(known, unknown, rule_of(model.parameters).threshold)


@dataclass(eq=False)
class Alone:
    """A federation of one device: the same exchanges without the rest of the fleet."""

    schedule: Schedule
    model: Model
    server: State = field(default_factory=dict)

    def train(self, sides: Sides, device: str) -> None:
        """Go through one exchange and replace `model` by the result. After the last, do nothing.

        Raises the errors of `methods.fit`, and PeerError if the update exceeds the bounds that are
        used here, which are far wider than a plan's.
        """
        if self.model.round == len(self.schedule.steps):
            return
        total = self.schedule.total(self.model.round, _UNBOUNDED)
        total.add(answer(self.schedule, self.model, sides, device))
        self.model, self.server = self.schedule.close(self.model, total, self.server)


def alone(plan: Plan, classes: ClassTexts, dim: int) -> Alone:
    """Make a federation of one device before its first round.

    It holds no vote, unless the method needs one: a single device seldom has enough validation
    pictures, so its model would be the default candidate, often zero-shot CLIP.

    Raises the errors of `methods.initial`.
    """
    # The plan's bounds protect a fleet against false updates; they are not needed here.
    vote = "off" if methods.get(plan.method).stages is None else plan.vote
    free = replace(plan, vote=vote, max_norm=_UNBOUNDED, max_weight=MAX_WEIGHT)
    schedule = Schedule(free, classes, dim)
    return Alone(schedule, schedule.initial())
