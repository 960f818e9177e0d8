"""The devices that are absent from a round, which may count with their last contribution."""

from __future__ import annotations

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.round_state import RoundState


def test_who_is_away_or_late_is_absent() -> None:
    state = RoundState(
        run="run-1",
        rules=RunRules(absent="last"),
        rounds=2,
        phase="open",
        trainers=frozenset({"kept", "late", "refused"}),
        evaluators=frozenset({"late", "watcher"}),
        absent=frozenset({"away"}),
        cohort=frozenset({"kept", "late", "refused", "away"}),
        kept={"kept": "a" * 64},
        rejected=frozenset({"refused"}),
    )
    known = ["kept", "late", "refused", "watcher", "away", "never-seen"]
    assert attendance.absent(state, known) == {"late", "away", "never-seen"}
    assert attendance.absent(state, ["kept"]) == set()
