"""Figures of a demo, for summary.json and the table.

Those of the fleet were reported by a device or counted by the coordinator, and come from its
journal. Those of FedCLIP as published and of the devices alone come from baselines.py.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedclip_edge import __version__
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.demo.stage import Device, Stage
from fedclip_edge.errors import RunError
from fedclip_edge.learning.schedule import exchanges, has_vote
from fedclip_edge.protocol.report import Report
from fedclip_edge.reporting.figures import difference
from fedclip_edge.reporting.table import aligned
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import read_bundle

if TYPE_CHECKING:
    from fedclip_edge.demo.baselines import Baselines

Summary = Mapping[str, Any]
# Heading of each kind of accuracy, in the order of the columns.
KINDS = {
    "zero_shot": "zero-shot",
    "fedclip": "FedCLIP",
    "local": "local",
    "federated": "federated",
    "personal": "personal",
}
_NOTE_COLUMNS = 100


def summarise(
    stage: Stage, broker: str, seconds: Mapping[str, float], baselines: Baselines | None
) -> Summary:
    """Collect the figures of a finished run; `seconds` are the durations of its phases.

    `rounds` and `rounds_closed` count the vote too, if `vote` is true. The accuracies "fedclip" and
    "local" are those of `baselines`; they are missing without it. Raises RunError if the journal
    holds no run or a device did not evaluate the last model.
    """
    with contextlib.closing(open_journal(stage.journal)) as journal:
        run = journal.last_run()
        if run is None:
            raise RunError(
                f"the journal {stage.journal} holds no run; the logs in "
                f"{stage.settings.out / 'logs'} show the reason"
            )
        reports = journal.reports(run.id)
        closed = journal.rounds_closed(run.id)
    bundle, settings = read_bundle(stage.bundle), stage.settings
    return {
        "version": __version__,
        "world": "drawn world" if settings.data is None else f"pictures in {settings.data}",
        "encoder": {"model": bundle.manifest.model, "encoder_id": bundle.manifest.encoder_id},
        "method": run.plan.method,
        "options": dict(run.plan.options),
        "seed": run.plan.seed,
        "broker": broker,
        "rounds": exchanges(run.plan),
        "rounds_closed": closed,
        "vote": has_vote(run.plan),
        "fedclip_rounds": None if baselines is None else stage.settings.published.rounds,
        "classes": list(bundle.classes.names),
        "devices": {
            device.id: _compared(_figures(device, reports, closed), device.id, baselines)
            for device in stage.devices
        },
        "held_out": _compared(
            _figures(stage.held_out, reports, closed), stage.held_out.id, baselines
        ),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def write(path: Path, summary: Summary) -> None:
    """Write summary.json atomically."""
    atomic.write_file(path, (json.dumps(summary, indent=2) + "\n").encode())


def table(summary: Summary, columns: int | None = None) -> str:
    """Format the final table; if it needs more than `columns`, accuracy and cost are separate."""
    # The method may keep a personal model on each device.
    kinds = [kind for kind in KINDS if any(kind in its["accuracy"] for its in _entries(summary))]
    rows = [_row(name, figures, kinds) for name, figures in summary["devices"].items()]
    held_out = summary["held_out"]
    rows.append(_row(f"{held_out['domain']} (held out)", held_out, kinds))
    head = ["device", "train+test", "encoded", *(KINDS[kind] for kind in kinds), "gain"]
    head += ["up", "down", "encode", "train", "wait"]
    units = ["", "pictures", "this run", *("%" for _ in kinds), "points"]
    units += ["kB/round", "kB/round", "s", "s", "s"]
    costs = 4 + len(kinds)
    parts = ([1, *range(3, costs)], [2, *range(costs, len(head))])
    return aligned([head, units, *rows], width=columns, parts=parts)


def notes(summary: Summary, columns: int | None = None) -> str:
    """Explain the headings of the table, in lines of at most `columns`, or 100."""
    has_personal = any("personal" in its["accuracy"] for its in _entries(summary))
    personal = "personal: the device's own model, made from the shared one; " * has_personal
    baselines = ""
    if (rounds := summary["fedclip_rounds"]) is not None:
        baselines = (
            f"FedCLIP: FedCLIP as published, trained by the same devices, {counted(rounds)}; local: "
            "trained on one device alone (held out: the mean of these models); "
        )
    text = (
        "train+test: training and test pictures; the rest are for validation. Accuracy is on test "
        f"pictures. zero-shot: CLIP without training; {baselines}federated: the fleet's shared "
        f"model, trained with {summary['method']}; {personal}gain: "
        f"{'personal' if has_personal else 'federated'} minus zero-shot, in percentage points. "
        "held out: no device trains on these pictures. encoded: pictures that went through the "
        "encoder in this run; the features of the others were in the cache. up, down: bytes sent "
        "and received. encode, train, wait: seconds in the whole run."
    )
    return filled(text, columns)


def progress(summary: Summary) -> str:
    """Say which rounds closed: "11 rounds and a vote", or "5 of 11 rounds"."""
    closed, rounds = summary["rounds_closed"], summary["rounds"] - summary["vote"]
    if closed < rounds:
        return f"{closed} of {counted(rounds)}"
    if not summary["vote"]:
        return counted(rounds)
    return f"{counted(rounds)} {'and a vote' if closed > rounds else 'without the vote'}"


def counted(rounds: int) -> str:
    """Return "1 round", "2 rounds", ..."""
    return f"{rounds} round{'s' * (rounds != 1)}"


def filled(text: str, columns: int | None = None) -> str:
    """Wrap a text into lines of at most `columns`, or 100; a % sign stays with its number."""
    joined = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(joined, min(columns or _NOTE_COLUMNS, _NOTE_COLUMNS))
    return lines.replace("\N{NO-BREAK SPACE}%", " %")


def _figures(device: Device, reports: Sequence[Report], closed: int) -> dict[str, Any]:
    own = {report.round: report for report in reports if report.device == device.id}
    if closed not in own or "zero_shot_all" not in own[closed].accuracy:
        raise RunError(
            f"the device {device.id} did not evaluate the last model; its log in the demo's folder "
            "logs shows the reason"
        )
    last = own[closed]
    return {
        "domain": device.domain,
        "pictures": {"train": last.train_pictures, "test": last.test_pictures},
        "encoded": last.encoded,
        "skipped": last.skipped,
        "accuracy": dict(last.accuracy),
        "per_class": {name: list(shares) for name, shares in last.per_class.items()},
        "accuracy_by_round": [
            own[number].accuracy["federated"] if number in own else None
            for number in range(closed + 1)
        ],
        "bytes_up_per_round": _per_round(last.bytes_up, closed),
        "bytes_down_per_round": _per_round(last.bytes_down, closed),
        "seconds": {
            "encode": round(last.encode_s, 2),
            "train": round(last.train_s, 2),
            "wait": round(last.wait_s, 2),
        },
    }


def _compared(
    figures: Mapping[str, Any], device: str, baselines: Baselines | None
) -> Mapping[str, Any]:
    """Add the accuracies of the baselines to those of a device."""
    if baselines is None:
        return figures
    by_round = list(baselines.fedclip[device])
    accuracy = {**figures["accuracy"], "fedclip": by_round[-1]}
    if device in baselines.alone:
        accuracy["local"] = baselines.alone[device]
        return {**figures, "accuracy": accuracy, "fedclip_by_round": by_round}
    alone = dict(baselines.alone_held_out)
    accuracy["local"] = statistics.fmean(alone.values())
    return {
        **figures,
        "accuracy": accuracy,
        "fedclip_by_round": by_round,
        "local_by_device": alone,
    }


def _entries(summary: Summary) -> list[Mapping[str, Any]]:
    """List the figures of all devices, the held-out one last."""
    return [*summary["devices"].values(), summary["held_out"]]


def _per_round(total_bytes: int | None, rounds: int) -> int | None:
    return None if total_bytes is None else round(total_bytes / rounds)


def _row(name: str, figures: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str, ...]:
    """Format a row; the gain is the personal model's if there is one, else the shared model's."""
    accuracy, pictures, seconds = figures["accuracy"], figures["pictures"], figures["seconds"]
    best = "personal" if "personal" in accuracy else "federated"
    gain = difference(accuracy, best, "zero_shot")
    return (
        name,
        f"{pictures['train']}+{pictures['test']}",
        str(figures["encoded"]),
        *(_percent(accuracy.get(kind)) for kind in kinds),
        "-" if gain is None else f"{100 * gain:+.1f}",
        _kilobytes(figures["bytes_up_per_round"]),
        _kilobytes(figures["bytes_down_per_round"]),
        *(f"{seconds[name]:.1f}" for name in ("encode", "train", "wait")),
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _kilobytes(count: int | None) -> str:
    return "n/a" if count is None else f"{count / 1000:.1f}"
