"""The round machine: every row of its state table, and its laws under random histories."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedclip_edge.config import RunRules
from fedclip_edge.coordinator import round_machine
from fedclip_edge.coordinator.round_events import (
    Acknowledge,
    Action,
    Announce,
    Arrived,
    Closed,
    CloseRound,
    Drop,
    Event,
    Finish,
    Forget,
    Heard,
    Joined,
    Keep,
    Left,
    Offered,
    Rejected,
    Remind,
    Reported,
    Tick,
    Upload,
)
from fedclip_edge.coordinator.round_machine import step
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.protocol.cohort import NOBODY, cohort_hash
from fedclip_edge.protocol.messages import Phase

RULES = RunRules(devices=2, quorum=0.75, deadline_s=100.0, grace_s=10.0)
IMPOSSIBLE = {("gathering", Closed), ("final", Closed), ("done", Closed)}
A, B, C, D = "abcd"
BOTH = frozenset((A, B))
X, Y = "x" * 64, "y" * 64  # SHA-256 hashes of contributions

GATHERING = RoundState("run-1", RULES, rounds=2)
OPEN = replace(GATHERING, phase="open", trainers=BOTH, evaluators=BOTH, cohort=BOTH, deadline=100.0)
REPEATED = replace(OPEN, phase="gathering", attempt=1, trainers=frozenset(A), deadline=math.inf)
HALF = replace(OPEN, kept={A: X})
FINAL = replace(GATHERING, phase="final", round=2, evaluators=BOTH, deadline=100.0)
DONE = replace(FINAL, phase="done")

Row = tuple[RoundState, Event, float, dict[str, Any], tuple[Action, ...]]
ROWS: dict[str, Row] = {
    "gathering: one is not enough": (
        GATHERING, Joined(A, True, False), 5,
        {"trainers": frozenset(A), "heard": frozenset(A)}, (),
    ),
    "gathering: who only evaluates is not counted": (
        replace(GATHERING, trainers=frozenset(A)),
        Joined(B, False, True), 5, {"evaluators": frozenset(B), "heard": frozenset(B)}, (),
    ),
    "gathering: enough are there": (
        replace(GATHERING, trainers=frozenset(A)),
        Joined(B, True, True), 5,
        {"phase": "open", "trainers": BOTH, "evaluators": frozenset(B), "cohort": BOTH,
         "deadline": 105.0},
        (Announce(),),
    ),
    "gathering: one leaves": (
        replace(GATHERING, trainers=frozenset(A)),
        Left(A), 5, {"trainers": frozenset(), "away_since": {A: 5}}, (),
    ),
    "gathering: an offer to another round": (
        GATHERING, Offered(A, 2, X), 5, {},
        (Drop(A, "round 2 is not open; the current round is 1"),)
    ),
    "gathering: an offer between two attempts waits": (REPEATED, Offered(B, 1, X), 5, {}, ()),
    "gathering: what is kept is kept": (
        replace(REPEATED, kept={A: X}), Offered(A, 1, X), 5, {}, (Acknowledge(A),)
    ),
    "gathering: an upload that ends between two attempts waits": (
        REPEATED, Arrived(B, 1, X), 5, {}, ()
    ),
    "gathering: an upload to another round": (
        GATHERING, Arrived(A, 3, X), 5, {},
        (Drop(A, "round 3 is not open; the current round is 1"),)
    ),
    "gathering: a report changes nothing": (GATHERING, Reported(A, 0), 5, {}, ()),
    "gathering: time changes nothing": (GATHERING, Tick(), 1e9, {}, ()),
    "open: a late joiner waits for the next round": (
        OPEN, Joined(C, True, True), 5,
        {"trainers": BOTH | {C}, "evaluators": BOTH | {C}, "heard": frozenset(C)}, (),
    ),
    "open: who comes back is waited for again": (
        replace(OPEN, trainers=frozenset(A), evaluators=frozenset(A), away_since={B: 1.0}),
        Joined(B, True, True), 5,
        {"trainers": BOTH, "evaluators": BOTH, "away_since": {}, "heard": frozenset(B)}, (),
    ),
    "open: who changed its roles has the new ones": (
        OPEN, Joined(B, False, True), 5, {"trainers": frozenset(A), "heard": frozenset(B)}, ()
    ),
    "open: one leaves": (
        OPEN, Left(B), 5,
        {"trainers": frozenset(A), "evaluators": frozenset(A), "away_since": {B: 5}}, (),
    ),
    "open: a stranger leaves": (OPEN, Left(C), 5, {}, ()),
    "open: who left is not away since later": (
        replace(OPEN, trainers=frozenset(A), evaluators=frozenset(A), away_since={B: 1.0}),
        Left(B), 5, {}, (),
    ),
    "open: an offer is welcome": (
        OPEN, Offered(A, 1, X), 5, {"offered": frozenset(A)}, (Upload(A),)
    ),
    "open: offered and kept": (HALF, Offered(A, 1, X), 5, {}, (Acknowledge(A),)),
    "open: another one is kept": (
        HALF, Offered(A, 1, Y), 5, {}, (Drop(A, "another contribution to round 1 was kept"),)
    ),
    "open: an offer from outside the cohort": (
        OPEN, Offered(C, 1, X), 5, {}, (Drop(C, "the device is not in the cohort of round 1"),)
    ),
    "open: an offer to an earlier round": (
        replace(OPEN, round=2), Offered(A, 1, X), 5, {},
        (Drop(A, "round 1 is not open; the current round is 2"),),
    ),
    "open: the first arrives": (OPEN, Arrived(A, 1, X), 5, {"kept": {A: X}}, (Keep(A),)),
    "open: the last arrives": (
        HALF, Arrived(B, 1, Y), 5, {"kept": {A: X, B: Y}}, (Keep(B), CloseRound())
    ),
    "open: the same arrives again": (HALF, Arrived(A, 1, X), 5, {}, (Acknowledge(A),)),
    "open: a second one arrives": (
        HALF, Arrived(A, 1, Y), 5, {}, (Drop(A, "another contribution to round 1 was kept"),)
    ),
    "open: one arrives from outside the cohort": (
        OPEN, Arrived(C, 1, X), 5, {}, (Drop(C, "the device is not in the cohort of round 1"),)
    ),
    "open: closed, and the next one opens": (
        replace(HALF, kept={A: X, B: Y}, attempt=3), Closed(), 50,
        {"round": 2, "attempt": 0, "kept": {}, "deadline": 150.0}, (Announce(),),
    ),
    "open: closed, and nobody is there": (
        replace(HALF, trainers=frozenset()), Closed(), 50,
        {"phase": "gathering", "round": 2, "kept": {}, "cohort": frozenset(),
         "deadline": math.inf},
        (Announce(),),
    ),
    "open: the last one closed": (
        replace(HALF, round=2), Closed(), 50,
        {"phase": "final", "kept": {}, "cohort": frozenset(), "deadline": 150.0}, (Announce(),),
    ),
    "open: the last one closed, and nobody evaluates": (
        replace(HALF, round=2, evaluators=frozenset()), Closed(), 50,
        {"phase": "done", "kept": {}, "cohort": frozenset(), "deadline": 150.0},
        (Announce(), Announce(), Finish()),
    ),
    "gathering: a rejection changes nothing": (GATHERING, Rejected(A, 1), 5, {}, ()),
    "final: a rejection changes nothing": (FINAL, Rejected(A, 2), 5, {}, ()),
    "done: a rejection changes nothing": (DONE, Rejected(A, 2), 5, {}, ()),
    "open: one is rejected": (OPEN, Rejected(A, 1), 5, {"rejected": frozenset(A)}, ()),
    "open: who is kept cannot be rejected": (HALF, Rejected(A, 1), 5, {}, ()),
    "open: one of another round is rejected": (OPEN, Rejected(A, 2), 5, {}, ()),
    "open: the last one awaited is rejected, and the round repeated at once": (
        HALF, Rejected(B, 1), 5, {"attempt": 1, "deadline": 105.0}, (Announce(),),
    ),
    "open: a report is a sign of life": (OPEN, Reported(A, 1), 5, {"heard": frozenset(A)}, ()),
    "open: a sign of life": (OPEN, Heard(A), 5, {"heard": frozenset(A)}, ()),
    "gathering: a sign of life": (GATHERING, Heard(A), 5, {}, ()),
    "final: a sign of life": (FINAL, Heard(A), 5, {}, ()),
    "done: a sign of life": (DONE, Heard(A), 5, {}, ()),
    "open: time passes": (HALF, Tick(), 4.9, {}, ()),
    "open: who is silent is reminded": (HALF, Tick(), 5, {"reminded": 1}, (Remind(B),)),
    "open: and again after as long": (replace(HALF, reminded=1), Tick(), 9.9, {}, ()),
    "open: and again": (replace(HALF, reminded=1), Tick(), 10, {"reminded": 2}, (Remind(B),)),
    "open: who offered is not reminded": (
        replace(HALF, offered=frozenset(B)), Tick(), 5, {"reminded": 1}, ()
    ),
    "open: the deadline, with a quorum": (
        replace(OPEN, cohort=frozenset("abcd"), kept={A: X, B: X, C: X}), Tick(), 100, {},
        (Forget(D), CloseRound()),
    ),
    "open: the deadline, and one still uploads": (
        replace(OPEN, kept={A: X}, offered=frozenset(B)), Tick(), 100,
        {"attempt": 1, "deadline": 200.0, "offered": frozenset()}, (Announce(),),
    ),
    "open: the deadline, and one was heard of": (
        replace(OPEN, kept={A: X}, heard=frozenset(B)), Tick(), 100,
        {"attempt": 1, "deadline": 200.0, "heard": frozenset()}, (Announce(),),
    ),
    "open: the deadline, without a quorum, and the silent one is forgotten": (
        HALF, Tick(), 100,
        {"phase": "gathering", "attempt": 1, "deadline": math.inf, "trainers": frozenset(A),
         "evaluators": frozenset(A)},
        (Forget(B), Announce()),
    ),
    "open: the deadline, and too few are there": (
        replace(HALF, kept={}, trainers=frozenset(A)), Tick(), 100,
        {"phase": "gathering", "attempt": 1, "deadline": math.inf, "trainers": frozenset(),
         "evaluators": frozenset()},
        (Forget(A), Forget(B), Announce()),
    ),
    "open: one is away for less than grace_s": (
        replace(HALF, trainers=frozenset(A), away_since={B: 5.0}), Tick(), 14.9,
        {"reminded": 1}, (),
    ),
    "open: one will not be let in again, and is not waited for": (
        HALF, Left(B, for_good=True), 5,
        {"trainers": frozenset(A), "evaluators": frozenset(A), "phase": "gathering",
         "deadline": math.inf, "attempt": 1, "away_since": {B: -math.inf}},
        (Announce(),),
    ),
    "open: one that is away will not be let in again, the rest is a quorum": (
        replace(OPEN, trainers=frozenset("abc"), cohort=frozenset("abcd"), away_since={D: 5.0},
                kept={A: X, B: X, C: X}),
        Left(D, for_good=True), 6,
        {"away_since": {D: -math.inf}, "evaluators": BOTH}, (CloseRound(),),
    ),
    "gathering: who will not be let in again is not waited for": (
        replace(GATHERING, trainers=BOTH, away_since={C: 5.0}), Left(C, for_good=True), 6,
        {"away_since": {C: -math.inf}}, (),
    ),
    "open: one is given up, the rest is a quorum": (
        replace(
            OPEN, trainers=frozenset("abc"), cohort=frozenset("abcd"), away_since={D: 5.0},
            kept={A: X, B: X, C: X},
        ),
        Tick(), 15, {}, (CloseRound(),),
    ),
    "open: one is given up, the rest is no quorum": (
        replace(HALF, trainers=frozenset((A, C)), away_since={B: 5.0}), Tick(), 15,
        {"attempt": 1, "cohort": frozenset((A, C)), "deadline": 115.0}, (Announce(),),
    ),
    "final: one joins": (
        FINAL, Joined(C, True, True), 5,
        {"trainers": frozenset(C), "evaluators": BOTH | {C}, "heard": frozenset(C)}, (),
    ),
    "final: one leaves": (
        FINAL, Left(B), 5, {"evaluators": frozenset(A), "away_since": {B: 5}}, ()
    ),
    "final: no offer is welcome": (
        FINAL, Offered(A, 2, X), 5, {}, (Drop(A, "no round is open: the run is in phase 'final'"),)
    ),
    "final: no upload is welcome": (
        FINAL, Arrived(A, 2, X), 5, {}, (Drop(A, "no round is open: the run is in phase 'final'"),)
    ),
    "final: the first report": (FINAL, Reported(A, 2), 5, {"reported": frozenset(A)}, ()),
    "final: a report on an earlier model": (FINAL, Reported(A, 1), 5, {}, ()),
    "final: the last report": (
        replace(FINAL, reported=frozenset(A)), Reported(B, 2), 5,
        {"phase": "done", "reported": BOTH}, (Announce(), Finish()),
    ),
    "final: time passes": (FINAL, Tick(), 4.9, {}, ()),
    "final: who is silent is reminded": (
        replace(FINAL, reported=frozenset(A)), Tick(), 5, {"reminded": 1}, (Remind(B),)
    ),
    "final: one is given up": (
        replace(FINAL, evaluators=frozenset(A), away_since={B: 5.0}, reported=frozenset(A)),
        Tick(), 15, {"phase": "done"}, (Announce(), Finish()),
    ),
    "final: one that went away is waited for": (
        replace(FINAL, evaluators=frozenset(A), away_since={B: 5.0}, reported=frozenset(A)),
        Tick(), 14.9, {"reminded": 1}, (),
    ),
    "final: the deadline": (FINAL, Tick(), 100, {"phase": "done"}, (Announce(), Finish())),
    "done: joins": (DONE, Joined(C, True, True), 5, {}, ()),
    "done: leaves": (DONE, Left(A), 5, {}, ()),
    "done: offers": (
        DONE, Offered(A, 2, X), 5, {}, (Drop(A, "no round is open: the run is in phase 'done'"),)
    ),
    "done: arrives": (
        DONE, Arrived(A, 2, X), 5, {}, (Drop(A, "no round is open: the run is in phase 'done'"),)
    ),
    "done: reports": (DONE, Reported(A, 2), 5, {}, ()),
    "done: time passes": (DONE, Tick(), 1e9, {}, ()),
}  # fmt: skip


@pytest.mark.parametrize(("state", "event", "now", "changes", "actions"), ROWS.values(), ids=ROWS)
def test_row(
    state: RoundState,
    event: Event,
    now: float,
    changes: dict[str, Any],
    actions: tuple[Action, ...],
) -> None:
    before = replace(state)
    assert step(state, event, now) == (replace(state, **changes), actions)
    assert state == before


def test_every_pair_of_phase_and_event_has_a_row_or_cannot_happen() -> None:
    pairs = {(phase, event) for phase in get_args(Phase) for event in get_args(Event)}
    assert set(round_machine._TABLE) == pairs - IMPOSSIBLE
    assert {(state.phase, type(event)) for state, event, *_ in ROWS.values()} == pairs - IMPOSSIBLE


@pytest.mark.parametrize("state", [GATHERING, FINAL, DONE])
def test_what_cannot_happen_is_an_error(state: RoundState) -> None:
    with pytest.raises(LookupError, match=rf"Closed\(\) in phase '{state.phase}', round"):
        step(state, Closed(), 5)


def after(state: RoundState, *events: Event, now: float = 0.0) -> RoundState:
    for event in events:
        state, _ = step(state, event, now)
    return state


@pytest.mark.parametrize(
    ("quorum", "cohort", "needed"),
    [(0.75, 4, 3), (0.75, 2, 2), (0.5, 3, 2), (0.01, 9, 1), (1, 5, 5)],
)
def test_a_quorum_is_a_share_rounded_up(quorum: float, cohort: int, needed: int) -> None:
    rules = replace(RULES, quorum=quorum)
    assert RoundState("r", rules, 1, cohort=frozenset(map(str, range(cohort)))).quorum == needed


def test_the_first_round_waits_for_all_invited_later_ones_for_a_quorum_of_them() -> None:
    rules = replace(RULES, devices=4, quorum=0.5)
    first = after(RoundState("r", rules, 2), *(Joined(d, True, True) for d in "abc"))
    assert first.phase == "gathering"
    opened = after(first, Joined(D, True, True), *(Arrived(d, 1, X) for d in "abcd"))
    left = after(opened, Left(A), Left(B), now=1)
    gone, _ = step(left, Closed(), 2)
    assert (gone.phase, gone.round) == ("gathering", 2)
    still, _ = step(gone, Tick(), 0.9 + rules.grace_s)
    assert still.phase == "gathering", "the round must wait for a device that has just left"
    second, _ = step(still, Tick(), 1 + rules.grace_s)
    assert (second.phase, second.round, second.cohort) == ("open", 2, frozenset("cd"))
    back, _ = step(still, Joined(A, True, True), 3)
    assert back.phase == "gathering"
    both, _ = step(back, Joined(B, True, True), 3)
    assert (both.phase, both.cohort) == ("open", frozenset("abcd"))


def test_the_first_round_waits_for_who_is_invited_by_name() -> None:
    state = replace(GATHERING, invited=frozenset(C))
    enough = after(state, Joined(A, True, True), Joined(B, True, True))
    assert enough.phase == "gathering"
    opened = after(enough, Joined(C, False, True))
    assert (opened.phase, opened.cohort) == ("open", BOTH)
    closed = after(opened, Left(C), Arrived(A, 1, X), Arrived(B, 1, X), Closed())
    second, _ = step(closed, Tick(), closed.rules.grace_s)
    assert (second.phase, second.round) == ("open", 2)


def test_an_empty_cohort_draws_nobody_in() -> None:
    """After a restart all updates are kept already, so a new device is not asked to train."""
    rules = replace(RULES, cohort=2)
    kept = replace(GATHERING, rules=rules, kept={A: X, B: Y})
    opened, actions = step(kept, Joined(C, True, True), 0)
    assert (opened.cohort, opened.threshold) == (BOTH, NOBODY)
    assert actions == (Announce(),)
    assert step(opened, Tick(), 0)[1] == (CloseRound(),)


@settings(max_examples=100)
@given(
    st.sets(st.text("abcdef0123", min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(0, 14),
    st.integers(1, 5),
)
def test_a_cohort_has_the_size_asked_for_and_draws_itself(
    devices: set[str], limit: int, number: int
) -> None:
    rules = replace(RULES, devices=len(devices), cohort=limit, quorum=1.0)
    state = RoundState("run-1", rules, 9, round=number)
    for device in sorted(devices):
        state, _ = step(state, Joined(device, True, False), 0)
    assert state.phase == "open"
    assert len(state.cohort) == min(limit or len(devices), len(devices))
    drawn = {d for d in devices if cohort_hash("run-1", number, d) <= state.threshold}
    assert drawn == state.cohort  # each device makes the same draw
    outside = {cohort_hash("run-1", number, d) for d in devices - state.cohort}
    assert all(cohort_hash("run-1", number, d) < h for d in state.cohort for h in outside)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_repeated_round_has_a_cohort_of_the_same_size(limit: int) -> None:
    """Devices whose update was kept in the first attempt count, even if they have left."""
    rules = replace(RULES, devices=1, cohort=limit, quorum=1.0)
    state = replace(GATHERING, rules=rules, trainers=frozenset("abcd"), kept={"gone": X})
    opened, _ = step(state, Joined("e", True, False), 0)
    assert len(opened.cohort) == limit
    assert "gone" in opened.cohort
    drawn = {d for d in "abcde" if cohort_hash("run-1", 1, d) <= opened.threshold}
    assert drawn == opened.cohort - {"gone"}


def test_rounds_draw_different_cohorts() -> None:
    devices = [f"cam-{i}" for i in range(10)]
    first = {
        number: min(devices, key=lambda d: cohort_hash("run-1", number, d))
        for number in range(1, 20)
    }
    assert len(set(first.values())) > 4
    assert cohort_hash("run-1", 1, "cam-1") != cohort_hash("run-2", 1, "cam-1")
    assert cohort_hash("r", 1, "a") == (
        "391a5eb7b01841eb65d908fdc94729c00f35ec6be488f4906d41f1e50cdc0cf6"
    )


DEVICES = st.sampled_from("abcde")


class Federation(RuleBasedStateMachine):
    """Random histories of arrivals, departures, contributions and time."""

    limit = 0

    def __init__(self) -> None:
        super().__init__()
        rules = RunRules(devices=2, quorum=0.6, deadline_s=100.0, grace_s=10.0, cohort=self.limit)
        self.state = RoundState("run-1", rules, rounds=3)
        self.now = 0.0
        self.first: dict[str, str] = {}  # device -> hash of its kept contribution in this round
        self.away: dict[str, float] = {}
        self.online: set[str] = set()
        self.counted: list[tuple[int, str]] = []
        self.finished = 0

    def happens(self, event: Event) -> tuple[Action, ...]:
        before = self.state
        self.state, actions = step(before, event, self.now)
        for action in actions:
            if isinstance(action, Keep):
                assert isinstance(event, Arrived)
                assert event.round == before.round
                assert action.device in before.cohort
                assert action.device not in self.first, "counted twice"
                self.first[action.device] = event.sha256
                self.counted.append((event.round, action.device))
            elif isinstance(action, CloseRound):
                assert self.state.kept == self.first
                assert len(self.first) >= self.state.quorum
                assert action == actions[-1]
            elif isinstance(action, Forget):
                assert self.now >= before.deadline
                self.online.discard(action.device)
            elif isinstance(action, Finish):
                self.finished += 1
        assert self.state.round >= before.round, "a closed round reopened"
        attempt = (before.round, before.attempt)
        if self.state.phase == before.phase == "open" and attempt == (
            self.state.round,
            self.state.attempt,
        ):
            assert self.state.cohort == before.cohort
            assert self.state.deadline == before.deadline
        if CloseRound() in actions:
            closed = self.state
            self.first = {}
            self.happens(Closed())
            assert self.state.round == closed.round + (closed.round < closed.rounds)
            assert self.state.kept == {}
        return actions

    @rule(device=DEVICES, roles=st.sampled_from([(True, True), (True, False), (False, True)]))
    def join(self, device: str, roles: tuple[bool, bool]) -> None:
        before = self.state
        self.happens(Joined(device, *roles))
        self.online.add(device)
        self.away.pop(device, None)
        if before.phase == "open":
            assert self.state.cohort == before.cohort, "a device that joined late is in the cohort"

    @rule(device=DEVICES)
    def leave(self, device: str) -> None:
        self.happens(Left(device))
        if device in self.online:
            self.online.discard(device)
            self.away[device] = self.now

    @rule(device=DEVICES, sha256=st.sampled_from([X, Y]), behind=st.sampled_from([0, 0, 0, 1, -1]))
    def offer(self, device: str, sha256: str, behind: int) -> None:
        before = self.state
        actions = self.happens(Offered(device, self.state.round - behind, sha256))
        assert self.state == replace(before, offered=self.state.offered)
        if behind == 0 and before.phase == "open" and device in before.cohort:
            kept = self.first.get(device)
            if kept is None:
                assert actions == (Upload(device),)
            elif kept == sha256:
                assert actions == (Acknowledge(device),)
            else:
                assert isinstance(actions[0], Drop)

    @rule(device=DEVICES, sha256=st.sampled_from([X, Y]), behind=st.sampled_from([0, 0, 0, 1, -1]))
    def arrive(self, device: str, sha256: str, behind: int) -> None:
        before, kept = self.state, self.first.get(device)
        actions = self.happens(Arrived(device, before.round - behind, sha256))
        welcome = behind == 0 and before.phase == "open" and device in before.cohort
        assert (Keep(device) in actions) == (welcome and kept is None)
        if welcome and kept is not None:
            assert (actions == (Acknowledge(device),)) == (kept == sha256)

    @rule(device=DEVICES, number=st.integers(0, 3))
    def report(self, device: str, number: int) -> None:
        self.happens(Reported(device, number))

    @rule(by=st.sampled_from([0.0, 1.0, 9.0, 10.0, 50.0, 100.0]))
    def wait(self, by: float) -> None:
        self.now += by
        before = self.state
        actions = self.happens(Tick())
        if before.phase != "open":
            return
        waited = before.cohort - before.kept.keys() - self.given_up()
        if self.now >= before.deadline or not waited:
            enough = len(before.kept) >= before.quorum
            assert (CloseRound() in actions) == enough
            if not enough:
                assert self.state.attempt == before.attempt + 1
                assert self.state.kept == before.kept, (
                    "a repeated round must keep its contributions"
                )
        else:
            assert all(isinstance(action, Remind) for action in actions)

    @rule()
    def everybody_left(self) -> None:
        """Once all devices have left for longer than the grace time, no round stays open."""
        for device in sorted(self.online):
            self.leave(device)
        self.wait(10.0)
        assert self.state.phase != "open"

    def given_up(self) -> set[str]:
        grace_s = self.state.rules.grace_s
        return {device for device, since in self.away.items() if self.now - since >= grace_s}

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        assert len(set(self.counted)) == len(self.counted)
        assert self.state.kept == self.first

    @invariant()
    def a_limited_cohort_is_never_larger(self) -> None:
        if self.limit and self.state.phase == "open":
            assert len(self.state.cohort) <= self.limit

    @invariant()
    def it_finishes_once(self) -> None:
        assert self.finished == (self.state.phase == "done")


class LimitedFederation(Federation):
    """The same histories with at most two devices per round."""

    limit = 2


TestFederation = Federation.TestCase
TestLimitedFederation = LimitedFederation.TestCase
TestFederation.settings = settings(max_examples=80, stateful_step_count=30)
TestLimitedFederation.settings = TestFederation.settings


def test_a_run_ends_whoever_is_lost_after_the_quorum() -> None:
    """One of four devices never answers: only the first round waits for its deadline."""
    rules = replace(RULES, devices=4, quorum=0.75)
    state, now = RoundState("run-1", rules, rounds=3), 0.0
    for device in "abcd":
        state, _ = step(state, Joined(device, True, True), now)
    for number in (1, 2, 3):
        assert (state.phase, state.round) == ("open", number)
        for device in "abc":
            state, actions = step(state, Arrived(device, number, X), now)
            assert actions[0] == Keep(device)
        if number == 1:
            now += 100.0
            state, actions = step(state, Tick(), now)
            assert actions == (Forget(D), CloseRound())
        else:
            assert actions == (Keep(device), CloseRound())
        state, _ = step(state, Closed(), now)
    for device in "abc":
        assert state.phase == "final"
        state, actions = step(state, Reported(device, 3), now)
    assert actions == (Announce(), Finish())
