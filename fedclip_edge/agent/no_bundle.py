"""The learner of a device that has no bundle yet: it takes part in no run."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge import __version__
from fedclip_edge.agent.trainer import allowed_methods
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.protocol.codec import CODECS
from fedclip_edge.protocol.message_parts import Capabilities, Pictures
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Measured, Model, Plan, Shapes, Update

_NONE = "this device has no bundle yet"


@dataclass(frozen=True)
class NoBundle:
    """A learner (`learner.py`) that can do nothing; a session without a bundle never asks it to."""

    config: AgentConfig
    busy_s: float = 0.0
    evaluates: bool = False

    def capabilities(self) -> Capabilities:
        return Capabilities(
            roles=(),
            methods=allowed_methods(self.config),
            codecs=tuple(CODECS),
            min_per_class=self.config.min_per_class,
            pictures=Pictures(),
            version=__version__,
        )

    def shapes(self, plan: Plan, closed: int) -> Shapes:
        raise ConfigError(_NONE)

    def fit(self, model: Model, plan: Plan) -> Update:
        raise ConfigError(_NONE)

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        raise ConfigError(_NONE)

    def report(
        self, run: str, model: Model, version: str, measured: Measured, wait_s: float
    ) -> Report:
        raise ConfigError(_NONE)
