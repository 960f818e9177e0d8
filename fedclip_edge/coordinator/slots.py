"""The upload slots: a few devices upload at a time. Sans-I/O: the clock is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class Slots:
    """The devices that upload now: a few at a time, first come first served, each on a lease.

    With 200 devices uploading at once a broker drops chunks and nobody finishes; with 8 slots
    all finish (measured). A lease without progress for `lease_s` is lost.
    """

    count: int
    lease_s: float
    _leases: dict[str, float] = field(default_factory=dict)  # device -> last progress
    _waiting: deque[str] = field(default_factory=deque)

    def request(self, device: str) -> None:
        """Queues the device unless it has a lease or waits already."""
        if device not in self._leases and device not in self._waiting:
            self._waiting.append(device)

    def grant(self, now: float) -> tuple[str, ...]:
        """Gives the free slots to those who wait longest; returns them."""
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
        """Devices that asked and have no slot yet, in the order of asking."""
        return tuple(self._waiting)

    @property
    def holders(self) -> tuple[str, ...]:
        return tuple(self._leases)

    def progress(self, device: str, now: float) -> None:
        """Renews the device's lease, if it has one."""
        if device in self._leases:
            self._leases[device] = now

    def idle(self, now: float, for_s: float) -> tuple[str, ...]:
        """The holders without progress for at least `for_s` seconds."""
        return tuple(d for d, since in self._leases.items() if now - since >= for_s)

    def release(self, device: str) -> None:
        """Gives up the device's slot or place in the queue."""
        self._leases.pop(device, None)
        if device in self._waiting:
            self._waiting.remove(device)

    def expire(self, now: float) -> tuple[str, ...]:
        """Takes the slots of those without progress for a whole lease; returns them."""
        lost = self.idle(now, self.lease_s)
        for device in lost:
            self.release(device)
        return lost
