"""The work of a device in the rounds of a run: it trains, and evaluates models.

Law: a contribution is made only when its round is open and the previous one is resolved
(`upload.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.protocol.cohort import cohort_hash
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Contribution


@dataclass(eq=False)
class RoundWork:
    """The work of one device; `now` is monotonic, in seconds."""

    config: AgentConfig
    learner: Learner
    publisher: Publisher
    handshake: Handshake
    download: ModelDownload
    upload: Upload
    evaluation_queue: EvaluationQueue

    def train_if_due(self, manifest: Manifest, now: float) -> bool:
        """Train for the open round and offer the update, if that is due; False if it is not.

        `download` holds the manifest's model. Raises the errors of `Learner.fit`.
        """
        if (
            manifest.phase != "open"
            or "train" not in self.publisher.capabilities.roles
            or not self._takes_part(manifest)
            or not self.upload.owes(manifest.exchange.number)
        ):
            return False
        base = self.download.held
        assert base is not None
        update = self.learner.fit(base.model, manifest.plan)
        contribution = Contribution(
            run=manifest.run,
            round=manifest.exchange.number,
            device=self.config.id,
            exchange=manifest.exchange.sha256,
            update=update,
        )
        offer = self.upload.make_offer(contribution, manifest, now)
        self.publisher.send(offer)
        log.event("trained", round=contribution.round, update_bytes=offer.blob.size_bytes)
        return True

    def evaluate_if_due(self, manifest: Manifest, now: float) -> bool:
        """Evaluate a model and send the report, if that is due; False if it is not.

        Raises the errors of `Learner.evaluate`.
        """
        if not self.learner.evaluates or manifest.phase == "gathering":
            return False  # the work begins with the first round
        if self.handshake.is_alone and manifest.phase != "done":
            return False  # the report would be lost: only the last one is sent again
        due = self.evaluation_queue.next_model(manifest, self.download.held)
        if due is None:
            return False
        assert self.handshake.since is not None
        waited_s = max(0.0, now - self.handshake.since - self.learner.busy_s)
        report = self.evaluation_queue.evaluate(due, manifest, waited_s)
        if self.config.reports:
            self.publisher.send(report)
        log.event("evaluated", round=report.round, **report.accuracy)
        return True

    def _takes_part(self, manifest: Manifest) -> bool:
        if manifest.takes_part is not None:
            return manifest.takes_part
        drawn = cohort_hash(manifest.run, manifest.exchange.number, self.config.id)
        return drawn <= manifest.cohort
