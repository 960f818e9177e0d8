"""An agent whose child processes end after a second without work, in place of a minute.

python hasty_agent.py CONFIG

All else is `fedclip-edge agent`.
"""

from __future__ import annotations

import sys
from unittest import mock

from fedclip_edge.cli.main import main
from fedclip_edge.processes.worker import IDLE_S, Worker

REST = Worker.rest


def rest(worker: Worker, now: float) -> None:
    """Rest as if the rest of the minute was over."""
    REST(worker, now + IDLE_S - 1.0)


if __name__ == "__main__":
    with mock.patch.object(Worker, "rest", rest):
        sys.argv = ["fedclip-edge", "agent", sys.argv[1], "--json"]
        main()
