"""The device's outgoing messages, signed and on its topics."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.agent.state_db import RunPosition
from fedclip_edge.config import AgentConfig
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import DeviceState, Hello, Message
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Transport, Will


def will(config: AgentConfig, identity: Identity, incarnation: str) -> Will:
    """The message that the broker publishes for a device that vanished."""
    topic = Topics(config.fleet).state(config.id)
    gone = wire.pack_control(DeviceState(incarnation, online=False), config.id, topic, identity)
    return Will(topic, gone)


@dataclass(eq=False)
class Publisher:
    """One process's messages."""

    config: AgentConfig
    incarnation: str
    encoder_id: str
    classes_digest: str
    identity: Identity
    transport: Transport

    @property
    def topics(self) -> Topics:
        return Topics(self.config.fleet)

    def publish_state(self, *, online: bool) -> None:
        """To the coordinator, and retained."""
        topic = self.topics.state(self.config.id)
        self._publish(topic, DeviceState(self.incarnation, online), retain=True)

    def send_hello(self, position: RunPosition) -> None:
        """Introduce this device, and say up to where it knows of a run."""
        self.send(
            Hello(
                boot=self.incarnation,
                key=self.identity.key,
                roles=self.config.roles,
                domain=self.config.domain,
                encoder_id=self.encoder_id,
                classes_digest=self.classes_digest,
                epoch=position.epoch,
                run=position.run,
                closed=position.closed,
            )
        )

    def send(self, message: Message) -> None:
        """To the coordinator."""
        self._publish(self.topics.up(self.config.id), message)

    def send_chunk(self, chunk: bytes) -> None:
        """A part of an update that the coordinator asked for."""
        self.transport.publish(self.topics.up(self.config.id), chunk)

    @property
    def is_sending(self) -> bool:
        """True while a message is still on its way to the broker."""
        return self.transport.backlog() > 0

    def _publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        signed = wire.pack_control(message, self.config.id, topic, self.identity)
        self.transport.publish(topic, signed, retain=retain)
