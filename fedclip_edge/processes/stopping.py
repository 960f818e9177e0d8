"""The end of a service that SIGTERM or SIGINT (Ctrl-C) asks to stop.

Laws:
- The first signal raises SystemExit in the main thread, so that every `finally` runs: the service
  says goodbye to its peers and closes its files. It is raised again if a library discards it:
  some compiled modules clear every exception that they meet, for example during an import.
- The second signal ends the process at once.
- A signal ends the process within _REACTS_S seconds if the main thread cannot react, for example
  during a long call into a library, and within _GOODBYE_S seconds in any case. What was
  acknowledged is on disk at any moment, and the broker says goodbye in its place (its will).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType

from fedclip_edge import log
from fedclip_edge.processes.systemd import SYSTEMD

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REACTS_S = 4.0
_LOOKS_S = 0.2  # between two looks whether the exception still exists
_GOODBYE_S = 25.0  # up to 10 s for the link, and 8 s for a child process; systemd waits for 30 s


@contextlib.contextmanager
def stopping_on_signals(*, is_service: bool) -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT stop the process as the module describes.

    The exit code is 0 for a service, and 128 plus the signal's number for a command that has not
    finished its work. It may be entered once per process, in the main thread.
    """
    asked = _Asked(is_service=is_service)

    def stop(number: int, _frame: FrameType | None) -> None:
        if asked.number is None or asked.is_discarded():  # _watch acts on a second signal
            raise asked.exception(number)

    pair = socket.socketpair()
    pair[1].setblocking(False)  # required by set_wakeup_fd
    signal.set_wakeup_fd(pair[1].fileno())
    # A shell that starts a command in the background makes it ignore Ctrl-C.
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    threading.Thread(target=_watch, args=(pair, asked), name="signals", daemon=True).start()
    try:
        yield
    finally:
        asked.is_unwound = True
        if asked.number is not None:
            _say_stopped(asked.number)


class _Stopped(SystemExit):
    """A SystemExit that allows weak references."""


class _Asked:
    """The first signal, and the exception that the main thread got for it."""

    def __init__(self, *, is_service: bool) -> None:
        self.number: signal.Signals | None = None
        self.is_service = is_service
        self.is_unwound = False  # the exception is on its way out, or was never raised
        self._raised: weakref.ref[_Stopped] | None = None

    def exception(self, number: int) -> _Stopped:
        """The exception to raise. Nothing else may refer to it, or `is_discarded` would fail."""
        self.number = self.number or signal.Signals(number)
        raised = _Stopped(_code(self.number, is_service=self.is_service))
        self._raised = weakref.ref(raised)
        return raised

    def is_discarded(self) -> bool:
        """True if the exception no longer exists, so the main thread goes on with its work."""
        return not self.is_unwound and self._raised is not None and self._raised() is None


def _watch(pair: tuple[socket.socket, socket.socket], asked: _Asked) -> None:
    """End the process on a second signal, or if it does not end in time after the first one.

    The interpreter writes the number of each signal to the second socket at once, also while the
    main thread is busy in a library.
    """
    signals = pair[0]
    first = _next_signal(signals, None)
    assert first is not None
    SYSTEMD.stopping()
    began = time.monotonic()
    while time.monotonic() - began < (_GOODBYE_S if asked.number else _REACTS_S):
        second = _next_signal(signals, _LOOKS_S)
        if second is not None:
            os._exit(128 + second)
        if asked.is_discarded():
            os.kill(os.getpid(), first)
            _next_signal(signals, _LOOKS_S)  # this one is not the user's
    _say_stopped(signal.Signals(first))
    os._exit(_code(first, is_service=asked.is_service))


def _next_signal(signals: socket.socket, timeout_s: float | None) -> int | None:
    """The number of the next signal, or None after `timeout_s` seconds without one."""
    signals.settimeout(timeout_s)
    try:
        while (number := signals.recv(1)[0]) not in _SIGNALS:
            pass
    except TimeoutError:
        return None
    return number


def _say_stopped(number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # Ctrl-C also ends the program that reads the output
        log.event("stopped", signal=number.name)


def _code(number: int, *, is_service: bool) -> int:
    return 0 if is_service else 128 + number
