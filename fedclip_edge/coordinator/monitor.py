"""The coordinator's metrics: kept up to date from its log events and its state, and served.

Law: it only reads. With or without it, a run has the same bytes.
"""

from __future__ import annotations

import datetime as dt
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedclip_edge import __version__, log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.monitoring.definitions import COORDINATOR, MODELS
from fedclip_edge.monitoring.metrics import Metrics
from fedclip_edge.monitoring.process_figures import database_bytes, memory_bytes
from fedclip_edge.pki.expiry import end_of

LOOK_S = 5.0
Fields = Mapping[str, Any]


@contextmanager
def monitored(config: FleetConfig) -> Iterator[Monitor | None]:
    """Serve the metrics of this process until the end of the block; None if that is not wanted.

    Raises ConfigError if the address cannot be opened; ModuleNotFoundError if prometheus-client is
    not installed.
    """
    if config.metrics is None:
        yield None
        return
    from fedclip_edge.monitoring.exposition import served

    monitor = Monitor(config)
    host, port = config.metrics.address
    with log.observed(monitor.note), served(monitor.metrics, host, port):
        log.event("metrics_served", address=config.metrics.listen)
        yield monitor


class Monitor:
    """The metrics of one coordinator process."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.metrics = Metrics(COORDINATOR, {"fleet": config.fleet})
        self._looked_at = -math.inf
        self._active = ""  # the run under way; empty while none is, or while it is paused
        self.metrics.set("fedclip_edge_info", 1, version=__version__)
        self.metrics.set("fedclip_edge_progress_timestamp_seconds", time.time())

    def note(self, event: str, fields: Fields) -> None:
        """Count a log event, and take its figures."""
        if "trainer" in fields:
            return  # an event of the device of [trainer]
        self.metrics.add("fedclip_edge_log_events_total", event=event)
        if event in _FROM_EVENTS:
            _FROM_EVENTS[event](self.metrics, fields)

    def look(self, serving: Coordinator, now: float) -> None:
        """Take the figures that no event tells, at most once per LOOK_S.

        `now` is monotonic, in seconds.
        """
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        self._look_at_run(serving)
        self._look_at_devices(serving, now)
        self._look_at_files()

    def _look_at_run(self, serving: Coordinator) -> None:
        metrics, state, run = self.metrics, serving.run_state, serving.run_state.run
        rounds = serving.rounds
        course = state.journal.runs.course(run.id)
        active = run.id if course.state == "open" and not course.paused else ""
        if active != self._active:
            self._active = active
            metrics.set("fedclip_edge_progress_timestamp_seconds", time.time())
        metrics.set("fedclip_edge_run_active", bool(active))
        labels = {"run": run.id, "method": run.plan.method}
        metrics.replace("fedclip_edge_run_info", [(labels, 1)])
        for phase in metrics.listed("fedclip_edge_phase", "phase"):
            metrics.set("fedclip_edge_phase", phase == rounds.phase, phase=phase)
        is_open = rounds.phase == "open"
        metrics.set("fedclip_edge_deadline_seconds", rounds.rules.deadline_s)
        metrics.set("fedclip_edge_rounds", rounds.rounds)
        metrics.set("fedclip_edge_rounds_closed", state.model.round)
        metrics.set("fedclip_edge_cohort_devices", len(rounds.cohort) if is_open else 0)
        metrics.set("fedclip_edge_contributions_needed", rounds.quorum if is_open else 0)
        metrics.set("fedclip_edge_contributions_kept", len(rounds.kept) if is_open else 0)
        metrics.set("fedclip_edge_model_bytes", state.blob.size_bytes)

    def _look_at_devices(self, serving: Coordinator, now: float) -> None:
        metrics, devices, admission = self.metrics, serving.devices, serving.admission
        enrolled = admission.enrolled
        metrics.admit(enrolled)
        counts = {
            "online": len(devices.incarnations),
            "encoding": len(devices.encoding),
            "paused": sum(
                state.activity == "paused"
                for states in (devices.away, devices.encoding)
                for state in states.values()
            ),
            "left_out": len(serving.rounds.left_out),
            "unfit": len(devices.unfit),
            "enrolled": len(enrolled or ()),
        }
        for state, count in counts.items():
            metrics.set("fedclip_edge_devices", count, state=state)
        names = devices.keys if enrolled is None else sorted(enrolled)
        metrics.replace(
            "fedclip_edge_device_online",
            [({"device": name}, devices.is_online(name)) for name in names],
        )
        ages = {name: devices.seen_s(name, now) for name in names}
        metrics.replace(
            "fedclip_edge_device_last_seen_timestamp_seconds",
            [({"device": d}, time.time() - age) for d, age in ages.items() if age is not None],
        )
        registry = admission.registry
        known = {} if registry is None else registry.devices
        metrics.replace(
            "fedclip_edge_device_certificate_end_timestamp_seconds",
            [({"device": name}, _start_of(known[name].expires)) for name in enrolled or ()],
        )

    def _look_at_files(self) -> None:
        metrics, broker, journal = self.metrics, self.config.broker, self.config.journal
        for name, file in (("coordinator", broker.certificate), ("authority", broker.ca)):
            ends = None if file is None else end_of(file)
            if ends is not None:
                metrics.set(
                    "fedclip_edge_certificate_end_timestamp_seconds",
                    ends.timestamp(),
                    certificate=name,
                )
        metrics.set("fedclip_edge_journal_bytes", database_bytes(journal))
        try:
            disk = shutil.disk_usage(journal.parent)
        except OSError:
            pass  # the journal itself reports a disk that is gone
        else:
            metrics.set("fedclip_edge_disk_free_bytes", disk.free)
            metrics.set("fedclip_edge_disk_size_bytes", disk.total)
        memory = memory_bytes()
        if memory is not None:
            metrics.set("fedclip_edge_memory_bytes", memory)


def _start_of(day: str) -> float:
    """Start of a day in UTC, given as an ISO date, in seconds since 1970."""
    return dt.datetime.fromisoformat(day).replace(tzinfo=dt.timezone.utc).timestamp()


def _connected(metrics: Metrics, fields: Fields) -> None:
    metrics.set("fedclip_edge_broker_connected", 1)


def _disconnected(metrics: Metrics, fields: Fields) -> None:
    metrics.set("fedclip_edge_broker_connected", 0)


def _kept(metrics: Metrics, fields: Fields) -> None:
    metrics.add("fedclip_edge_contributions_total", device=fields["device"])
    metrics.set("fedclip_edge_update_norm", fields["norm"], device=fields["device"])


def _missed(metrics: Metrics, fields: Fields) -> None:
    device, reason = fields["device"], fields["reason"]
    metrics.add("fedclip_edge_deadlines_missed_total", device=device, reason=reason)


def _round_closed(metrics: Metrics, fields: Fields) -> None:
    by = "all" if fields["contributions"] >= fields["cohort"] else "quorum"
    metrics.add("fedclip_edge_round_closes_total", by=by)
    metrics.add("fedclip_edge_updates_bytes_total", fields["updates_bytes"])
    metrics.set("fedclip_edge_round_seconds", fields["seconds"])
    metrics.set("fedclip_edge_progress_timestamp_seconds", time.time())


def _vote_decided(metrics: Metrics, fields: Fields) -> None:
    pictures = fields["pictures"]
    metrics.set("fedclip_edge_vote_pictures", pictures)
    for model, right in (("chosen", "correct"), ("zero_shot", "zero_shot_correct")):
        if pictures and right in fields:
            metrics.set("fedclip_edge_vote_accuracy", fields[right] / pictures, model=model)


def _report(metrics: Metrics, fields: Fields) -> None:
    metrics.set("fedclip_edge_accuracy_round", fields["round"], device=fields["device"])
    for model in MODELS:
        if model in fields:
            device = fields["device"]
            metrics.set("fedclip_edge_accuracy", fields[model], device=device, model=model)


def _refused(metrics: Metrics, fields: Fields) -> None:
    count, device = fields.get("count", 1), fields.get("device", "")
    metrics.add("fedclip_edge_messages_refused_total", count, device=device)


def _dropped(metrics: Metrics, fields: Fields) -> None:
    count, device = fields["count"], fields.get("device", "")
    metrics.add("fedclip_edge_messages_dropped_total", count, device=device)


_FROM_EVENTS: Mapping[str, Callable[[Metrics, Fields], None]] = {
    "serving": _connected,
    "link_restored": _connected,
    "link_lost": _disconnected,
    "kept": _kept,
    "missed": _missed,
    "round_closed": _round_closed,
    "vote_decided": _vote_decided,
    "report": _report,
    "message_refused": _refused,
    "messages_dropped": _dropped,
}
