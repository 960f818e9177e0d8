"""The tasks of a device in the rounds of a run: which one is due, and what becomes of its result.

Sans-I/O: the clock is passed in. `now` is monotonic, in seconds.

Laws:
- A contribution is made only when its round is open and the previous one is resolved
  (`upload.py`).
- A result is used only if the run still wants it. A contribution is wanted as long as its exchange
  is not closed: the hash of the exchange covers everything that the contribution depends on.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.task import Evaluation, Task, Training
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.protocol.cohort import cohort_hash
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Contribution, Measured, Update


@dataclass(eq=False)
class RoundWork:
    """The tasks of one device."""

    config: AgentConfig
    learner: Learner
    publisher: Publisher
    trust: Trust
    handshake: Handshake
    download: ModelDownload
    upload: Upload
    evaluation_queue: EvaluationQueue

    def due(self, manifest: Manifest, now: float) -> Task | None:
        """The task that is due, or None: training comes before evaluation."""
        task = self._training(manifest) or self._evaluation(manifest, now)
        return task if task is not None and self.is_wanted(task, manifest) else None

    def is_wanted(self, task: Task, manifest: Manifest) -> bool:
        """True if the result of the task is of use; `manifest` is the newest one."""
        if manifest.run != task.manifest.run:
            return False
        if isinstance(task, Training):
            exchange = task.manifest.exchange
            is_same = manifest.exchange.sha256 == exchange.sha256
            is_open = is_same and manifest.phase in ("gathering", "open") and self.trust.is_mine
            return is_open and not self.handshake.is_refused and self.upload.owes(exchange.number)
        is_current = task.held.version == manifest.model.sha256
        is_past = manifest.phase == "done" or task.held.model.round > manifest.closed
        return is_current or not is_past

    def add_contribution(self, task: Training, update: Update, now: float) -> None:
        """Put the contribution on disk, and offer it if the coordinator listens.

        Raises DiskError if the state file cannot be written.
        """
        exchange = task.manifest.exchange
        contribution = Contribution(
            run=task.manifest.run,
            round=exchange.number,
            device=self.config.id,
            exchange=exchange.sha256,
            update=update,
        )
        offer = self.upload.make_offer(contribution, task.manifest, now)
        if self.handshake.is_connected and self.handshake.is_answered:
            self.publisher.send(offer)
        else:
            self.upload.hurry()  # it is offered once the hello is answered
        log.event("trained", round=contribution.round, update_bytes=offer.blob.size_bytes)

    def report(self, task: Evaluation, measured: Measured) -> None:
        """Report on an evaluated model."""
        run = task.manifest.run
        report = self.learner.report(
            run, task.held.model, task.held.version, measured, task.waited_s
        )
        self.evaluation_queue.note(report, is_last=task.is_last)
        if self.config.reports:
            self.publisher.send(report)
        log.event("evaluated", round=report.round, **report.accuracy)

    def _training(self, manifest: Manifest) -> Training | None:
        base = self.download.held
        if (
            base is None
            or not self.download.has(manifest)
            or manifest.phase != "open"
            or not self.trust.is_mine
            or "train" not in self.publisher.capabilities.roles
            or not self._takes_part(manifest)
            or not self.upload.owes(manifest.exchange.number)
        ):
            return None
        return Training(manifest, base)

    def _evaluation(self, manifest: Manifest, now: float) -> Evaluation | None:
        if not self.learner.evaluates or manifest.phase == "gathering":
            return None  # the work begins with the first round
        if self.handshake.is_alone and manifest.phase != "done":
            return None  # the report would be lost: only the last one is sent again
        due = self.evaluation_queue.next_model(manifest, self.download.held)
        if due is None:
            return None
        assert self.handshake.since is not None
        waited_s = max(0.0, now - self.handshake.since - self.learner.busy_s)
        is_last = self.evaluation_queue.is_last(due, manifest)
        return Evaluation(manifest, due, is_last, waited_s)

    def _takes_part(self, manifest: Manifest) -> bool:
        if manifest.takes_part is not None:
            return manifest.takes_part
        drawn = cohort_hash(manifest.run, manifest.exchange.number, self.config.id)
        return drawn <= manifest.cohort
