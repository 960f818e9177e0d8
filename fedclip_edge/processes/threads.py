"""A process that ends when one of its threads dies."""

from __future__ import annotations

import os
import sys
import threading


def exit_on_thread_failure() -> None:
    """From now on a thread that dies of an exception takes this process along, with code 1.

    Without its link's threads an agent or a coordinator is mute and seems to live. A supervisor starts
    anew what has ended, and what is on disk is made for a kill.
    """

    def end(died: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(died)
        if not sys.is_finalizing():
            os._exit(1)

    threading.excepthook = end
