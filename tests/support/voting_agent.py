"""An agent process that a test can hold up, or make lie, when it votes.

python voting_agent.py CONFIG

All else is `fedclip-edge agent`. It does not vote while the file HOLD is in its state folder. With
the file LIE it counts one correct prediction more than it has pictures.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from unittest import mock

from fedclip_edge.agent import serving
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.cli.main import main
from fedclip_edge.learning.run_steps import steps
from fedclip_edge.records import Model, Plan, Update

HOLD, LIE = "hold", "lie"


class VotingTrainer(LocalTrainer):
    def fit(self, model: Model, plan: Plan) -> Update:
        folder = self.config.state_dir
        is_vote = steps(plan)[model.round].kind == "vote"
        while is_vote and (folder / HOLD).exists():
            time.sleep(0.02)
        update = super().fit(model, plan)
        if is_vote and (folder / LIE).exists():
            update.sums["correct"][:] = update.sums["pictures"] + 1
            update = replace(update, sums=update.sums)
        return update


if __name__ == "__main__":
    with mock.patch.object(serving, "LocalTrainer", VotingTrainer):
        sys.argv = ["fedclip-edge", "agent", sys.argv[1], "--json"]
        main()
