"""One device's part in a run: what it says and does next, given what came and the time.

Between `agent.py`, which owns the pictures and the socket, and the protocol. Sans-I/O but for the
transport and the learner handed in, so that the in-memory twin and a made-up clock drive it as
well as a broker does.

Laws:
- Training and evaluation happen in `act`, never while a message is being taken in.
- What is not believed (`trust.py`) changes nothing.
- A round is joined only after the coordinator has answered this connection's hello, because only
  that answer says whether a late-comer is in the cohort.
- A contribution is made when its round is open and the last one is settled (`upload.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.evaluation_queue import Evaluating
from fedclip_edge.agent.handshake import Greeting
from fedclip_edge.agent.learner import Learner
from fedclip_edge.agent.model_download import Fetching
from fedclip_edge.agent.publisher import Speaker
from fedclip_edge.agent.state_db import Parked
from fedclip_edge.agent.trust import Believing
from fedclip_edge.agent.upload import Contributing
from fedclip_edge.config import AgentConfig
from fedclip_edge.errors import PeerError, RefusedError
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.cohort import cohort_hash
from fedclip_edge.protocol.messages import CoordinatorState, Kept, Manifest, Refused, Want
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import CHUNK, Topics
from fedclip_edge.records import Contribution
from fedclip_edge.transport.base import Connected, Event, Received, Transport


@dataclass(eq=False)
class Session:
    """One device's state. `finished` once a run is done that this device took part in.

    `boot` is random per process; a will of an earlier one is told apart by it.
    """

    config: AgentConfig
    boot: str
    encoder_id: str
    classes_digest: str
    learner: Learner
    identity: Identity
    transport: Transport
    parked: Parked
    finished: bool = False
    refused_messages: int = 0
    _believed: Believing = field(init=False)
    _greeting: Greeting = field(init=False)
    _voice: Speaker = field(init=False)
    _fetching: Fetching = field(init=False)
    _mine: Contributing = field(init=False)
    _evaluating: Evaluating = field(init=False)

    def __post_init__(self) -> None:
        self._voice = Speaker(
            self.config,
            self.boot,
            self.encoder_id,
            self.classes_digest,
            self.identity,
            self.transport,
        )
        self._fetching = Fetching(self.learner)
        self._believed = Believing(self.boot, self.config.coordinator_key, self.parked)
        self._greeting = Greeting(self.config.fleet, self._believed)
        self._mine = Contributing(self.parked)
        self._evaluating = Evaluating(self.learner)

    @property
    def topics(self) -> Topics:
        return self._voice.topics

    def say_goodbye(self) -> None:
        """Tells the coordinator that this device leaves on purpose."""
        self._voice.say_state(online=False)

    def take(self, event: Event, now: float) -> None:
        """Takes one event in; answers what can be answered without work.

        Raises RefusedError where the coordinator will never take this device.
        """
        if isinstance(event, Connected):
            self._greeting.link_came(now)
            self._mine.link_came(self.transport.packet_bytes())
            self._voice.say_state(online=True)
            self._say_hello(now)
        elif isinstance(event, Received):
            try:
                self._take_message(event.topic, event.payload, now)
            except PeerError as error:
                self.refused_messages += 1
                log.event("message_refused", topic=event.topic, reason=str(error))
        else:
            self._greeting.link_lost()
            log.event("link_lost", reason=event.reason)

    def act(self, now: float) -> bool:
        """Does the next piece of work, at most one; False where there was none."""
        if not self._greeting.is_connected:
            return False
        manifest = self._believed.manifest
        if manifest is not None and self._is_left_alone(manifest):
            log.event("run_ended_without_this_device", run=manifest.run)
            self._finish()
            return False
        if self._greeting.due(now):
            self._ask_again(now)
        if manifest is None or not self._greeting.is_answered:
            return False
        if self._repeat_offer(now):
            return True
        has_model = self._have_model(manifest, now)
        if has_model and self._train_if_due(manifest, now):
            return True
        return self._evaluate_if_due(manifest, now)

    def _is_left_alone(self, manifest: Manifest) -> bool:
        """Its run is done, and nobody is there any more to give it the last model, or to greet it."""
        is_over = manifest.phase == "done" and self._believed.is_mine
        can_evaluate = self._greeting.is_answered and self._fetching.has(manifest)
        return is_over and self._greeting.is_alone and not can_evaluate

    def _ask_again(self, now: float) -> None:
        """A message was lost, and whoever said it may be gone: what is retained says the same."""
        self.transport.resubscribe()
        self._say_hello(now)

    def _take_message(self, topic: str, payload: bytes, now: float) -> None:
        if chunks.is_chunk(payload):
            self.topics.check_kind(topic, CHUNK)
            self._fetching.receive(payload, now)
            return
        signed = wire.unpack_control(topic, payload)
        self.topics.check_kind(topic, signed.kind)
        self._believed.check(signed)
        message = signed.message
        if isinstance(message, CoordinatorState):
            self._take_coordinator(message, now, direct=topic == self.topics.down(self.config.id))
        elif isinstance(message, Manifest):
            self._take_manifest(message, now, direct=topic == self.topics.down(self.config.id))
        elif isinstance(message, Want):
            for chunk in self._mine.chunks(message, now, sending=self._voice.is_sending):
                self._voice.send_chunk(chunk)
        elif isinstance(message, Kept):
            self._mine.settle(message)
        elif isinstance(message, Refused):
            if message.final and message.key != self.identity.key:
                return  # meant for another that speaks under this id
            if message.final:
                raise RefusedError(f"the coordinator refused {self.config.id}: {message.reason}")
            log.event("contribution_refused", reason=message.reason)
            self._mine.settle(message)

    def _take_coordinator(self, state: CoordinatorState, now: float, *, direct: bool) -> None:
        # Said to this device alone, it asks who that is.
        is_asked = direct or self._greeting.is_new(state)
        self._believed.take_coordinator(state)
        if state.online and is_asked and self._greeting.is_connected:
            self._greeting.begin()
            self._say_hello(now)

    def _take_manifest(self, manifest: Manifest, now: float, *, direct: bool) -> None:
        known = self._believed.manifest
        self._fetching.check_size(manifest)
        self._believed.take_manifest(manifest, direct=direct)
        if known is None or known.run != manifest.run:  # what was said of another ends with it
            self._evaluating.begin()
            self._mine.take_up(manifest.run)
        self._mine.go_back(manifest)
        if known is not None and known.run == manifest.run:
            self._mine.moved_on(known, manifest)
            if self._greeting.is_answered:
                self._hold(known)
        self._evaluating.go_back(manifest)
        if manifest.phase == "done":
            self._mine.end(manifest.run)
        self.transport.expect(manifest.devices)
        is_answer = self._greeting.heard(now, direct=direct)
        # Who was greeted just now has missed the broadcast, and whatever was on its way before: it
        # asks at once, and for all that is missing.
        self._fetching.expect(manifest, now, missed=is_answer)
        if manifest.phase == "done" and (
            "evaluate" not in self.config.roles or self._evaluating.is_over(manifest)
        ):
            self._finish()

    def _have_model(self, manifest: Manifest, now: float) -> bool:
        self._hold(manifest)
        want = self._fetching.due(manifest, now)
        if want is not None:
            self._voice.say_up(want)
        return self._fetching.has(manifest)

    def _hold(self, manifest: Manifest) -> None:
        """Holds the manifest's model where all of it is here, and will evaluate it."""
        try:
            came = self._fetching.take(manifest)
        except PeerError as error:
            self.refused_messages += 1
            log.event("model_refused", reason=str(error))
            return
        if came is not None and "evaluate" in self.config.roles:
            self._evaluating.add(came)

    def _train_if_due(self, manifest: Manifest, now: float) -> bool:
        if (
            manifest.phase != "open"
            or "train" not in self.config.roles
            or not self._takes_part(manifest)
            or not self._mine.owes(manifest.round)
        ):
            return False
        base = self._fetching.held
        assert base is not None
        plan, carried = manifest.plan, self._mine.carried(manifest.run)
        update, state = self.learner.fit(base.model, plan, carried.state)
        contribution = Contribution(
            run=manifest.run,
            round=manifest.round,
            device=self.config.id,
            base=base.version,
            encoder_id=self.encoder_id,
            classes_digest=self.classes_digest,
            update=update,
        )
        offer = self._mine.make(contribution, plan, carried, state, now)
        self._voice.say_up(offer)
        log.event("trained", round=manifest.round, update_bytes=offer.parcel.size_bytes)
        return True

    def _takes_part(self, manifest: Manifest) -> bool:
        if manifest.takes_part is not None:
            return manifest.takes_part
        drawn = cohort_hash(manifest.run, manifest.round, self.config.id)
        return drawn <= manifest.cohort

    def _evaluate_if_due(self, manifest: Manifest, now: float) -> bool:
        if "evaluate" not in self.config.roles or manifest.phase == "gathering":
            return False  # it waits for others, maybe for days: torch is not loaded for that
        if self._greeting.is_alone and manifest.phase != "done":
            return False  # nobody would hear of it, and only the last report is said again
        due = self._evaluating.due(manifest, self._fetching.held)
        if due is None:
            return False
        assert self._greeting.since is not None
        waited_s = max(0.0, now - self._greeting.since - self.learner.busy_s)
        report = self._evaluating.evaluate(due, manifest, waited_s)
        self._voice.say_up(report)
        log.event("evaluated", round=report.round, **report.accuracy)
        if manifest.phase == "done" and self._evaluating.is_over(manifest):
            self._finish()
        return True

    def _finish(self) -> None:
        """The run is done, and so is this device with it, if it took part; it is so once."""
        if self._believed.is_mine:
            self._believed.end()
            self.finished = True

    def _repeat_offer(self, now: float) -> bool:
        offer = self._mine.due(now, sending=self._voice.is_sending)
        if offer is not None:
            self._voice.say_up(offer)
        return offer is not None

    def _say_hello(self, now: float) -> None:
        self._greeting.said(now)
        self._voice.say_hello(self.parked.floor)
        if self._evaluating.report is not None:  # the coordinator may have been away then
            self._voice.say_up(self._evaluating.report)
        self._mine.hurry()
