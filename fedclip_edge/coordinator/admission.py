"""Admission to a run: enrolled devices, or without a registry the first key that an id shows.

Laws: with a registry, the keys in it are believed and no others. Without one, the first key that an
id shows in a run is its key to the run's end; it is on disk before it counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol.messages import Hello


@dataclass(eq=False)
class Admission:
    """The rules of admission to one run."""

    run: Run
    journal: Journal
    devices: Devices
    registry: Registry | None

    @property
    def fleet_size(self) -> int:
        """Number of devices in the fleet, as far as is known; 1 or more."""
        enrolled = 0 if self.registry is None else len(self.registry.devices)
        return max(1, enrolled, len(self.devices.keys))

    @property
    def admitted(self) -> tuple[str, ...]:
        """The devices that joined once and still may."""
        return tuple(device for device in self.devices.keys if self.refusal(device) is None)

    def admit(self, device: str, hello: Hello) -> str | None:
        """Pin the key of a device that may take part; for another, the reason and what to do."""
        reason = self._check_key(device, hello.key)
        if reason is not None:
            return reason
        if hello.encoder_id != self.run.encoder_id:
            return "its bundle holds another encoder; copy the coordinator's bundle to it"
        if hello.classes_digest != self.run.classes_digest:
            return "its bundle holds other classes; copy the coordinator's bundle to it"
        return None

    def refusal(self, device: str) -> str | None:
        """The reason why a device that was admitted no longer is; None where it still is."""
        if self.registry is None:
            return None
        return self.registry.refusal(device, self.devices.keys[device])

    def _check_key(self, device: str, key: str) -> str | None:
        keys = self.devices.keys
        if self.registry is not None:
            reason = self.registry.refusal(device, key)
            if reason is None:
                self.journal.pin_key(self.run.id, device, key)  # so that it is waited for
                keys[device] = key
            return reason
        keys[device] = keys.get(device) or self.journal.pin_key(self.run.id, device, key)
        if keys[device] == key:
            return None
        return (
            "another key was shown under this id in this run; give the device its state_dir "
            "back, or another id"
        )
