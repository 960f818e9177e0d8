"""A request to read the settings again: SIGHUP, as `systemctl reload` sends it."""

from __future__ import annotations

import signal
import sys
from types import FrameType


class ReloadRequest:
    """The request; without effect until `listen` is called."""

    def __init__(self) -> None:
        self._is_made = False

    def listen(self) -> None:
        """Take SIGHUP as a request, unless it says that this program's terminal was closed.

        To be called in the main thread. A program that ignores the signal, as under nohup, goes on
        ignoring it.
        """
        has_terminal = sys.stdin is not None and sys.stdin.isatty()
        if not has_terminal and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note)

    def take(self) -> bool:
        """True once after each request."""
        is_made, self._is_made = self._is_made, False
        return is_made

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._is_made = True


RELOAD = ReloadRequest()
