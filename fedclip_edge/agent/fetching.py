"""Blobs that a device fetches in a run: its bundle, and the models; one after the other.

Law: the device is subscribed to the topic of the blob that it fetches, and of no other blob.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.bundle_download import BundleDownload
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.messages import Manifest, Want


@dataclass(eq=False)
class Fetching:
    """The blobs of one device; `now` is monotonic, in seconds."""

    config: AgentConfig
    publisher: Publisher
    download: ModelDownload
    evaluation_queue: EvaluationQueue
    bundles: BundleDownload | None  # None: the device fetches no bundle
    refused_models: int = 0  # models that did not fit the run's plan
    _blob: str = ""  # hash of the blob whose topic is subscribed; empty for none

    def is_fetching_bundle(self, manifest: Manifest) -> bool:
        """True while the device fetches the bundle of the coordinator's run, not its own one."""
        return self.bundles is not None and self.bundles.is_busy(manifest.bundle)

    def fetch_bundle(self, manifest: Manifest, now: float) -> None:
        """Ask for the chunks of the run's bundle, if that is due."""
        assert self.bundles is not None
        assert manifest.bundle is not None
        want = self.bundles.poll(manifest.bundle, now)
        if want is not None:
            self._ask(want)
        elif not self.bundles.is_busy(manifest.bundle):
            self._listen_for("")

    def fetch_model(self, manifest: Manifest, now: float) -> bool:
        """Ask for the chunks of the manifest's model, if that is due; True once it is here."""
        self.hold_model(manifest)
        want = self.download.poll_want(manifest, now)
        if want is not None:
            self._ask(want)
        return self.download.has(manifest)

    def hold_model(self, manifest: Manifest) -> None:
        """Hold the manifest's model once all of it has arrived, and queue it for evaluation."""
        try:
            came = self.download.complete(manifest)
        except PeerError as error:
            self.refused_models += 1
            log.event("model_refused", reason=str(error))
            return
        if came is None:
            return
        self._listen_for("")
        if self.download.learner.evaluates:
            self.evaluation_queue.add(came)

    def _ask(self, want: Want) -> None:
        self._listen_for(want.sha256)
        self.publisher.send(want)

    def _listen_for(self, blob: str) -> None:
        """Subscribe to the topic of the blob with this hash, or of no blob if it is empty."""
        if blob != self._blob:
            self._blob = blob
            topics = self.publisher.topics.for_device(self.config.id, blob)
            self.publisher.transport.set_topics(topics)
