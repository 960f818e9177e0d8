"""A search for the cause of a link that does not come up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import FedclipError, RefusedError
from fedclip_edge.transport import port_probe, tls
from fedclip_edge.transport.inbox import Inbox

EXAMINE_S = 3.0


class Examination:
    """The search, in a thread of its own: a handshake takes longer than a callback of paho may.

    It tells the inbox what it finds, or what `otherwise` returns if it finds nothing.
    """

    def __init__(self, address: BrokerAddress, inbox: Inbox, otherwise: Callable[[], str]) -> None:
        self._address = address
        self._inbox = inbox
        self._otherwise = otherwise
        self._is_running = threading.Lock()

    def start(self) -> None:
        """Search, unless a search is under way."""
        if self._is_running.acquire(blocking=False):
            threading.Thread(target=self._examine, name="mqtt-examine", daemon=True).start()

    def _examine(self) -> None:
        try:
            cause = self._cause() or self._otherwise()
            if cause:
                self._inbox.complain(cause)
        except RefusedError as error:
            self._inbox.refuse(str(error))
        finally:
            self._is_running.release()

    def _cause(self) -> str:
        """The reason why there is no link, or empty; raises RefusedError if it is permanent."""
        try:
            tls.examine(self._address, EXAMINE_S)
        except RefusedError:
            raise
        except FedclipError as error:
            return port_probe.mismatch(self._address, EXAMINE_S) or str(error)
        return port_probe.mismatch(self._address, EXAMINE_S) if self._address.ca is None else ""
