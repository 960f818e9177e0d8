"""A learner without pictures or training, for tests of sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from capable import CAPABLE

from fedclip_edge.protocol.message_parts import Capabilities, Pictures
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Measured, Model, Plan, Role, Shapes, Update


def plus_half(model: Model) -> Update:
    """An update in which each value is the model's value plus one half."""
    terms = {name: term + np.float32(0.5) for name, term in model.parameters.items()}
    return Update("sum", 1, terms)


@dataclass(eq=False)
class FakeLearner:
    """An implementation of learner.Learner that records its calls.

    Models are recorded by their first number.
    """

    # Shapes of every model, or a function of the number of closed exchanges.
    model_shapes: Shapes | Callable[[int], Shapes]
    device: str = "cam-01"
    make_update: Callable[[Model], Update] = plus_half
    accuracy: Mapping[str, float] = field(default_factory=lambda: {"federated": 0.5})
    report_fields: Mapping[str, Any] = field(default_factory=dict)  # replaces the defaults below
    roles: tuple[Role, ...] = ("train", "evaluate")
    methods: tuple[str, ...] = CAPABLE.methods
    pictures: Pictures = CAPABLE.pictures
    busy_s: float = 0.0
    evaluates: bool = True
    fitted: list[float] = field(default_factory=list)
    # Model and whether it is the final one.
    evaluated: list[tuple[float, bool]] = field(default_factory=list)

    def capabilities(self) -> Capabilities:
        return replace(CAPABLE, roles=self.roles, methods=self.methods, pictures=self.pictures)

    def shapes(self, plan: Plan, closed: int) -> Shapes:
        return self.model_shapes(closed) if callable(self.model_shapes) else self.model_shapes

    def fit(self, model: Model, plan: Plan) -> Update:
        self.fitted.append(_first_number(model))
        return self.make_update(model)

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        self.evaluated.append((_first_number(model), final))
        return Measured(self.accuracy)

    def report(
        self, run: str, model: Model, version: str, measured: Measured, wait_s: float
    ) -> Report:
        fields: dict[str, Any] = {
            "run": run,
            "round": model.round,
            "device": self.device,
            "domain": "",
            "model": version,
            "accuracy": measured.accuracy,
            "train_pictures": 1,
            "test_pictures": 2,
            "encoded": 0,
            "skipped": 0,
            "bytes_up": None,
            "bytes_down": None,
            "encode_s": 0.0,
            "train_s": 0.0,
            "wait_s": wait_s,
        }
        return Report(**{**fields, **self.report_fields})


def _first_number(model: Model) -> float:
    return float(next(iter(model.parameters.values())).flat[0])
