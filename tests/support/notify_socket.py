"""A socket that takes the messages of a service in systemd's place."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from system import DEADLINE_S


class NotifySocket:
    """A datagram socket. `name` is its name in NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)

    def next(self, timeout_s: float = DEADLINE_S) -> str | None:
        """The next message; None if there is none within the timeout."""
        self._socket.settimeout(max(timeout_s, 1e-3))
        try:
            self.seen.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return None
        return self.seen[-1]

    def wait_for(self, beginning: str, timeout_s: float = DEADLINE_S) -> str:
        """The next message with this beginning."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            message = self.next(left_s)
            if message is not None and message.startswith(beginning):
                return message
        raise AssertionError(f"no {beginning!r} within {timeout_s:g} s, only {self.seen}")

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def notify_socket(folder: Path, *, abstract: bool = False) -> Iterator[NotifySocket]:
    """A socket in `folder`, or an abstract one with a name made from it."""
    made = NotifySocket(f"@{folder}/notify" if abstract else str(folder / "notify"))
    try:
        yield made
    finally:
        made.close()
