"""The session of one device: it handles messages and does the work, one piece at a time.

It connects `serving.py`, which owns the pictures and the link, with the protocol. It does no I/O
except through the transport, the learner and the state file that it is given, and the clock is
passed in (`now`, monotonic, in seconds). So it also runs with an in-memory transport and a
simulated clock.

Laws:
- Training and evaluation happen in `act`, never while a message is handled.
- A message that is not trusted (`trust.py`) changes nothing.
- A device joins a round only after the coordinator has answered this connection's hello: only that
  answer tells a device that joined late whether it is in the cohort.
- At most one piece of work is done in a call of `act` (`round_work.py`).
- A device that pauses counts as offline at the coordinator, and does not work. It stays connected
  and follows the messages, so it can go on at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.bundle_download import BundleDownload
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.fetching import Fetching
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.round_work import RoundWork
from fedclip_edge.agent.standby import Standby
from fedclip_edge.agent.state_db import StateDb
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import ConfigError, PeerError, RefusedError, WorkerError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.protocol import chunks, version1, wire
from fedclip_edge.protocol.hand_over import newest_key
from fedclip_edge.protocol.messages import CoordinatorState, Kept, Manifest, Refused, Want
from fedclip_edge.protocol.refusals import Line, Refusals
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import CHUNK, Topics
from fedclip_edge.transport.base import Connected, Disconnected, Event, Received, Transport


@dataclass(eq=False)
class Session:
    """The session of one device; `start_session` makes it.

    `finished` is set when a run that this device took part in is done. The caller resets it.
    """

    config: AgentConfig
    transport: Transport
    state_db: StateDb
    publisher: Publisher
    trust: Trust
    handshake: Handshake
    download: ModelDownload
    upload: Upload
    evaluation_queue: EvaluationQueue
    standby: Standby
    fetching: Fetching
    work: RoundWork
    paused: str = ""  # the reason why the device pauses; empty while it works
    finished: bool = False
    heard_at: float | None = None  # time of the coordinator's last message that is trusted
    _refused: int = 0  # messages
    _refusals: Refusals = field(default_factory=Refusals)  # for the log
    _unusable: Mapping[str, str] = field(default_factory=dict)  # why the plan of this run is

    @property
    def topics(self) -> Topics:
        return self.publisher.topics

    @property
    def refused_messages(self) -> int:
        """Number of messages and models that were refused so far."""
        return self._refused + self.fetching.refused_models

    def say_goodbye(self) -> None:
        """Tell the coordinator that this device is going offline."""
        self.publisher.publish_state(online=False)

    def pause(self, reason: str, now: float) -> None:
        """Pause for this reason, or go on if it is empty; `now` is monotonic, in seconds."""
        if bool(reason) == bool(self.paused):
            return
        self.paused = reason
        self.publisher.publish_state(online=not reason)
        if not reason and self.handshake.is_connected:
            self.handshake.reset()
            self._send_hello(now)

    def renew_capabilities(self, now: float) -> None:
        """Say hello with what the learner can do now; `now` is monotonic, in seconds.

        Raises the errors of `learner.capabilities`.
        """
        self.publisher.capabilities = self.work.learner.capabilities()
        if self.handshake.is_connected:
            self.handshake.reset()
            self._send_hello(now)

    def handle_event(self, event: Event, now: float) -> None:
        """Handle one event of the link, and send the answers that need no training or evaluation.

        Raises RefusedError if the coordinator refuses this device permanently; DiskError if the
        state file cannot be used.
        """
        if isinstance(event, Connected):
            self.handshake.start_link(now)
            self.upload.start_link(self.transport.packet_bytes())
            self.publisher.publish_state(online=not self.paused)
            self._send_hello(now)
        elif isinstance(event, Received):
            try:
                self._handle_message(event.topic, event.payload, now)
            except PeerError as error:
                self._refused += 1
                _log_message_refused(self._refusals.add("", event.topic, str(error), now))
        elif isinstance(event, Disconnected):
            self.handshake.lose_link()
            if event.reason:
                log.event("link_lost", reason=event.reason)

    def act(self, now: float) -> bool:
        """Do at most one piece of work; False if there was none.

        Raises DiskError if the state file cannot be used; errors of the learner are passed on.
        """
        for line in self._refusals.poll(now):
            _log_message_refused(line)
        if not self.handshake.is_connected or self.paused:
            return False
        manifest = self.trust.manifest
        if manifest is not None and self._is_left_alone(manifest):
            log.event("run_ended_without_this_device", run=manifest.run)
            self._finish()
            return False
        if self.trust.older_end is not None and self.handshake.gets_no_answer:
            log.event("run_ended_without_this_device", run=self.trust.miss_end())
            self.finished = True
            return False
        if self.handshake.poll(now):
            self._repeat_hello(now)
        if manifest is not None and self.is_fetching_bundle:
            self.fetching.fetch_bundle(manifest, now)
            return False
        if manifest is None or not self.handshake.is_answered or not self._fits(manifest):
            return False
        if self._repeat_offer(now):
            return True
        has_model = self.fetching.fetch_model(manifest, now)
        try:
            if has_model and self.work.train_if_due(manifest, now):
                return True
            has_evaluated = self.work.evaluate_if_due(manifest, now)
        except PausedError:
            return False  # it is done after the pause, if it is still wanted
        except (ConfigError, WorkerError) as error:
            self._stand_by(manifest, str(error), now)
            return False
        if has_evaluated and manifest.phase == "done" and self.evaluation_queue.is_over(manifest):
            self._finish()
        return has_evaluated

    @property
    def has_other_bundle(self) -> bool:
        """True once another bundle is in use: the session is to be made again."""
        bundles = self.fetching.bundles
        return bundles is not None and bundles.is_ready

    @property
    def is_fetching_bundle(self) -> bool:
        """True while the device fetches the bundle of the coordinator's run."""
        manifest = self.trust.manifest
        if manifest is None or self._has_its_bundle(manifest):
            return False
        return self.fetching.is_fetching_bundle(manifest)

    def _is_left_alone(self, manifest: Manifest) -> bool:
        """True if the run is done, and no coordinator is online to send its last model."""
        is_over = manifest.phase == "done" and self.trust.is_mine
        can_evaluate = self.handshake.is_answered and self.download.has(manifest)
        return is_over and self.handshake.is_alone and not can_evaluate

    def _repeat_hello(self, now: float) -> None:
        """Repeat the hello, and ask the broker for retained messages: one may have been lost."""
        self.transport.resubscribe()
        self._send_hello(now)

    def _handle_message(self, topic: str, payload: bytes, now: float) -> None:
        if topic == self.topics.earlier.coordinator_state:
            version1.check_coordinator(payload)
            return
        if chunks.is_chunk(payload):
            self.topics.check_kind(topic, CHUNK)
            self.download.receive_chunk(payload, now)
            if self.fetching.bundles is not None:
                self.fetching.bundles.receive_chunk(payload, now)
            return
        signed = wire.unpack_control(topic, payload)
        self.topics.check_kind(topic, signed.kind)
        self.trust.check(signed)
        self.heard_at = now
        message = signed.message
        if isinstance(message, CoordinatorState):
            self._handle_coordinator_state(
                message, now, direct=topic == self.topics.down(self.config.id)
            )
        elif isinstance(message, Manifest):
            self._handle_manifest(message, now, direct=topic == self.topics.down(self.config.id))
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
            self.standby.refuse(refused, now)
            self.handshake.refuse()

    def _handle_coordinator_state(
        self, state: CoordinatorState, now: float, *, direct: bool
    ) -> None:
        # The coordinator sends its state to one device alone to ask it for a hello.
        is_asked = direct or self.handshake.is_new(state)
        self.trust.accept_coordinator(state)
        if state.online and is_asked and self.handshake.is_connected:
            self.handshake.reset()
            self._send_hello(now)

    def _handle_manifest(self, manifest: Manifest, now: float, *, direct: bool) -> None:
        known = self.trust.manifest
        if self._is_ours(manifest):
            self._check_plan(manifest)
        self.trust.accept_manifest(manifest, direct=direct)
        if known is None or known.run != manifest.run:
            self.evaluation_queue.start_run()
            self.upload.resume_run(manifest.run)
        self.upload.go_back(manifest)
        if known is not None and known.run == manifest.run:
            self.upload.follow(known, manifest)
            if self.handshake.is_answered and self._fits(known):
                self.fetching.hold_model(known)
        self.evaluation_queue.go_back(manifest)
        if manifest.phase == "done":
            self.upload.end_run(manifest.run)
        self.transport.expect(manifest.devices)
        if direct and manifest.run in self._unusable:
            self._stand_by(manifest, self._unusable[manifest.run], now)
        elif direct:
            self.standby.end()
        elif self.handshake.is_refused and _is_later(manifest, known):
            self.handshake.reset()
            self._send_hello(now)
        is_answer = self.handshake.note_manifest(now, direct=direct)
        if self._fits(manifest):
            # A device whose hello has just been answered may have missed the broadcast of the model
            # and any chunks sent to it earlier. So it requests all missing chunks immediately.
            self.download.expect(manifest, now, missed=is_answer)
        if manifest.phase == "done" and (
            not self.work.learner.evaluates or self.evaluation_queue.is_over(manifest)
        ):
            self._finish()

    def _check_plan(self, manifest: Manifest) -> None:
        """Note if this device does not support the run's plan; a later run may have another one.

        Raises PeerError if the run's model is larger than the plan allows.
        """
        if manifest.run not in self._unusable:
            try:
                self.download.check_size(manifest)
            except ConfigError as error:
                self._unusable = {manifest.run: str(error)}

    def _stand_by(self, manifest: Manifest, reason: str, now: float) -> None:
        """Take no part in a run whose plan does not work here, so that no round waits for it."""
        self._unusable = {manifest.run: reason}
        self.standby.fail(f"its plan does not work on this device: {reason}", now)
        self.publisher.publish_state(online=False)

    def _fits(self, manifest: Manifest) -> bool:
        """True if this device can take part in the run."""
        return self._is_ours(manifest) and manifest.run not in self._unusable

    def _is_ours(self, manifest: Manifest) -> bool:
        """True if the run has this device's bundle, and a method that its owner allows.

        The coordinator refuses this device in all other runs.
        """
        is_allowed = manifest.plan.method in self.publisher.capabilities.methods
        return is_allowed and self._has_its_bundle(manifest)

    def _has_its_bundle(self, manifest: Manifest) -> bool:
        ours = self.publisher.encoder_id, self.publisher.classes_digest
        return (manifest.encoder_id, manifest.classes_digest) == ours

    def _finish(self) -> None:
        """Set `finished`, once per run, if this device took part in the run."""
        if self.trust.is_mine:
            self.trust.end_run()
            self.finished = True

    def _repeat_offer(self, now: float) -> bool:
        offer = self.upload.poll_offer(now, sending=self.publisher.is_sending)
        if offer is not None:
            self.publisher.send(offer)
        return offer is not None

    def _send_hello(self, now: float) -> None:
        self.handshake.note_hello(now)
        if self.paused:
            return  # the hello follows after the pause
        self.publisher.send_hello(self.state_db.position)
        if self.config.reports and self.evaluation_queue.report is not None:  # maybe it was lost
            self.publisher.send(self.evaluation_queue.report)
        self.upload.hurry()


