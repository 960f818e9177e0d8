"""One federation: takes messages in, and hands what they mean for the rounds to `round_driver.py`.

Neither torch nor onnxruntime is needed here: the coordinator adds what devices send.

Laws:
- A message that breaks the protocol is dropped and counted against its peer; it stops nothing.
- Who may not take part (`admission.py`) is refused, and who no longer may is refused at once.
- Whatever is killed, the journal is enough to go on: `resume` rebuilds this state from it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.config import FleetConfig
from fedclip_edge.coordinator import round_events, round_machine
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.journal import Run
from fedclip_edge.coordinator.publisher import Announcer
from fedclip_edge.coordinator.receiver import Receiving, UnfitError
from fedclip_edge.coordinator.round_driver import Conducting
from fedclip_edge.coordinator.run_state import Ledger
from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.coordinator.uploads import LEASE_S, Uploads
from fedclip_edge.errors import PeerError, RunError
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    DeviceState,
    Hello,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.protocol.topics import CHUNK, Topics
from fedclip_edge.records import Report
from fedclip_edge.transport.base import Connected, Event, Received

# Names that nobody was let in under are counted one by one up to here, then together.
_PEERS_COUNTED = 10_000
# No coordinator starts this often in its life, and no device can use all epochs up.
_EPOCHS_AT_ONCE = 2**20


@dataclass(eq=False)
class Coordinator:
    """One run's state; `resume` before anything else."""

    config: FleetConfig
    ledger: Ledger
    voice: Announcer
    invited: frozenset[str] = frozenset()  # devices that the first round waits for by name
    registry: Registry | None = None  # who is enrolled; without one the first key shown is pinned
    refused_messages: Counter[str] = field(default_factory=Counter)
    _receiving: Receiving = field(init=False)
    _admission: Admission = field(init=False)
    _conducting: Conducting = field(init=False)

    def resume(self, now: float) -> None:
        """Takes up the run where its books stand."""
        closed, total = self.ledger.model.round, self.run.plan.rounds
        uploads = Uploads(Slots(self.config.rules.upload_slots, LEASE_S))
        self._receiving = Receiving(self.ledger, self.voice, uploads)
        self._admission = Admission(self.run, self.ledger.store, self.registry)
        state = round_machine.State(
            run=self.run.id,
            rules=self.config.rules,
            rounds=total,
            round=min(closed + 1, total),
            phase="final" if closed >= total else "gathering",
            deadline=now + self.config.rules.deadline_s,
            # Whoever was there before the restart is waited for as if it had just gone.
            away_since=dict.fromkeys(self._admission.admitted, now),
            invited=self.invited,
            kept=self.ledger.kept(),
        )
        self._conducting = Conducting(
            state, self.ledger, self.voice, self._receiving, self._admission
        )

    @property
    def run(self) -> Run:
        return self.ledger.run

    def take(self, event: Event, now: float) -> None:
        """Takes one event in, and does all that follows from it."""
        if isinstance(event, Connected):
            # Wills may have been said while nobody listened; who is there says hello again. It
            # does so at a coordinator that was gone, and where only this link broke, as with a
            # node of a cluster, the will that says so may be lost with it.
            if self._boots:
                self.voice.say_state(online=False)
            for device in tuple(self._boots):
                self._leave(device, now)
            self.voice.say_state(online=True)
            self._conducting.say_manifest()
        elif isinstance(event, Received):
            device = ""
            try:
                if event.topic == self.topics.coordinator_state:
                    self._take_coordinator(event)
                else:
                    device = self.topics.device_of(event.topic)
                    self._take_message(device, event, now)
            except PeerError as error:
                counted = self.refused_messages
                full = device not in counted and len(counted) >= _PEERS_COUNTED
                counted["" if full else device] += 1
                log.event("message_refused", device=device, topic=event.topic, reason=str(error))
        else:
            log.event("link_lost", reason=event.reason)

    def tick(self, now: float) -> None:
        """Does what is due: deadlines, leases, repairs.

        Raises RunError where another coordinator took over the journal: its state may not have been
        heard, and one that writes nothing would answer devices for ever.
        """
        self.ledger.store.check_claim()
        for device in self._receiving.uploads.expire(now):
            log.event("upload_abandoned", device=device)
        self._receiving.ask_due(now)
        self._conducting.step(round_events.Tick(), now)

    def admit(self, registry: Registry, now: float) -> dict[str, str]:
        """Takes over a changed registry; the boots of those it no longer admits, by device."""
        self.registry = self._admission.registry = registry
        out = {}
        for device, key in list(self._admission.keys.items()):
            reason = self._admission.refusal(device)
            if reason is None:
                continue
            boot = self._boots.pop(device, None)
            if boot is not None:
                self._refuse(device, reason, key, boot)
                out[device] = boot
            self._receiving.uploads.release(device)
            self._conducting.step(round_events.Left(device, for_good=True), now)
        return out

    def say_goodbye(self) -> None:
        """Tells the devices that nobody coordinates from here on."""
        self.voice.say_state(online=False)

    @property
    def has_begun(self) -> bool:
        """Whether a round was ever open."""
        state = self._conducting.state
        return state.round > 1 or state.phase != "gathering"

    @property
    def finished(self) -> bool:
        """Whether every round is closed and the last model evaluated."""
        return self._conducting.finished

    @property
    def _boots(self) -> dict[str, str]:
        return self._conducting.boots

    @property
    def epoch(self) -> int:
        """The higher one wins where two coordinate; devices refuse a lower one."""
        return self.voice.epoch

    @property
    def topics(self) -> Topics:
        return self.voice.topics

    def _take_coordinator(self, event: Received) -> None:
        signed = wire.unpack_control(event.topic, event.payload)
        state = signed.message
        self.topics.check_kind(event.topic, signed.kind)
        assert isinstance(state, CoordinatorState)
        signed.check(state.key if self.registry is None else self.voice.identity.key)
        if state.boot == self.voice.boot and state.online:
            return  # our own, back from the broker
        if state.online and (state.epoch, state.boot) > (self.epoch, self.voice.boot):
            raise RunError(
                f"another coordinator took over fleet {self.config.fleet} (epoch {state.epoch}); "
                "this one stops, its journal stays as it is"
            )
        # A will has replaced what is retained: of an earlier one, or of an earlier link of ours.
        self.voice.say_state(online=True)

    def _take_message(self, device: str, event: Received, now: float) -> None:
        if chunks.is_chunk(event.payload):
            self.topics.check_kind(event.topic, CHUNK)
            if device not in self._boots:
                raise PeerError("a chunk of a device that is not here")
            self._take_chunk(device, event.payload, now)
            return
        signed = wire.unpack_control(event.topic, event.payload)
        message = signed.message
        self.topics.check_kind(event.topic, signed.kind)
        if signed.sender != device:
            raise PeerError(f"{signed.sender!r} spoke on the topic of {device!r}")
        if isinstance(message, Hello):
            signed.check(message.key)
            self._take_hello(device, message, now)
            return
        if device not in self._admission.keys or device not in self._boots:
            if isinstance(message, DeviceState):
                return  # it will say hello, or it is a will from an earlier run
            # It takes itself for known: this run has forgotten it, or its hello never came.
            self.voice.say_down(device, self.voice.state(online=True))
            raise PeerError("it has not said hello")
        signed.check(self._admission.keys[device])
        if isinstance(message, DeviceState):
            if not message.online and message.boot == self._boots[device]:
                self._leave(device, now)
        elif isinstance(message, Offer):
            self._take_offer(device, message, now)
        elif isinstance(message, Want):
            self._conducting.step(round_events.Heard(device), now)
            if message.sha256 == self.ledger.version:  # else the manifest that replaces it comes
                self.voice.send_model(device, message.missing, now)
        elif isinstance(message, Report):
            self._take_report(device, message, now)

    def _take_hello(self, device: str, hello: Hello, now: float) -> None:
        reason = self._admission.admit(device, hello)
        if reason is not None:
            self._refuse(device, reason, hello.key, hello.boot)
            return
        # An epoch is one process's, and a process has one run: that was another journal's.
        is_other = hello.run not in ("", self.run.id)
        knows_later = is_other or hello.closed > self.ledger.model.round
        if hello.epoch > self.epoch or (hello.epoch == self.epoch and knows_later):
            self._rise_above(device, hello.epoch)
        if device not in self._boots:
            log.event("joined", device=device, domain=hello.domain, roles="+".join(hello.roles))
        self._boots[device] = hello.boot
        joined = round_events.Joined(device, "train" in hello.roles, "evaluate" in hello.roles)
        self._conducting.step(joined, now)
        self._conducting.answer(device, hello.boot)

    def _refuse(self, device: str, reason: str, key: str, boot: str) -> None:
        log.event("device_refused", device=device, reason=reason)
        # The manifest first: it brings the key without which a refusal is not believed.
        self._conducting.answer(device, boot)
        self.voice.say_down(device, Refused(reason, final=True, key=key))

    def _rise_above(self, device: str, epoch: int) -> None:
        """The fleet has heard of a later epoch than this journal, which is new or an old copy."""
        if epoch - self.epoch > _EPOCHS_AT_ONCE:
            raise PeerError(f"claims epoch {epoch}, this is epoch {self.epoch}")
        self.voice.epoch = self.ledger.store.next_epoch(above=epoch)
        log.event("epoch_raised", device=device, epoch=self.epoch)
        self.voice.say_state(online=True)
        self._conducting.say_manifest()

    def _leave(self, device: str, now: float) -> None:
        log.event("left", device=device)
        del self._boots[device]
        self._receiving.uploads.leave(device)
        self._conducting.step(round_events.Left(device), now)

    def _take_offer(self, device: str, offer: Offer, now: float) -> None:
        offered = self._receiving.take_offer(device, offer)
        if offered is not None:
            self._conducting.step(offered, now)

    def _take_chunk(self, device: str, payload: bytes, now: float) -> None:
        try:
            arrival = self._receiving.take_chunk(device, payload, now)
        except UnfitError as error:
            self._conducting.reject(device, error, now)
            raise
        if arrival is not None:
            self._conducting.step(arrival.event, now, arrival)

    def _take_report(self, device: str, report: Report, now: float) -> None:
        if (report.run, report.device) != (self.run.id, device):
            raise PeerError(f"report of {report.device!r} in {report.run!r}")
        if report.round > self.ledger.model.round:
            raise PeerError(f"report on round {report.round}, which is not closed")
        if report.round == self.ledger.model.round and report.model != self.ledger.version:
            raise PeerError(f"report on another model of round {report.round}")
        self.ledger.store.add_report(report)
        log.event("report", device=device, round=report.round, **report.accuracy)
        self._conducting.step(round_events.Reported(device, report.round), now)
