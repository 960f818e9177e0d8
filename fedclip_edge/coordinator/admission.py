"""Admission of devices to a run, by the registry's keys or by the first key that each id uses.

Laws:
- With a registry, only the keys in it are accepted, whatever key was pinned before.
- Without a registry, the first key that an admitted id uses in a run is pinned until the run ends.
  The pin is on disk before it takes effect.
- A device that was removed from a run (forgetting.py) is not admitted to it again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol.message_parts import MAX_CLASSES
from fedclip_edge.protocol.messages import Hello, Refused

# A refusal with the names of the classes stays about as small as a manifest.
_NAMES_BYTES = 4096
_FORGOTTEN = (
    "its contributions to this run were removed with `fedclip-edge forget`; it can take part in the "
    "next run"
)


@dataclass(eq=False)
class Admission:
    """The rules of admission to one run. Without a `registry`, keys are pinned."""

    run: Run
    journal: Journal
    devices: Devices
    registry: Registry | None
    class_names: tuple[str, ...] = ()  # of the run's classes; empty if they are not known
    is_bundle_offered: bool = False  # the devices can fetch the run's bundle

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

    def key_of(self, device: str) -> str | None:
        """The key that the device must have, if it is known: enrolled, or pinned in this run."""
        enrolled = None if self.registry is None else self.registry.devices.get(device)
        return self.devices.keys.get(device) if enrolled is None else enrolled.key

    def admit(self, device: str, hello: Hello) -> Refused | None:
        """Admit a device and pin its key; returns None, or the refusal to send.

        The refusal's reason also says what to do. Raises JournalError if the key cannot be written,
        RunError if another coordinator took over the journal.
        """
        reason = self._check_key(device, hello.key)
        if reason is not None:
            return Refused(reason, "device", key=hello.key)
        if device in self.journal.devices.forgotten(self.run.id):
            return Refused(_FORGOTTEN, "run", key=hello.key)
        reason = self._unfit(hello)
        if reason is not None:
            has_others = hello.classes_digest != self.run.classes_digest
            names = _sendable(self.class_names) if has_others else ()
            return Refused(reason, "run", key=hello.key, classes=names)
        # Only now: after a restart, the coordinator waits for the devices that have a pinned key.
        if self.devices.keys.get(device) != hello.key:
            # A run that is over has had none of the pictures of a device that joins it only now.
            is_over = self.journal.runs.course(self.run.id).is_over
            pictures = 0 if is_over else hello.capabilities.pictures.labelled
            self.journal.devices.pin_key(self.run.id, device, hello.key, pictures)
            self.devices.keys[device] = hello.key
        return None

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
        if not hello.encoder_id:
            return "it has no bundle yet; " + (
                "it fetches the run's bundle now"
                if self.is_bundle_offered
                else "sign the coordinator's bundle with `fedclip-edge bundle sign` and restart "
                "`serve`, or copy it to the device and name it as 'bundle' in its agent.toml"
            )
        if hello.encoder_id != run.encoder_id:
            return self._other_bundle(
                "its bundle has another encoder", hello.encoder_id, run.encoder_id
            )
        if hello.classes_digest != run.classes_digest:
            return self._other_bundle(
                "its bundle has other classes", hello.classes_digest, run.classes_digest
            )
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

    def _other_bundle(self, what: str, theirs: str, ours: str) -> str:
        return (
            f"{what} ({theirs[:12]}) than the run ({ours[:12]}); {self._remedy()}; or, if the "
            "device's bundle is the right one, correct 'bundle' in fleet.toml and restart `serve`"
        )

    def _remedy(self) -> str:
        if self.is_bundle_offered:
            return (
                "a device with export_key in its agent.toml fetches the run's bundle now; copy it "
                "to any other device and restart its agent"
            )
        return "copy the coordinator's bundle to the device and restart its agent"

    def _check_key(self, device: str, key: str) -> str | None:
        """The reason to refuse a device with this key; None to accept the key."""
        if self.registry is not None:
            return self.registry.refusal(device, key)
        if self.devices.keys.get(device, key) == key:
            return None
        return (
            "a device with this id joined this run under another key; restore the device's old "
            "state_dir, or give it another id"
        )


def _sendable(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names if a refusal can carry them all, else none."""
    if len(names) > MAX_CLASSES or sum(len(json.dumps(name)) for name in names) > _NAMES_BYTES:
        return ()
    try:
        return Refused("", "run", classes=names).classes
    except ValueError:
        return ()  # a name is long, or cannot be printed
