"""A process that ends when one of its threads dies."""

from __future__ import annotations

import os
import sys
import threading


def exit_on_thread_failure() -> None:
    """From now on an exception that ends a thread ends this process as well, with code 1.

    An agent or a coordinator without the threads of its link would hang and seem to run. A
    supervisor restarts a process that ended, and the files on disk are made for that.
    """

    def end(died: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(died)
        if not sys.is_finalizing():
            os._exit(1)

    threading.excepthook = end