def start_session(
    *,
    config: AgentConfig,
    incarnation: str,
    encoder_id: str,
    classes_digest: str,
    learner: Learner,
    identity: Identity,
    transport: Transport,
    state_db: StateDb,
    class_names: tuple[str, ...] = (),
    bundles: BundleDownload | None = None,
) -> Session:
    """Make the session of one process; `incarnation` is the random name of the process.

    The name distinguishes its messages from those of an earlier process of this device.
    `class_names` are those of its bundle. `bundles` fetches the bundle of a run that has another
    one. Raises the errors of `learner.capabilities`.
    """
    known_key = newest_key(config.coordinator_key, state_db.hand_overs())
    trust = Trust(incarnation, known_key, state_db)
    can = learner.capabilities()
    publisher = Publisher(config, incarnation, encoder_id, classes_digest, identity, transport, can)
    handshake = Handshake(config.fleet, trust)
    download = ModelDownload(learner)
    upload = Upload(state_db, config.min_per_class)
    queue = EvaluationQueue(learner)
    return Session(
        config=config,
        transport=transport,
        state_db=state_db,
        publisher=publisher,
        trust=trust,
        handshake=handshake,
        download=download,
        upload=upload,
        evaluation_queue=queue,
        standby=Standby(class_names),
        fetching=Fetching(config, publisher, download, queue, bundles),
        work=RoundWork(config, learner, publisher, handshake, download, upload, queue),
    )


def _is_later(manifest: Manifest, known: Manifest | None) -> bool:
    """True if the manifest is of another run, or of another start of its coordinator."""
    return known is None or (manifest.run, manifest.epoch) != (known.run, known.epoch)


def _log_message_refused(line: Line | None) -> None:
    if line is not None:
        log.event("message_refused", topic=line.topic, reason=line.reason, count=line.count)
