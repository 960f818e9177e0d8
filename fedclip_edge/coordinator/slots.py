"""The upload slots, which limit how many devices upload at a time.

Sans-I/O: the clock is passed in. `now` is monotonic, in seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class Slots:
    """The devices that hold an upload slot, and the queue for one; first come, first served.

    With 200 devices uploading at once a broker drops chunks and no device finishes; with 8 slots
    all finish (measured). A slot without progress for `lease_s` seconds is lost.
    """

    count: int
    lease_s: float
    _leases: dict[str, float] = field(default_factory=dict)  # device -> time of its last progress
    _waiting: deque[str] = field(default_factory=deque)

    def request(self, device: str) -> None:
        """Queue the device unless it has a slot or is queued already."""
        if device not in self._leases and device not in self._waiting:
            self._waiting.append(device)

    def grant(self, now: float) -> tuple[str, ...]:
        """Give the free slots to the devices that have waited longest; returns those devices."""
        granted = []
        while self._waiting and len(self._leases) < self.count:
            device = self._waiting.popleft()
            self._leases[device] = now
            granted.append(device)
        return tuple(granted)

    def holds(self, device: str) -> bool:
        return device in self._leases

    @property
    def full(self) -> bool:
        return len(self._leases) >= self.count

    @property
    def waiting(self) -> tuple[str, ...]:
        """The queued devices, the one that asked first at the front."""
        return tuple(self._waiting)

    @property
    def holders(self) -> tuple[str, ...]:
        return tuple(self._leases)

    def progress(self, device: str, now: float) -> None:
        """Renew the device's lease, if it has a slot."""
        if device in self._leases:
            self._leases[device] = now

    def idle(self, now: float, for_s: float) -> tuple[str, ...]:
        """The slot holders without progress for at least `for_s` seconds."""
        return tuple(d for d, since in self._leases.items() if now - since >= for_s)

    def release(self, device: str) -> None:
        """Free the device's slot, or drop it from the queue."""
        self._leases.pop(device, None)
        if device in self._waiting:
            self._waiting.remove(device)

    def expire(self, now: float) -> tuple[str, ...]:
        """Free the slots without progress for a whole lease; returns their devices."""
        lost = self.idle(now, self.lease_s)
        for device in lost:
            self.release(device)
        return lost
