"""The coordinator's one table of devices: each one's key, and its process while it is online."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MODEL_REPEAT_S = 0.5  # the same model is sent to one device no sooner again


@dataclass(eq=False)
class Devices:
    """Every device that ever joined the run."""

    keys: dict[str, str]  # public key by device: the pinned ones, or those of the registry
    _incarnations: dict[str, str] = field(default_factory=dict)  # of those online, as they joined
    _models_sent: dict[str, tuple[str, float]] = field(default_factory=dict)  # version, when

    @property
    def incarnations(self) -> Mapping[str, str]:
        """By device that is online, in the order of joining: the random name of its process."""
        return self._incarnations

    def is_online(self, device: str) -> bool:
        return device in self._incarnations

    def set_online(self, device: str, incarnation: str) -> None:
        """A process of this name said hello."""
        self._incarnations[device] = incarnation

    def set_offline(self, device: str) -> str | None:
        """The device is gone; returns the name of its process, None where it was offline."""
        return self._incarnations.pop(device, None)

    def grant_model(self, device: str, version: str, now: float) -> bool:
        """True, and counted as sent, unless the device was sent the same model just now.

        A small message costs a whole model. A device that needs it asks again, and later than that.
        """
        sent, sent_at = self._models_sent.get(device, ("", -math.inf))
        if sent == version and now - sent_at < MODEL_REPEAT_S:
            return False
        self._models_sent[device] = (version, now)
        return True
