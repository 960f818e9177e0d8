"""Closed-form runs without a network: devices contribute to a run state of a real journal."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from in_memory import ENCODER, class_texts, features, nothing
from opened import opened

from fedclip_edge.coordinator.forgetting import Choices, Forgotten, forget
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import ZERO_SHOT, Origin, Run
from fedclip_edge.coordinator.run_state import (
    RunState,
    master_model,
    open_run_state,
    stored_model,
)
from fedclip_edge.coordinator.server import Basis
from fedclip_edge.errors import JournalError
from fedclip_edge.learning import methods
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.records import Contribution, Features, Plan

CLASSES, D = class_texts(), 8
BASIS = Basis(CLASSES, D, ENCODER)


@dataclass(frozen=True)
class Pictures:
    """Numbers of a device's pictures, and the seed of their features."""

    seed: int
    train: int = 40
    validation: int = 40


@dataclass
class Journaled:
    """A journal, and the devices that contribute to the runs in it."""

    folder: Path
    devices: dict[str, Pictures]
    plan: Plan = field(default_factory=lambda: Plan("gda"))
    settings: dict[str, Any] = field(default_factory=dict)  # of open_journal

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal: Journal = opened(
            open_journal(self.folder / "journal.sqlite", **self.settings)
        )

    def begin(self, name: str = "run-1", *, started_from: str = ZERO_SHOT) -> RunState:
        run = Run(name, methods.with_defaults(self.plan), ENCODER, CLASSES.digest)
        schedule = Schedule(run.plan, CLASSES, D)
        initial = schedule.initial()
        if started_from != ZERO_SHOT:
            stored = self.journal.rounds.newest_model(started_from)
            model = master_model(stored, schedule.layout(stored.round).parameters)
            initial, _ = schedule.start_from(model, CLASSES)
        origin = Origin(model=started_from)
        self.journal.runs.add(run, stored_model(initial, {}, run.plan), origin)
        return self.state()

    def state(self, *, counts_absent: bool = False) -> RunState:
        """The state of the newest run, as a process that has just started reads it."""
        run = self.journal.runs.last()
        assert run is not None
        schedule = Schedule(run.plan, CLASSES, D)
        return open_run_state(run, self.journal, schedule, counts_absent=counts_absent)

    def answer(self, state: RunState, device: str) -> None:
        """Let a device contribute to the open exchange, unless it has."""
        if device in state.kept():
            return
        plan, pictures = state.run.plan, self.devices[device]
        published = wire.unpack_model(
            state.stored.payload, plan.codec_down, state.layout.parameters
        )
        task = LocalTask(
            plan,
            published,
            _features(pictures.train, pictures.seed),
            _features(pictures.validation, pictures.seed + 1000),
            CLASSES,
            0,
        )
        made = Contribution(
            state.run.id,
            state.model.round + 1,
            device,
            state.exchange.sha256,
            state.schedule.answer(task, min_votes=5),
        )
        body = wire.pack_contribution(made, plan.codec_up)
        layout = state.layout
        made = wire.unpack_contribution(body, plan.codec_up, layout.delta, layout.sums)
        state.check(device, made.round, made)
        state.keep(made, chunks.blob_of(body, "update").sha256, body)

    def close(self, devices: Iterable[str], state: RunState | None = None) -> RunState:
        """Close the open exchange with the answers of these devices."""
        state = self.state() if state is None else state
        for device in devices:
            self.answer(state, device)
        state.close_round()
        return self.state()

    def complete(
        self,
        devices: Collection[str],
        voters: Collection[str] | None = None,
        *,
        counts_absent: bool = False,
    ) -> RunState:
        """Carry out all exchanges that are left, and finish the run.

        With `counts_absent`, all other devices count with their last contribution.
        """
        state = self.state(counts_absent=counts_absent)
        while state.model.round < len(state.schedule.steps):
            is_vote = state.schedule.steps[state.model.round].kind == "vote"
            for device in devices if voters is None or not is_vote else voters:
                self.answer(state, device)
            state.close_round(
                lasts=[its for its in state.last_contributions() if its.device not in state.kept()]
            )
            state = self.state(counts_absent=counts_absent)
        state.finish()
        return state

    def forget(self, device: str, **choices: Any) -> Forgotten:
        done = forget(self.journal, device, BASIS, Choices(quorum=0.75, **choices))
        try:
            self.journal.rewrite()
        except JournalError as error:
            return replace(done, failures=(*done.failures, str(error)))
        return done

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows that tell one fleet from another, without numbers that the file gives them."""
        queries = {
            "model": "SELECT * FROM model ORDER BY run, round",
            "contribution": "SELECT run, round, device, contribution.sha256, body FROM contribution "
            "LEFT JOIN payload ON contribution = id ORDER BY run, round, device",
            "last": "SELECT c.device, c.run, c.sha256 FROM last_contribution "
            "JOIN contribution AS c ON id = contribution ORDER BY c.device",
            "run": "SELECT id, plan, state, paused, ends_after FROM run ORDER BY rowid",
            "report": "SELECT * FROM report ORDER BY run, round, device",
        }
        return {
            name: self.journal._database.execute(query).fetchall()
            for name, query in queries.items()
        }


def _features(count: int, seed: int) -> Features:
    return features(count, seed, CLASSES) if count else nothing(D)
