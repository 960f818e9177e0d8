"""The run that a coordinator serves: the journal's newest one, or a new one.

Laws:
- A run that is over is served on, so that devices get its model, until the next one starts. With
  `once`, or if the bundle has other classes or another encoder by now, a new run begins.
- An unfinished run continues only under the plan, the encoder and the classes that it began with.
- A run with results, which are kept contributions or closed rounds, makes way for a new one only if
  the operator asks for it. Its models stay in the journal.
- Choosing changes nothing. `begin` writes, so that it can wait until no other coordinator is
  online.
"""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.bundle_choice import choose_bundle
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import ZERO_SHOT, Course, Origin, Run
from fedclip_edge.coordinator.run_state import master_model, stored_model
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import methods
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State
from fedclip_edge.records import ClassTexts, Model, Plan

LAST = "last"  # in place of a run's id: the newest one that is done


@dataclass(frozen=True, eq=False)
class RunChoice:
    """The chosen run. `initial` is the model of a new one; None if the run is in the journal."""

    run: Run
    journal: Journal
    initial: Model | None = None
    state: State = field(default_factory=dict)  # of the coordinator, before the first round
    origin: Origin = field(default_factory=Origin)
    ends: Run | None = None  # the unfinished run that makes way
    why: str = ""  # it does

    def begin(self) -> Run:
        """Write a new run to the journal; returns the chosen run.

        Raises JournalError on a disk error, RunError if another coordinator took over the journal.
        """
        if self.initial is None:
            return self.run
        stored = stored_model(self.initial, self.state, self.run.plan)
        ends = None if self.ends is None else self.ends.id
        self.journal.runs.add(self.run, stored, self.origin, ends)
        if self.ends is not None:
            closed = self.journal.rounds.closed(self.ends.id)
            log.event(
                "run_abandoned",
                run=self.ends.id,
                rounds_closed=closed,
                rounds=exchanges(self.ends.plan),
                reason=self.why,
                hint=_use(self.ends) if closed else None,
            )
        return self.run


def choose_run(
    config: FleetConfig,
    classes: ClassTexts,
    dim: int,
    encoder_id: str,
    journal: Journal,
    *,
    new_run: bool = False,
    once: bool = False,
) -> RunChoice:
    """Choose the journal's newest run, or make a new one.

    `dim` is the feature width D. With `new_run` an unfinished run makes way for a new one, and so
    does one without results whose settings have changed. With `once` a run that is over does too.

    Raises ConfigError if the unfinished run has results and began with other settings, or if the
    plan is invalid; JournalError on a disk error.
    """
    wanted = _wanted(config, classes, encoder_id)
    newest, course, why, ends = journal.runs.last(), None, "", None
    if newest is not None and not new_run:
        course = journal.runs.course(newest.id)
        changes = ", ".join(_changes(newest, course, wanted, config))
        if course.is_over:
            fits = (newest.encoder_id, newest.classes_digest) == (encoder_id, classes.digest)
            if fits and not once:
                return RunChoice(newest, journal)
        elif not changes and not (once and course.state == "held"):
            return RunChoice(newest, journal)
        elif journal.rounds.has_results(newest.id):
            closed = journal.rounds.closed(newest.id)
            raise ConfigError(
                f"the journal {config.journal} contains the unfinished {newest.id} "
                f"({closed} of {exchanges(newest.plan)} rounds closed), and its settings have "
                f"changed: {changes}; put them back to go on with it, or add --new-run to `serve` "
                "to abandon it and begin a new run (its models stay in the journal)"
            )
        else:
            why, ends = f"settings have changed: {changes}", newest
    elif newest is not None:
        course = journal.runs.course(newest.id)
        why, ends = "asked for with --new-run", None if course.is_over else newest
    if course is not None and course.state == "held":
        ends = None  # the new run takes its place
    held = config.schedule.start == "manual" and not (new_run or once)
    initial = Schedule(wanted.plan, classes, dim).initial()
    return RunChoice(wanted, journal, initial, {}, Origin(held=held), ends, why)


