"""Exit of the process when one of its threads fails."""

from __future__ import annotations

import os
import sys
import threading


def exit_on_thread_failure() -> None:
    """Make an uncaught exception in any thread end this process with code 1, from now on.

    If a thread of its link failed, an agent or a coordinator would otherwise hang but seem to run.
    A supervisor can restart a process that has ended: its state is on disk.
    """

    def end(died: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(died)
        if not sys.is_finalizing():
            os._exit(1)

    threading.excepthook = end
