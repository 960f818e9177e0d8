"""Results of made-up runs of a simulation."""

from __future__ import annotations

import numpy as np

from fedclip_edge.learning import unknown
from fedclip_edge.learning.evaluation import Evaluation, FleetEvaluation
from fedclip_edge.learning.unknown import Separation
from fedclip_edge.records import Plan
from fedclip_edge.simulating.results import FleetCompared, Outcome, Point, Run
from fedclip_edge.simulating.settings import Setting

# Of five known pictures one is called unknown, and of five others three. Of 25 pairs, 23 are in the
# right order.
_KNOWN, _OTHERS = ([95, 120, 120, 120, 120], [90, 90, 90, 105, 105])
_APART = {
    unknown.KNOWN: np.bincount([100] * 19, minlength=unknown.BINS),
    unknown.REMOVED: np.bincount([99] * 19, minlength=unknown.BINS),
}
SEPARATION = Separation(
    np.bincount(_KNOWN, minlength=unknown.BINS),
    np.bincount(_OTHERS, minlength=unknown.BINS),
    unknown.threshold(_APART),
)
FEDCLIP = Setting("fedclip", Plan("fedclip", rounds=2, vote="off"))


def _compared(own: float, shared: float) -> FleetCompared:
    its = (FleetEvaluation(10, top1, top1, top1 - 0.1, top1, 0.02) for top1 in (own, shared, 0.3))
    return FleetCompared(*its)


def outcome(
    mean: float,
    seed: int = 0,
    held_out: str = "",
    view: str = "",
    setting: Setting = FEDCLIP,
    up: int = 4000,
    own: tuple[float, float] | None = None,
    separation: Separation | None = None,
) -> Outcome:
    """Make an outcome; `own` is the accuracy of the devices' own models, here and elsewhere."""
    fleet = FleetEvaluation(10, mean + 0.01, mean, mean - 0.1, mean - 0.05, 0.02)
    apart = Evaluation(5, mean / 2, 0.1, 0.1, ()) if held_out else None
    return Outcome(
        run=Run(setting, seed, "domain", held_out, (view,)),
        view=view,
        points=(Point(0, 0.3, 0.1, 100), Point(1, mean, 0.2, 200), Point(2, mean, 0.3, 9000)),
        fleet=fleet,
        zero_shot=FleetEvaluation(10, 0.3, 0.3, 0.2, 0.25, 0.2),
        held_out=apart,
        held_out_zero_shot=apart,
        own_pictures=own and _compared(own[0], mean),
        other_pictures=own and _compared(own[1], mean),
        devices=2,
        up_bytes=up,
        down_bytes=8000,
        separation=separation,
        zero_shot_separation=separation,
    )
