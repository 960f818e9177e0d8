"""The coordinator's table of devices: their keys, their last words, and which are online."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedclip_edge.coordinator.journal_tables import Sent
from fedclip_edge.protocol.message_parts import Activity
from fedclip_edge.protocol.messages import DeviceState, Hello

MODEL_REPEAT_S = 0.5  # the least time between two sends of one model to one device
ENCODING_S = 300.0  # the least time between two log lines about one device that encodes
_FETCHING_MAX = 10_000  # devices that may fetch a bundle; without a registry, names can be made up
_ENCODING_MAX = 1000  # devices that encode at the same time, of which the coordinator keeps track


@dataclass(eq=False)
class Devices:
    """All devices that have joined the run."""

    keys: dict[str, str]  # device -> public key, 64 hex digits; pinned, or from the registry
    # The last report of each device in this run, as a JSON object (protocol/report.py).
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)  # what each contributed to this run
    # The last hello of each device that was admitted since this process started.
    hellos: dict[str, Hello] = field(default_factory=dict)
    # The most pictures, without those for tests, that each one declared since this process started:
    # a contribution may be older than the last hello, and made from pictures that are deleted now.
    declared: dict[str, int] = field(default_factory=dict)
    # All labelled pictures that each one declared in its last hello.
    pictures: dict[str, int] = field(default_factory=dict)
    # The state of each device that encodes its pictures and has not said hello yet.
    encoding: dict[str, DeviceState] = field(default_factory=dict)
    # What each online device does, if it says so.
    activities: dict[str, Activity] = field(default_factory=dict)
    # The state of each device that stays connected and says why it is offline.
    away: dict[str, DeviceState] = field(default_factory=dict)
    # Enrolled devices whose last hello did not fit the run, each with the reason.
    unfit: dict[str, str] = field(default_factory=dict)
    # The key of each device whose last hello did not fit the run; it may fetch the run's bundle.
    fetching: dict[str, str] = field(default_factory=dict)
    _encoding_said: dict[str, float] = field(default_factory=dict)  # time of each one's log line
    _incarnations: dict[str, str] = field(default_factory=dict)  # online ones, in joining order
    _models_sent: dict[str, tuple[str, float]] = field(default_factory=dict)  # version, time
    _seen_at: dict[str, float] = field(default_factory=dict)  # time of each one's last message

    @property
    def incarnations(self) -> Mapping[str, str]:
        """The incarnation of each online device, by device, in the order of joining."""
        return self._incarnations

    def is_online(self, device: str) -> bool:
        return device in self._incarnations

    def set_online(self, device: str, hello: Hello) -> None:
        """Mark the device as online, with its last hello."""
        self._incarnations[device] = hello.boot
        self.hellos[device] = hello
        self.note_encoding(device, None, math.inf)
        self.activities.pop(device, None)
        self.away.pop(device, None)
        self.unfit.pop(device, None)
        self.fetching.pop(device, None)
        pictures = hello.capabilities.pictures
        declared = pictures.train + pictures.validation + pictures.withheld
        self.declared[device] = max(declared, self.declared.get(device, 0))
        self.pictures[device] = pictures.labelled

    def let_fetch(self, device: str, key: str) -> None:
        """Let a device that does not fit the run fetch the run's bundle."""
        if device in self.fetching or len(self.fetching) < _FETCHING_MAX:
            self.fetching[device] = key

    def set_offline(self, device: str) -> str | None:
        """Mark the device as offline; returns its incarnation, or None if it was offline."""
        self.activities.pop(device, None)
        return self._incarnations.pop(device, None)

    def note_away(self, device: str, state: DeviceState) -> None:
        """Record an offline state; the device's own key must have signed one with a reason."""
        if state.reason:
            self.away[device] = state
        elif device in self.away and self.away[device].boot == state.boot:
            del self.away[device]  # its link broke, or it ended

    def note_encoding(self, device: str, state: DeviceState | None, now: float) -> bool:
        """Record the state of a device that encodes, or None; True if it is to be logged.

        `now` is monotonic, in seconds.
        """
        if state is None:
            self.encoding.pop(device, None)
            self._encoding_said.pop(device, None)
            return False
        if device not in self.encoding and len(self.encoding) >= _ENCODING_MAX:
            return False
        self.encoding[device] = state
        if now - self._encoding_said.get(device, -math.inf) < ENCODING_S:
            return False
        self._encoding_said[device] = now
        return True

    def add_contribution(self, device: str, size_bytes: int, norm: float | None) -> None:
        """Count a contribution that was kept; an answer to a vote has no `norm`."""
        before = self.sent.get(device, Sent(0, 0, None))
        self.sent[device] = Sent(
            before.contributions + 1,
            before.size_bytes + size_bytes,
            before.norm if norm is None else norm,
        )

    def recall(self, before: Devices) -> None:
        """Take over the last words of each device, and their times, from an earlier run."""
        self.hellos, self._seen_at = before.hellos, before._seen_at
        self.away = before.away

    def saw(self, device: str, now: float) -> None:
        """Record that a verified message of the device came at `now` (monotonic, in seconds)."""
        self._seen_at[device] = now

    def seen_s(self, device: str, now: float) -> float | None:
        """Seconds since the device's last message; None if this process had none."""
        seen_at = self._seen_at.get(device)
        return None if seen_at is None else now - seen_at

    def grant_model(self, device: str, version: str, now: float) -> bool:
        """Record a model as sent to the device; False if it got the same one too recently.

        A small request can cause a whole model to be sent, so the same version is sent again only
        after MODEL_REPEAT_S. A device that still needs it asks again later than that. `now` is
        monotonic, in seconds.
        """
        sent, sent_at = self._models_sent.get(device, ("", -math.inf))
        if sent == version and now - sent_at < MODEL_REPEAT_S:
            return False
        self._models_sent[device] = (version, now)
        return True