def next_run(
    config: FleetConfig,
    classes: ClassTexts,
    dim: int,
    encoder_id: str,
    journal: Journal,
    *,
    by: str,
    start: str = ZERO_SHOT,
) -> RunChoice:
    """Make the run after one that is over; `by` is the cause, in words.

    `start` is "zero-shot", "last" for the model of the newest run that is done, or the id of a run.

    The classes may be others than those of that model (continuation.py). Raises ConfigError if the
    plan is invalid, or if there is no such model or it does not fit; BundleError if the bundle in
    fleet.toml is damaged; JournalError on a disk error.
    """
    wanted = _wanted(config, classes, encoder_id)
    schedule = Schedule(wanted.plan, classes, dim)
    if start == ZERO_SHOT:
        return RunChoice(wanted, journal, schedule.initial(), origin=Origin(by))
    before = _named(journal, start)
    for what, theirs, ours in (
        ("method", before.plan.method, wanted.plan.method),
        ("encoder", before.encoder_id[:12], encoder_id[:12]),
    ):
        if theirs != ours:
            raise ConfigError(
                f"{before.id} has another {what} ({theirs}) than the new run ({ours}), so the new "
                "run cannot start from its model; name another run, or use --from zero-shot"
            )
    stored = journal.rounds.newest_model(before.id)
    if not stored.round:
        raise ConfigError(f"{before.id} has no closed round to start from; name another run")
    known = classes if before.classes_digest == classes.digest else _classes_of(config, before)
    shapes = Schedule(before.plan, known, dim).layout(stored.round).parameters
    try:
        model = master_model(stored, shapes)
    except PeerError as error:
        raise journal.damaged(str(error)) from error
    initial, state = schedule.start_from(model, known)
    return RunChoice(wanted, journal, initial, state, Origin(by, before.id))


def _wanted(config: FleetConfig, classes: ClassTexts, encoder_id: str) -> Run:
    plan = methods.with_defaults(config.plan)
    return Run(f"run-{secrets.token_hex(4)}", plan, encoder_id, classes.digest)


def _classes_of(config: FleetConfig, run: Run) -> ClassTexts:
    """The classes of an earlier run, from its bundle.

    Raises ConfigError if no bundle with them is left, BundleError if that in fleet.toml is damaged.
    """
    classes = choose_bundle(config, run).classes
    if classes.digest != run.classes_digest:
        raise ConfigError(
            f"{run.id} had other classes than the new run, and no bundle that names them is left, so "
            "the new run cannot start from its model; name another run, or use --from zero-shot"
        )
    return classes


def _named(journal: Journal, name: str) -> Run:
    """The run with this id, or for "last" the newest one that is done."""
    runs = {run.id: run for run in journal.runs.all()}
    if name != LAST and name in runs:
        return runs[name]
    done = journal.runs.last_done()
    if name != LAST:
        near = difflib.get_close_matches(name, runs, n=1)
        newest = f"the newest run that is done is {done.id!r}" if done else "no run is done yet"
        hint = f"did you mean {near[0]!r}?" if near else newest
        raise ConfigError(f"the journal {journal.path} has no run {name!r}; {hint}")
    if done is None:
        raise ConfigError("no run is done yet; use --from zero-shot")
    return done


def _changes(run: Run, course: Course, wanted: Run, config: FleetConfig) -> Iterator[str]:
    """Yield each setting that differs, with its value in the journal and the one wanted now.

    Rounds that the operator added are no change of the settings.
    """
    before = _settings(replace(run.plan, rounds=course.begun_rounds))
    after = _settings(wanted.plan)
    for name in dict.fromkeys([*before, *after]):
        old, new = (_shown(table.get(name)) for table in (before, after))
        if old != new:
            yield f"plan.{name}: {old} in the journal, {new} in fleet.toml"
    for what, old, new in (
        ("encoder", run.encoder_id, wanted.encoder_id),
        ("classes", run.classes_digest, wanted.classes_digest),
    ):
        if old != new:
            yield f"{what}: {old[:12]} in the journal, {new[:12]} in the bundle {config.bundle}"


def _settings(plan: Plan) -> dict[str, Any]:
    """The plan's settings by the names that they have in fleet.toml."""
    table: dict[str, Any] = {}
    for one in fields(plan):
        value = getattr(plan, one.name)
        if one.name in ("options", "strategy_options"):
            table |= {f"{one.name}.{key}": inner for key, inner in value.items()}
        else:
            table[one.name] = value
    return table


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


def _use(run: Run) -> str:
    return f"its newest model stays in the journal: `fedclip-edge predict --model {run.id}` uses it"
