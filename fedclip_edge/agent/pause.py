"""The pause of a device that is too hot, or runs on its battery.

Laws:
- A pause begins when a limit is exceeded. It ends when no limit is, and the box is COOLER_C below
  `max_temperature_c`: otherwise it would begin again at once.
- The log says once that it begins and why, and once that it ends.
- A sensor that cannot be read is left out; without one, there is no pause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.limits import Limits

COOLER_C = 5.0
LOOK_S = 5.0
SENSORS = Path("/sys/class")
_MAINS = ("Mains", "USB", "USB_C", "USB_PD", "Wireless")  # types of Linux's power_supply


@dataclass(eq=False)
class Pause:
    """The pauses of one device; `reason` is empty while it works."""

    limits: Callable[[], Limits]
    sensors: Path = SENSORS  # has the folders thermal and power_supply
    reason: str = ""
    _looked_at: float = -math.inf
    _is_hot: bool = False

    def look(self, now: float) -> None:
        """Look at the sensors if that is due; `now` is monotonic, in seconds."""
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        reason = self._hot() or self._without_mains()
        if reason and not self.reason:
            log.event("work_paused", reason=reason)
        elif self.reason and not reason:
            log.event("work_resumed", reason=self.reason)
        if not (reason and self.reason):  # the first reason stays: the temperature changes
            self.reason = reason

    def is_on(self) -> bool:
        """True while the device pauses."""
        return bool(self.reason)

    def _hot(self) -> str:
        limit = self.limits().max_temperature_c
        found = None if limit is None else temperature_c(self.sensors)
        if limit is None or found is None:
            self._is_hot = False
            return ""
        self._is_hot = found > (limit - COOLER_C if self._is_hot else limit)
        if not self._is_hot:
            return ""
        return f"the box has {found:.0f} degrees, and max_temperature_c is {limit:g}"

    def _without_mains(self) -> str:
        if self.limits().on_battery == "pause" and is_on_battery(self.sensors):
            return 'the box runs on its battery, and on_battery is "pause"'
        return ""


def temperature_c(sensors: Path = SENSORS) -> float | None:
    """The temperature of the hottest thermal zone in degrees Celsius; None if none can be read."""
    found = []
    for zone in sensors.glob("thermal/thermal_zone*/temp"):
        try:
            value = int(zone.read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            continue
        if -50 < value < 200:  # a zone that is switched off says nonsense
            found.append(value)
    return max(found, default=None)


def is_on_battery(sensors: Path = SENSORS) -> bool:
    """True if a battery of the box is discharged, and no supply is connected."""
    supplies = list(_supplies(sensors))
    has_mains = any(kind in _MAINS and online == "1" for kind, online, _ in supplies)
    return not has_mains and any(
        kind == "Battery" and status == "Discharging" for kind, _, status in supplies
    )


def _supplies(sensors: Path) -> Iterator[tuple[str, str, str]]:
    """Yield type, `online` and `status` of each power supply of the box."""
    for supply in sensors.glob("power_supply/*"):
        if _read(supply / "scope") != "Device":  # such as the battery of a mouse
            yield _read(supply / "type"), _read(supply / "online"), _read(supply / "status")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
