"""What a coordinator says, signed and on its topic: its state, the round, the model, answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from fedclip_edge.config import FleetConfig
from fedclip_edge.coordinator import round_machine
from fedclip_edge.coordinator.run_state import Ledger
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.messages import MAX_DEVICES, CoordinatorState, Manifest, Message, Parcel
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Transport, Will

NAME = "coordinator"
WANT_S = 0.5  # the same model is sent to a device no sooner again


def will(fleet: str, state: CoordinatorState, identity: Identity) -> Will:
    """What the broker says for a coordinator that vanished."""
    topic = Topics(fleet).coordinator_state
    return Will(topic, wire.pack_control(state, NAME, topic, identity))


@dataclass(eq=False)
class Announcer:
    """One process's voice. `epoch` rises with the coordinator's."""

    config: FleetConfig
    ledger: Ledger
    identity: Identity
    transport: Transport
    boot: str
    epoch: int
    _sent: dict[str, tuple[str, float]] = field(default_factory=dict)  # device -> version, when
    _broadcast: str = ""  # version of the model last sent to everybody

    @property
    def topics(self) -> Topics:
        return Topics(self.config.fleet)

    def state(self, *, online: bool) -> CoordinatorState:
        return CoordinatorState(
            self.boot, self.epoch, self.ledger.run.id, online, self.identity.key
        )

    def say_state(self, *, online: bool) -> None:
        """To everybody, and retained."""
        self._say(self.topics.coordinator_state, self.state(online=online), retain=True)

    def say_manifest(self, state: round_machine.State, devices: int) -> None:
        """To everybody, and retained."""
        self._say(self.topics.round, self.manifest(state, devices), retain=True)

    def answer(self, device: str, boot: str, state: round_machine.State, devices: int) -> None:
        """The manifest to one device alone, which says whether it takes part."""
        manifest = replace(
            self.manifest(state, devices),
            takes_part=device in state.cohort,
            answers=boot,
            kept=state.kept.get(device, ""),
        )
        self.say_down(device, manifest)

    def say_model(self) -> None:
        """To everybody, once; who misses it asks."""
        if self._broadcast != self.ledger.version:
            self._broadcast = self.ledger.version
            self._send_model(self.topics.model, None)

    def send_model(self, device: str, missing: chunks.Ranges, now: float) -> None:
        """The chunks that one device asked for, unless it had some of this model just now.

        A small message costs a whole model; who needs it asks again, and later than that.
        """
        version, sent_at = self._sent.get(device, ("", -math.inf))
        if version == self.ledger.version and now - sent_at < WANT_S:
            return
        self._sent[device] = (self.ledger.version, now)
        self._send_model(self.topics.down(device), missing)

    def say_down(self, device: str, message: Message) -> None:
        """To one device alone."""
        self._say(self.topics.down(device), message)

    @property
    def _parcel(self) -> Parcel:
        """The model as it is announced over this link."""
        return chunks.fitted(self.ledger.parcel, self.transport.packet_bytes())

    def _send_model(self, topic: str, wanted: chunks.Ranges | None) -> None:
        for chunk in chunks.chunks(self.ledger.stored.body, self._parcel, wanted):
            self.transport.publish(topic, chunk)

    def manifest(
        self,
        state: round_machine.State,
        devices: int,
    ) -> Manifest:
        """What everybody is told."""
        run = self.ledger.run
        return Manifest(
            run=run.id,
            epoch=self.epoch,
            key=self.identity.key,
            phase=state.phase,
            round=state.round,
            attempt=state.attempt,
            model=self._parcel,
            model_round=self.ledger.model.round,
            plan=run.plan,
            encoder_id=run.encoder_id,
            classes_digest=run.classes_digest,
            cohort=state.threshold,
            deadline_s=self.config.rules.deadline_s,
            devices=min(devices, MAX_DEVICES),
        )

    def _say(self, topic: str, message: Message, *, retain: bool = False) -> None:
        payload = wire.pack_control(message, NAME, topic, self.identity)
        self.transport.publish(topic, payload, retain=retain)
