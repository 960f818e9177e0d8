"""The run that a coordinator serves: the journal's unfinished one, or a new one.

Laws:
- An unfinished run continues only under the plan, the encoder and the classes that it began with.
- A run with results, which are kept contributions or closed rounds, makes way for a new one only if
  the operator asks for it. Its models stay in the journal.
- Choosing changes nothing. `begin` writes, so that it can wait until no other coordinator is
  online.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from fedclip_edge import log
from fedclip_edge.config import FleetConfig
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.run_state import stored_model
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule, exchanges
from fedclip_edge.records import ClassTexts, Model, Plan


@dataclass(frozen=True, eq=False)
class RunChoice:
    """The chosen run. `initial` is the model of a new one; None if the run is in the journal."""

    run: Run
    journal: Journal
    initial: Model | None = None
    ends: Run | None = None  # the unfinished run that makes way
    why: str = ""  # it does

    def begin(self) -> Run:
        """Write a new run to the journal; returns the chosen run.

        Raises JournalError on a disk error, RunError if another coordinator took over the journal.
        """
        if self.ends is not None:
            self.journal.finish(self.ends.id)
            closed = self.journal.rounds_closed(self.ends.id)
            log.event(
                "run_abandoned",
                run=self.ends.id,
                rounds_closed=closed,
                rounds=exchanges(self.ends.plan),
                reason=self.why,
                hint=_use(self.ends) if closed else None,
            )
        if self.initial is not None:
            self.journal.add_run(self.run, stored_model(self.initial, {}, self.run.plan))
        return self.run


def choose_run(
    config: FleetConfig,
    classes: ClassTexts,
    dim: int,
    encoder_id: str,
    journal: Journal,
    *,
    new_run: bool = False,
) -> RunChoice:
    """Choose the journal's unfinished run, or make a new one.

    `dim` is the feature width D. With `new_run` an unfinished run makes way for a new one, and so
    does one without results whose settings have changed.

    Raises ConfigError if the unfinished run has results and began with other settings, or if the
    plan is invalid; JournalError on a disk error.
    """
    plan = methods.with_defaults(config.plan)
    unfinished = journal.unfinished_run()
    wanted = Run(f"run-{secrets.token_hex(4)}", plan, encoder_id, classes.digest)
    why = ""
    if unfinished is not None:
        changes = ", ".join(_changes(unfinished, wanted, config))
        if not changes and not new_run:
            return RunChoice(unfinished, journal)
        if not new_run and journal.has_results(unfinished.id):
            closed = journal.rounds_closed(unfinished.id)
            raise ConfigError(
                f"the journal {config.journal} contains the unfinished {unfinished.id} "
                f"({closed} of {exchanges(unfinished.plan)} rounds closed), and its settings have "
                f"changed: {changes}; put them back to go on with it, or add --new-run to `serve` "
                "to abandon it and begin a new run (its models stay in the journal)"
            )
        why = "asked for with --new-run" if new_run else f"settings have changed: {changes}"
    initial = Schedule(plan, classes, dim).initial()
    return RunChoice(wanted, journal, initial, unfinished, why)


def _changes(run: Run, wanted: Run, config: FleetConfig) -> Iterator[str]:
    """Yield each setting that differs, with its value in the journal and the one wanted now."""
    before, after = _settings(run.plan), _settings(wanted.plan)
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
