"""The coordinator's outgoing messages: its state, the manifest, the model, and answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.deliveries import Deliveries
from fedclip_edge.coordinator.distribution import WantedChunks, parts_of
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.message_parts import Address, Blob
from fedclip_edge.protocol.messages import (
    MAX_DEVICES,
    CoordinatorState,
    Manifest,
    Message,
    Refused,
)
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import COORDINATOR
from fedclip_edge.transport.base import Transport, Will


def will(fleet: str, state: CoordinatorState, identity: Identity) -> Will:
    """The signed message that the broker publishes if the coordinator's link breaks."""
    topic = Topics(fleet).coordinator_state
    return Will(topic, wire.pack_control(state, COORDINATOR, topic, identity))


@dataclass(eq=False)
class Publisher:
    """The outgoing messages of one coordinator process; all but chunks are signed.

    Methods that send never block; the message is lost if the link is down. They raise ConfigError
    if the message is larger than the broker's largest packet (`Transport.publish`).
    """

    config: FleetConfig
    run_state: RunState
    identity: Identity
    transport: Transport
    incarnation: str
    epoch: int  # raised if a device knows a higher one
    deliveries: Deliveries | None = None  # of the run's bundle, if it is signed
    registry: Registry | None = None  # names earlier keys, and the broker's new address
    _broadcast: str = ""  # version of the model last sent to all devices
    _wanted: WantedChunks | None = None  # of the model, on its own topic

    @cached_property  # used several times for each message
    def topics(self) -> Topics:
        return Topics(self.config.fleet)

    def state(self, *, online: bool) -> CoordinatorState:
        run = self.run_state.run.id
        known = self.registry
        return CoordinatorState(
            self.incarnation,
            self.epoch,
            run,
            online,
            self.identity.key,
            () if known is None else known.hand_overs,
            Address(known.host, known.port) if known is not None and known.moved else None,
        )

    def publish_state(self, *, online: bool) -> None:
        """Publish the coordinator's state to all devices, retained."""
        self._publish(self.topics.coordinator_state, self.state(online=online), retain=True)

    def publish_manifest(self, state: RoundState, devices: int) -> None:
        """Publish the manifest to all devices, retained; `devices` is the size of the fleet."""
        self._publish(self.topics.manifest, self.manifest(state, devices), retain=True)

    def answer_hello(self, device: str, incarnation: str, state: RoundState, devices: int) -> None:
        """Send the manifest to one device, with its part in the cohort and its kept contribution.

        `incarnation` is that of the answered hello; `devices` is the size of the fleet.
        """
        manifest = replace(
            self.manifest(state, devices),
            takes_part=device in state.cohort,
            answers=incarnation,
            kept=state.kept.get(device, ""),
        )
        self.send(device, manifest)

    def refuse_unnumbered(
        self, device: str, incarnation: str, refused: Refused, state: RoundState, devices: int
    ) -> None:
        """Refuse a device whose messages have no revision, in messages that it can read.

        `incarnation` is that of its hello; `devices` is the size of the fleet. It believes a
        refusal only after a manifest. It may not know the fields that have their default value.
        """
        known = replace(
            self.manifest(state, devices), takes_part=False, answers=incarnation, bundle=None
        )
        topic = self.topics.down(device)
        for kind, message in (("manifest", known), ("refused", refused)):
            body = wire.without_defaults(message)
            self.transport.publish(
                topic, wire.pack_unnumbered(kind, body, COORDINATOR, topic, self.identity)
            )

    def broadcast_model(self) -> None:
        """Send the model to all devices, once per version; a device that misses it asks for it."""
        if self._broadcast != self.run_state.version:
            self._broadcast = self.run_state.version
            blob = self._blob
            parts = chunks.split(self.run_state.stored.payload, blob)
            self._publish_parts(self.topics.model, blob, parts)

    def send_wanted(self, missing: chunks.Ranges) -> None:
        """Send these chunks of the model to the devices that subscribe to its topic.

        Nothing is sent while the model is still being sent to all: a device asks again for what it
        then misses.
        """
        blob = self._blob
        if self.transport.is_sending(self.topics.model, blob.sha256):
            return
        if self._wanted is None or self._wanted.blob != blob:
            self._wanted = WantedChunks(blob, parts_of(self.run_state.stored.payload, blob))
        self._wanted.add(missing)
        self._publish_parts(self.topics.blob(blob.sha256), blob, self._wanted)

    def send(self, device: str, message: Message) -> None:
        """Send a message to one device."""
        self._publish(self.topics.down(device), message)

    def manifest(self, state: RoundState, devices: int) -> Manifest:
        """The manifest for all devices; `devices` is the fleet's size, capped at MAX_DEVICES."""
        run = self.run_state.run
        return Manifest(
            run=run.id,
            epoch=self.epoch,
            key=self.identity.key,
            phase=state.phase,
            exchange=self.run_state.exchange,
            attempt=state.attempt,
            closed=self.run_state.model.round,
            model=self._blob,
            plan=run.plan,
            encoder_id=run.encoder_id,
            classes_digest=run.classes_digest,
            cohort=state.threshold,
            deadline_s=self.config.rules.deadline_s,
            devices=min(devices, MAX_DEVICES),
            bundle=None if self.deliveries is None else self.deliveries.blob,
        )

    @property
    def _blob(self) -> Blob:
        """The blob of the model, in chunks that fit this link's packets."""
        return chunks.fit_to_packets(self.run_state.blob, self.transport.packet_bytes())

    def _publish_parts(self, topic: str, blob: Blob, parts: Iterator[bytes]) -> None:
        largest = chunks.HEADER_BYTES + min(blob.chunk_bytes, blob.size_bytes)
        self.transport.publish_parts(topic, blob.sha256, parts, largest)

    def _publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        signed = wire.pack_control(message, COORDINATOR, topic, self.identity)
        self.transport.publish(topic, signed, retain=retain)
