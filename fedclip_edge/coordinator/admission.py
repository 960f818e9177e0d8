"""Admission of devices to a run, by the registry's keys or by the first key that each id uses.

Laws:
- With a registry, only the keys in it are accepted, whatever key was pinned before.
- Without a registry, the first key that an id uses in a run is pinned until the run ends. The pin
  is on disk before it takes effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol.messages import Hello, Refused


@dataclass(eq=False)
class Admission:
    """The rules of admission to one run. Without a `registry`, keys are pinned."""

    run: Run
    journal: Journal
    devices: Devices
    registry: Registry | None

    @property
    def fleet_size(self) -> int:
        """The number of devices enrolled or seen in this run, the larger one; at least 1."""
        enrolled = 0 if self.registry is None else len(self.registry.devices)
        return max(1, enrolled, len(self.devices.keys))

    @property
    def enrolled(self) -> frozenset[str] | None:
        """The devices that are enrolled and not revoked; None without a registry."""
        if self.registry is None:
            return None
        return frozenset(self.registry.devices) - set(self.registry.revoked)

    @property
    def admitted(self) -> tuple[str, ...]:
        """The devices that joined this run before and are still admitted."""
        return tuple(device for device in self.devices.keys if self.refusal(device) is None)

    def admit(self, device: str, hello: Hello) -> Refused | None:
        """Admit a device and pin its key; returns None, or the refusal to send.

        The refusal's reason also says what to do. Raises JournalError if the key cannot be written,
        RunError if another coordinator took over the journal.
        """
        reason = self._check_key(device, hello.key)
        if reason is not None:
            return Refused(reason, "device", key=hello.key)
        reason = self._unfit(hello)
        return None if reason is None else Refused(reason, "run", key=hello.key)

    def refusal(self, device: str) -> str | None:
        """The reason why an admitted device is no longer admitted; None if it still is.

        `device` must have a key in `devices`.
        """
        if self.registry is None:
            return None
        return self.registry.refusal(device, self.devices.keys[device])

    def _unfit(self, hello: Hello) -> str | None:
        """The reason why a device cannot take part in this run; None if it can."""
        run, plan, able = self.run, self.run.plan, hello.capabilities
        if hello.encoder_id != run.encoder_id:
            return "its bundle has another encoder; copy the coordinator's bundle to the device"
        if hello.classes_digest != run.classes_digest:
            return "its bundle has other classes; copy the coordinator's bundle to the device"
        if plan.method not in able.methods:
            listed = ", ".join(able.methods) or "none"
            return (
                f"the run's method is {plan.method!r}, and the device allows only: {listed}; "
                "change 'methods' in its agent.toml, or 'method' in fleet.toml"
            )
        for codec in (plan.codec_up, plan.codec_down):
            if codec not in able.codecs:
                return f"the device has no codec {codec!r}; update fedclip-edge on it"
        return None

    def _check_key(self, device: str, key: str) -> str | None:
        keys = self.devices.keys
        if self.registry is not None:
            reason = self.registry.refusal(device, key)
            if reason is None and keys.get(device) != key:
                # After a restart, the coordinator waits for the devices that have a pinned key.
                keys[device] = self.journal.pin_key(self.run.id, device, key, replace=True)
            return reason
        keys[device] = keys.get(device) or self.journal.pin_key(self.run.id, device, key)
        if keys[device] == key:
            return None
        return (
            "a device with this id joined this run under another key; restore the device's old "
            "state_dir, or give it another id"
        )
