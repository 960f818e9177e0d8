"""The state of the fleet at one moment, as JSON objects for people and programs.

Everything here is read from the coordinator and its journal; nothing is changed. Times are in
seconds before or after now, because the coordinator's clock is monotonic.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fedclip_edge import __version__
from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.journal_tables import Sent
from fedclip_edge.pki.expiry import end_of
from fedclip_edge.pki.registry import Registry

# In the open round or vote. A device that waits has not said that it does anything.
Part = Literal[
    "missing",
    "waiting",
    "downloading",
    "training",
    "evaluating",
    "in the queue",
    "uploading",
    "refused",
    "done",
]
# The worst first; `revoked` is last because the operator has dealt with it.
State = Literal[
    "refused",
    "muted",
    "left out",
    "offline",
    "paused",
    "not seen",
    "late",
    "encoding",
    "online",
    "revoked",
]
STATES: tuple[State, ...] = get_args(State)
WELL = frozenset({"online", "encoding"})
SHOWN = 10  # devices in a status that does not show all
_ACCURACIES = ("zero_shot", "federated", "personal")


@dataclass(frozen=True)
class _View:
    """The coordinator at one moment, and what several figures need."""

    serving: Coordinator
    now: float
    revoked: frozenset[str]
    left_out: frozenset[str]
    late: frozenset[str]  # the round waits for them, and half of its deadline is over


def status(serving: Coordinator, now: float, *, every: bool = False) -> dict[str, Any]:
    """Describe the run, what it waits for, and the devices; `now` is monotonic, in seconds.

    Up to SHOWN devices that need attention are listed one by one; with `every` all devices are.
    Raises JournalError if the journal cannot be read.
    """
    rounds, run_state, config = serving.rounds, serving.run_state, serving.config
    course = run_state.journal.runs.course(run_state.run.id)
    view = _view(serving, now)
    rows = _rows(view)
    counts = Counter(row["state"] for row in rows)
    bad = [row for row in rows if row["state"] not in WELL and row["state"] != "revoked"]
    is_open = rounds.phase == "open"
    return {
        "version": __version__,
        "time": dt.datetime.now(dt.timezone.utc).astimezone().isoformat(timespec="seconds"),
        "fleet": config.fleet,
        "epoch": serving.epoch,
        "run": {
            "id": run_state.run.id,
            "method": run_state.run.plan.method,
            "state": course.state,
            "paused": rounds.paused,
            "phase": rounds.phase,
            "running_s": _seconds((course.ended_at or time.time()) - course.started_at),
            "kind": "vote" if rounds.is_vote else "round",
            "round": rounds.round,
            "rounds": rounds.rounds,
            "rounds_closed": run_state.model.round,
            "attempt": rounds.attempt + 1,
            "contributions": len(rounds.kept),
            "cohort": len(rounds.cohort) if is_open else None,
            "quorum": rounds.quorum if is_open else None,
            "deadline_in_s": _seconds(rounds.deadline - now) if is_open else None,
            "updates_bytes": sum(its.size_bytes for its in serving.devices.sent.values()),
            "model_bytes": run_state.blob.size_bytes,
        },
        "waiting": None if course.is_over or course.state == "held" else _waiting(view),
        "counts": {
            "enrolled": None
            if serving.admission.enrolled is None
            else len(serving.admission.enrolled),
            "known": len(rows),
            **{state.replace(" ", "_"): counts[state] for state in STATES if counts[state]},
        },
        "accuracy": _mean_accuracy(rows),
        "certificates": _certificates(serving),
        "traffic": _traffic(serving),
        "refused_messages": serving.refused_messages.total(),
        "bundle": _bundle(serving),
        "devices": rows if every else bad[:SHOWN],
        "more": 0 if every else max(0, len(bad) - SHOWN),
    }


def devices(serving: Coordinator, now: float, *, by_class: bool = False) -> dict[str, Any]:
    """Describe every device, the worst first; `now` is monotonic, in seconds.

    With `by_class`, each device has its pictures by class. Raises JournalError if the journal
    cannot be read.
    """
    rows = _rows(_view(serving, now))
    if by_class:
        for row in rows:
            hello = serving.devices.hellos.get(row["id"])
            report = serving.devices.reports.get(row["id"], {})
            its = {} if hello is None else hello.capabilities.pictures.by_class
            row["pictures_by_class"] = {side: list(counts) for side, counts in its.items()}
            row["accuracy_by_class"] = report.get("per_class", {})
    return {
        "version": __version__,
        "fleet": serving.config.fleet,
        "run": serving.run_state.run.id,
        "rounds_closed": serving.run_state.model.round,
        "classes": list(serving.admission.class_names),
        "bundle": _bundle(serving),
        "devices": rows,
    }


def _view(serving: Coordinator, now: float) -> _View:
    rounds, registry = serving.rounds, serving.admission.registry
    is_half_over = rounds.deadline - now < rounds.rules.deadline_s / 2
    is_late = rounds.phase == "open" and is_half_over
    return _View(
        serving,
        now,
        revoked=frozenset(() if registry is None else registry.revoked),
        left_out=rounds.left_out,
        late=attendance.waiting(rounds, now) if is_late else frozenset(),
    )


def _rows(view: _View) -> list[dict[str, Any]]:
    """Describe each known device; the worst state comes first, then the worst accuracy."""
    serving = view.serving
    registry = serving.admission.registry
    names = {*serving.devices.keys, *serving.devices.encoding, *serving.devices.unfit}
    if registry is not None:
        names |= registry.devices.keys()
    rows = [_row(view, name) for name in names]
    rank = {state: place for place, state in enumerate(STATES)}

    def worst_first(row: Mapping[str, Any]) -> tuple[int, float, str]:
        return rank[row["state"]], row["accuracy"].get("federated", -1.0), row["id"]

    return sorted(rows, key=worst_first)


def _row(view: _View, device: str) -> dict[str, Any]:
    serving, its = view.serving, view.serving.devices
    hello, report = its.hellos.get(device), its.reports.get(device, {})
    registry = serving.admission.registry
    enrolled = None if registry is None else registry.devices.get(device)
    state, detail = _state(view, device)
    sent = its.sent.get(device, Sent(0, 0, None))
    pictures = None if hello is None else hello.capabilities.pictures
    return {
        "id": device,
        "state": state,
        "detail": detail,
        "part": _part(view, device),
        "seen_s": _seconds(its.seen_s(device, view.now)),
        "domain": hello.domain if hello else (enrolled.domain if enrolled else ""),
        "roles": list(hello.capabilities.roles) if hello else [],
        "pictures": None
        if pictures is None
        else {
            "train": pictures.train,
            "validation": pictures.validation,
            "test": pictures.test,
            "withheld": pictures.withheld,
        },
        "provider": hello.capabilities.provider if hello else None,
        "version": hello.capabilities.version if hello else None,
        "encoder_id": hello.encoder_id if hello else None,
        "classes_digest": hello.classes_digest if hello else None,
        "certificate_ends": enrolled.expires if enrolled else None,
        "reported_round": report.get("round"),
        "accuracy": {k: report["accuracy"][k] for k in _ACCURACIES if k in report["accuracy"]}
        if report
        else {},
        "contributions": sent.contributions,
        "norm": sent.norm,
        "updates_bytes": sent.size_bytes,
        "bytes_up": report.get("bytes_up"),
        "bytes_down": report.get("bytes_down"),
        "encode_s": report.get("encode_s"),
        "train_s": report.get("train_s"),
        "wait_s": report.get("wait_s"),
        "skipped": report.get("skipped"),
        "refused_messages": serving.refused_messages.get(device, 0),
    }


def _state(view: _View, device: str) -> tuple[State, str]:
    """The state of a device, and the reason or progress in words."""
    serving, rounds = view.serving, view.serving.rounds
    its = serving.devices
    if device in view.revoked:
        return "revoked", ""
    if device in its.unfit:
        return "refused", its.unfit[device]
    if device in its.keys and (reason := serving.admission.refusal(device)) is not None:
        return "refused", reason
    if device in serving.muted:
        return "muted", "it floods the coordinator with messages"
    if (state := its.encoding.get(device)) is not None and state.encoding is not None:
        progress = f"{state.encoding.done} of {state.encoding.total} pictures"
        if state.activity == "paused":
            return "paused", f"{state.reason}; it has encoded {progress}"
        return "encoding", progress
    if (away := its.away.get(device)) is not None:
        return "paused" if away.activity == "paused" else "offline", away.reason
    if device in view.left_out:
        why = "its contributions are refused" if device in rounds.refused else "it missed deadlines"
        return "left out", why
    if not its.is_online(device):
        return (
            ("offline", "") if device in its.keys.keys() | its.hellos.keys() else ("not seen", "")
        )
    if rounds.missed.get(device, 0):
        return "late", "it missed the last deadline"
    if device in view.late:
        return "late", "half of the deadline is over, and the round waits for it"
    return "online", ""


def _part(view: _View, device: str) -> Part | None:
    """The device's part in the open round or vote; None if it has none."""
    rounds, slots = view.serving.rounds, view.serving.receiver.uploads.slots
    if rounds.phase != "open" or device not in rounds.cohort:
        return None
    if device in rounds.kept:
        return "done"
    if device in rounds.rejected:
        return "refused"
    if not view.serving.devices.is_online(device):
        return "missing"
    if slots.holds(device):
        return "uploading"
    if device in slots.waiting:
        return "in the queue"
    activity = view.serving.devices.activities.get(device, "waiting")
    return "waiting" if activity == "paused" else activity


