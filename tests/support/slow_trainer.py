"""An agent whose training ends only once a test allows it.

python slow_trainer.py CONFIG

All else is `fedclip-edge agent`. While the file HOLD is in its state folder, a request to the
trainer does not end, and the agent does its other duties, as while the trainer works.
"""

from __future__ import annotations

import sys
import time
from unittest import mock

from fedclip_edge.agent import serving
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.agent.trainer_process import TrainerProcess
from fedclip_edge.cli.main import main
from fedclip_edge.records import Model, Plan, Update

HOLD, HELD = "hold", "held"


class SlowTrainer(LocalTrainer):
    def fit(self, model: Model, plan: Plan) -> Update:
        folder = self.config.state_dir
        while (folder / HOLD).exists():
            (folder / HELD).touch()
            assert isinstance(self.work, TrainerProcess)
            self.work.worker.meanwhile()
            time.sleep(0.02)
        return super().fit(model, plan)


if __name__ == "__main__":
    with mock.patch.object(serving, "LocalTrainer", SlowTrainer):
        sys.argv = ["fedclip-edge", "agent", sys.argv[1], "--json"]
        main()
