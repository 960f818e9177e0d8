"""MQTT topics of a fleet: building and parsing them, and the message kinds allowed on each.

    fedclip/v1/FLEET/coord/state        retained, will   coordinator -> all
    fedclip/v1/FLEET/round              retained         coordinator -> all
    fedclip/v1/FLEET/model                               coordinator -> all
    fedclip/v1/FLEET/dev/DEVICE/state   retained, will   device -> coordinator
    fedclip/v1/FLEET/dev/DEVICE/up                       device -> coordinator
    fedclip/v1/FLEET/dev/DEVICE/down                     coordinator -> device

Laws:
- `_KINDS` lists the message kinds allowed on each topic; a message on any other topic is refused.
- Chunks are never retained: some brokers retain no message above 64 KB, or retain it on one node
  only. A party that misses chunks requests them.
- A topic has at most six levels and no leading slash (AWS IoT allows seven slashes).

The broker's access list (pki/mosquitto.py) is made from these topics.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedclip_edge.errors import PeerError
from fedclip_edge.records import check_id

_PREFIX = "fedclip/v1"
CHUNK = "chunk"  # in addition to the kinds of control messages (messages.py)
_KINDS: Mapping[str, tuple[str, ...]] = {
    "coord/state": ("coordinator",),
    "round": ("manifest",),
    "model": (CHUNK,),
    "state": ("device",),
    "up": ("hello", "offer", "want", "report", CHUNK),
    "down": ("coordinator", "manifest", "want", "kept", "refused", CHUNK),
}


@dataclass(frozen=True)
class Topics:
    """The topics of one fleet."""

    fleet: str

    @property
    def coordinator_state(self) -> str:
        return f"{_PREFIX}/{self.fleet}/coord/state"

    @property
    def round(self) -> str:
        return f"{_PREFIX}/{self.fleet}/round"

    @property
    def model(self) -> str:
        return f"{_PREFIX}/{self.fleet}/model"

    def state(self, device: str) -> str:
        return f"{_PREFIX}/{self.fleet}/dev/{device}/state"

    def up(self, device: str) -> str:
        return f"{_PREFIX}/{self.fleet}/dev/{device}/up"

    def down(self, device: str) -> str:
        return f"{_PREFIX}/{self.fleet}/dev/{device}/down"

    def device_of(self, topic: str) -> str:
        """The device whose `state` or `up` topic this is.

        Raises PeerError for any other topic, and if the device's name is not an id.
        """
        parts = topic.removeprefix(f"{_PREFIX}/{self.fleet}/dev/").split("/")
        if len(parts) == 2 and topic in (self.state(parts[0]), self.up(parts[0])):
            try:
                return check_id(parts[0], "device")
            except ValueError as error:
                raise PeerError(f"topic {topic!r}: {error}") from None
        raise PeerError(f"topic {topic!r} is not the state or up topic of a device")

    def owner(self, topic: str) -> str:
        """The device whose topic this is; empty for a topic of the fleet or an unknown one."""
        ours = f"{_PREFIX}/{self.fleet}/dev/"
        parts = topic[len(ours) :].split("/", 2)
        if not topic.startswith(ours) or len(parts) != 2:
            return ""
        try:
            return check_id(parts[0], "device")
        except ValueError:
            return ""

    def check_kind(self, topic: str, kind: str) -> None:
        """Raise PeerError unless `kind`, a message kind or CHUNK, is allowed on `topic`."""
        ours = f"{_PREFIX}/{self.fleet}/"
        name = topic.removeprefix(ours) if topic.startswith(ours) else ""
        if name.startswith("dev/"):
            name = name.split("/", 2)[-1]
        if kind not in _KINDS.get(name, ()):
            raise PeerError(f"message kind {kind!r} is not allowed on topic {topic!r}")

    def for_coordinator(self, devices: Iterable[str] = ("+",)) -> tuple[str, ...]:
        """The topic filters that the coordinator subscribes to; for all devices, or for these."""
        own = [make(device) for device in devices for make in (self.state, self.up)]
        return (self.coordinator_state, *own)

    def for_device(self, device: str) -> tuple[str, ...]:
        """The topics that a device subscribes to."""
        return (self.coordinator_state, self.round, self.model, self.down(device))


@functools.lru_cache(maxsize=4096)
def matches(pattern: str, topic: str) -> bool:
    """True if a subscription to the filter `pattern` gets `topic` (MQTT 3.1.1, section 4.7)."""
    if topic.startswith("$") and pattern[:1] in ("+", "#"):
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":  # matches the levels before it and any number after them
        wanted.pop()
        if len(levels) < len(wanted):
            return False
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        level in ("+", given) for level, given in zip(wanted, levels, strict=True)
    )