def _bundle(serving: Coordinator) -> dict[str, str]:
    run = serving.run_state.run
    return {"encoder_id": run.encoder_id, "classes_digest": run.classes_digest}


def _waiting(view: _View) -> dict[str, Any] | None:
    """Describe what the run waits for; None if it waits for nothing."""
    said = attendance.reason_to_wait(view.serving.rounds, view.now)
    if said is None:
        return None
    missing = view.serving.driver.missing(said, view.now)
    return {
        "needs": said.needs,
        "has": said.has,
        "missing": [{"id": device, "why": why} for device, why in missing[:SHOWN]],
        "more": max(0, len(missing) - SHOWN),
    }


def _mean_accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean accuracies of the devices that reported all of them; None if none did."""
    found = [
        row["accuracy"] for row in rows if {"zero_shot", "federated"} <= row["accuracy"].keys()
    ]
    if not found:
        return None
    means: dict[str, Any] = {"devices": len(found)}
    for kind in _ACCURACIES:
        values = [accuracy[kind] for accuracy in found if kind in accuracy]
        if len(values) == len(found):
            means[kind] = sum(values) / len(values)
    return means


def _certificates(serving: Coordinator) -> dict[str, Any]:
    """The last days of the certificates: the coordinator's, its authority's, the first device's."""
    broker, registry = serving.config.broker, serving.admission.registry
    ends: dict[str, Any] = {}
    for name, path in (("coordinator", broker.certificate), ("authority", broker.ca)):
        if path is not None and (end := end_of(path)) is not None:
            ends[name] = end.date().isoformat()
    first = None if registry is None else min(_ends(registry), default=None)
    if first is not None:
        ends["first_device"] = {"id": first[1], "ends": first[0]}
    return ends


def _traffic(serving: Coordinator) -> dict[str, int] | None:
    """The bytes that the coordinator has sent and received since it started, if they are known."""
    found = serving.publisher.transport.traffic()
    return None if found is None else {"up": found.up_bytes, "down": found.down_bytes}


def _ends(registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield the last day and the id of each device that is not revoked."""
    for name, device in registry.devices.items():
        if not device.revoked:
            yield device.expires, name


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
