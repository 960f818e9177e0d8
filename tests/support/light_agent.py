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
from pathlib import Path
from unittest import mock

import numpy as np
from device_laws import HEAVY, update_of
from faulty_fleet import HEAVY_FILE, HOLD_FILE, VARIANT, validation_of
from local_trainer import pictures_of

from fedclip_edge import log
from fedclip_edge.agent import rescan, serving
from fedclip_edge.agent.features import DeviceFeatures, DevicePictures
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.agent.training import Training
from fedclip_edge.cli.main import main
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.learning.run_steps import steps
from fedclip_edge.records import Features, Measured, Model, Plan, Update
from fedclip_edge.vision.bundle import Bundle, read_bundle


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
            return self.vote(model, plan)
        heavy = HEAVY if (self.config.state_dir / HEAVY_FILE).exists() else ""
        update = update_of(model, self.config.id, VARIANT + heavy)
        self.busy_s += time.monotonic() - began
        return update

    def vote(self, model: Model, plan: Plan) -> Update:
        """Vote as the product does, in this process."""
        data = drawn(self.config, read_bundle(self.config.bundle or Path()))
        return Training(self.config, self.classes, self.dim, data).fit(
            model, plan, self.config.min_per_class
        )[0]

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        return Measured({"federated": 0.5}, test_pictures=2)


def drawn(config: AgentConfig, bundle: Bundle) -> DeviceFeatures:
    """Features in place of those of pictures."""
    vectors = np.ones((config.min_per_class, bundle.manifest.dim), np.float32)
    some = Features(vectors, np.zeros(len(vectors), np.int64), bundle.manifest.encoder_id)
    return DeviceFeatures(some, validation_of(config.id, bundle.manifest.encoder_id), some, ())


def ready(
    config: AgentConfig,
    bundle: Bundle,
    encode: object,
    progress: object,
    index: object = None,
    before: DevicePictures | None = None,
    meanwhile: object = None,
) -> DevicePictures:
    """Pictures that are not there, and never change."""
    return before or pictures_of(drawn(config, bundle))


if __name__ == "__main__":
    LightTrainer.train_for_s = float(sys.argv[1])
    with (
        mock.patch.object(serving, "prepare_pictures", ready),
        mock.patch.object(rescan, "prepare_pictures", ready),
        mock.patch.object(serving, "LocalTrainer", LightTrainer),
    ):
        sys.argv = ["fedclip-edge", "agent", sys.argv[2], "--json"]
        main()
