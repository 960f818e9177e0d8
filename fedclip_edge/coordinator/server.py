"""The runs of a serving process, one after the other, on one link.

Laws:
- When a run is over, its coordinator stays: it answers hellos and sends the last model. The next
  run has an epoch of its own, on the same link and with the same incarnation. The link's will names
  that incarnation, so devices still believe it.
- A new run is in the journal before anything about it is sent. After a kill at any moment, the
  process that starts next serves either the run that is over or the new one.
- Each run begins with the settings that are in fleet.toml then: [plan], [rules] and the bundle. An
  error in them starts no run, and the process serves on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_report
from fedclip_edge.coordinator.bundle_choice import choose_bundle
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.deliveries import Deliveries, open_release
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import ZERO_SHOT, Course, Run
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.resume import resume_coordinator
from fedclip_edge.coordinator.run_choice import next_run
from fedclip_edge.coordinator.run_schedule import cause_to_start, count_new, due_at
from fedclip_edge.coordinator.run_state import open_run_state
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.records import ClassTexts
from fedclip_edge.transport.base import Connected, Transport
from fedclip_edge.vision.bundle_warnings import bundle_warnings

_LOOKS_S = 1.0  # between two looks at the schedule


@dataclass(frozen=True, eq=False)
class Claim:
    """The claim of this process on the fleet: its link, its incarnation and its epoch."""

    link: Transport
    incarnation: str
    epoch: int


@dataclass(frozen=True, eq=False)
class Basis:
    """The classes and features that a run is about."""

    classes: ClassTexts
    dim: int  # D
    encoder_id: str
    folder: Path | None = None  # of the bundle; without it, devices cannot fetch it


def read_basis(config: FleetConfig, run: Run | None) -> Basis:
    """Read the bundle of a run in the journal or, with None, of the next run.

    Raises BundleError.
    """
    bundle = choose_bundle(config, run)
    for caution in bundle_warnings(bundle.manifest):
        log.event("bundle_caution", bundle=bundle.folder, caution=caution)
    manifest = bundle.manifest
    return Basis(bundle.classes, manifest.dim, manifest.encoder_id, bundle.folder)


@dataclass(eq=False)
class Server:
    """The serving process. All methods are for its main thread."""

    config: FleetConfig
    journal: Journal
    coordinator: Coordinator  # of the newest run; it stays when the run is over
    # Reads fleet.toml and the bundle as they are now; raises ConfigError and BundleError.
    load: Callable[[], tuple[FleetConfig, Basis]]
    invited: frozenset[str] = frozenset()
    _looked_at: float = 0.0
    _not_started: str = ""  # why a run that was due did not start
    _ended: str = ""  # the run whose end is in the log
    _waits: str = ""  # the run after which the log says what the next one waits for

    @property
    def run(self) -> Run:
        """The newest run."""
        return self.coordinator.run_state.run

    @property
    def course(self) -> Course:
        """The course of the newest run so far."""
        return self.journal.runs.course(self.run.id)

    @property
    def new_pictures(self) -> int:
        """Labelled pictures that the fleet has got since its devices joined the newest run."""
        before = self.journal.devices.pictures(self.run.id)
        now = {d: n for d, n in self.coordinator.devices.pictures.items() if d in before}
        return count_new(before, now)

    def prepare_run(self, *, by: str, start: str) -> Callable[[float], Run]:
        """Check that a run can start; the function that is returned starts it at `now`.

        `start` is "zero-shot", "last" or the id of a run (`next_run`). Raises ConfigError or
        BundleError if fleet.toml or the bundle cannot be used as they are now, ConfigError if there
        is no such model, JournalError on a disk error.
        """
        loaded, basis = self.load()
        # The rest belongs to the process, and stays.
        config = replace(
            self.config,
            bundle=loaded.bundle,
            rules=loaded.rules,
            plan=loaded.plan,
            schedule=loaded.schedule,
        )
        chosen = next_run(
            config,
            basis.classes,
            basis.dim,
            basis.encoder_id,
            self.journal,
            by=by,
            start=start,
        )

        def begin(now: float) -> Run:
            run = chosen.begin()
            epoch = self.journal.next_epoch(above=self.coordinator.epoch)
            self._serve(config, run, basis, epoch, now)
            return run

        return begin

    def serve_again(self, basis: Basis, now: float) -> None:
        """Serve the newest run as it is in the journal, after a command has changed it there.

        `basis` is that of the run. The journal's epoch has been raised. `now` is monotonic, in
        seconds.
        """
        self._ended = self._waits = ""
        run = self.journal.runs.last()
        assert run is not None
        self._serve(self.config, run, basis, self.journal.epoch, now)

    def _serve(self, config: FleetConfig, run: Run, basis: Basis, epoch: int, now: float) -> None:
        """Serve another run, or another state of this one, on the same link."""
        before, ours = self.coordinator, self.coordinator.publisher
        following = coordinate(
            config,
            run,
            self.journal,
            basis,
            Claim(ours.transport, ours.incarnation, epoch),
            ours.identity,
            now,
            invited=self.invited,
            registry=before.admission.registry,
        )
        following.follow(before)
        # A device says hello when the coordinator comes online after it was offline.
        before.say_goodbye()
        if ours.deliveries is not None:
            ours.deliveries.release.close()
        self.config, self.coordinator = config, following
        self.open(now)

    def open(self, now: float) -> None:
        """Announce the newest run; `now` is monotonic, in seconds."""
        serving = self.coordinator
        serving.count_enrolled()
        serving.handle_event(Connected(), now)
        serving.publisher.transport.resubscribe()  # for the retained states of devices
        course = self.course
        log.event(
            "serving",
            fleet=self.config.fleet,
            run=self.run.id,
            epoch=serving.epoch,
            rounds_closed=self.journal.rounds.closed(self.run.id),
            rounds=exchanges(self.run.plan),
            waiting_for=None if course.is_over else serving.rounds.rules.devices,
            started_from=course.started_from,
            paused=course.paused or None,
            over=course.is_over or None,
        )
        if course.is_over:
            self._ended = self.run.id  # before this process started

    def end_run(self) -> None:
        """Log the end of the run, once."""
        if not self.coordinator.finished or self._ended == self.run.id:
            return
        self._ended = self.run.id
        log.event(
            "run_done",
            run=self.run.id,
            rounds=self.journal.rounds.closed(self.run.id),
            refused_messages=self.coordinator.refused_messages.total(),
        )
        run_report.write_report(self.config, self.journal, self.run)

    def start_if_due(self, now: float) -> None:
        """Start the next run when it is due; `now` is monotonic, in seconds.

        Raises JournalError and RunError as the coordinator does.
        """
        if now - self._looked_at < _LOOKS_S:
            return
        self._looked_at = now
        course, schedule = self.course, self.config.schedule
        if not (course.is_over or course.state == "held"):
            return
        if self._waits != self.run.id:
            self._waits = self.run.id
            self._log_next()
        cause = cause_to_start(schedule, course.started_at, self.new_pictures, time.time())
        if cause is None:
            return
        start = schedule.model if self.journal.runs.last_done() else ZERO_SHOT
        try:
            begin = self.prepare_run(by=cause, start=start)
        except (ConfigError, BundleError) as error:
            if self._not_started != str(error):
                self._not_started = str(error)
                log.event("run_not_started", cause=cause, reason=str(error))
            return
        self._not_started = ""
        begin(now)

    def next_at(self) -> str | None:
        """The local time at which the next run is due, in ISO 8601; None if none is due by time."""
        due = due_at(self.config.schedule, self.course.started_at)
        at = None if due is None else datetime.fromtimestamp(due).astimezone()
        return None if at is None else at.isoformat(timespec="seconds")

    def _log_next(self) -> None:
        schedule = self.config.schedule
        log.event(
            "between_runs",
            run=self.run.id,
            next_at=self.next_at(),
            new_pictures=schedule.new_pictures,
            hint=None if schedule.starts_runs else "`fedclip-edge run start` starts the next run",
        )


def coordinate(
    config: FleetConfig,
    run: Run,
    journal: Journal,
    basis: Basis,
    claim: Claim,
    identity: Identity,
    now: float,
    *,
    invited: frozenset[str],
    registry: Registry | None,
) -> Coordinator:
    """Make the coordinator of a run in the journal; raises JournalError if it cannot be read.

    `now` is monotonic, in seconds.
    """
    schedule = Schedule(run.plan, basis.classes, basis.dim)
    state = open_run_state(run, journal, schedule, counts_absent=config.rules.absent == "last")
    publisher = Publisher(
        config, state, identity, claim.link, claim.incarnation, claim.epoch, registry=registry
    )
    key = "" if registry is None else registry.export_key
    release = None if basis.folder is None else open_release(basis.folder, key)
    if release is not None:
        publisher.deliveries = Deliveries(
            release, config.delivery_bytes_per_s, publisher.topics, claim.link
        )
    return resume_coordinator(
        config,
        state,
        publisher,
        now,
        invited=invited,
        registry=registry,
        class_names=basis.classes.names,
    )
