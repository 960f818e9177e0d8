"""What a device says, signed and on its topics; `publisher.py` is the coordinator's."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.agent.state_db import RunPosition
from fedclip_edge.config import AgentConfig
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import DeviceState, Hello, Message
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Transport, Will


def will(config: AgentConfig, identity: Identity, boot: str) -> Will:
    """What the broker says for a device that vanished."""
    topic = Topics(config.fleet).state(config.id)
    gone = wire.pack_control(DeviceState(boot, online=False), config.id, topic, identity)
    return Will(topic, gone)


@dataclass(eq=False)
class Publisher:
    """One process's publisher."""

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
        self._say(topic, DeviceState(self.incarnation, online), retain=True)

    def send_hello(self, floor: RunPosition) -> None:
        """Who this is, and up to where it knows of a run."""
        self.send(
            Hello(
                boot=self.incarnation,
                key=self.identity.key,
                roles=self.config.roles,
                domain=self.config.domain,
                encoder_id=self.encoder_id,
                classes_digest=self.classes_digest,
                epoch=floor.epoch,
                run=floor.run,
                closed=floor.closed,
            )
        )

    def send(self, message: Message) -> None:
        """To the coordinator."""
        self._say(self.topics.up(self.config.id), message)

    def send_chunk(self, chunk: bytes) -> None:
        """A part of what the coordinator asked for."""
        self.transport.publish(self.topics.up(self.config.id), chunk)

    @property
    def is_sending(self) -> bool:
        """Whether something that was said is still on its way to the broker."""
        return self.transport.backlog() > 0

    def _say(self, topic: str, message: Message, *, retain: bool = False) -> None:
        payload = wire.pack_control(message, self.config.id, topic, self.identity)
        self.transport.publish(topic, payload, retain=retain)
