"""The broker's address that a device uses: the one in agent.toml, or the one that it moved to.

Laws:
- Only the coordinator says that the broker moved, in a state that it signs. A device remembers the
  new address, also after a restart, until another address is written into agent.toml.
- The device stays where it is as long as the coordinator is online there. It goes to the new
  address when the coordinator leaves, or when the link has been down for _DOWN_S.
- If the new address does not answer, the device goes back to the one in agent.toml, and tries the
  new one again. So a mistake in the address cuts off no device.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedclip_edge import log
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.state_db import StateDb
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.protocol.message_parts import Address

_DOWN_S = 30.0
_TRY_AGAIN_S = 60.0  # between two attempts to reach the new address because of the same notice


class BrokerChoice:
    """The choice of one device; the new address comes first if it is known."""

    def __init__(self, configured: BrokerAddress, state_db: StateDb) -> None:
        self._configured = configured
        self._state_db = state_db
        self._down_since: float | None = None
        self._failed_at = -math.inf
        moved = self._moved()
        self.current = configured if moved is None else moved

    def other(self) -> BrokerAddress | None:
        """The address to use in place of the current one; None if there is only one."""
        moved = self._moved()
        if moved is not None and moved != self.current:
            return moved
        return None if self.current == self._configured else self._configured

    def look(self, session: Session, now: float) -> bool:
        """Remember a new address; True if the device should use the other address now.

        `now` is monotonic, in seconds. Raises DiskError if the address cannot be stored.
        """
        state = session.trust.coordinator
        notice = None if state is None else state.moved_to
        if notice is not None:
            self._remember(notice)
        is_down = not session.handshake.is_connected
        if not is_down:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        if self.other() is None:
            return False
        if self._down_since is not None:
            return now - self._down_since >= _DOWN_S
        has_left = state is not None and not state.online
        is_elsewhere = notice is not None and notice != _place(self.current)
        return has_left and is_elsewhere and now - self._failed_at >= _TRY_AGAIN_S

    def switch(self, reason: str) -> bool:
        """Use the other address from now on; False if there is none."""
        other = self.other()
        if other is None:
            return False
        self.current, self._down_since = other, None
        log.event("broker_switched", broker=f"{other.host}:{other.port}", reason=reason)
        return True

    def note_failure(self, now: float) -> None:
        """Record that the address in use could not be reached."""
        self._failed_at = now

    def _moved(self) -> BrokerAddress | None:
        moved = self._state_db.broker(_place(self._configured))
        if moved is None or moved == _place(self._configured):
            return None
        return replace(self._configured, host=moved.host, port=moved.port)

    def _remember(self, notice: Address) -> None:
        here = _place(self._configured)
        if notice != (self._state_db.broker(here) or here):
            self._state_db.move_broker(here, notice)
            log.event("broker_moved", broker=f"{notice.host}:{notice.port}")


def _place(address: BrokerAddress) -> Address:
    return Address(address.host, address.port)
