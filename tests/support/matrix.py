"""One cell of the fault matrix: a run with a fault injected in one phase, and its result.

The content of a model is determined without the product's records. Every update is a function of
the model and the device (device_laws.py), so each round's model shows how often each device counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from device_laws import update_of
from faulty_fleet import (
    AGENTS,
    COORDINATOR,
    DIM,
    OTHERS,
    VARIANT,
    VICTIM,
    VOTES,
    Fleet,
    validation_of,
)
from fleet_faults import LOGGED, PHASES, ROUNDS, Aftermath, Fault, Injection, Phase, Trigger
from link import Seen

from fedclip_edge import model_file
from fedclip_edge.learning import ballot
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.local import MIN_VOTES
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State
from fedclip_edge.protocol import wire
from fedclip_edge.records import Features, Model, Plan, Update
from fedclip_edge.vision.bundle import Bundle

TRAIN_S = 0.5
FAULT_ROUND = 2  # the first round waits for all agents; an idle fleet has its fault before it
_AT_MOST = 2  # largest count per device in the search for the content of a model
_ENDS_S = 20.0

Counts = dict[str, int]  # by device


@dataclass(frozen=True)
class Verdict:
    """The contents of the models of a finished run."""

    contributions: int  # in closed rounds, each counted once
    lost: tuple[str, ...]  # acknowledged but in no model, as "device/round"
    twice: tuple[str, ...]
    equal: bool  # every model equals that of its contributions, byte for byte
    digest: str  # of the last model


@dataclass(frozen=True)
class Decided:
    """The result of a vote as the coordinator logged it."""

    pictures: int  # in all answers
    has_quorum: bool


@dataclass(frozen=True)
class Outcome:
    """The cost of one fault."""

    fault: str
    phase: Phase
    run_s: float  # from the fault (idle: from the start of the last agent) to the end of the run
    round_s: float  # from the same moment to the end of the round
    recovered_s: float | None
    note: str
    verdict: Verdict


@dataclass(frozen=True)
class Undisturbed:
    """Durations without a fault, from each phase to the end of the run and of the round."""

    run_s: dict[Phase, float]
    round_s: dict[Phase, float]
    verdict: Verdict


def run_with_fault(
    fault: Fault, phases: Sequence[Phase], folder: Path, bundle: Bundle
) -> list[Outcome]:
    """Run with the fault injected in each of these phases in turn; a cell has one phase."""
    rounds = fault.rounds if len(phases) == 1 else ROUNDS * len(phases)
    with _fleet(fault, folder, bundle, rounds, votes="vote" in phases) as fleet:
        moments: list[tuple[Phase, Injection, Aftermath]] = []
        for phase in phases:
            if phase == "idle":
                injection = Injection(time.monotonic(), 1)
                fault.inject(fleet)
                aftermath = Aftermath() if fault.lasts else fault.over(fleet, injection)
                injection = replace(injection, at=time.monotonic())
                fleet.start(OTHERS[-1])
                if fault.lasts:
                    aftermath = fault.over(fleet, injection)
            else:
                if OTHERS[-1] not in fleet.processes:
                    fleet.start(OTHERS[-1])
                injection = _inject_in(fleet, fault, phase)
                aftermath = fault.over(fleet, injection)
            moments.append((phase, injection, aftermath))
        done_at = _done(fleet)
        verdict = judge(fleet.journal, bundle, _acknowledged(fleet), _decided(fleet))
        return [
            Outcome(
                fault=fault.name,
                phase=phase,
                run_s=done_at - injection.at,
                round_s=(fleet.closed_at(injection.round) or done_at) - injection.at,
                recovered_s=aftermath.recovered_s,
                note=aftermath.note,
                verdict=verdict,
            )
            for phase, injection, aftermath in moments
        ]


def undisturbed(folder: Path, bundle: Bundle, rounds: int, *, votes: bool = False) -> Undisturbed:
    """Run without a fault, and note the moments at which one could be injected.

    With `votes` the run ends with a vote, and the vote is the only phase of the result.
    """
    began: dict[Phase, float] = {}
    phases: Sequence[Phase] = ("vote",) if votes else [p for p in PHASES if p != "vote"]
    with _fleet(Fault("none", "nothing"), folder, bundle, rounds, votes=votes) as fleet:
        fleet.start(OTHERS[-1])
        if not votes:
            began["idle"] = time.monotonic()
        triggers: dict[Phase, Trigger] = {
            p: Trigger(fleet, p, FAULT_ROUND) for p in phases if p != "idle"
        }

        def watch(seen: Seen) -> bool:
            for phase, trigger in triggers.items():
                if phase not in began and trigger.seen(seen):
                    began[phase] = time.monotonic()
            return False

        fleet.armed = watch
        logged = next(phase for phase in phases if phase in LOGGED)
        fleet.wait(triggers[logged].logged, logged)
        began[logged] = time.monotonic()
        done_at = _done(fleet)
        numbers = {"idle": 1, "vote": rounds + 1}
        ends = {phase: fleet.closed_at(numbers.get(phase, FAULT_ROUND)) for phase in began}
        verdict = judge(fleet.journal, bundle, _acknowledged(fleet), _decided(fleet))
    return Undisturbed(
        {phase: done_at - at for phase, at in began.items()},
        {phase: (ends[phase] or 0.0) - at for phase, at in began.items()},
        verdict,
    )


@contextlib.contextmanager
def _fleet(
    fault: Fault, folder: Path, bundle: Bundle, rounds: int, *, votes: bool
) -> Iterator[Fleet]:
    """A fleet before its first round: all agents except the last one are connected."""
    with contextlib.ExitStack() as ends:
        made = Fleet(folder, bundle, rounds, fault.rules, TRAIN_S, fault.guests, votes)
        made.make_homes()
        fault.prepare(made)
        ends.callback(fault.clear, made)
        fleet = ends.enter_context(made)
        fleet.start(COORDINATOR)
        here = [VICTIM, *OTHERS[:-1]]
        for name in here:
            fleet.start(name)
        fleet.wait(lambda: all(fleet.answered_at(name, 0.0) for name in here), "all to be there")
        keep_every_model(fleet.journal)
        fault.begin(fleet)
        yield fleet


def keep_every_model(journal: Path) -> None:
    """Let SQLite copy each model to a table of its own: a run that is over keeps only the last."""
    with contextlib.closing(sqlite3.connect(journal, timeout=_ENDS_S)) as database:
        database.executescript("""
            BEGIN;
            CREATE TABLE every_model AS SELECT run, round, body FROM model;
            CREATE TRIGGER copy_model AFTER INSERT ON model
                BEGIN INSERT INTO every_model VALUES (new.run, new.round, new.body); END;
            COMMIT;
        """)


def _inject_in(fleet: Fleet, fault: Fault, phase: Phase) -> Injection:
    """Inject the fault as soon as the phase is there."""
    trigger = Trigger(fleet, phase, FAULT_ROUND)
    injections: list[Injection] = []

    def inject() -> None:
        injections.append(Injection(time.monotonic(), fleet.round))
        fault.inject(fleet)

    if phase in LOGGED:
        fleet.wait(trigger.logged, phase)
        inject()
    else:

        def watch(seen: Seen) -> bool:
            if trigger.seen(seen):
                inject()
            return bool(injections)

        fleet.armed = watch
        fleet.wait(lambda: bool(injections), phase)
    return injections[0]


def _done(fleet: Fleet) -> float:
    fleet.wait(lambda: fleet.done_at() is not None, "the end of the run")
    code = fleet.processes[COORDINATOR].wait(_ENDS_S)
    assert code == 0, f"serve exited with code {code}: {fleet.last_words(COORDINATOR)}"
    done_at = fleet.done_at()
    assert done_at is not None
    return done_at


def _acknowledged(fleet: Fleet) -> set[tuple[str, int]]:
    kept = [said for said in fleet.said if said.kind == "kept"]
    return {(said.topic.split("/")[-2], said.body["number"]) for said in kept}


def _decided(fleet: Fleet) -> Decided | None:
    """The last decision that the coordinator logged; None without a vote."""
    if not fleet.votes:
        return None
    event = fleet.events(COORDINATOR, "vote_decided")[-1]
    return Decided(event["pictures"], "too few devices answered" not in event.get("hint", ""))


def judge(
    journal: Path,
    bundle: Bundle,
    acknowledged: set[tuple[str, int]],
    decided: Decided | None = None,
) -> Verdict:
    """Determine the contents of the models in the journal, and check the model file.

    `decided` is the result of the vote, if there is one. Without a quorum it counts no answer.
    """
    with contextlib.closing(sqlite3.connect(journal)) as database:
        ((run,),) = database.execute("SELECT id FROM run").fetchall()
        query = "SELECT body FROM every_model WHERE run = ? ORDER BY round"
        bodies = [body for (body,) in database.execute(query, (run,))]
    plan = model_file.read(model_file.path_of(journal, run)).plan
    schedule = Schedule(plan, bundle.classes, DIM)
    models = [
        replace(wire.unpack_model(body, "fp32", schedule.layout(closed).parameters), round=closed)
        for closed, body in enumerate(bodies)
    ]
    equal = _digest(models[0]) == _digest(schedule.initial())
    lost: list[str] = []
    twice: list[str] = []
    number = 0
    state: State = {}
    for closed, (before, after) in enumerate(itertools.pairwise(models), start=1):
        known = {device for device, when in acknowledged if when == closed}
        if closed > plan.rounds:
            assert decided is not None
            counts, made = voted(schedule, before, state, decided)
            known = known if decided.has_quorum else set()
            equal = equal and _digest(made) == _digest(after)
        else:
            found = counted(schedule, before, after, known)
            equal = equal and found is not None
            counts, state = found or ({}, state)
        number += sum(map(bool, counts.values()))
        lost += [f"{device}/{closed}" for device in sorted(known) if not counts.get(device)]
        twice += [f"{device}/{closed}" for device, times in counts.items() if times > 1]
    last = model_file.read(model_file.path_of(journal, run)).model
    equal = equal and _digest(last) == _digest(models[-1]) and last.round == len(schedule.steps)
    return Verdict(number, tuple(lost), tuple(twice), equal and not twice, _digest(last))


def counted(
    schedule: Schedule, before: Model, after: Model, known: set[str]
) -> tuple[Counts, State] | None:
    """The number of times that each device's update is in `after`, and the state that follows.

    The combination with each device of `known` once is tried first. None if no combination fits.
    """
    updates = {device: update_of(before, device, VARIANT) for device in AGENTS}
    likely = tuple(int(device in known) for device in AGENTS)
    rest = itertools.product(range(_AT_MOST + 1), repeat=len(AGENTS))
    for times in (likely, *rest):
        if not any(times):
            continue
        counts = dict(zip(AGENTS, times, strict=True))
        model, state = schedule.close(before, _total(schedule.plan, updates, counts), {})
        if _digest(model) == _digest(after):
            return counts, state
    return None


def voted(
    schedule: Schedule, before: Model, state: State, decided: Decided
) -> tuple[Counts, Model]:
    """The number of times that each device's answer counts, and the model of these answers."""
    rest, counts = decided.pictures, dict[str, int]()
    for device in sorted(VOTES, key=lambda name: -VOTES[name]):
        counts[device], rest = divmod(rest, VOTES[device])
    nothing = Features(np.zeros((0, DIM), np.float32), np.zeros(0, np.int64), "")
    answers = {
        device: schedule.answer(
            LocalTask(
                schedule.plan, before, nothing, validation_of(device, ""), schedule.classes, 0
            ),
            MIN_VOTES,
        )
        for device in AGENTS
    }
    total = _total(replace(schedule.plan, max_weight=ballot.MOST), answers, counts)
    model, _ = schedule.close(before, total, state, decided=decided.has_quorum)
    return counts, model


def _total(plan: Plan, updates: Mapping[str, Update], counts: Counts) -> ExactSum:
    total = ExactSum(plan)
    for device, times in counts.items():
        for _ in range(times):
            total.add(updates[device])
    return total


def _digest(model: Model) -> str:
    content = b"".join(model.parameters[name].tobytes() for name in sorted(model.parameters))
    return hashlib.sha256(content).hexdigest()
