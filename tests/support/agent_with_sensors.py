"""An agent of a box with thermal zones that a test sets.

python agent_with_sensors.py CONFIG SENSORS

All else is `fedclip-edge agent`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from unittest import mock

from fedclip_edge.agent import pause, process
from fedclip_edge.cli.main import main

if __name__ == "__main__":
    run = functools.partial(process.run, sensors=Path(sys.argv[2]))
    with mock.patch.object(process, "run", run), mock.patch.object(pause, "LOOK_S", 0.2):
        sys.argv = ["fedclip-edge", "agent", sys.argv[1], "--json"]
        main()
