"""What a strategy is: what the coordinator makes of a round's updates of an averaged method.

A method says what is trained, a strategy how the devices' changes become the shared model's. What it
keeps between rounds (`State`: moments, control variates) is in the journal with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.records import Arrays, Layout, Model, Plan, Shapes, Sums, Update

State = Arrays


class Total(Protocol):
    """What a round's updates are added to: an exact sum (aggregation.py), or each apart (singles.py)."""

    @property
    def plan(self) -> Plan: ...

    @property
    def weight(self) -> int:
        """The added weights."""

    @property
    def sums(self) -> Sums:
        """The added whole numbers."""

    def check(self, update: Update) -> None:
        """Raises PeerError where `add` would refuse the update."""

    def add(self, update: Update) -> None:
        """Adds one device's; raises PeerError, and adds nothing, where it is out of bounds."""

    def merge(self, other: Any) -> None:
        """Adds what another of the same plan has added; raises PeerError."""


class OnDevices(Protocol):
    """What a strategy offers besides that has a part on the devices: terms beside the method's own."""

    OPTIMIZER: str  # the one whose gradients it corrects

    def with_control(self, model: Model, trained: Shapes) -> Model:
        """The initial model with its terms."""

    def extended_layout(self, own: Layout) -> Layout:
        """What models and updates hold, by the method's own layout."""

    def apart(self, model: Model) -> tuple[Model, Arrays]:
        """The method's own model, and what travels beside it."""

    def drift(self, control: Arrays, state: State) -> Arrays:
        """What is added to every gradient."""

    def extended(
        self, update: Update, drift: Arrays, state: State, lr: float, steps: int
    ) -> tuple[Update, State]:
        """What is sent after so many steps of rate `lr`, and what the device keeps."""


@dataclass(frozen=True)
class Strategy:
    """`step(model, total, state, options)` is the next model, one round on, and the next state."""

    step: Callable[[Model, Any, State, Any], tuple[Model, State]]
    options: type[Any]  # a frozen dataclass of scalars, checked when it is made
    total: Callable[[Plan], Total] = ExactSum  # what a round's updates are added to
    kind: Literal["sum", "single"] = "sum"  # of the updates that it takes
    is_uniform: bool = False  # every device weighs the same
    on_devices: OnDevices | None = None


@dataclass(frozen=True)
class NoOptions:
    """It has none."""


def moved(model: Model, change: Arrays) -> Model:
    """The model of the next round; terms without a change stay as they are."""
    terms = {n: term + change[n] if n in change else term for n, term in model.parameters.items()}
    return Model(model.method, model.round + 1, terms)
