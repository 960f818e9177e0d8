"""MQTT topics of a fleet: building and parsing them, and the message kinds allowed on each.

    fedclip/v2/FLEET/coord/state        retained, will   coordinator -> all
    fedclip/v2/FLEET/manifest           retained         coordinator -> all
    fedclip/v2/FLEET/model                               coordinator -> all
    fedclip/v2/FLEET/blob/HASH                           coordinator -> those that need the blob
    fedclip/v2/FLEET/dev/DEVICE/state   retained, will   device -> coordinator
    fedclip/v2/FLEET/dev/DEVICE/up                       device -> coordinator
    fedclip/v2/FLEET/dev/DEVICE/down                     coordinator -> device

Laws:
- `_KINDS` lists the message kinds allowed on each topic; a message on any other topic is refused.
- A new model goes to all devices at once, on `model`. A device that misses chunks of a blob
  subscribes to the blob's own topic, asks for them, and unsubscribes when it has them all. So one
  publication serves all devices that asked, and no other device pays for it.
- Chunks are never retained: some brokers retain no message above 64 KB, or retain it on one node
  only. A party that misses chunks requests them.
- A topic has at most six levels and no leading slash (AWS IoT allows seven slashes).
- The prefix contains the protocol's version. `version1.py` answers parties of the earlier one.

The broker's access list (pki/mosquitto.py) is made from these topics.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedclip_edge.errors import PeerError
from fedclip_edge.records import check_id

VERSION = 2
CHUNK = "chunk"  # in addition to the kinds of control messages (messages.py)
_KINDS: Mapping[str, tuple[str, ...]] = {
    "coord/state": ("coordinator",),
    "manifest": ("manifest",),
    "model": (CHUNK,),
    "blob": (CHUNK,),
    "state": ("device",),
    "up": ("hello", "offer", "want", "report", CHUNK),
    "down": ("coordinator", "manifest", "want", "kept", "refused"),
}


@dataclass(frozen=True)
class Topics:
    """The topics of one fleet, in one version of the protocol."""

    fleet: str
    version: int = VERSION

    @property
    def prefix(self) -> str:
        return f"fedclip/v{self.version}/{self.fleet}"

    @property
    def earlier(self) -> Topics:
        """The topics of the earlier version; this program only refuses what it hears there."""
        return Topics(self.fleet, self.version - 1)

    @property
    def coordinator_state(self) -> str:
        return f"{self.prefix}/coord/state"

    @property
    def manifest(self) -> str:
        return f"{self.prefix}/manifest"

    @property
    def model(self) -> str:
        return f"{self.prefix}/model"

    def blob(self, sha256: str) -> str:
        return f"{self.prefix}/blob/{sha256}"

    def state(self, device: str) -> str:
        return f"{self.prefix}/dev/{device}/state"

    def up(self, device: str) -> str:
        return f"{self.prefix}/dev/{device}/up"

    def down(self, device: str) -> str:
        return f"{self.prefix}/dev/{device}/down"

    def device_of(self, topic: str) -> str:
        """The device whose `state` or `up` topic this is.

        Raises PeerError for any other topic, and if the device's name is not an id.
        """
        parts = topic.removeprefix(f"{self.prefix}/dev/").split("/")
        if len(parts) == 2 and topic in (self.state(parts[0]), self.up(parts[0])):
            try:
                return check_id(parts[0], "device")
            except ValueError as error:
                raise PeerError(f"topic {topic!r}: {error}") from None
        raise PeerError(f"topic {topic!r} is not the state or up topic of a device")

    def owner(self, topic: str) -> str:
        """The device whose topic this is, in any version of the protocol; empty for all others."""
        levels = topic.split("/", 6)
        if len(levels) != 6 or levels[0] != "fedclip" or levels[2:4] != [self.fleet, "dev"]:
            return ""
        try:
            return check_id(levels[4], "device")
        except ValueError:
            return ""

    def check_kind(self, topic: str, kind: str) -> None:
        """Raise PeerError unless `kind`, a message kind or CHUNK, is allowed on `topic`."""
        ours = f"{self.prefix}/"
        name = topic.removeprefix(ours) if topic.startswith(ours) else ""
        if name.startswith("dev/"):
            name = name.split("/", 2)[-1]
        elif name.startswith("blob/"):
            name = "blob"
        if kind not in _KINDS.get(name, ()):
            raise PeerError(f"message kind {kind!r} is not allowed on topic {topic!r}")

    def for_coordinator(self, devices: Iterable[str] = ("+",)) -> tuple[str, ...]:
        """The topic filters that the coordinator subscribes to; for all devices, or for these."""
        makers = (self.state, self.up, self.earlier.up)
        return (self.coordinator_state, *(make(device) for device in devices for make in makers))

    def for_device(self, device: str, blob: str = "") -> tuple[str, ...]:
        """The topics that a device subscribes to; `blob` is the hash of a blob that it needs."""
        shared = (self.coordinator_state, self.manifest, self.model)
        fixed = (*shared, self.down(device), self.earlier.coordinator_state)
        return (*fixed, self.blob(blob)) if blob else fixed


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
