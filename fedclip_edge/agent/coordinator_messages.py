"""Messages of the coordinator: each is checked, and changes the device's part in the run.

Law: a message that is not trusted (`trust.py`) changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.fetching import Fetching
from fedclip_edge.agent.greeting import Greeting
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.run_part import RunPart
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import RefusedError
from fedclip_edge.protocol import chunks, version1, wire
from fedclip_edge.protocol.messages import CoordinatorState, Kept, Manifest, Refused, Want
from fedclip_edge.protocol.topics import CHUNK


@dataclass(eq=False)
class CoordinatorMessages:
    """The messages to one device, and the answers that need no training or evaluation."""

    config: AgentConfig
    learner: Learner
    publisher: Publisher
    trust: Trust
    handshake: Handshake
    greeting: Greeting
    download: ModelDownload
    upload: Upload
    evaluation_queue: EvaluationQueue
    fetching: Fetching
    part: RunPart
    heard_at: float | None = None  # time of the last message that is trusted

    def handle(self, topic: str, payload: bytes, now: float) -> None:
        """Handle one message; `now` is monotonic, in seconds.

        Raises PeerError if it breaks the protocol or is not trusted; RefusedError if it refuses
        this device permanently; DiskError if the state file cannot be used.
        """
        topics = self.publisher.topics
        if topic == topics.earlier.coordinator_state:
            version1.check_coordinator(payload)
            return
        if chunks.is_chunk(payload):
            topics.check_kind(topic, CHUNK)
            self.download.receive_chunk(payload, now)
            if self.fetching.bundles is not None:
                self.fetching.bundles.receive_chunk(payload, now)
            return
        signed = wire.unpack_control(topic, payload)
        topics.check_kind(topic, signed.kind)
        self.trust.check(signed)
        self.heard_at = now
        message, direct = signed.message, topic == topics.down(self.config.id)
        if isinstance(message, CoordinatorState):
            self._handle_state(message, now, direct=direct)
        elif isinstance(message, Manifest):
            self._handle_manifest(message, now, direct=direct)
        elif isinstance(message, Want):
            for chunk in self.upload.chunks_for(message, now, sending=self.publisher.is_sending):
                self.publisher.send_chunk(chunk)
        elif isinstance(message, Kept):
            self.upload.resolve(message)
        elif isinstance(message, Refused):
            self._handle_refused(message, now)

    def _handle_refused(self, refused: Refused, now: float) -> None:
        if refused.scope == "contribution":
            log.event("contribution_refused", reason=refused.reason)
            self.upload.resolve(refused)
        elif refused.key != self.publisher.identity.key:
            pass  # meant for another device that uses this id
        elif refused.scope == "device":
            raise RefusedError(f"the coordinator refused {self.config.id}: {refused.reason}")
        else:
            self.part.standby.refuse(refused, now)
            self.handshake.refuse()

    def _handle_state(self, state: CoordinatorState, now: float, *, direct: bool) -> None:
        # The coordinator sends its state to one device alone to ask it for a hello.
        is_asked = direct or self.handshake.is_new(state)
        self.trust.accept_coordinator(state)
        if state.online and is_asked:
            self.greeting.begin_again(now)

    def _handle_manifest(self, manifest: Manifest, now: float, *, direct: bool) -> None:
        known = self.trust.manifest
        self.part.check_plan(manifest)
        self.trust.accept_manifest(manifest, direct=direct)
        if known is None or known.run != manifest.run:
            self.evaluation_queue.start_run()
            self.upload.resume_run(manifest.run)
        self.upload.go_back(manifest)
        if known is not None and known.run == manifest.run:
            self.upload.follow(known, manifest)
            if self.handshake.is_answered and self.part.fits(known):
                self.fetching.hold_model(known)
        self.evaluation_queue.go_back(manifest)
        if manifest.phase == "done":
            self.upload.end_run(manifest.run)
        self.publisher.transport.expect(manifest.devices)
        if direct:
            self.part.join(manifest, now)
        elif self.handshake.is_refused and _is_later(manifest, known):
            self.greeting.begin_again(now)
        is_answer = self.handshake.note_manifest(now, direct=direct)
        if self.part.fits(manifest):
            # A device whose hello has just been answered may have missed the broadcast of the model
            # and any chunks sent to it earlier. So it requests all missing chunks immediately.
            self.download.expect(manifest, now, missed=is_answer)
        if manifest.phase == "done" and (
            not self.learner.evaluates or self.evaluation_queue.is_over(manifest)
        ):
            self.part.finish()


def _is_later(manifest: Manifest, known: Manifest | None) -> bool:
    """True if the manifest is of another run, or of another start of its coordinator."""
    return known is None or (manifest.run, manifest.epoch) != (known.run, known.epoch)
