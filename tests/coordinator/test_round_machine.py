"""The round machine: every row of its state table, and its laws under random histories."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator import attendance, phase_open, round_machine
from fedclip_edge.coordinator.round_events import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Arrived,
    Closed,
    CloseEarly,
    CloseRound,
    Drop,
    EndEarly,
    Enrolled,
    Event,
    Extend,
    Finish,
    Forget,
    GiveUp,
    Heard,
    Joined,
    Keep,
    Left,
    Missed,
    Offered,
    Pause,
    Rejected,
    Remind,
    Reported,
    Restored,
    Tick,
    Upload,
    Waiting,
)
from fedclip_edge.coordinator.round_machine import step
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.protocol.cohort import NOBODY, cohort_hash
from fedclip_edge.protocol.messages import Phase

RULES = RunRules(devices=2, quorum=0.75, deadline_s=100.0, grace_s=10.0)
# The commands of an operator are refused before they become an event that cannot happen.
IMPOSSIBLE = {
    *((phase, Closed) for phase in ("final", "done")),
    *((phase, event) for phase in ("final", "done") for event in (Pause, Extend, CloseEarly)),
    *(("done", event) for event in (EndEarly, GiveUp)),
}
A, B, C, D = "abcd"
BOTH = frozenset((A, B))
X, Y = "x" * 64, "y" * 64  # SHA-256 hashes of contributions

GATHERING = RoundState("run-1", RULES, rounds=2)
OPEN = replace(GATHERING, phase="open", trainers=BOTH, evaluators=BOTH, cohort=BOTH, deadline=100.0)
REPEATED = replace(OPEN, phase="gathering", attempt=1, trainers=frozenset(A), deadline=math.inf)
HALF = replace(OPEN, kept={A: X})
SECOND = replace(  # the second round cannot open without B
    GATHERING, round=2, trainers=frozenset(A), absent=frozenset(B), deadline=100.0, told_at=99.0
)
THREE = replace(  # three of four have contributed
    OPEN, trainers=frozenset("abcd"), cohort=frozenset("abcd"), kept={A: X, B: X, C: X}
)
REFUSED = replace(  # all contributions were refused again and again
    GATHERING,
    attempt=4,
    trainers=BOTH,
    evaluators=BOTH,
    deadline=105.0,
    gathering_since=5,
    missed={A: 2, B: 2},
    refused=BOTH,
    rejected=BOTH,
    cohort=BOTH,
    again_at=16.0,
)
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
    "gathering: who only evaluates is not waited for": (
        replace(GATHERING, trainers=frozenset(A), away_since={C: 4.0}), Joined(B, True, False), 5,
        {"phase": "open", "trainers": BOTH, "cohort": BOTH, "heard": frozenset(),
         "deadline": 105.0},
        (Announce(),),
    ),
    "gathering: with enough, who has just left is waited for": (
        replace(SECOND, trainers=BOTH, absent=frozenset(C), away_since={C: 9.0}), Tick(), 9.9,
        {}, (),
    ),
    "gathering: but not for longer than from its start": (
        replace(SECOND, trainers=BOTH, absent=frozenset(C), away_since={C: 9.0}), Tick(), 10,
        {"phase": "open", "cohort": BOTH, "deadline": 110.0, "told_at": None}, (Announce(),),
    ),
    "gathering: and not beyond a deadline": (
        replace(SECOND, rules=replace(RULES, grace_s=300.0), trainers=BOTH, absent=frozenset(C),
                away_since={C: 9.0}),
        Tick(), 100,
        {"phase": "open", "cohort": BOTH, "deadline": 200.0, "told_at": None}, (Announce(),),
    ),
    "gathering: who leaves again and again is not waited for": (
        replace(SECOND, trainers=BOTH, absent=frozenset(C), away_since={C: 9.0},
                departures={C: (-900.0, 9.0)}),
        Tick(), 9.9,
        {"phase": "open", "cohort": BOTH, "deadline": 109.9, "told_at": None}, (Announce(),),
    ),
    "gathering: who left long ago and again is waited for": (
        replace(SECOND, trainers=BOTH, absent=frozenset(C), away_since={C: 9.0},
                departures={C: (-991.0, 9.0)}),
        Tick(), 9.9, {}, (),
    ),
    "gathering: who is left out is not waited for": (
        replace(SECOND, trainers=BOTH, absent=frozenset(C), away_since={C: 9.0}, missed={C: 2}),
        Tick(), 9.9,
        {"phase": "open", "cohort": BOTH, "deadline": 109.9, "told_at": None}, (Announce(),),
    ),
    "gathering: whose contribution is kept is not waited for": (
        replace(SECOND, absent=frozenset(B), away_since={B: 9.0}, kept={B: X}), Tick(), 9.9,
        {"phase": "open", "cohort": BOTH, "deadline": 109.9, "told_at": None}, (Announce(),),
    ),
    "gathering: one leaves": (
        replace(GATHERING, trainers=frozenset(A)),
        Left(A), 5,
        {"trainers": frozenset(), "absent": frozenset(A), "away_since": {A: 5},
         "departures": {A: (5,)}},
        (),
    ),
    "gathering: one that only evaluates leaves": (
        replace(GATHERING, evaluators=frozenset(A)),
        Left(A), 5,
        {"evaluators": frozenset(), "away_since": {A: 5}, "departures": {A: (5,)}}, (),
    ),
    "gathering: one is not seen because the coordinator's link broke": (
        replace(GATHERING, trainers=frozenset(A)),
        Left(A, by_itself=False), 5,
        {"trainers": frozenset(), "absent": frozenset(A), "away_since": {A: 5}}, (),
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
    "gathering: it says at once for what it waits": (
        replace(GATHERING, trainers=frozenset(A), absent=frozenset(B)), Tick(), 0.2,
        {"told_at": 0.2}, (Waiting(2, 1, (B,)),),
    ),
    "gathering: the trainer of the coordinator is named": (
        replace(GATHERING, invited=frozenset(C)), Tick(), 0.2,
        {"told_at": 0.2}, (Waiting(2, 0, (C,)),),
    ),
    "gathering: it is not said again before its time": (
        replace(GATHERING, told_at=0.2), Tick(), 60.1, {}, ()
    ),
    "gathering: it is said again every minute": (
        replace(GATHERING, told_at=0.25), Tick(), 60.25, {"told_at": 60.25}, (Waiting(2, 0, ()),)
    ),
    "gathering: the first round has no deadline": (
        replace(GATHERING, trainers=frozenset(A), absent=frozenset(B), told_at=99.0, deadline=100),
        Tick(), 100, {}, (),
    ),
    "gathering: the first deadline": (
        SECOND, Tick(), 100, {"deadline": 200.0, "missed": {B: 1}}, (Missed(B, "offline", False),)
    ),
    "gathering: the second deadline, and enough are left": (
        replace(SECOND, missed={B: 1}), Tick(), 100,
        {"phase": "open", "cohort": frozenset(A), "deadline": 200.0, "missed": {B: 2},
         "told_at": None},
        (Missed(B, "offline", True), Announce()),
    ),
    "gathering: the second deadline, and another one is away than at the first": (
        replace(SECOND, deadline=200.0, told_at=199.0), Tick(), 200,
        {"phase": "open", "cohort": frozenset(A), "deadline": 300.0, "missed": {B: 2},
         "told_at": None},
        (Missed(B, "offline", True), Announce()),
    ),
    "gathering: at a deadline with nobody, nobody is to blame": (
        replace(SECOND, trainers=frozenset(), absent=BOTH), Tick(), 100,
        {"deadline": 200.0, "gathering_since": 100}, (),
    ),
    "gathering: at a deadline without any that can help, nobody is to blame": (
        replace(SECOND, missed={A: 2}, refused=frozenset(A)), Tick(), 100,
        {"deadline": 200.0, "gathering_since": 100}, (),
    ),
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
        {"trainers": frozenset(A), "evaluators": frozenset(A), "absent": frozenset(B),
         "away_since": {B: 5}, "departures": {B: (5,)}},
        (),
    ),
    "open: one leaves again and again": (
        replace(OPEN, departures={A: (-999.0,), B: (1.0, 2.0), C: (-996.0, -995.0)}), Left(B), 5,
        {"trainers": frozenset(A), "evaluators": frozenset(A), "absent": frozenset(B),
         "away_since": {B: 5}, "departures": {B: (2.0, 5)}},
        (),
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
        {"round": 2, "attempt": 0, "kept": {}, "deadline": 150.0, "gathering_since": 50},
        (Announce(),),
    ),
    "open: closed, and nobody is there": (
        replace(HALF, trainers=frozenset()), Closed(), 50,
        {"phase": "gathering", "round": 2, "kept": {}, "cohort": frozenset(),
         "deadline": 150.0, "gathering_since": 50},
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
    "open: one is rejected": (
        OPEN, Rejected(A, 1), 5, {"rejected": frozenset(A), "refused": frozenset(A)}, ()
    ),
    "open: who is kept cannot be rejected": (HALF, Rejected(A, 1), 5, {}, ()),
    "open: one of another round is rejected": (OPEN, Rejected(A, 2), 5, {}, ()),
    "open: the last one awaited is rejected, and the round repeated after a pause": (
        HALF, Rejected(B, 1), 1,
        {"phase": "gathering", "attempt": 1, "deadline": 101.0, "gathering_since": 1,
         "missed": {B: 1}, "refused": frozenset(B), "rejected": frozenset(B), "again_at": 2.0},
        (Missed(B, "refused", False), Announce()),
    ),
    "open: it is rejected later than the pause lasts, and the round repeated at once": (
        HALF, Rejected(B, 1), 5,
        {"attempt": 1, "deadline": 105.0, "gathering_since": 5, "missed": {B: 1},
         "refused": frozenset(B), "again_at": 2.0},
        (Missed(B, "refused", False), Announce()),
    ),
    "open: a later pause is longer": (
        replace(OPEN, attempt=3, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A)),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 4, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 16.0},
        (Announce(),),
    ),
    "open: no pause is longer than a deadline": (
        replace(OPEN, attempt=2000, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A),
                enrolled=frozenset((A, B, C))),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 2001, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 100.0},
        (Announce(),),
    ),
    "gathering: nobody is there but those that were refused, for now": (
        REFUSED, Tick(), 15, {"told_at": 15}, (Waiting(1, 0, ()),),
    ),
    "gathering: nobody is there but those that were refused, after the pause": (
        REFUSED, Tick(), 16,
        {"phase": "open", "cohort": BOTH, "deadline": 116.0, "rejected": frozenset()},
        (Announce(),),
    ),
    "gathering: one comes whose contributions may be accepted": (
        REFUSED, Joined(C, True, False), 6,
        {"phase": "open", "cohort": frozenset((A, B, C)), "trainers": frozenset((A, B, C)),
         "deadline": 106.0, "rejected": frozenset()},
        (Announce(),),
    ),
    "open: one is rejected twice, and left out": (
        replace(HALF, attempt=1, missed={B: 1}), Rejected(B, 1), 5,
        {"rejected": frozenset(B), "missed": {B: 2}, "refused": frozenset(B)},
        (Missed(B, "refused", True), CloseRound()),
    ),
    "open: one that was left out contributes, and counts again": (
        replace(OPEN, missed={A: 2, B: 1}, refused=BOTH), Arrived(A, 1, X), 5,
        {"kept": {A: X}, "missed": {B: 1}, "refused": frozenset(B)}, (Keep(A), Restored(A)),
    ),
    "open: with a quorum, who is left out is not waited for": (
        replace(OPEN, missed={B: 2}), Arrived(A, 1, X), 5, {"kept": {A: X}},
        (Keep(A), CloseRound()),
    ),
    "open: without a quorum, who is left out is waited for": (
        replace(OPEN, cohort=frozenset("abcd"), missed={B: 2}, kept={A: X}, rejected=frozenset(C),
                away_since={D: -math.inf}),
        Tick(), 1, {"told_at": None}, (),
    ),
    "open: with a quorum, who goes away again and again is not waited for": (
        replace(THREE, away_since={D: 99.0}, departures={D: (98.0, 99.0)}), Tick(), 99,
        {"missed": {D: 1}}, (Missed(D, "offline", False), CloseRound()),
    ),
    "open: without a quorum, it is": (
        replace(HALF, trainers=frozenset(A), absent=frozenset(B), away_since={B: 99.0},
                departures={B: (98.0, 99.0)}, reminded=9, told_at=99.0),
        Tick(), 99, {}, (),
    ),
    "open: without a quorum, the round opens again with others": (
        replace(HALF, trainers=frozenset((A, C)), absent=frozenset(B), away_since={B: 99.0},
                departures={B: (98.0, 99.0)}),
        Tick(), 99,
        {"attempt": 1, "cohort": frozenset((A, C)), "deadline": 199.0, "gathering_since": 99,
         "missed": {B: 1}},
        (Missed(B, "offline", False), Announce()),
    ),
    "open: nobody's contributions can be kept": (
        replace(OPEN, attempt=4, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A)),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 5, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 32.0},
        (Abandon(),),
    ),
    "open: nobody's can, but one of the enrolled devices has not been seen": (
        replace(OPEN, attempt=4, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A),
                enrolled=frozenset((A, B, C))),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 5, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 32.0},
        (Announce(),),
    ),
    "open: nobody's can, and one of the enrolled devices only receives models": (
        replace(OPEN, attempt=4, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A),
                enrolled=frozenset((A, B, C)), receivers=frozenset(C)),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 5, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 32.0},
        (Abandon(),),
    ),
    "open: nobody's can, and all enrolled devices have been seen": (
        replace(OPEN, attempt=4, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A),
                enrolled=frozenset((A, B, C)), away_since={C: -math.inf}),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 5, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 32.0},
        (Abandon(),),
    ),
    **{
        f"{state.phase}: the registry changes": (
            state, Enrolled(BOTH), 5, {"enrolled": BOTH} if state.phase != "done" else {}, ()
        )
        for state in (GATHERING, OPEN, FINAL, DONE)
    },
    "open: nobody's can, but one is away": (
        replace(OPEN, attempt=4, missed={A: 2, B: 2}, refused=BOTH, rejected=frozenset(A),
                absent=frozenset(C)),
        Rejected(B, 1), 5,
        {"phase": "gathering", "attempt": 5, "rejected": BOTH, "deadline": 105.0,
         "gathering_since": 5, "again_at": 32.0},
        (Announce(),),
    ),
    "open: it says at once that one is away": (
        replace(HALF, away_since={B: 4.0}), Tick(), 4.5, {"told_at": 4.5}, (Waiting(2, 1, (B,)),)
    ),
    "open: it says after a minute which are missing": (
        replace(OPEN, reminded=9), Tick(), 60, {"told_at": 60}, (Waiting(2, 0, (A, B)),)
    ),
    "open: and again after another": (
        replace(HALF, reminded=9, told_at=4.5, away_since={B: 60.0}), Tick(), 64.5,
        {"told_at": 64.5}, (Waiting(2, 1, (B,)),),
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
        replace(OPEN, cohort=frozenset("abcd"), kept={A: X, B: X, C: X}), Tick(), 100,
        {"absent": frozenset(D), "missed": {D: 1}},
        (Missed(D, "silent", False), Forget(D), CloseRound()),
    ),
    "open: the deadline, and one still uploads": (
        replace(OPEN, kept={A: X}, offered=frozenset(B)), Tick(), 100,
        {"attempt": 1, "deadline": 200.0, "offered": frozenset(), "gathering_since": 100,
         "missed": {B: 1}},
        (Missed(B, "late", False), Announce()),
    ),
    "open: the deadline, and one was heard of": (
        replace(OPEN, kept={A: X}, heard=frozenset(B)), Tick(), 100,
        {"attempt": 1, "deadline": 200.0, "heard": frozenset(), "gathering_since": 100,
         "missed": {B: 1}},
        (Missed(B, "late", False), Announce()),
    ),
    "open: the second deadline that one misses": (
        replace(OPEN, kept={A: X}, heard=frozenset(B), missed={B: 1}), Tick(), 100,
        {"missed": {B: 2}}, (Missed(B, "late", True), CloseRound()),
    ),
    "open: no deadline is said to be missed after that": (
        replace(OPEN, heard=BOTH, missed={A: 2, B: 2}), Tick(), 100,
        {"attempt": 1, "deadline": 200.0, "heard": frozenset(), "gathering_since": 100},
        (Announce(),),
    ),
    "open: the deadline, without a quorum, and the silent one is forgotten": (
        HALF, Tick(), 100,
        {"phase": "gathering", "attempt": 1, "deadline": 200.0, "gathering_since": 100,
         "trainers": frozenset(A), "evaluators": frozenset(A), "absent": frozenset(B),
         "missed": {B: 1}},
        (Missed(B, "silent", False), Forget(B), Announce()),
    ),
    "open: the deadline, and too few are there": (
        replace(HALF, kept={}, trainers=frozenset(A), evaluators=frozenset(A)), Tick(), 100,
        {"phase": "gathering", "attempt": 1, "deadline": 200.0, "gathering_since": 100,
         "trainers": frozenset(), "evaluators": frozenset(), "absent": BOTH,
         "missed": {A: 1, B: 1}},
        (Missed(A, "silent", False), Missed(B, "silent", False), Forget(A), Forget(B), Announce()),
    ),
    "open: one is away for less than grace_s": (
        replace(HALF, trainers=frozenset(A), away_since={B: 5.0}), Tick(), 14.9,
        {"reminded": 1, "told_at": 14.9}, (Waiting(2, 1, (B,)),),
    ),
    "open: one will not be let in again, and is not waited for": (
        HALF, Left(B, for_good=True), 5,
        {"trainers": frozenset(A), "evaluators": frozenset(A), "away_since": {B: -math.inf},
         "missed": {B: 2}},
        (CloseRound(),),
    ),
    "open: one that is away will not be let in again, the rest is a quorum": (
        replace(OPEN, trainers=frozenset("abc"), cohort=frozenset("abcd"), away_since={D: 5.0},
                kept={A: X, B: X, C: X}),
        Left(D, for_good=True), 6,
        {"away_since": {D: -math.inf}, "evaluators": BOTH, "missed": {D: 2}}, (CloseRound(),),
    ),
    "gathering: who will not be let in again is not waited for": (
        replace(GATHERING, trainers=BOTH, away_since={C: 5.0}), Left(C, for_good=True), 6,
        {"away_since": {C: -math.inf}, "missed": {C: 2}}, (),
    ),
    "gathering: who was forgotten will not be let in again": (
        replace(GATHERING, absent=frozenset(C)), Left(C, for_good=True), 6,
        {"absent": frozenset(), "away_since": {C: -math.inf}, "missed": {C: 2}}, (),
    ),
    "gathering: a stranger will not be let in": (GATHERING, Left(C, for_good=True), 6, {}, ()),
    "open: one is given up, the rest is a quorum": (
        replace(
            OPEN, trainers=frozenset("abc"), cohort=frozenset("abcd"), away_since={D: 5.0},
            kept={A: X, B: X, C: X},
        ),
        Tick(), 15, {"missed": {D: 1}}, (Missed(D, "offline", False), CloseRound()),
    ),
    "open: one is given up, the rest is no quorum": (
        replace(HALF, trainers=frozenset((A, C)), away_since={B: 5.0}), Tick(), 15,
        {"attempt": 1, "cohort": frozenset((A, C)), "deadline": 115.0, "gathering_since": 15,
         "missed": {B: 1}},
        (Missed(B, "offline", False), Announce()),
    ),
    "final: one joins": (
        FINAL, Joined(C, True, True), 5,
        {"trainers": frozenset(C), "evaluators": BOTH | {C}, "heard": frozenset(C)}, (),
    ),
    "final: one leaves": (
        FINAL, Left(B), 5,
        {"evaluators": frozenset(A), "away_since": {B: 5}, "departures": {B: (5,)}}, (),
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
    "gathering: paused": (SECOND, Pause(True), 5, {"paused": True}, ()),
    "gathering: paused, nobody is enough": (
        replace(SECOND, paused=True), Joined(B, True, False), 5,
        {"trainers": BOTH, "absent": frozenset(), "heard": frozenset(B)}, (),
    ),
    "gathering: paused, nobody misses a deadline": (
        replace(SECOND, paused=True), Tick(), 500, {}, ()
    ),
    "gathering: goes on": (
        replace(SECOND, paused=True), Pause(False), 500,
        {"paused": False, "gathering_since": 500, "deadline": 600.0, "told_at": None}, (),
    ),
    "gathering: goes on with enough": (
        replace(SECOND, paused=True, trainers=BOTH, absent=frozenset()), Pause(False), 500,
        {"phase": "open", "paused": False, "gathering_since": 500, "deadline": 600.0,
         "told_at": None, "cohort": BOTH},
        (Announce(),),
    ),
    "gathering: paused again": (replace(SECOND, paused=True), Pause(True), 5, {}, ()),
    "gathering: more rounds": (
        SECOND, Extend(7, frozenset((7,))), 5, {"rounds": 7, "votes": frozenset((7,))}, ()
    ),
    "gathering: closed early with an earlier attempt's contributions": (
        replace(SECOND, kept={B: X}), CloseEarly(), 5, {}, (CloseRound(),)
    ),
    "gathering: closed early with nothing": (SECOND, CloseEarly(), 5, {}, ()),
    "gathering: the round that is closed early is on disk": (
        replace(GATHERING, kept={A: X}, attempt=1), Closed(), 5,
        {"round": 2, "kept": {}, "attempt": 0, "gathering_since": 5, "deadline": 105.0},
        (Announce(),),
    ),
    "gathering: ended early": (
        replace(SECOND, evaluators=frozenset(A)), EndEarly(), 5,
        {"phase": "final", "round": 1, "rounds": 1, "deadline": 105.0}, (Announce(),),
    ),
    "gathering: abandoned": (SECOND, GiveUp(), 5, {"phase": "done"}, (Announce(),)),
    "open: paused": (HALF, Pause(True), 5, {"paused": True}, ()),
    "open: goes on": (replace(HALF, paused=True), Pause(False), 5, {"paused": False}, ()),
    "open: fewer rounds": (OPEN, Extend(1, frozenset()), 5, {"rounds": 1}, ()),
    "open: closed early without a quorum": (
        replace(THREE, kept={A: X}), CloseEarly(), 5, {}, (CloseRound(),)
    ),
    "open: closed early with nothing": (OPEN, CloseEarly(), 5, {}, ()),
    "open: a vote without an answer is closed early": (
        replace(OPEN, votes=frozenset((1,))), CloseEarly(), 5, {}, (CloseRound(has_quorum=False),)
    ),
    "open: ended early": (
        replace(HALF, round=2, evaluators=frozenset()), EndEarly(), 5,
        {"phase": "done", "round": 1, "rounds": 1, "kept": {}, "cohort": frozenset(),
         "deadline": 105.0},
        (Announce(), Announce(), Finish()),
    ),
    "open: abandoned": (
        HALF, GiveUp(), 5, {"phase": "done", "kept": {}, "cohort": frozenset()}, (Announce(),)
    ),
    "final: ended early": (FINAL, EndEarly(), 5, {"phase": "done"}, (Announce(), Finish())),
    "final: abandoned": (FINAL, GiveUp(), 5, {"phase": "done"}, (Announce(),)),
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


@pytest.mark.parametrize("state", [FINAL, DONE])
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


def test_nothing_waits_for_who_only_receives_models() -> None:
    state = replace(GATHERING, invited=frozenset(C))
    received = after(state, Joined(C, False, False), Joined(A, True, True))
    assert received.receivers == {C}
    opened = after(received, Joined(B, True, True))
    assert (opened.phase, opened.cohort) == ("open", BOTH)
    second = after(opened, Arrived(A, 1, X), Arrived(B, 1, X), Closed())
    assert (second.phase, second.round, second.cohort) == ("open", 2, BOTH)
    gone, actions = step(second, Left(C, by_itself=True), 5)
    assert (actions, gone.receivers, gone.away_since) == ((), frozenset(), {})
    last, _ = step(after(gone, Arrived(A, 2, X), Arrived(B, 2, X)), Closed(), 5)
    assert (last.phase, attendance.evaluating(last, 5)) == ("final", BOTH)


def test_a_device_that_gets_its_first_label_trains_from_the_next_round_on() -> None:
    opened = after(GATHERING, Joined(C, False, False), Joined(A, True, True), Joined(B, True, True))
    labelled = after(opened, Joined(C, True, True))
    assert (labelled.receivers, labelled.cohort) == (frozenset(), BOTH)
    second = after(labelled, Arrived(A, 1, X), Arrived(B, 1, X), Closed())
    assert second.cohort == frozenset("abc")


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_round_does_not_wait_for_who_has_lost_its_training_pictures(evaluates: bool) -> None:
    half = after(GATHERING, Joined(A, True, True), Joined(B, True, True), Arrived(A, 1, X))
    lost, actions = step(half, Joined(B, False, evaluates), 5)
    repeated, more = step(lost, Tick(), 6)  # without B there was no quorum
    assert (*actions, *more)[-1] == Announce()
    assert (repeated.attempt, repeated.cohort) == (1, frozenset(A))
    _, actions = step(repeated, Tick(), 7)
    assert actions == (CloseRound(),)


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
    state = RoundState("run-1", rules, 9, round=number, absent=frozenset(devices))
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
        self.missed: Counter[str] = Counter()  # deadlines in a row, by device
        self.left_at: dict[str, list[float]] = {}  # all departures, by device
        self.trains: set[str] = set()  # devices with the role "train"
        self.rejected: set[str] = set()  # devices whose last contribution was rejected

    def happens(self, event: Event) -> tuple[Action, ...]:
        before = self.state
        self.state, actions = step(before, event, self.now)
        if isinstance(event, Rejected) and before.phase == "open":
            self.rejected.add(event.device)
        for action in actions:
            if isinstance(action, Keep):
                assert (Restored(action.device) in actions) == (self.missed[action.device] >= 2)
                del self.missed[action.device]
                self.rejected.discard(action.device)
        self.check_missed(before, actions)
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
            elif isinstance(action, Abandon):
                assert self.state.attempt >= phase_open.ATTEMPTS
                assert self.trains <= {d for d in self.rejected if self.missed[d] >= 2}
        assert self.state.round >= before.round, "a closed round reopened"
        attempt = (before.round, before.attempt)
        if self.state.phase == before.phase == "open" and attempt == (
            self.state.round,
            self.state.attempt,
        ):
            assert self.state.cohort == before.cohort
            assert self.state.deadline == before.deadline
        was_open = before.phase == "open" and attempt == (self.state.round, self.state.attempt)
        if self.limit and self.state.phase == "open" and not was_open:
            counting = self.state.cohort - self.left_out()
            assert len(counting) <= self.limit, "a limited cohort is larger"
            assert len(self.state.cohort) <= self.limit or len(counting) == self.limit
        if CloseRound() in actions:
            closed = self.state
            self.first = {}
            self.happens(Closed())
            assert self.state.round == closed.round + (closed.round < closed.rounds)
            assert self.state.kept == {}
        return actions

    def check_missed(self, before: RoundState, actions: tuple[Action, ...]) -> None:
        """Each device misses a deadline when an attempt ends without it, or `gathering` does."""
        said = {action.device: action for action in actions if isinstance(action, Missed)}
        ended = before.phase == "open" and (
            CloseRound() in actions or self.state.attempt > before.attempt
        )
        if ended:
            without = before.cohort - self.state.kept.keys()
            assert said.keys() == {device for device in without if self.missed[device] < 2}
        elif said:
            assert before.phase == "gathering"
            assert self.now >= before.deadline
            assert said.keys() <= self.trains - self.online
        late = self.now - before.gathering_since >= 2 * before.rules.deadline_s
        for device in said:
            is_second = late and before.phase == "gathering"
            self.missed[device] = 2 if is_second else self.missed[device] + 1
        for device, action in said.items():
            assert action.left_out == (self.missed[device] == 2)
        assert self.state.left_out == {device for device, n in self.missed.items() if n >= 2}

    @rule(device=DEVICES, roles=st.tuples(st.booleans(), st.booleans()))
    def join(self, device: str, roles: tuple[bool, bool]) -> None:
        before = self.state
        (self.trains.add if roles[0] else self.trains.discard)(device)
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
            self.left_at.setdefault(device, []).append(self.now)

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

    @rule(device=DEVICES)
    def reject(self, device: str) -> None:
        self.happens(Rejected(device, self.state.round))

    @rule(device=DEVICES)
    def hear(self, device: str) -> None:
        self.happens(Heard(device))

    @rule(device=DEVICES, number=st.integers(0, 3))
    def report(self, device: str, number: int) -> None:
        self.happens(Reported(device, number))

    @rule(by=st.sampled_from([0.0, 1.0, 9.0, 10.0, 50.0, 100.0]))
    def wait(self, by: float) -> None:
        self.now += by
        before, is_enough = self.state, self.is_enough()
        actions = self.happens(Tick())
        if before.phase != "open":
            return
        waited = before.cohort - before.kept.keys() - before.rejected - self.given_up()
        if len(before.kept) >= before.quorum:
            waited -= before.left_out | self.unsteady()
        elif is_enough:
            waited -= self.unsteady()
        if self.now >= before.deadline or not waited:
            enough = len(before.kept) >= math.ceil(0.6 * len(before.cohort - self.left_out()))
            assert (CloseRound() in actions) == (enough and len(before.kept) > 0)
            if CloseRound() not in actions:
                assert self.state.attempt == before.attempt + 1
                assert self.state.kept == before.kept, (
                    "a repeated round must keep its contributions"
                )
        else:
            assert all(isinstance(action, Remind | Waiting) for action in actions)

    @rule()
    def it_waits_no_longer_than_it_says(self) -> None:
        """With enough devices online, gathering lasts `grace_s` at most, whoever has just left."""
        if self.state.phase != "gathering":
            return
        self.now = max(self.now, self.state.gathering_since + self.state.rules.grace_s)
        self.happens(Tick())
        assert (self.state.phase == "gathering") == (not self.is_enough())

    @rule()
    def everybody_left(self) -> None:
        """Once all devices have left for longer than the grace time, no round stays open."""
        for device in sorted(self.online):
            self.leave(device)
        self.wait(10.0)
        assert self.state.phase != "open"

    def is_enough(self) -> bool:
        """True if enough training devices are online to open a round."""
        counting = self.trains | self.first.keys()
        here = (self.trains & self.online) | self.first.keys()
        useless = {device for device in self.rejected if self.missed[device] >= 2}
        here -= useless if counting - useless else set()
        needed = 2
        if (self.state.round, self.state.attempt) != (1, 0) or self.first:
            needed = max(1, math.ceil(0.6 * min(2, len(counting - self.left_out()))))
        return len(here) >= needed

    def left_out(self) -> set[str]:
        return {device for device, n in self.missed.items() if n >= 2}

    def unsteady(self) -> set[str]:
        window_s = attendance.STEADY_DEADLINES * self.state.rules.deadline_s
        return {
            device
            for device in self.away
            if len(times := self.left_at[device]) > 1 and self.now - times[-2] < window_s
        }

    def given_up(self) -> set[str]:
        grace_s = self.state.rules.grace_s
        return {device for device, since in self.away.items() if self.now - since >= grace_s}

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        assert len(set(self.counted)) == len(self.counted)
        assert self.state.kept == self.first

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        remembered = self.state.missed.keys() | self.state.departures.keys()
        assert remembered <= set("abcde")
        assert all(n <= 2 for n in self.state.missed.values())
        assert all(len(times) <= 2 for times in self.state.departures.values())

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


class Story:
    """A run with devices of given behaviour and one that is honest, second by second."""

    def __init__(self, rules: RunRules, others: dict[str, str]) -> None:
        self.state = RoundState("run-1", rules, rounds=6, deadline=rules.deadline_s)
        self.now = 0.0
        self.others = others
        self.actions: list[tuple[float, Action]] = []
        self.attempts_s: list[float] = []
        self.gathered_s: list[float] = []
        self.rounds_s: list[float] = []
        self._since = self._closed_at = 0.0
        for device in ("honest", *others):
            self.happens(Joined(device, True, True))

    def happens(self, event: Event) -> None:
        before = self.state
        self.state, actions = step(before, event, self.now)
        self.actions += [(self.now, action) for action in actions]
        where = [(state.phase, state.round, state.attempt) for state in (before, self.state)]
        if where[0] != where[1]:
            took = self.attempts_s if before.phase == "open" else self.gathered_s
            took.append(self.now - self._since)
            self._since = self.now
        if CloseRound() in actions:
            self.rounds_s.append(self.now - self._closed_at)
            self._closed_at = self.now
            self.happens(Closed())

    def second(self) -> None:
        """Let each device act as it does, then let a second pass."""
        self.act("honest", "honest")
        for device, how in self.others.items():
            self.act(device, how)
        self.now += 1
        self.happens(Tick())

    def act(self, device: str, how: str) -> None:
        is_here = device in self.state.trainers
        phase = int(self.now) % 12
        if how == "flaps" and phase == 3:
            self.happens(Left(device))
        elif how == "flaps" and phase == 9:
            self.happens(Joined(device, True, True))
        elif how == "takes turns" and phase == 9:
            self.happens(Left(device))
        elif how == "takes turns" and phase == 3:
            self.happens(Joined(device, True, True))
        elif how == "leaves" and self.now == 4:
            self.happens(Left(device))
        elif how == "is revoked" and self.now == 4:
            self.happens(Left(device, for_good=True))
        elif how == "is silent" and not is_here:
            self.happens(Joined(device, True, True))
        elif how == "is silent":
            self.happens(Heard(device))
        state = self.state
        asked = state.phase == "open" and device in state.trainers & state.cohort
        if not asked or device in state.kept.keys() | state.rejected:
            return
        if how in ("honest", "flaps", "takes turns"):
            self.happens(Arrived(device, state.round, X))
        elif how == "is refused":
            self.happens(Rejected(device, state.round))


HOW = ("is silent", "stops", "leaves", "is revoked", "is refused", "flaps", "takes turns")


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(HOW), max_size=4),
    st.integers(1, 5),
    st.sampled_from([0.3, 0.5, 0.75, 1.0]),
)
def test_one_honest_device_is_enough_for_progress(
    others: list[str], devices: int, quorum: float
) -> None:
    """Every attempt ends at its deadline, every round opens after two, and the run goes on."""
    rules = RunRules(min(devices, len(others) + 1), quorum, deadline_s=20.0, grace_s=5.0)
    story = Story(rules, {f"cam-{i}": how for i, how in enumerate(others)})
    while story.state.phase != "done":
        story.second()
        assert story.now < 1000
    assert max(story.attempts_s) <= 20
    assert max(story.gathered_s) <= 2 * 20
    # The worst of all 6,600 cases takes 101 s: the devices go one after the other, and each wait
    # may end a tick late.
    assert max(story.rounds_s) <= 5 * (20 + 1)
    steady = all(how not in ("flaps", "takes turns") for how in others)
    if steady:  # those that missed two deadlines cost the others nothing in the last rounds
        assert max(story.rounds_s[3:]) <= 5 + 1
    assert not any(isinstance(action, Abandon) for _, action in story.actions)
    named = {action.device for _, action in story.actions if isinstance(action, Missed)}
    bad = {d for d, how in story.others.items() if how in ("is silent", "stops", "is refused")}
    assert bad <= named


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["flaps", "takes turns"]), min_size=1, max_size=3))
def test_devices_that_come_and_go_cost_the_others_one_grace_time(others: list[str]) -> None:
    """Three stay, and are a quorum: each of the others is waited for the first time it leaves."""
    rules = RunRules(devices=4, quorum=0.5, deadline_s=20.0, grace_s=5.0)
    story = Story(rules, {f"cam-{i}": how for i, how in enumerate(others)})
    for device in ("stays-1", "stays-2"):
        story.others[device] = "honest"
        story.happens(Joined(device, True, True))
    story.state = replace(story.state, rounds=1000)
    while story.state.round < 100:
        story.second()
    assert story.now <= 100 + 2 * 5


@pytest.mark.parametrize("phase", ["gathering", "open"])
def test_a_run_that_waits_says_so_every_minute(phase: Phase) -> None:
    state = replace(SECOND if phase == "gathering" else HALF, told_at=None, deadline=1000.0)
    state = replace(state, rules=replace(RULES, deadline_s=1000.0))
    said = []
    for now in range(0, 300, 2):
        state, actions = step(state, Tick(), now)
        said += [now for action in actions if isinstance(action, Waiting)]
    assert said == ([0, 60, 120, 180, 240] if phase == "gathering" else [60, 120, 180, 240])


def test_a_drawn_cohort_goes_on_without_those_that_are_left_out() -> None:
    """The draw of a round is always the same, so a bad device could hold a seat for ever."""
    rules = replace(RULES, devices=4, cohort=1, quorum=1.0)
    state = replace(GATHERING, rules=rules, missed=dict.fromkeys("abc", 2))
    opened = after(state, *(Joined(device, True, True) for device in "abcd"))
    assert D in opened.cohort
    drawn = {d for d in "abcd" if cohort_hash("run-1", 1, d) <= opened.threshold}
    assert drawn == opened.cohort
    assert max(drawn, key=lambda d: cohort_hash("run-1", 1, d)) == D


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
            assert actions == (Missed(D, "silent", False), Forget(D), CloseRound())
        else:
            assert actions == (Keep(device), CloseRound())
        state, _ = step(state, Closed(), now)
    for device in "abc":
        assert state.phase == "final"
        state, actions = step(state, Reported(device, 3), now)
    assert actions == (Announce(), Finish())


def test_a_vote_without_a_quorum_waits_for_devices_that_are_away_until_its_deadline() -> None:
    vote = replace(OPEN, round=2, votes=frozenset({2}))
    away = after(vote, Left(A, by_itself=True), Left(B, by_itself=True), now=5)
    for now in (6.0, 16.0, 99.0):  # grace_s is over at 15
        away, actions = step(away, Tick(), now)
        assert away.phase == "open"
        assert not any(isinstance(action, CloseRound) for action in actions)
    back = after(away, Joined(A, True, True), now=99)
    assert step(back, Arrived(A, 2, X), 99.5)[0].kept == {A: X}
    _, actions = step(away, Tick(), 100)
    assert CloseRound(False) in actions


def test_a_vote_with_a_quorum_waits_for_an_absent_device_no_longer_than_a_round() -> None:
    rules = replace(RULES, quorum=0.5)
    vote = replace(OPEN, rules=rules, round=2, votes=frozenset({2}), kept={A: X})
    away = after(vote, Left(B, by_itself=True), now=5)
    assert CloseRound(True) in step(away, Tick(), 16)[1]


def test_a_vote_whose_answers_are_all_refused_closes_at_once_with_the_default() -> None:
    vote = replace(OPEN, round=2, votes=frozenset({2}))
    one, actions = step(vote, Rejected(A, 2), 5)
    assert not actions
    _, actions = step(one, Rejected(B, 2), 6)
    assert CloseRound(False) in actions


def test_every_training_device_is_invited_to_a_vote_also_with_drawn_cohorts() -> None:
    rules = replace(RULES, cohort=1, quorum=1.0)
    for votes, size in ((frozenset[int](), 1), (frozenset({1}), 2)):
        state = replace(GATHERING, rules=rules, votes=votes)
        state = after(state, Joined(A, True, True), Joined(B, True, True))
        assert (state.phase, len(state.cohort)) == ("open", size)
