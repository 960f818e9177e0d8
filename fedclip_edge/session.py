"""One device's part in a run: what it says and does next, given what came and the time.

Between `agent.py`, which owns the pictures and the socket, and the protocol. Sans-I/O but for the
transport and the learner handed in, so that the in-memory twin and a made-up clock drive it as
well as a broker does.

Laws:
- Training and evaluation happen in `act`, never while a message is being taken in.
- What is not believed (`believing.py`) changes nothing.
- A round is joined only after the coordinator has answered this connection's hello, because only
  that answer says whether a late-comer is in the cohort.
- A contribution is made when its round is open and the last one is settled (`contributing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.believing import Believing
from fedclip_edge.config import AgentConfig
from fedclip_edge.contributing import REPEAT_S, Contributing
from fedclip_edge.errors import PeerError, RefusedError
from fedclip_edge.fetching import Fetching
from fedclip_edge.learner import Learner
from fedclip_edge.messaging import rounds, transfer, wire
from fedclip_edge.messaging.identity import Identity
from fedclip_edge.messaging.messages import (
    CoordinatorState,
    Kept,
    Manifest,
    Refused,
    Want,
)
from fedclip_edge.messaging.topics import CHUNK, Topics
from fedclip_edge.messaging.transport import Connected, Event, Received, Transport
from fedclip_edge.parked import Parked
from fedclip_edge.records import Contribution, Report
from fedclip_edge.speaking import Speaker

# Between hellos where nobody coordinates: under 9 kB an hour. Whoever comes says so to all.
_ALONE_S = 300.0
_ALONE_HELLOS = 4  # unanswered on end; a good-bye may have been lost


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
    _greeted: bool = False
    _unanswered: int = 0  # hellos on end
    _hello_at: float | None = None  # None while disconnected
    _heard_at: float = 0.0  # when the last manifest came
    _first_connected_at: float | None = None
    _voice: Speaker = field(init=False)
    _fetching: Fetching = field(init=False)
    _mine: Contributing = field(init=False)
    _report: Report | None = None
    _reported: tuple[str, bool] = ("", False)  # version, and whether as the last one

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
        self._mine = Contributing(self.parked)

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
            self._first_connected_at = self._first_connected_at or now
            self._greeted, self._unanswered = False, 0
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
            self._hello_at = None
            log.event("link_lost", reason=event.reason)

    def act(self, now: float) -> bool:
        """Does the next piece of work, at most one; False where there was none."""
        if self._hello_at is None:
            return False
        manifest = self._believed.manifest
        if manifest is not None and self._is_left_alone(manifest):
            log.event("run_ended_without_this_device", run=manifest.run)
            self._finish()
            return False
        if not self._greeted:
            if now - self._hello_at >= self._repeat_hello_s:
                if not self._unanswered:
                    log.event("no_answer", fleet=self.config.fleet, hint="does its serve run?")
                self._ask_again(now)
            return False
        if manifest is None:
            return False
        if now - self._heard_at >= self._patience_s(manifest):
            self._heard_at = now  # the next manifest may have been lost on its way
            self._ask_again(now)
        if self._repeat_offer(now):
            return True
        if not self._have_model(manifest, now):
            return False
        return self._train_if_due(manifest, now) or self._evaluate_if_due(manifest, now)

    def _patience_s(self, manifest: Manifest) -> float:
        """After how long without a manifest this device asks whether it missed one."""
        is_mine = self._believed.is_mine
        is_near = manifest.phase == "final" or (manifest.phase == "done" and is_mine)
        return REPEAT_S if is_near else manifest.deadline_s

    def _is_left_alone(self, manifest: Manifest) -> bool:
        """Its run is done, and nobody is there any more to give it the last model, or to greet it."""
        is_over = manifest.phase == "done" and self._believed.is_mine
        can_evaluate = self._greeted and self._fetching.has(manifest)
        return is_over and self._is_alone and not can_evaluate

    @property
    def _is_alone(self) -> bool:
        """Whether the coordinator said that it goes, or answers no more."""
        coordinator = self._believed.coordinator
        gone = coordinator is not None and not coordinator.online
        return gone or self._unanswered >= _ALONE_HELLOS

    @property
    def _repeat_hello_s(self) -> float:
        """How long to wait for an answer to the last hello."""
        if self._is_alone or self._believed.coordinator is None:
            return min(REPEAT_S * (1 << min(self._unanswered, 10)), _ALONE_S)
        return REPEAT_S

    def _ask_again(self, now: float) -> None:
        """A message was lost, and whoever said it may be gone: what is retained says the same."""
        self._unanswered += 1
        self.transport.resubscribe()
        self._say_hello(now)

    def _take_message(self, topic: str, payload: bytes, now: float) -> None:
        if transfer.is_chunk(payload):
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
        known = self._believed.coordinator
        self._believed.take_coordinator(state)
        # Said to this device alone, it asks who that is.
        is_new = direct or known is None or known.boot != state.boot or not known.online
        if state.online and is_new and self._hello_at is not None:
            self._greeted, self._unanswered = False, 0
            self._say_hello(now)

    def _take_manifest(self, manifest: Manifest, now: float, *, direct: bool) -> None:
        known = self._believed.manifest
        self._fetching.check_size(manifest)
        self._believed.take_manifest(manifest, direct=direct)
        if known is None or known.run != manifest.run:  # what was said of another ends with it
            self._report, self._reported = None, ("", False)
            self._mine.take_up(manifest.run)
        self._mine.go_back(manifest)
        if known is not None and known.run == manifest.run:
            self._mine.moved_on(known, manifest)
        if manifest.phase == "done":
            self._mine.end(manifest.run)
        self._heard_at = now
        self.transport.expect(manifest.devices)
        is_greeting = direct and not self._greeted
        if direct:
            self._greeted, self._unanswered = True, 0
        # Who was greeted just now has missed the broadcast, and whatever was on its way before: it
        # asks at once, and for all that is missing.
        self._fetching.expect(manifest, now, missed=is_greeting)
        if manifest.phase == "done" and ("evaluate" not in self.config.roles or self._reported[1]):
            self._finish()

    def _have_model(self, manifest: Manifest, now: float) -> bool:
        try:
            want = self._fetching.take(manifest, now)
        except PeerError as error:
            self.refused_messages += 1
            log.event("model_refused", reason=str(error))
            return False
        if want is not None:
            self._voice.say_up(want)
        return self._fetching.has(manifest)

    def _train_if_due(self, manifest: Manifest, now: float) -> bool:
        if (
            manifest.phase != "open"
            or "train" not in self.config.roles
            or not self._takes_part(manifest)
            or not self._mine.owes(manifest.round)
        ):
            return False
        model = self._fetching.model
        assert model is not None
        plan, carried = manifest.plan, self._mine.carried(manifest.run)
        update, state = self.learner.fit(model, plan, carried.state)
        contribution = Contribution(
            run=manifest.run,
            round=manifest.round,
            device=self.config.id,
            base=self._fetching.version,
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
        drawn = rounds.cohort_hash(manifest.run, manifest.round, self.config.id)
        return drawn <= manifest.cohort

    def _evaluate_if_due(self, manifest: Manifest, now: float) -> bool:
        version, model = self._fetching.version, self._fetching.model
        due = (version, manifest.phase in ("final", "done"))
        if "evaluate" not in self.config.roles or self._reported == due:
            return False
        if manifest.phase == "gathering":
            return False  # it waits for others, maybe for days: torch is not loaded for that
        assert model is not None
        assert self._first_connected_at is not None
        waited_s = now - self._first_connected_at - self.learner.busy_s
        measured = self.learner.evaluate(model, manifest.plan, final=due[1])
        self._report = self.learner.report(
            manifest.run, model, version, measured, max(0.0, waited_s)
        )
        self._reported = due
        self._voice.say_up(self._report)
        log.event("evaluated", round=model.round, **self._report.accuracy)
        if manifest.phase == "done":
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
        self._hello_at = now
        self._voice.say_hello(self.parked.floor)
        if self._report is not None:  # the coordinator may have been away when it was said
            self._voice.say_up(self._report)
        self._mine.hurry()
