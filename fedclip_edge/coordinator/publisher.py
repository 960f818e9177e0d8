"""The coordinator's outgoing messages, signed: its state, the manifest, the model, answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedclip_edge.config import FleetConfig
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.messages import MAX_DEVICES, Blob, CoordinatorState, Manifest, Message
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Transport, Will

NAME = "coordinator"


def will(fleet: str, state: CoordinatorState, identity: Identity) -> Will:
    """The message that the broker publishes for a coordinator that vanished."""
    topic = Topics(fleet).coordinator_state
    return Will(topic, wire.pack_control(state, NAME, topic, identity))


@dataclass(eq=False)
class Publisher:
    """One process's messages. `epoch` rises with the coordinator's."""

    config: FleetConfig
    run_state: RunState
    identity: Identity
    transport: Transport
    incarnation: str
    epoch: int
    _broadcast: str = ""  # version of the model last sent to all devices

    @property
    def topics(self) -> Topics:
        return Topics(self.config.fleet)

    def state(self, *, online: bool) -> CoordinatorState:
        run = self.run_state.run.id
        return CoordinatorState(self.incarnation, self.epoch, run, online, self.identity.key)

    def publish_state(self, *, online: bool) -> None:
        """To all devices, and retained."""
        self._publish(self.topics.coordinator_state, self.state(online=online), retain=True)

    def publish_manifest(self, state: RoundState, devices: int) -> None:
        """To all devices, and retained."""
        self._publish(self.topics.round, self.manifest(state, devices), retain=True)

    def answer_hello(self, device: str, incarnation: str, state: RoundState, devices: int) -> None:
        """The manifest to one device alone, which says whether it takes part."""
        manifest = replace(
            self.manifest(state, devices),
            takes_part=device in state.cohort,
            answers=incarnation,
            kept=state.kept.get(device, ""),
        )
        self.send(device, manifest)

    def broadcast_model(self) -> None:
        """To all devices, once; a device that misses it asks."""
        if self._broadcast != self.run_state.version:
            self._broadcast = self.run_state.version
            self._send_chunks(self.topics.model, None)

    def send_model(self, device: str, missing: chunks.Ranges) -> None:
        """The chunks that one device asked for."""
        self._send_chunks(self.topics.down(device), missing)

    def send(self, device: str, message: Message) -> None:
        """To one device alone."""
        self._publish(self.topics.down(device), message)

    def manifest(self, state: RoundState, devices: int) -> Manifest:
        """The run and where it stands, as all devices are told."""
        run = self.run_state.run
        return Manifest(
            run=run.id,
            epoch=self.epoch,
            key=self.identity.key,
            phase=state.phase,
            round=state.round,
            attempt=state.attempt,
            model=self._blob,
            model_round=self.run_state.model.round,
            plan=run.plan,
            encoder_id=run.encoder_id,
            classes_digest=run.classes_digest,
            cohort=state.threshold,
            deadline_s=self.config.rules.deadline_s,
            devices=min(devices, MAX_DEVICES),
        )

    @property
    def _blob(self) -> Blob:
        """The model as it is announced over this link."""
        return chunks.fit_to_packets(self.run_state.blob, self.transport.packet_bytes())

    def _send_chunks(self, topic: str, wanted: chunks.Ranges | None) -> None:
        for chunk in chunks.split(self.run_state.stored.payload, self._blob, wanted):
            self.transport.publish(topic, chunk)

    def _publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        signed = wire.pack_control(message, NAME, topic, self.identity)
        self.transport.publish(topic, signed, retain=retain)
