"""Who may take part in a run: the enrolled, or without a registry whoever showed an id's key first.

Laws: with a registry, the keys in it are believed and no others; without one, the first key that an
id shows in a run is its key to the run's end, on disk before it counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.coordinator.journal import Run, Store
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol.messages import Hello


@dataclass(eq=False)
class Admission:
    """The keys of one run."""

    run: Run
    store: Store
    registry: Registry | None
    keys: dict[str, str] = field(init=False)  # device -> its key, of all that ever joined

    def __post_init__(self) -> None:
        self.keys = self.store.keys(self.run.id)

    @property
    def devices(self) -> int:
        """How many the fleet has, as far as is known."""
        enrolled = 0 if self.registry is None else len(self.registry.devices)
        return max(1, enrolled, len(self.keys))

    @property
    def admitted(self) -> tuple[str, ...]:
        """Who joined once and still may."""
        return tuple(device for device in self.keys if self.refusal(device) is None)

    def admit(self, device: str, hello: Hello) -> str | None:
        """Why `device` cannot take part, with what to do; None where it can, its key now known."""
        reason = self._check_key(device, hello.key)
        if reason is not None:
            return reason
        if hello.encoder_id != self.run.encoder_id:
            return "its bundle holds another encoder; copy the coordinator's bundle to it"
        if hello.classes_digest != self.run.classes_digest:
            return "its bundle holds other classes; copy the coordinator's bundle to it"
        return None

    def refusal(self, device: str) -> str | None:
        """Why a device that was admitted no longer is."""
        return None if self.registry is None else self.registry.refusal(device, self.keys[device])

    def _check_key(self, device: str, key: str) -> str | None:
        if self.registry is not None:
            reason = self.registry.refusal(device, key)
            if reason is None:
                self.store.pin_key(self.run.id, device, key)  # so that it is waited for
                self.keys[device] = key
            return reason
        pinned = self.keys.get(device)
        self.keys[device] = pinned or self.store.pin_key(self.run.id, device, key)
        if self.keys[device] == key:
            return None
        return (
            "another key was shown under this id in this run; give the device its state_dir "
            "back, or another id"
        )
