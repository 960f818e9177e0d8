"""Messages to systemd about this service: it is ready, it works, it stops.

The protocol is that of sd_notify(3): one datagram for each message, to the socket whose name is in
NOTIFY_SOCKET. Without this variable nothing is sent.

Laws:
- Only the service's main loop says that the service is alive, with `turn`. So systemd ends and
  restarts a service whose loop hangs, also if its other threads go on.
- Child processes do not get the variables: they would speak for their parent.
- No error of the socket ends the service.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import time
from collections.abc import MutableMapping

from fedclip_edge import log

# The longest time between two signs of life; so work that takes little less than WatchdogSec does
# not count as a hang.
_ALIVE_EVERY_S = 10.0


class Systemd:
    """A service of systemd: this process. Without effect until `connect` finds one."""

    def __init__(self) -> None:
        self._address = ""
        self._socket: socket.socket | None = None
        self._every_s: float | None = None  # between two signs of life; None without a watchdog
        self._alive_at = 0.0
        self._status = ""
        self._is_failing = False

    def connect(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Use the socket and the watchdog in `environment`, if any, and remove them from it.

        With a watchdog, SIGABRT prints the position of each thread to standard error: systemd sends
        this signal to a service that hangs.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        limit_us = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        if limit_us.isdecimal() and int(limit_us) and process in ("", str(os.getpid())):
            self._every_s = min(int(limit_us) / 4e6, _ALIVE_EVERY_S)
            with contextlib.suppress(OSError, ValueError):  # standard error is no file
                faulthandler.enable()

    @property
    def text(self) -> str:
        """The last words of `status`, also if nobody listens."""
        return self._status

    def ready(self) -> None:
        """Say that the service has started; the watchdog begins."""
        self._alive_at = time.monotonic()
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Say in one line what the service does, for `systemctl status`; sent if it is new."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={' '.join(text.split())}")

    def turn(self) -> None:
        """Say that the main loop turns, if that is due."""
        now = time.monotonic()
        if self._every_s is not None and now - self._alive_at >= self._every_s:
            self._alive_at = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service has begun to stop."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._is_failing:  # else it would be in the log every few seconds
                log.event("systemd_not_told", message=message, reason=error.strerror or str(error))
            self._is_failing = True
        else:
            self._is_failing = False


SYSTEMD = Systemd()
