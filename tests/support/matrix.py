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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device_laws import update_of
from faulty_fleet import AGENTS, COORDINATOR, DIM, OTHERS, VARIANT, VICTIM, Fleet
from fleet_faults import PHASES, ROUNDS, Aftermath, Fault, Injection, Phase, Trigger
from link import Seen

from fedclip_edge import model_file
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.protocol import wire
from fedclip_edge.records import Model, Plan
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
    with _fleet(fault, folder, bundle, rounds) as fleet:
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
        verdict = judge(fleet.journal, bundle, _acknowledged(fleet))
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


def undisturbed(folder: Path, bundle: Bundle, rounds: int) -> Undisturbed:
    """Run without a fault, and note the moments at which one could be injected."""
    began: dict[Phase, float] = {}
    with _fleet(Fault("none", "nothing"), folder, bundle, rounds) as fleet:
        fleet.start(OTHERS[-1])
        began["idle"] = time.monotonic()
        triggers = {p: Trigger(fleet, p, FAULT_ROUND) for p in PHASES if p != "idle"}

        def watch(seen: Seen) -> bool:
            for phase, trigger in triggers.items():
                if phase not in began and trigger.seen(seen):
                    began[phase] = time.monotonic()
            return False

        fleet.armed = watch
        fleet.wait(triggers["training"].logged, "training")
        began["training"] = time.monotonic()
        done_at = _done(fleet)
        ends = {phase: fleet.closed_at(1 if phase == "idle" else FAULT_ROUND) for phase in began}
        verdict = judge(fleet.journal, bundle, _acknowledged(fleet))
    return Undisturbed(
        {phase: done_at - at for phase, at in began.items()},
        {phase: (ends[phase] or 0.0) - at for phase, at in began.items()},
        verdict,
    )


@contextlib.contextmanager
def _fleet(fault: Fault, folder: Path, bundle: Bundle, rounds: int) -> Iterator[Fleet]:
    """A fleet before its first round: all agents except the last one are connected."""
    with contextlib.ExitStack() as ends:
        made = Fleet(folder, bundle, rounds, fault.rules, TRAIN_S, fault.guests)
        made.make_homes()
        fault.prepare(made)
        ends.callback(fault.clear, made)
        fleet = ends.enter_context(made)
        fleet.start(COORDINATOR)
        here = [VICTIM, *OTHERS[:-1]]
        for name in here:
            fleet.start(name)
        fleet.wait(lambda: all(fleet.answered_at(name, 0.0) for name in here), "all to be there")
        fault.begin(fleet)
        yield fleet


def _inject_in(fleet: Fleet, fault: Fault, phase: Phase) -> Injection:
    """Inject the fault as soon as the phase is there."""
    trigger = Trigger(fleet, phase, FAULT_ROUND)
    injections: list[Injection] = []

    def inject() -> None:
        injections.append(Injection(time.monotonic(), fleet.round))
        fault.inject(fleet)

    if phase == "training":
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


def judge(journal: Path, bundle: Bundle, acknowledged: set[tuple[str, int]]) -> Verdict:
    """Determine the contents of the models in the journal, and check the model file."""
    with contextlib.closing(sqlite3.connect(journal)) as database:
        ((run,),) = database.execute("SELECT id FROM run").fetchall()
        query = "SELECT body FROM model WHERE run = ? ORDER BY round"
        bodies = [body for (body,) in database.execute(query, (run,))]
    plan = model_file.read(model_file.path_of(journal, run)).plan
    shapes = methods.shapes(plan, bundle.classes, DIM)
    models = [wire.unpack_model(body, "fp32", shapes) for body in bodies]
    initial = methods.get(plan.method).initial(bundle.classes, DIM, plan.seed)
    equal = _digest(models[0]) == _digest(initial)
    lost: list[str] = []
    twice: list[str] = []
    number = 0
    for closed, (before, after) in enumerate(itertools.pairwise(models), start=1):
        known = {device for device, when in acknowledged if when == closed}
        counts = counted(before, after, known, plan)
        equal = equal and counts is not None
        counts = counts or {}
        number += sum(map(bool, counts.values()))
        lost += [f"{device}/{closed}" for device in sorted(known) if not counts.get(device)]
        twice += [f"{device}/{closed}" for device, times in counts.items() if times > 1]
    last = model_file.read(model_file.path_of(journal, run)).model
    equal = equal and _digest(last) == _digest(models[-1]) and last.round == plan.rounds
    return Verdict(number, tuple(lost), tuple(twice), equal and not twice, _digest(last))


def counted(before: Model, after: Model, known: set[str], plan: Plan) -> Counts | None:
    """The number of times that each device's update is in `after`; None if no combination fits.

    The combination with each device of `known` once is tried first.
    """
    updates = {device: update_of(before, device, VARIANT) for device in AGENTS}
    likely = tuple(int(device in known) for device in AGENTS)
    rest = itertools.product(range(_AT_MOST + 1), repeat=len(AGENTS))
    for times in (likely, *rest):
        total = ExactSum(plan)
        for device, often in zip(AGENTS, times, strict=True):
            for _ in range(often):
                total.add(updates[device])
        if not any(times):
            continue
        model, _ = methods.combine(before, total, {})
        if _digest(model) == _digest(after):
            return dict(zip(AGENTS, times, strict=True))
    return None


def _digest(model: Model) -> str:
    content = b"".join(model.parameters[name].tobytes() for name in sorted(model.parameters))
    return hashlib.sha256(content).hexdigest()
