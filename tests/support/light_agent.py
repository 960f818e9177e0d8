"""An agent process without pictures and training; all else is `fedclip-edge agent`.

python light_agent.py TRAIN_S CONFIG

Process, configuration, locks, files, link and protocol are the real ones. Its features are given,
and after TRAIN_S seconds of "training" its update is device_laws.py's function of model and device.
If HEAVY_FILE is in its state folder, the update has a weight that the plan of the fleet forbids.
Its vote is the real one, on drawn features, but not before HOLD_FILE is gone.
"""

from __future__ import annotations

import sys
import time
import types
from unittest import mock

import numpy as np
from device_laws import HEAVY, update_of
from faulty_fleet import HEAVY_FILE, HOLD_FILE, VARIANT, validation_of

from fedclip_edge import log
from fedclip_edge.agent import process, rescan
from fedclip_edge.agent.features import DeviceFeatures
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.cli.main import main
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.learning.run_steps import steps
from fedclip_edge.records import Features, Measured, Model, Plan, Update
from fedclip_edge.vision.bundle import Bundle


class LightTrainer(LocalTrainer):
    """The product's trainer without real training and evaluation.

    FakeLearner would not do: the process creates this class as it creates the real one, with the
    real shapes and reports. It logs when it begins to train, and waits.
    """

    train_for_s = 0.0

    def fit(self, model: Model, plan: Plan) -> Update:
        is_vote = steps(plan)[model.round].kind == "vote"
        log.event("voting" if is_vote else "training", round=model.round + 1)
        began = time.monotonic()
        time.sleep(self.train_for_s)
        while is_vote and (self.config.state_dir / HOLD_FILE).exists():
            time.sleep(0.02)
        if is_vote:
            return super().fit(model, plan)
        heavy = HEAVY if (self.config.state_dir / HEAVY_FILE).exists() else ""
        update = update_of(model, self.config.id, VARIANT + heavy)
        self.busy_s += time.monotonic() - began
        return update

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        return Measured({"federated": 0.5}, test_pictures=2)


def ready(
    config: AgentConfig,
    bundle: Bundle,
    progress: object,
    index: object = None,
    before: DeviceFeatures | None = None,
) -> DeviceFeatures:
    """Features in place of those of pictures, which never change."""
    if before is not None:
        return before
    vectors = np.ones((config.min_per_class, bundle.manifest.dim), np.float32)
    some = Features(vectors, np.zeros(len(vectors), np.int64), bundle.manifest.encoder_id)
    votes = validation_of(config.id, bundle.manifest.encoder_id)
    return DeviceFeatures(some, votes, some, (), encoded=0, skipped=0, encode_s=0.0)


if __name__ == "__main__":
    LightTrainer.train_for_s = float(sys.argv[1])
    without_torch = types.ModuleType("training")
    without_torch.use_one_thread = lambda: None  # type: ignore[attr-defined]
    sys.modules["fedclip_edge.learning.training"] = without_torch
    with (
        mock.patch.object(process, "prepare_features", ready),
        mock.patch.object(rescan, "prepare_features", ready),
        mock.patch.object(process, "LocalTrainer", LightTrainer),
    ):
        sys.argv = ["fedclip-edge", "agent", sys.argv[2], "--json"]
        main()
