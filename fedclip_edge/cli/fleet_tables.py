"""Texts of `status`, `devices` and `runs`, from the JSON objects of the coordinator.

Law: without a terminal no text has a colour, and on a terminal no line is wider than it.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from fedclip_edge.cli.progress import duration
from fedclip_edge.reporting import run_table
from fedclip_edge.reporting.figures import kilobytes, norm, number, percent, points, whole
from fedclip_edge.reporting.names import columns_of
from fedclip_edge.reporting.run_figures import worst_first
from fedclip_edge.reporting.run_page import conclusion
from fedclip_edge.reporting.table import aligned, printable, width_of

_WORST = "red"
_WARNS = "yellow"
_COLOURS = {
    "refused": _WORST,
    "muted": _WORST,
    "left out": _WORST,
    "offline": _WARNS,
    "not seen": _WARNS,
    "late": _WARNS,
    "encoding": "",
    "online": "",
    "revoked": "bright_black",
}
_PHASES = {
    "gathering": "waits for devices",
    "open": "open",
    "final": "the devices evaluate the last model",
    "done": "done",
}
_DONE = {
    "gathering": "{has} of {needs} devices that it needs are online",
    "open": "{has} of {needs} contributions that it needs are in",
    "final": "{has} of {needs} devices have evaluated it",
}
_DEVICES = 20  # of a run that are shown without --all
_COLUMNS = 100  # of a text that no terminal limits
_LABEL = 15  # columns of the names in front of the lines of a status
_ID = 12  # hex digits of a hash that people compare


def status_text(status: Mapping[str, Any], stream: TextIO = sys.stdout) -> str:
    """Format a status (`coordinator/snapshot.py`)."""
    run = status["run"]
    closed = f"{run['rounds_closed']} of {run['rounds']} rounds closed"
    lines = [f"fleet {status['fleet']}: {run['id']}, method {run['method']}, {closed}"]
    updates, model = (_size(run[f"{name}_bytes"]) for name in ("updates", "model"))
    facts = [
        ("now", _phase(run)),
        ("waiting for", _waiting(run["phase"], status["waiting"])),
        ("next run", _next(status["next"])),
        ("devices", _counts(status["counts"])),
        ("accuracy", _accuracy(status["accuracy"])),
        ("data", f"{updates} of updates in this run; the model has {model}"),
        ("certificates", _certificates(status["certificates"])),
        ("refused", _refused(status["refused_messages"])),
    ]
    width = width_of(stream)
    rows = [(name, text) for name, text in facts if text]
    lines.append(_facts(rows, width))
    if status["devices"]:
        lines += ["", device_table(status["devices"], stream, costs=False)]
    if status["more"]:
        lines.append(f"and {status['more']} more; --all shows every device")
    return "\n".join(lines)


def device_table(
    rows: Sequence[Mapping[str, Any]], stream: TextIO = sys.stdout, *, costs: bool = True
) -> str:
    """Format devices as a table, and the reasons for their states below it.

    With `costs`, it also has their contributions, bytes, seconds, providers and certificates.
    """
    has_own = any("personal" in row["accuracy"] for row in rows)
    kinds = ("zero_shot", "federated", "personal")[: 2 + has_own]
    head = ["device", "state", "seen", "pictures", "zero-shot", "shared", "own"][: 6 + has_own]
    head += ["gain", "norm", "rounds", "up", "down", "encode", "train", "wait", "runs on", "cert."]
    units = ["", "", "ago", "tr+val+te", "%", "%", "%"][: 6 + has_own]
    units += ["points", "", "sent", "kB", "kB", "s", "s", "s", "", "ends"]
    first, last = range(1, len(units) - 8), range(len(units) - 8, len(units))
    shown = len(head) if costs else last.start
    table = aligned(
        [line[:shown] for line in (head, units, *(_cells(row, kinds) for row in rows))],
        width=width_of(stream),
        align=("ll" + "r" * (len(head) - 4) + "ll")[:shown],
        parts=[first, last] if costs else [first],
        colours=["bold", "bright_black", *(_COLOURS[row["state"]] for row in rows)]
        if has_colour(stream)
        else (),
    )
    reasons = [(row["id"], f"{row['state']}: {row['detail']}") for row in rows if row["detail"]]
    return f"{table}\n\n{_facts(reasons, width_of(stream))}" if reasons else table


def device_text(found: Mapping[str, Any], row: Mapping[str, Any], stream: TextIO) -> str:
    """Format one device with its pictures and accuracies by class."""
    ours = found["bundle"]
    seconds = (f"{name} {_s(row[f'{name}_s'])} s" for name in ("encode", "train", "wait"))
    facts = [
        ("state", ": ".join(filter(None, (row["state"], row["detail"])))),
        ("last seen", _ago(row["seen_s"])),
        ("domain", row["domain"]),
        ("roles", ", ".join(row["roles"])),
        ("provider", row["provider"] or ""),
        ("bundle", _bundle(row, ours)),
        ("certificate", f"ends {row['certificate_ends']}" if row["certificate_ends"] else ""),
        ("contributions", f"{row['contributions']}; norm of the last one {norm(row['norm'])}"),
        ("sent, received", f"{_kb(row['bytes_up'])} kB, {_kb(row['bytes_down'])} kB"),
        ("time", ", ".join(seconds)),
        ("not readable", f"{row['skipped']} files" if row["skipped"] else ""),
        ("refused", f"{row['refused_messages']} messages" if row["refused_messages"] else ""),
        ("withheld", _withheld(row["pictures"])),
    ]
    lines = [row["id"], _facts([fact for fact in facts if fact[1]], width_of(stream))]
    by_class = class_table([row], found["classes"], stream)
    return "\n".join(lines + (["", by_class] if by_class else []))


def class_table(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], stream: TextIO = sys.stdout
) -> str:
    """Format the pictures and the mean accuracy of each class over some devices.

    Empty if no device says how many pictures it has of each class.
    """
    told = [row for row in rows if row["pictures_by_class"]]
    if not told or not classes:
        return ""
    lines: list[tuple[str, ...]] = [
        ("class", "devices", "train", "validation", "test", "zero-shot", "shared"),
        ("", "that train", "pictures", "pictures", "pictures", "%", "%"),
    ]
    for place, name in enumerate(classes):
        counts = {
            side: [_at(row["pictures_by_class"].get(side, ()), place) or 0 for row in told]
            for side in ("train", "validation", "test")
        }
        shares = [
            _weighted([row["accuracy_by_class"].get(kind, ()) for row in told], counts, place)
            for kind in ("zero_shot", "federated")
        ]
        having = sum(count > 0 for count in counts["train"])
        totals = [sum(its) for its in counts.values()]
        lines.append((name, str(having), *map(str, totals), *map(_percent, shares)))
    return aligned(lines, width=width_of(stream), gap="  ")


def runs_table(rows: Sequence[Mapping[str, Any]], stream: TextIO = sys.stdout) -> str:
    """Format runs (`coordinator/run_report.py: brief`) as a table."""
    head: tuple[str, ...] = ("run", "state", "started", "took", "method", "rounds", "devices")
    head += ("zero-shot", "shared", "gain", "updates")
    units = ("", "", "", "", "", "closed", "", "%", "%", "points", "kB")
    cells = [
        (
            row["run"],
            row["state"],
            _date(row["started_at"]),
            "-" if row["seconds"] is None else duration(row["seconds"]),
            row["method"],
            f"{row['rounds_closed']}/{row['rounds']}",
            str(row["devices"]),
            _percent(row["accuracy"].get("zero_shot")),
            _percent(row["accuracy"].get("federated")),
            _gain(row["accuracy"]),
            kilobytes(row["updates_bytes"]),
        )
        for row in rows
    ]
    return aligned(
        [head, units, *cells],
        width=width_of(stream),
        align="lllrl" + "r" * 6,
        gap="  ",
        parts=[range(1, 7), range(7, 11)],
    )


def summary_text(
    summary: Mapping[str, Any], *, every: bool = False, stream: TextIO = sys.stdout
) -> str:
    """Format the summary of a run (`coordinator/run_report.py`), the worst devices first."""
    width = width_of(stream)
    ranked = list(worst_first(summary["devices"]).items())
    shown = ranked if every else ranked[:_DEVICES]
    lines = [
        run_table.filled(conclusion(summary), width),
        "",
        _facts(
            [
                ("run", f"{summary['run']} of the fleet {summary['fleet']}: {summary['state']}"),
                ("method", summary["method"]),
                *([("vote", summary["vote"]["said"])] if summary["vote"] else []),
            ],
            width,
        ),
        "",
        run_table.table({**summary, "devices": dict(shown)}, width),
    ]
    if len(ranked) > len(shown):
        lines.append(f"and {len(ranked) - len(shown)} more; --all shows every device")
    lines += ["", _contributions(dict(shown), summary["rounds_closed"], width)]
    lines += ["", run_table.notes(summary, width)]
    return "\n".join(lines)


def _contributions(devices: Mapping[str, Any], closed: int, width: int | None) -> str:
    head = ("device", "contributions", "median norm", "largest norm", "updates, kB")
    rows = [
        (
            device,
            f"{entry['contributions']}/{closed}",
            norm(entry["norm"]),
            norm(entry["norm_largest"]),
            kilobytes(entry["updates_bytes"]),
        )
        for device, entry in devices.items()
    ]
    return aligned([head, *rows], width=width, gap="  ")


def has_colour(stream: TextIO) -> bool:
    """Return whether a text may have colours: on a terminal, unless NO_COLOR is set."""
    is_dumb = os.environ.get("TERM") in ("dumb", "unknown")
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb


def _facts(rows: Sequence[tuple[str, str]], width: int | None) -> str:
    """Format names and sentences; a long sentence continues in the next line, below itself."""
    label = max(_LABEL, *(columns_of(name) + 2 for name, _ in rows))
    room = max(20, (width or _COLUMNS) - label)
    lines = []
    for name, text in rows:
        first, *others = textwrap.wrap(printable(text), room) or [""]
        lines.append(f"{name}{' ' * (label - columns_of(name))}{first}")
        lines += [" " * label + other for other in others]
    return "\n".join(lines)


def _phase(run: Mapping[str, Any]) -> str:
    what = f"{run['kind']} {run['round']} of {run['rounds']}"
    if run["state"] == "held":
        return "not started"
    if run["state"] in ("done", "abandoned"):
        return f"{run['state']} after {duration(run['running_s'])}; devices get the last model"
    if run["phase"] in ("final", "done"):
        return _PHASES[run["phase"]]
    paused = "; paused: no further round opens until `fedclip-edge run resume`"
    if run["paused"] and run["phase"] != "open":
        return what + paused
    said = f"{what} {_PHASES[run['phase']]}"
    if run["attempt"] > 1:
        said += f", attempt {run['attempt']}"
    if run["phase"] == "open":
        said += (
            f"; {run['contributions']} of {run['cohort']} contributions, needs {run['quorum']}; "
            f"{duration(max(0.0, run['deadline_in_s']))} to the deadline"
        )
    return f"{said}{paused if run['paused'] else ''}"


def _waiting(phase: str, waiting: Mapping[str, Any] | None) -> str:
    if (
        waiting is None
        or phase not in _DONE
        or (not waiting["missing"] and waiting["has"] >= waiting["needs"])
    ):
        return ""
    named = ", ".join(f"{one['id']} ({one['why']})" for one in waiting["missing"])
    more = f" and {waiting['more']} more" if waiting["more"] else ""
    done = _DONE[phase].format(**waiting)
    return f"{named}{more}; {done}" if named else done


def _next(following: Mapping[str, Any] | None) -> str:
    """Describe what the next run waits for; empty while a run is under way."""
    if following is None:
        return ""
    causes = []
    if following["at"] is not None:
        causes.append(f"at {following['at']}")
    if following["new_pictures"] is not None:
        has, needs = following["has_new_pictures"], following["new_pictures"]
        causes.append(f"when the devices have {needs} new pictures ({has} so far)")
    return ", or ".join([*causes, "with `fedclip-edge run start`"])


def _counts(counts: Mapping[str, Any]) -> str:
    total = counts["known"] if counts["enrolled"] is None else counts["enrolled"]
    what = "seen in this run" if counts["enrolled"] is None else "enrolled"
    states = [name for name in (*reversed(_COLOURS),) if name.replace(" ", "_") in counts]
    named = ", ".join(f"{counts[name.replace(' ', '_')]} {name}" for name in states)
    return f"{total} {what}{': ' if named else ''}{named}"


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return "not reported yet"
    own = f", own {percent(accuracy['personal'])}" if "personal" in accuracy else ""
    count = accuracy["devices"]
    mean = f"mean of {count} devices" if count != 1 else "of 1 device"
    return (
        f"zero-shot {percent(accuracy['zero_shot'])}, shared {percent(accuracy['federated'])}{own} "
        f"({mean})"
    )


def _certificates(ends: Mapping[str, Any]) -> str:
    said = [
        f"the {name}'s ends {ends[name]}" for name in ("coordinator", "authority") if name in ends
    ]
    if "first_device" in ends:
        first = ends["first_device"]
        said.append(f"of the devices, that of {first['id']} ends first: {first['ends']}")
    return "; ".join(said)


def _refused(count: int) -> str:
    return f"{count} messages since the coordinator started; its log says why" if count else ""


def _cells(row: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str, ...]:
    pictures, accuracy = row["pictures"], row["accuracy"]
    sides = ("train", "validation", "test")
    return (
        row["id"],
        row["state"],
        _ago(row["seen_s"]),
        "-" if pictures is None else "+".join(str(pictures[side]) for side in sides),
        *(_percent(accuracy.get(kind)) for kind in kinds),
        _gain(accuracy),
        "-" if row["norm"] is None else norm(row["norm"]),
        str(row["contributions"]),
        _kb(row["bytes_up"]),
        _kb(row["bytes_down"]),
        _s(row["encode_s"]),
        _s(row["train_s"]),
        _s(row["wait_s"]),
        row["provider"] or "-",
        row["certificate_ends"] or "-",
    )


def _bundle(row: Mapping[str, Any], ours: Mapping[str, str]) -> str:
    if row["encoder_id"] is None:
        return ""
    differs = [
        name.split("_")[0] for name in ("encoder_id", "classes_digest") if row[name] != ours[name]
    ]
    said = f"encoder {row['encoder_id'][:_ID]}, classes {row['classes_digest'][:_ID]}"
    return f"{said}; not those of the run: {', '.join(differs)}" if differs else said


def _withheld(pictures: Mapping[str, int] | None) -> str:
    if pictures is None or not pictures["withheld"]:
        return ""
    return f"{pictures['withheld']} pictures of classes with few pictures (min_per_class)"


def _weighted(
    shares: Sequence[Sequence[float | None]], counts: Mapping[str, Sequence[int]], place: int
) -> float | None:
    """The accuracy of a class over devices, weighted by their test pictures of it."""
    pairs = [
        (share, count)
        for its, count in zip(shares, counts["test"], strict=True)
        if (share := _at(its, place)) is not None and count
    ]
    total = sum(count for _, count in pairs)
    return sum(share * count for share, count in pairs) / total if total else None


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def _gain(accuracy: Mapping[str, Any]) -> str:
    best = "personal" if "personal" in accuracy else "federated"
    new, old = number(accuracy.get(best)), number(accuracy.get("zero_shot"))
    return "-" if new is None or old is None else points(new - old)


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _percent(value: object) -> str:
    known = number(value)
    return "-" if known is None else f"{100 * known:.1f}"


def _kb(value: object) -> str:
    return "-" if number(value) is None else kilobytes(value)


def _s(value: object) -> str:
    known = number(value)
    return "-" if known is None else f"{known:.1f}"


def _size(count: int) -> str:
    return f"{kilobytes(count)} kB" if count < 1_000_000 else f"{whole(count / 1e6)} MB"


def _date(at: float | None) -> str:
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
