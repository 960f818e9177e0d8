"""The device's outgoing messages, on the device's own topics."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.agent.state_db import RunPosition
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.message_parts import MAX_TEXT, Activity, Capabilities
from fedclip_edge.protocol.messages import DeviceState, Hello, Message
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Transport, Will


def will(config: AgentConfig, identity: Identity, incarnation: str) -> Will:
    """The signed message that the broker publishes if the device's link breaks."""
    return retained(config, identity, DeviceState(incarnation, online=False))


def retained(config: AgentConfig, identity: Identity, state: DeviceState) -> Will:
    """The device's state as a signed message, to be retained on its topic."""
    topic = Topics(config.fleet).state(config.id)
    return Will(topic, wire.pack_control(state, config.id, topic, identity))


@dataclass(eq=False)
class Publisher:
    """The outgoing messages of one device process; all but chunks are signed.

    Methods that send never block; the message is lost if the link is down. They raise ConfigError
    if the message is larger than the broker's largest packet (`Transport.publish`).
    """

    config: AgentConfig
    incarnation: str
    encoder_id: str
    classes_digest: str
    identity: Identity
    transport: Transport
    capabilities: Capabilities
    paused: str = ""  # the reason why the device pauses; empty while it works
    activity: Activity = "waiting"  # as its state says while it is online

    @property
    def topics(self) -> Topics:
        return Topics(self.config.fleet)

    def publish_state(self, *, online: bool, reason: str = "") -> None:
        """Publish the device's state to the coordinator, retained.

        `reason` says why a device that stays connected is offline.
        """
        activity = self.activity if online else "waiting"
        if reason and reason == self.paused:
            activity = "paused"
        state = DeviceState(self.incarnation, online, None, activity, one_line(reason))
        self._publish(self.topics.state(self.config.id), state, retain=True)

    def send_hello(self, position: RunPosition) -> None:
        """Send a hello with this device's capabilities and last known position in a run."""
        self.send(
            Hello(
                boot=self.incarnation,
                key=self.identity.key,
                domain=self.config.domain,
                encoder_id=self.encoder_id,
                classes_digest=self.classes_digest,
                capabilities=self.capabilities,
                epoch=position.epoch,
                run=position.run,
                closed=position.closed,
            )
        )

    def send(self, message: Message) -> None:
        """Send a message to the coordinator."""
        self._publish(self.topics.up(self.config.id), message)

    def send_chunk(self, chunk: bytes) -> None:
        """Send a chunk of a contribution to the coordinator."""
        self.transport.publish(self.topics.up(self.config.id), chunk)

    @property
    def is_sending(self) -> bool:
        """True while the broker has not acknowledged all messages of this link."""
        return self.transport.backlog() > 0

    def _publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        signed = wire.pack_control(message, self.config.id, topic, self.identity)
        self.transport.publish(topic, signed, retain=retain)


def one_line(reason: str) -> str:
    """The reason as one line of text that a message can hold."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(reason.split()))
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
