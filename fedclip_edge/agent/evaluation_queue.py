"""Queue of the models of a run that a device has yet to evaluate, and its last report.

Laws:
- Every model that the device downloaded is evaluated, the oldest first, even if rounds close faster
  than it can evaluate. So a device that starts slowly has no gap in its accuracy by round.
- The queue is limited. If it is full, the oldest models are dropped and logged.
- The run's last model is evaluated last; its final evaluation is made only once. Once the run is
  done, the models of earlier rounds are skipped.
- If the coordinator's journal was restored from an old copy, the models of the rounds that it lost
  are not evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.model_download import Held
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.protocol.report import Report

# Limits of the queue: a box may have little memory, and a long queue delays the evaluation of the
# last model, for which the run waits.
_WAITING_BYTES = 16 * 2**20
_WAITING = 64


@dataclass(eq=False)
class EvaluationQueue:
    """One device's models in the order of evaluation."""

    report: Report | None = None  # the last one made in this run
    _waiting: list[Held] = field(default_factory=list)
    _newest: str = ""  # version of the model that was evaluated most recently
    _last: str = ""  # version of the model that was evaluated as the run's last

    def start_run(self) -> None:
        """Forget the queue and the report of an earlier run."""
        self.report, self._newest, self._last = None, "", ""
        self._waiting.clear()

    def add(self, held: Held) -> None:
        """Queue a model that has just arrived; drop the oldest ones if the queue is full."""
        self._waiting.append(held)
        while len(self._waiting) > 1 and (
            len(self._waiting) > _WAITING
            or sum(held.size_bytes for held in self._waiting) > _WAITING_BYTES
        ):
            log.event("model_not_evaluated", round=self._waiting.pop(0).model.round)

    def go_back(self, manifest: Manifest) -> None:
        """Drop the models of rounds that are not closed any more, according to `manifest`."""
        closed = manifest.closed
        self._waiting = [held for held in self._waiting if held.model.round <= closed]

    def is_over(self, manifest: Manifest) -> bool:
        """True if the manifest's model has been evaluated as the run's last."""
        return self._last == manifest.model.sha256

    def next_model(self, manifest: Manifest, held: Held | None) -> Held | None:
        """The model to evaluate now, or None; `held` is the newest model of this device."""
        if self._waiting and manifest.phase != "done":
            return self._waiting[0]
        if held is None or held.version != manifest.model.sha256:
            return None
        # The held model can be missing from the queue: it arrived in an earlier run, or it was
        # evaluated before it was known to be the last.
        done = self._last if self.is_last(held, manifest) else self._newest
        return None if done == held.version else held

    def note(self, report: Report, *, is_last: bool) -> None:
        """Record the report on a model; `is_last` is true if it was evaluated as the run's last."""
        self.report = report
        self._waiting = [other for other in self._waiting if other.version != report.model]
        self._newest = report.model
        if is_last:
            self._last = report.model

    @staticmethod
    def is_last(held: Held, manifest: Manifest) -> bool:
        """True if the manifest says that this model is the last one of its run."""
        return manifest.phase in ("final", "done") and held.version == manifest.model.sha256
