"""Child processes that never outlive their parent.

Each child gets its own process group, so that Ctrl-C reaches the parent alone and the parent
ends the children in order; and on Linux the kernel is asked to end them should the parent die
without a chance to. The child asks, in an interpreter that makes way for its command: code that
runs between fork and exec (`preexec_fn`) may wait for ever for a lock of another thread's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

# What a child does before its command: 1 is PR_SET_PDEATHSIG of linux/prctl.h; the interpreter
# ignores two signals, and its command would inherit that.
_END_WITH_PARENT = """\
import ctypes, os, sys
from signal import SIG_DFL, SIGPIPE, SIGTERM, SIGXFSZ, signal
ctypes.CDLL(None).prctl(1, SIGTERM)
signal(SIGPIPE, SIG_DFL), signal(SIGXFSZ, SIG_DFL)
if os.getppid() == int(sys.argv[1]):  # else it died in between
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]} cannot be started: {error.strerror}")
"""
_ENDS_IN_S = 8.0  # time to say good-bye to the broker before SIGKILL


class Children:
    """A context manager that ends, on leaving, what was started through it, last one first."""

    def __init__(self) -> None:
        self._children: list[tuple[subprocess.Popen[str], float]] = []

    def start(
        self,
        command: Sequence[str],
        log: Path | None,
        *,
        pipe: bool = False,
        ends_in_s: float = _ENDS_IN_S,
    ) -> subprocess.Popen[str]:
        """Starts `command`; one that cannot be started says so and ends with 1.

        Its standard error goes to `log` (inherited where None); its standard output as well, or,
        with `pipe`, to the caller. Asked to end, it has `ends_in_s` before it is killed.
        """
        errors = None if log is None else log.open("ab")
        try:
            child = subprocess.Popen(
                [*_end_with(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else errors,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        finally:
            if errors is not None:
                errors.close()
        self._children.append((child, ends_in_s))
        return child

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
    """Asks one child to end, then makes it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(ends_in_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


def own_command(*arguments: str) -> list[str]:
    """The command line of this very installation's `fedclip-edge`."""
    return [sys.executable, "-m", "fedclip_edge.cli.main", *arguments]


def _end_with(parent: int) -> list[str]:
    """The command line that the rest of one goes behind."""
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(parent)]
