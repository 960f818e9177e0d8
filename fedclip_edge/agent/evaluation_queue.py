"""What a device has yet to evaluate of the run it is in, and what it reported last.

Laws:
- Every model that the device held is evaluated, the oldest first, however fast rounds go by: who
  was slow to start leaves no gap in its accuracy by round. But no more than some wait; those that
  make way are named.
- The run's last model is evaluated as the last, once; when the run is done, nobody hears of others.
- What is measured of a model that was lost with a journal is not said.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import Held
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Report

# A box may have little memory, and at its end the run waits for the last model's figures.
_WAITING_BYTES = 16 * 2**20
_WAITING = 64


@dataclass(eq=False)
class EvaluationQueue:
    """One device's."""

    learner: Learner
    report: Report | None = None  # the last one made in this run
    _waiting: list[Held] = field(default_factory=list)
    _newest: str = ""  # the version that was evaluated after all others
    _last: str = ""  # the one that was so as the run's last

    def start_run(self) -> None:
        """Another run: what was said of the one before ends with it."""
        self.report, self._newest, self._last = None, "", ""
        self._waiting.clear()

    def add(self, held: Held) -> None:
        """A model that came just now."""
        self._waiting.append(held)
        while len(self._waiting) > 1 and (
            len(self._waiting) > _WAITING
            or sum(held.size_bytes for held in self._waiting) > _WAITING_BYTES
        ):
            log.event("model_not_evaluated", round=self._waiting.pop(0).model.round)

    def go_back(self, manifest: Manifest) -> None:
        """The run stands where `manifest` says, and may have lost rounds."""
        closed = manifest.model_round
        self._waiting = [held for held in self._waiting if held.model.round <= closed]

    def is_over(self, manifest: Manifest) -> bool:
        """Whether nothing is left to evaluate: the manifest's model was, as the run's last."""
        return self._last == manifest.model.sha256

    def next_model(self, manifest: Manifest, held: Held | None) -> Held | None:
        """What to evaluate now; `held` is the newest model here."""
        if self._waiting and manifest.phase != "done":
            return self._waiting[0]
        if held is None or held.version != manifest.model.sha256:
            return None
        # It may be here since an earlier run, or be known only now to be the last.
        done = self._last if self._is_last(held, manifest) else self._newest
        return None if done == held.version else held

    def evaluate(self, held: Held, manifest: Manifest, waited_s: float) -> Report:
        """The report on what is due; `waited_s` is how long the device has had nothing to do."""
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
