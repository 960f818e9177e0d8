"""Child processes that do not outlive their parent.

Each child gets its own session, so that Ctrl-C reaches only the parent and the parent ends the
children in order. On Linux the kernel also ends them if the parent dies without doing so. For that,
a child starts as a short Python program that makes this request to the kernel and then replaces
itself with the command. `preexec_fn` is not used for the request: code between fork and exec can
deadlock on a lock of another thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

# Code that a child runs before its command. 1 is PR_SET_PDEATHSIG of linux/prctl.h. The two signals
# are reset because Python ignores them, and the command would inherit that.
_END_WITH_PARENT = """\
import ctypes, os, sys
from signal import SIG_DFL, SIGPIPE, SIGTERM, SIGXFSZ, signal
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
signal(SIGPIPE, SIG_DFL), signal(SIGXFSZ, SIG_DFL)
if os.getppid() == int(sys.argv[1]):  # else the parent died in between
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.exit(f"{sys.argv[3]} cannot be started: {error.strerror}")
"""
_ENDS_IN_S = 8.0  # time to disconnect from the broker before SIGKILL


class Children:
    """A context manager that ends its child processes on exit, the last started first."""

    def __init__(self) -> None:
        self._children: list[tuple[subprocess.Popen[str], float]] = []

    def start(
        self,
        command: Sequence[str],
        log: Path | None,
        *,
        pipe: bool = False,
        errors_too: bool = False,
        ends_in_s: float = _ENDS_IN_S,
        keeps: Sequence[int] = (),
        dies_by: signal.Signals = signal.SIGTERM,
    ) -> subprocess.Popen[str]:
        """Start `command` as a child process.

        Its standard error is appended to `log`, or inherited if `log` is None. Its standard
        output goes to the same place, or as text to the caller if `pipe` is true; with
        `errors_too`, its standard error follows it. Its standard input is empty. When the context
        manager exits, the child gets SIGTERM, and SIGKILL if it still runs `ends_in_s` seconds
        later. The child also gets the file descriptors in `keeps`, under the same numbers. If this
        process dies, the kernel sends it `dies_by`: a stopped child needs SIGKILL.

        If the command cannot be started, the child on Linux writes a message to standard error and
        ends with code 1; other systems raise OSError. Raises OSError if `log` cannot be opened.
        """
        errors = None if log is None else log.open("ab")
        try:
            child = subprocess.Popen(
                [*_end_with(os.getpid(), dies_by), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else errors,
                stderr=subprocess.STDOUT if errors_too else errors,
                text=True,
                errors="backslashreplace",  # a child may quote the name of a file
                start_new_session=True,
                pass_fds=keeps,
            )
        finally:
            if errors is not None:
                errors.close()
        self._children.append((child, ends_in_s))
        return child

    def end(self, child: subprocess.Popen[str]) -> None:
        """End a child before the context manager exits, as it does, and forget it."""
        for entry in self._children:
            if entry[0] is child:
                self._children.remove(entry)
                _end(*entry)
                return

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for child, ends_in_s in reversed(self._children):
            _end(child, ends_in_s)


def _end(child: subprocess.Popen[str], ends_in_s: float) -> None:
    """End one child with SIGTERM, or with SIGKILL after `ends_in_s` seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(ends_in_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


def how_it_ended(code: int) -> str:
    """Say how a child with this exit code ended, as the end of a sentence."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}"


def own_command(*arguments: str) -> list[str]:
    """Return the command line of `fedclip-edge` in this installation."""
    return [sys.executable, "-m", "fedclip_edge.cli.main", *arguments]


def _end_with(parent: int, dies_by: signal.Signals) -> list[str]:
    """Return the words to put before a child's command, so that it ends with `parent`.

    Empty on systems other than Linux.
    """
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(parent), str(int(dies_by))]
