"""An agent whose encoder process decodes slowly, so that a test can act while it encodes.

python slow_agent.py SECONDS GO CONFIG [OPTION ...]

Each picture takes SECONDS longer. All but the first eight wait until the file GO exists; with
"-" as GO none waits. All else is `fedclip-edge agent`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

HERE = Path(__file__).parent


def main() -> None:
    """Start the agent; its encoder process makes its object from `slow_encoding.py`."""
    from fedclip_edge.agent import encoder_process
    from fedclip_edge.cli.main import main as run
    from fedclip_edge.processes.worker import Worker

    def slow_worker(
        children: object, name: str, _make: str, *rest: object, **more: object
    ) -> Worker:
        return Worker(children, name, "slow_encoding:Encoding", *rest, **more)  # type: ignore[arg-type]

    os.environ["SLOW_S"], os.environ["SLOW_GO"] = sys.argv[1:3]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE), os.environ.get("PYTHONPATH")))
    )
    sys.argv = ["fedclip-edge", "agent", *sys.argv[3:], "--json"]
    with mock.patch.object(encoder_process, "Worker", slow_worker):
        run()


if __name__ == "__main__":
    main()
