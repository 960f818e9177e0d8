"""The trainer process of a device: a child of the agent that trains and evaluates.

Laws:
- It runs only while there is work, and IDLE_S after that. So an agent that waits has neither torch
  nor features in its memory.
- It has the device's features, which it reads from the cache when it starts, and again when the
  pictures change.
- Its results are those of the same work in one process, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedclip_edge.agent.features import Sides
from fedclip_edge.agent.limits import of_child
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.limits import Limits
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.worker import Worker
from fedclip_edge.records import Measured, Model, Plan, Update
from fedclip_edge.vision.bundle import Bundle

_HANGS_S = 6 * 3600.0  # for one request, such as all rounds of a device alone


class TrainerProcess:
    """The trainer process of one bundle; `fit` and `evaluate` start it when it is needed.

    In addition to the errors of the work, both raise WorkerError if the process died or hangs.
    """

    def __init__(
        self,
        children: Children,
        config: AgentConfig,
        bundle: Bundle,
        sides: Sides,
        limits: Callable[[], Limits] = Limits,
    ) -> None:
        self._sides = sides
        self._is_stale = False  # the process has the features of other pictures
        self.worker = Worker(
            children,
            "trainer",
            "fedclip_edge.agent.training:CachedTraining",
            lambda: (config, bundle, self._sides),
            limits=lambda: of_child(limits()),
        )

    def fit(self, model: Model, plan: Plan, floor: int) -> tuple[Update, float]:
        """Make an update and measure the seconds, as `Training.fit`."""
        update, seconds = self._ask("fit", model, plan, floor)
        return update, seconds

    def evaluate(self, model: Model, plan: Plan, final: bool) -> Measured:
        """Evaluate a model, as `Training.evaluate`."""
        measured: Measured = self._ask("evaluate", model, plan, final)
        return measured

    def use(self, sides: Sides) -> None:
        """Work with the features of other pictures from now on."""
        self._sides, self._is_stale = sides, True

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._is_stale and self.worker.is_running:
            self.worker.ask("use", self._sides, deadline_s=_HANGS_S)
        self._is_stale = False
        return self.worker.ask(method, *arguments, deadline_s=_HANGS_S)
