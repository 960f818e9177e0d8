"""The interface between a session and its learner: `trainer.py`, or a substitute in tests."""

from __future__ import annotations

from typing import Protocol

from fedclip_edge.protocol.message_parts import Capabilities
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Measured, Model, Plan, Shapes, Update


class Learner(Protocol):
    """Training, evaluation and reports over the features of one device."""

    def capabilities(self) -> Capabilities:
        """Capabilities of the device with the pictures that it has now.

        Raises ConfigError if agent.toml allows a method that does not exist.
        """

    def shapes(self, plan: Plan, closed: int) -> Shapes:
        """The shapes of the float32 parameters of the model after `closed` exchanges, by name.

        Raises ConfigError if the method, the strategy or an option is unknown.
        """

    def fit(self, model: Model, plan: Plan) -> Update:
        """Answer the exchange after `model`: train one round, or vote.

        The delta is float32, already multiplied by its weight; the sums are int64. Both have the
        shapes of the exchange's layout. Raises DataError if the features do not fit the classes,
        ConfigError if an option is invalid or training diverges.
        """

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        """Evaluate the model on the test pictures; `final` is true for the run's last model.

        Raises ConfigError if the method or an option is unknown, OSError if a file cannot be
        written.
        """

    def report(
        self, run: str, model: Model, version: str, measured: Measured, wait_s: float
    ) -> Report:
        """Make the report on an evaluated model, with the device's costs so far.

        `version` is the SHA-256 of the published model; `wait_s` is the idle time in seconds.
        """

    @property
    def evaluates(self) -> bool:
        """True if the device has the role "evaluate", and pictures to evaluate on now."""

    @property
    def busy_s(self) -> float:
        """Seconds spent in `fit` and `evaluate` so far."""
