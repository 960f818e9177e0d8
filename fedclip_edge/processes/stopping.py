"""The end of a service that SIGTERM or SIGINT (Ctrl-C) asks to stop.

Laws:
- The first signal raises SystemExit in the main thread, so that every `finally` runs: the service
  says goodbye to its peers and closes its files.
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
from collections.abc import Iterator
from types import FrameType

from fedclip_edge import log

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REACTS_S = 4.0
_GOODBYE_S = 25.0  # up to 10 s for the link, and 8 s for a child process; systemd waits for 30 s


@contextlib.contextmanager
def stopping_on_signals(*, is_service: bool) -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT stop the process as the module describes.

    The exit code is 0 for a service, and 128 plus the signal's number for a command that has not
    finished its work. It may be entered once per process, in the main thread.
    """
    asked: list[signal.Signals] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if not asked:  # _watch acts on a second signal
            asked.append(signal.Signals(number))
            raise SystemExit(_code(number, is_service=is_service))

    pair = socket.socketpair()
    pair[1].setblocking(False)  # required by set_wakeup_fd
    signal.set_wakeup_fd(pair[1].fileno())
    # A shell that starts a command in the background makes it ignore Ctrl-C.
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    watching = threading.Thread(
        target=_watch, args=(pair, asked, is_service), name="signals", daemon=True
    )
    watching.start()
    try:
        yield
    finally:
        if asked:
            _say_stopped(asked[0])


def _watch(
    pair: tuple[socket.socket, socket.socket], asked: list[signal.Signals], is_service: bool
) -> None:
    """End the process on a second signal, or if it does not end in time after the first one.

    The interpreter writes the number of each signal to the second socket at once, also while the
    main thread is busy in a library.
    """
    signals = pair[0]
    first = _next_signal(signals, None)
    assert first is not None
    for wait_s in (_REACTS_S, _GOODBYE_S - _REACTS_S):
        second = _next_signal(signals, wait_s)
        if second is not None:
            os._exit(128 + second)
        if not asked:
            break
    _say_stopped(signal.Signals(first))
    os._exit(_code(first, is_service=is_service))


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
