"""All faults of the fault matrix, in the order of the page, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from device_faults import FLOODER, VISITOR, Flap, Flood, HeavyUpdates, Stop, Visitor
from faulty_fleet import COORDINATOR, RULES, VICTIM
from fleet_faults import (
    BROKER,
    MANY_ROUNDS,
    PHASES,
    Clock,
    Cut,
    FullDisk,
    Kill,
    Noisy,
    NoQuorum,
    Phase,
    SlowLink,
)

_NO_CHUNK = "not run: no chunk is sent in this phase"
_MADE = "not run: the update of the round is already made in this phase"
_NO_WEIGHT = "not run: an answer to a vote has no weight that could be too large"
_ROUND = "not run: without a quorum a training round is repeated, but a vote is not"
_QUIET: Mapping[Phase, str] = dict.fromkeys(("idle", "training", "aggregation"), _NO_CHUNK)
FAULTS = {
    fault.name: fault
    for fault in (
        Kill("kill-agent", "agent killed", rules=replace(RULES, grace_s=1.0), whom=VICTIM),
        Kill("kill-coordinator", "coordinator killed", whom=COORDINATOR),
        Kill("kill-broker", "broker killed", whom=BROKER),
        Cut("cut-5", "connections cut for 5 s", for_s=5.0),
        Cut("cut-60", "connections cut for 60 s", for_s=60.0),
        SlowLink("slow", "80 kB/s, reset every 6 s", lasts=True),
        Noisy("duplicated", "duplicated chunks", nonsense=_QUIET, how="duplicate", lasts=True),
        Noisy("corrupted", "corrupted chunks", nonsense=_QUIET, how="corrupt", lasts=True),
        FullDisk("full-coordinator", "full disk at the coordinator", whose=COORDINATOR, lasts=True),
        FullDisk("full-agent", "full disk at an agent", whose=VICTIM, lasts=True),
        Clock("clock", "clocks one hour wrong", lasts=True),
        Flap("flap", "agent's link cut again and again", rounds=MANY_ROUNDS, lasts=True),
        Stop("stop-agent", "agent stopped", rules=replace(RULES, deadline_s=10.0), lasts=True),
        Flood("flood", "flood of hellos", rounds=MANY_ROUNDS, guests=(FLOODER,), lasts=True),
        HeavyUpdates(
            "refused",
            "agent's updates refused",
            rules=replace(RULES, quorum=0.75),
            nonsense={**dict.fromkeys(("upload", "aggregation"), _MADE), "vote": _NO_WEIGHT},
            lasts=True,
        ),
        NoQuorum(
            "no-quorum",
            "two agents that do not vote",
            rules=replace(RULES, deadline_s=10.0),
            nonsense={phase: _ROUND for phase in PHASES if phase != "vote"},
            lasts=True,
        ),
        Visitor(
            "evaluator",
            "evaluator killed again and again",
            rounds=MANY_ROUNDS,
            guests=(VISITOR,),
            lasts=True,
        ),
    )
}
