"""A command on a terminal with a given width."""

from __future__ import annotations

import os
import pty
import struct
import subprocess
from collections.abc import Sequence
from fcntl import ioctl
from termios import TIOCSWINSZ

from system import DEADLINE_S, running


def shown_on_terminal(command: Sequence[str], columns: int, *, with_errors: bool = True) -> str:
    """The complete output of the command on a terminal with `columns` columns; it must exit with 0.

    Standard error goes to the terminal as well, unless `with_errors` is off.
    """
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = {**os.environ, "TERM": "xterm"}
    settings.pop("COLUMNS", None)
    errors = theirs if with_errors else subprocess.DEVNULL
    with running(command, stdin=theirs, stdout=theirs, stderr=errors, env=settings) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # the child has closed its side
                break
            if not block:
                break
            shown += block
        assert child.wait(DEADLINE_S) == 0, shown
    os.close(ours)
    return shown.decode()
