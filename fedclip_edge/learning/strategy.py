"""The interface of a strategy: the coordinator's rule to combine the updates of a round.

A method defines what is trained. A strategy defines how the devices' deltas change the shared
model. Its `State` between rounds (the moments of an optimizer) is in the journal with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.records import Arrays, Model, Plan, Sums, Update

State = Mapping[str, NDArray[Any]]


class Total(Protocol):
    """The collected updates of a round: an exact sum (aggregation.py) or a list (singles.py)."""

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        ...

    @property
    def weight(self) -> int:
        """The sum of the added weights."""

    @property
    def sums(self) -> Sums:
        """The added integer sums, int64 by name."""

    def check(self, update: Update) -> float:
        """Check an update without adding it; returns the norm of its delta, divided by its weight.

        Raises PeerError if `add` would refuse the update.
        """

    def add(self, update: Update) -> None:
        """Add one device's update; raises PeerError and adds nothing if it is out of bounds."""

    def merge(self, other: Any) -> None:
        """Add the updates of another total of the same plan.

        An exact sum raises PeerError if the shapes differ or the result would overflow.
        """


@dataclass(frozen=True)
class Strategy:
    """An entry of the registry of strategies."""

    # step(model, total, state, options) returns the model of the next round and the next state.
    step: Callable[[Model, Any, State, Any], tuple[Model, State]]
    options: type[Any]  # a frozen dataclass of scalars; its constructor checks them
    total: Callable[[Plan], Total] = ExactSum  # collects the updates of a round
    kind: Literal["sum", "single"] = "sum"  # kind of the updates that it accepts
    is_uniform: bool = False  # every device has the same weight


@dataclass(frozen=True)
class NoOptions:
    """The options of a strategy without options."""


def moved(model: Model, change: Arrays) -> Model:
    """Make the model of the next round: parameters plus `change`, arrays of the same shapes.

    Parameters that `change` does not name stay as they are.
    """
    terms = {n: term + change[n] if n in change else term for n, term in model.parameters.items()}
    return Model(model.method, model.round + 1, terms)
