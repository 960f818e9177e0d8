"""One device's part in a run: what it says and does next, given what came and the time.

Between `agent.py`, which owns the pictures and the socket, and the protocol. Sans-I/O but for the
transport and the learner handed in, so that the in-memory twin and a made-up clock drive it as
well as a broker does.

Laws:
- Training and evaluation happen in `act`, never while a message is being taken in.
- A message is believed when the coordinator's key signed it: the one that enrolment pinned, or
  without enrolment the first that a run showed. An older epoch or round is refused, also after a
  restart.
- A round is joined only after the coordinator has answered this connection's hello, because only
  that answer says whether a late-comer is in the cohort; and it names this process's boot, so
  that nobody can play an answer of old to it.
- A contribution is parked on disk before it is offered, and held until the coordinator has it on
  its own, or will never want it. No other one of its run is made before: what a kept one left
  behind (the codec's residual, the method's state) goes into the next, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedclip_edge import log
from fedclip_edge.config import AgentConfig
from fedclip_edge.errors import PeerError, RefusedError
from fedclip_edge.messaging import codec, rounds, transfer, wire
from fedclip_edge.messaging.identity import Identity
from fedclip_edge.messaging.messages import (
    CoordinatorState,
    DeviceState,
    Hello,
    Kept,
    Manifest,
    Message,
    Offer,
    Parcel,
    Refused,
    Want,
)
from fedclip_edge.messaging.topics import Topics
from fedclip_edge.messaging.transport import Connected, Event, Received, Transport, Will
from fedclip_edge.parked import Carried, Floor, Parked, ParkedUpdate
from fedclip_edge.records import Contribution, Model, Plan, Report, Terms, Update

REPAIR_S = 1.0  # without a chunk for this long, ask for what is missing
REPEAT_S = 5.0  # without an answer for this long, say it again
_REPAIR_MAX_S = 16.0  # 120 KiB at 8 kB/s
_REPAIR_CHUNKS = 4


class Learner(Protocol):
    """What a session asks of whoever holds the features."""

    def shapes(self, plan: Plan) -> wire.Shapes:
        """The terms that a model of this plan must have; raises ConfigError for an unknown plan."""

    def fit(self, model: Model, plan: Plan, state: Terms) -> tuple[Update, Terms]:
        """Trains one round from `model` and the method's own state; empty in a run's first."""

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Mapping[str, float]:
        """Accuracies on the test pictures; `final` for the model that ends the run."""

    def report(
        self, run: str, model: Model, version: str, accuracy: Mapping[str, float], wait_s: float
    ) -> Report:
        """The accuracies with what they cost."""

    @property
    def busy_s(self) -> float:
        """Seconds spent in `fit` and `evaluate` so far."""


@dataclass(eq=False)
class _Offered:
    """A contribution that is neither kept nor refused yet."""

    update: ParkedUpdate
    parcel: Parcel
    said_at: float
    answered: bool = False  # chunks went out on this link
    unwanted: bool = False  # in this attempt; what becomes of it is known when its round is closed


def will(config: AgentConfig, identity: Identity, boot: str) -> Will:
    """What the broker says for a device that vanished."""
    topic = Topics(config.fleet).state(config.id)
    gone = wire.pack_control(DeviceState(boot, online=False), config.id, topic, identity)
    return Will(topic, gone)


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
    _pins: dict[str, str] = field(default_factory=dict)  # run -> the coordinator's key
    _coordinator: CoordinatorState | None = None
    _manifest: Manifest | None = None
    _greeted: bool = False
    _unanswered: bool = False  # and said so
    _joined: str = ""  # the run that a hello was last answered for
    _hello_at: float | None = None  # None while disconnected
    _heard_at: float = 0.0  # when the last manifest came
    _first_connected_at: float | None = None
    _incoming: transfer.Incoming | None = None
    _chunk_at: float = 0.0
    _asked_for: str = ""  # the model whose chunks were asked for last
    _repair_s: float = REPAIR_S
    _model: Model | None = None
    _version: str = ""  # of the model held
    _offered: _Offered | None = None
    _settled_round: int = 0  # of this run, the last that this device has its answer for
    _report: Report | None = None
    _reported: tuple[str, bool] = ("", False)  # version, and whether as the last one

    @property
    def topics(self) -> Topics:
        return Topics(self.config.fleet)

    def say_goodbye(self) -> None:
        """Tells the coordinator that this device leaves on purpose."""
        self._say_state(online=False)

    def take(self, event: Event, now: float) -> None:
        """Takes one event in; answers what can be answered without work.

        Raises RefusedError where the coordinator will never take this device.
        """
        if isinstance(event, Connected):
            self._first_connected_at = self._first_connected_at or now
            self._greeted = False
            if self._offered is not None:
                self._offered.answered = False
            self._say_state(online=True)
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
        manifest = self._manifest
        if manifest is not None and self._is_left_alone(manifest):
            log.event("run_ended_without_this_device", run=manifest.run)
            self.finished, self._joined = True, ""
            return False
        if not self._greeted:
            if now - self._hello_at >= REPEAT_S:
                if not self._unanswered:
                    log.event("no_answer", fleet=self.config.fleet, hint="does its serve run?")
                self._unanswered = True
                self._say_hello(now)
            return False
        if manifest is None:
            return False
        if now - self._heard_at >= self._patience_s(manifest):
            self._heard_at = now  # the next manifest may have been lost on its way
            self._say_hello(now)
        if self._repeat_offer(now):
            return True
        if not self._have_model(manifest, now):
            return False
        return self._train_if_due(manifest, now) or self._evaluate_if_due(manifest, now)

    def _patience_s(self, manifest: Manifest) -> float:
        """After how long without a manifest this device asks whether it missed one."""
        return REPEAT_S if manifest.phase == "final" else manifest.deadline_s

    def _is_left_alone(self, manifest: Manifest) -> bool:
        """The run it joined is done, and nobody is there any more to give it the last model."""
        gone = self._coordinator is not None and not self._coordinator.online
        has_model = self._version == manifest.model.sha256
        return manifest.phase == "done" and gone and manifest.run == self._joined and not has_model

    def _take_message(self, topic: str, payload: bytes, now: float) -> None:
        if transfer.is_chunk(payload):
            if self._incoming is not None and self._incoming.receive(payload):
                self._chunk_at = now
            return
        signed = wire.unpack_control(topic, payload)
        message = signed.message
        if signed.sender != "coordinator":
            raise PeerError(f"{signed.sender!r} spoke where only the coordinator may")
        self._believe(signed)
        if isinstance(message, CoordinatorState):
            self._take_coordinator(message, now, direct=topic == self.topics.down(self.config.id))
        elif isinstance(message, Manifest):
            self._take_manifest(message, now, direct=topic == self.topics.down(self.config.id))
        elif isinstance(message, Want):
            self._send_wanted(message, now)
        elif isinstance(message, Kept):
            self._settle(message)
        elif isinstance(message, Refused):
            if message.final and message.key != self.identity.key:
                return  # meant for another that speaks under this id
            if message.final:
                raise RefusedError(f"the coordinator refused {self.config.id}: {message.reason}")
            log.event("contribution_refused", reason=message.reason)
            self._settle(message)
        else:
            raise PeerError(f"a coordinator does not say {type(message).__name__}")

    def _believe(self, signed: wire.Signed) -> None:
        message = signed.message
        if isinstance(message, CoordinatorState | Manifest):
            key = self.config.coordinator_key or self._pins.get(message.run, message.key)
            signed.check(key)
            self._pins[message.run] = key
        elif self._manifest is not None:
            signed.check(self._pins[self._manifest.run])
        else:
            raise PeerError("nothing is known of the run yet")

    def _take_coordinator(self, state: CoordinatorState, now: float, *, direct: bool) -> None:
        known = self._coordinator
        epoch = max(self.parked.floor.epoch, 0 if known is None else known.epoch)
        # One that rose above its own first epoch left its will before that.
        if state.epoch < epoch and (known is None or state.boot != known.boot):
            raise PeerError(f"coordinator of epoch {state.epoch}, older than {epoch}")
        self._coordinator = state
        # Said to this device alone, it asks who that is.
        is_new = direct or known is None or known.boot != state.boot or not known.online
        if state.online and is_new and self._hello_at is not None:
            self._greeted = False
            self._say_hello(now)

    def _take_manifest(self, manifest: Manifest, now: float, *, direct: bool) -> None:
        if direct and manifest.answers != self.boot:
            raise PeerError(f"manifest for boot {manifest.answers[:40]!r}, this is {self.boot}")
        known, floor = self._manifest, self.parked.floor
        if floor.is_above(manifest.epoch, manifest.run, manifest.round):
            raise PeerError(
                f"manifest of round {manifest.round} of epoch {manifest.epoch}, older than round "
                f"{floor.round} of epoch {floor.epoch}"
            )
        self.parked.move_floor(Floor(manifest.epoch, manifest.run, manifest.round))
        if known is None or known.run != manifest.run:  # what was said of another ends with it
            self._report, self._reported = None, ("", False)
            self._take_up(manifest.run)
        elif self._offered is not None and (
            manifest.round != known.round
            or (manifest.attempt != known.attempt and self._offered.unwanted)
        ):
            # What one attempt refused, the next may want; and once the round is closed, the answer
            # is final, and the next contribution waits for it.
            self._offered.unwanted, self._offered.said_at = False, -math.inf
        if manifest.phase == "done":
            self._offered = None
            self.parked.forget(manifest.run)
        self._manifest = manifest
        self._heard_at = now
        self.transport.expect(manifest.devices)
        is_greeting = direct and not self._greeted
        if direct:
            self._greeted, self._joined, self._unanswered = True, manifest.run, False
        if self._version != manifest.model.sha256:
            # From now on its chunks count. Who was greeted just now has missed the broadcast, and
            # whatever was on its way before: it asks at once, and for all that is missing.
            self._expect(manifest, now)
            if is_greeting:
                self._chunk_at, self._asked_for = now - self._repair_s, ""
        took_part = known is not None and known.run == manifest.run
        evaluates = "evaluate" in self.config.roles
        if manifest.phase == "done" and took_part and not (evaluates and not self._reported[1]):
            self.finished = True

    def _take_up(self, run: str) -> None:
        """What this device had made for the run before it was killed, or before another came."""
        update, self._settled_round = self.parked.update(run), self.parked.kept_round(run)
        self._offered = None
        if update is not None:
            self._offered = _Offered(update, transfer.parcel_of(update.body), -math.inf)

    def _expect(self, manifest: Manifest, since: float) -> transfer.Incoming:
        if self._incoming is None or self._incoming.parcel != manifest.model:
            self._incoming = transfer.Incoming(manifest.model)
            self._chunk_at = since
        return self._incoming

    def _have_model(self, manifest: Manifest, now: float) -> bool:
        if self._version == manifest.model.sha256:
            return True
        incoming = self._expect(manifest, now)
        if not incoming.complete:
            if now - self._chunk_at >= self._repair_s:
                self._chunk_at = now
                self._say_up(Want(incoming.parcel.sha256, self._missing_of(incoming)))
            return False
        try:
            shapes = self.learner.shapes(manifest.plan)
            self._model = wire.unpack_model(incoming.take(), manifest.plan.codec_down, shapes)
        except PeerError as error:
            self.refused_messages += 1
            log.event("model_refused", reason=str(error))
            return False
        finally:
            self._incoming = None
        self._version = manifest.model.sha256
        self._repair_s = max(REPAIR_S, self._repair_s / 2)
        return True

    def _missing_of(self, incoming: transfer.Incoming) -> transfer.Ranges:
        """All gaps at first; after that a few and less and less often, since a link that is slower
        than a chunk in REPAIR_S would otherwise carry everything again and again.
        """
        if self._asked_for != incoming.parcel.sha256:
            self._asked_for = incoming.parcel.sha256
            return incoming.missing
        self._repair_s = min(2 * self._repair_s, _REPAIR_MAX_S)
        return transfer.first(incoming.missing, _REPAIR_CHUNKS)

    def _train_if_due(self, manifest: Manifest, now: float) -> bool:
        if (
            manifest.phase != "open"
            or "train" not in self.config.roles
            or not self._takes_part(manifest)
            or self._offered is not None
            or self._settled_round == manifest.round
        ):
            return False
        assert self._model is not None
        plan, carried = manifest.plan, self.parked.carried(manifest.run)
        update, state = self.learner.fit(self._model, plan, carried.state)
        terms, residual = codec.with_feedback(plan.codec_up, update.terms, carried.residual)
        contribution = Contribution(
            run=manifest.run,
            round=manifest.round,
            device=self.config.id,
            base=self._version,
            encoder_id=self.encoder_id,
            classes_digest=self.classes_digest,
            update=replace(update, terms=terms),
        )
        data = wire.pack_contribution(contribution, plan.codec_up)
        parcel = transfer.parcel_of(data)
        parked = ParkedUpdate(manifest.run, manifest.round, parcel.sha256, data)
        self.parked.park(parked, Carried(residual, state))
        self._offered = _Offered(parked, parcel, now)
        self._say_up(Offer(manifest.run, manifest.round, parcel))
        log.event("trained", round=manifest.round, update_bytes=len(data))
        return True

    def _takes_part(self, manifest: Manifest) -> bool:
        if manifest.takes_part is not None:
            return manifest.takes_part
        drawn = rounds.cohort_hash(manifest.run, manifest.round, self.config.id)
        return drawn <= manifest.cohort

    def _evaluate_if_due(self, manifest: Manifest, now: float) -> bool:
        due = (self._version, manifest.phase in ("final", "done"))
        if "evaluate" not in self.config.roles or self._reported == due:
            return False
        assert self._model is not None
        assert self._first_connected_at is not None
        waited_s = now - self._first_connected_at - self.learner.busy_s
        accuracy = self.learner.evaluate(self._model, manifest.plan, final=due[1])
        self._report = self.learner.report(
            manifest.run, self._model, self._version, accuracy, max(0.0, waited_s)
        )
        self._reported = due
        self._say_up(self._report)
        log.event("evaluated", round=self._model.round, **self._report.accuracy)
        if manifest.phase == "done":
            self.finished = True
        return True

    def _repeat_offer(self, now: float) -> bool:
        mine = self._offered
        if mine is None or mine.unwanted or now - mine.said_at < REPEAT_S:
            return False
        if mine.answered and self.transport.backlog():
            return False
        mine.said_at = now
        self._say_up(Offer(mine.update.run, mine.update.round, mine.parcel))
        return True

    def _send_wanted(self, want: Want, now: float) -> None:
        mine = self._offered
        if mine is None or mine.unwanted or mine.parcel.sha256 != want.sha256:
            return  # of an earlier round: whoever asked has moved on
        if mine.answered and self.transport.backlog():
            return  # the answer to the last time is still on its way; a slow link is no loss
        mine.said_at, mine.answered = now, True
        for chunk in transfer.chunks(mine.update.body, mine.parcel, want.missing):
            self.transport.publish(self.topics.up(self.config.id), chunk)

    def _settle(self, answer: Kept | Refused) -> None:
        """Forgets the contribution of that hash; nothing where it is another, or forgotten.

        A refusal while its round is not closed settles nothing: the same one may be kept yet.
        """
        mine = self._offered
        if mine is None or mine.parcel.sha256 != answer.sha256:
            return
        if isinstance(answer, Refused) and answer.closed < mine.update.round:
            mine.unwanted = True
            return
        self.parked.settle(mine.update.run, answer.sha256, kept=isinstance(answer, Kept))
        self._settled_round, self._offered = mine.update.round, None

    def _say_hello(self, now: float) -> None:
        self._hello_at = now
        self._say_up(
            Hello(
                boot=self.boot,
                key=self.identity.key,
                roles=self.config.roles,
                domain=self.config.domain,
                encoder_id=self.encoder_id,
                classes_digest=self.classes_digest,
                epoch=self.parked.floor.epoch,
            )
        )
        if self._report is not None:  # the coordinator may have been away when it was said
            self._say_up(self._report)
        if self._offered is not None:
            self._offered.said_at = -math.inf

    def _say_state(self, *, online: bool) -> None:
        topic = self.topics.state(self.config.id)
        state = DeviceState(self.boot, online)
        self.transport.publish(topic, self._pack(topic, state), retain=True)

    def _say_up(self, message: Message) -> None:
        topic = self.topics.up(self.config.id)
        self.transport.publish(topic, self._pack(topic, message))

    def _pack(self, topic: str, message: Message) -> bytes:
        return wire.pack_control(message, self.config.id, topic, self.identity)
