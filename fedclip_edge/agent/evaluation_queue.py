"""The models of a run that a device has yet to evaluate, and its last report.

Laws:
- Every model that the device held is evaluated, the oldest first, however fast rounds go by. So a
  device that was slow to start leaves no gap in its accuracy by round. But only some models wait;
  those that make way are named.
- The run's last model is evaluated as the last, once; when the run is done, nobody hears of others.
- A measurement of a model that was lost with a journal is not reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import Held
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.protocol.report import Report

# A box may have little memory, and at its end the run waits for the last model's figures.
_WAITING_BYTES = 16 * 2**20
_WAITING = 64


@dataclass(eq=False)
class EvaluationQueue:
    """One device's models in the order of evaluation."""

    learner: Learner
    report: Report | None = None  # the last one made in this run
    _waiting: list[Held] = field(default_factory=list)
    _newest: str = ""  # the version that was evaluated after all others
    _last: str = ""  # the one that was so as the run's last

    def start_run(self) -> None:
        """Another run: the reports on the one before end with it."""
        self.report, self._newest, self._last = None, "", ""
        self._waiting.clear()

    def add(self, held: Held) -> None:
        """Queue a model that came just now."""
        self._waiting.append(held)
        while len(self._waiting) > 1 and (
            len(self._waiting) > _WAITING
            or sum(held.size_bytes for held in self._waiting) > _WAITING_BYTES
        ):
            log.event("model_not_evaluated", round=self._waiting.pop(0).model.round)

    def go_back(self, manifest: Manifest) -> None:
        """Drop models of rounds that the run has lost; it stands where `manifest` says."""
        closed = manifest.model_round
        self._waiting = [held for held in self._waiting if held.model.round <= closed]

    def is_over(self, manifest: Manifest) -> bool:
        """True where nothing is left to evaluate: the manifest's model was, as the run's last."""
        return self._last == manifest.model.sha256

    def next_model(self, manifest: Manifest, held: Held | None) -> Held | None:
        """The model to evaluate now; `held` is the newest one here."""
        if self._waiting and manifest.phase != "done":
            return self._waiting[0]
        if held is None or held.version != manifest.model.sha256:
            return None
        # It may be here since an earlier run, or be known only now to be the last.
        done = self._last if self._is_last(held, manifest) else self._newest
        return None if done == held.version else held

    def evaluate(self, held: Held, manifest: Manifest, waited_s: float) -> Report:
        """Evaluate a model; the device has had nothing to do for `waited_s` seconds."""
        is_last = self._is_last(held, manifest)
        measured = self.learner.evaluate(held.model, manifest.plan, final=is_last)
        self.report = self.learner.report(
            manifest.run, held.model, held.version, measured, waited_s
        )
        self._waiting = [other for other in self._waiting if other.version != held.version]
        self._newest = held.version
        if is_last:
            self._last = held.version
        return self.report

    @staticmethod
    def _is_last(held: Held, manifest: Manifest) -> bool:
        return manifest.phase in ("final", "done") and held.version == manifest.model.sha256
