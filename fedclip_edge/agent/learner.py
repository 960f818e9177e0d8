"""The learner that a session asks: a device's own (`trainer.py`), or a test's."""

from __future__ import annotations

from typing import Protocol

from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Arrays, Measured, Model, Plan, Shapes, Update


class Learner(Protocol):
    """Trains, evaluates and reports on the features of one device."""

    def shapes(self, plan: Plan) -> Shapes:
        """The terms that a model of this plan must have; raises ConfigError for an unknown plan."""

    def fit(self, model: Model, plan: Plan, state: Arrays) -> tuple[Update, Arrays]:
        """Trains one round from `model` and the method's own state; empty in a run's first."""

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        """The model on the test pictures; `final` for the model that ends the run."""

    def report(
        self, run: str, model: Model, version: str, measured: Measured, wait_s: float
    ) -> Report:
        """The report on a measured model, with its costs so far."""

    @property
    def busy_s(self) -> float:
        """Seconds spent in `fit` and `evaluate` so far."""
