"""Tables of devices and classes, from the JSON objects of `coordinator/snapshot.py`.

Law: without a terminal no text has a colour, and on a terminal no line is wider than it.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from fedclip_edge.reporting.figures import duration, kilobytes, norm, number, points
from fedclip_edge.reporting.names import columns_of
from fedclip_edge.reporting.status_words import SEVERITY
from fedclip_edge.reporting.table import aligned, printable, width_of

# Colours of rich, by how bad a state is.
_COLOURS = {"bad": "red", "warning": "yellow", "well": "", "past": "bright_black"}
_COLUMNS = 100  # of a text that no terminal limits
_LABEL = 15  # columns of the names in front of the lines of a status
_ID = 12  # hex digits of a hash that people compare


def device_table(rows: Sequence[Mapping[str, Any]], stream: TextIO, *, costs: bool = True) -> str:
    """Format devices as a table, and the reasons for their states below it.

    With `costs`, it also has their contributions, bytes, seconds, providers, versions and
    certificates.
    """
    has_own = any("personal" in row["accuracy"] for row in rows)
    kinds = ("zero_shot", "federated", "personal")[: 2 + has_own]
    head = ["device", "state", "seen", "pictures", "zero-shot", "shared", "own"][: 6 + has_own]
    head += ["gain", "norm"]
    head += ["rounds", "up", "down", "encode", "train", "wait", "runs on", "version", "cert."]
    units = ["", "", "ago", "tr+val+te", "%", "%", "%"][: 6 + has_own]
    units += ["points", ""]
    first = range(1, len(units))
    units += ["sent", "kB", "kB", "s", "s", "s", "", "", "ends"]
    last = range(first.stop, len(units))
    shown = len(head) if costs else last.start
    table = aligned(
        [line[:shown] for line in (head, units, *(_cells(row, kinds) for row in rows))],
        width=width_of(stream),
        align=("ll" + "r" * (len(head) - 5) + "lll")[:shown],
        parts=[first, last] if costs else [first],
        colours=["bold", "bright_black", *(_COLOURS[SEVERITY[row["state"]]] for row in rows)]
        if has_colour(stream)
        else (),
    )
    reasons = [(row["id"], f"{row['state']}: {row['detail']}") for row in rows if row["detail"]]
    return f"{table}\n\n{facts_text(reasons, width_of(stream))}" if reasons else table


def device_text(found: Mapping[str, Any], row: Mapping[str, Any], stream: TextIO) -> str:
    """Format one device with its pictures and accuracies by class."""
    ours = found["bundle"]
    seconds = (f"{name} {_s(row[f'{name}_s'])} s" for name in ("encode", "train", "wait"))
    facts = [
        ("state", ": ".join(filter(None, (row["state"], row["detail"])))),
        ("in the round", row["part"] or ""),
        ("last seen", _ago(row["seen_s"])),
        ("domain", row["domain"]),
        ("roles", _roles(row)),
        ("provider", row["provider"] or ""),
        ("version", _version(row["version"], found["version"])),
        ("bundle", _bundle(row, ours)),
        ("certificate", f"ends {row['certificate_ends']}" if row["certificate_ends"] else ""),
        ("contributions", f"{row['contributions']}; norm of the last one {norm(row['norm'])}"),
        ("sent, received", f"{_kb(row['bytes_up'])} kB, {_kb(row['bytes_down'])} kB"),
        ("time", ", ".join(seconds)),
        ("not readable", f"{row['skipped']} files" if row["skipped"] else ""),
        ("refused", f"{row['refused_messages']} messages" if row["refused_messages"] else ""),
        ("withheld", _withheld(row["pictures"])),
    ]
    lines = [row["id"], facts_text([fact for fact in facts if fact[1]], width_of(stream))]
    by_class = class_table([row], found["classes"], stream)
    return "\n".join(lines + (["", by_class] if by_class else []))


def _roles(row: Mapping[str, Any]) -> str:
    if row["pictures"] is not None and not row["roles"]:
        return "none now: it only receives models"
    return ", ".join(row["roles"])


def class_table(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], stream: TextIO) -> str:
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
        lines.append((name, str(having), *map(str, totals), *map(percent_text, shares)))
    return aligned(lines, width=width_of(stream), gap="  ")


def has_colour(stream: TextIO) -> bool:
    """Return whether a text may have colours: on a terminal, unless NO_COLOR is set."""
    is_dumb = os.environ.get("TERM") in ("dumb", "unknown")
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb


def facts_text(rows: Sequence[tuple[str, str]], width: int | None) -> str:
    """Format names and sentences; a long sentence continues in the next line, below itself."""
    label = max(_LABEL, *(columns_of(name) + 2 for name, _ in rows))
    room = max(20, (width or _COLUMNS) - label)
    lines = []
    for name, text in rows:
        first, *others = textwrap.wrap(printable(text), room) or [""]
        lines.append(f"{name}{' ' * (label - columns_of(name))}{first}")
        lines += [" " * label + other for other in others]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], kinds: Sequence[str]) -> tuple[str, ...]:
    pictures, accuracy = row["pictures"], row["accuracy"]
    sides = ("train", "validation", "test")
    return (
        row["id"],
        row["state"],
        _ago(row["seen_s"]),
        "-" if pictures is None else "+".join(str(pictures[side]) for side in sides),
        *(percent_text(accuracy.get(kind)) for kind in kinds),
        gain_text(accuracy),
        "-" if row["norm"] is None else norm(row["norm"]),
        str(row["contributions"]),
        _kb(row["bytes_up"]),
        _kb(row["bytes_down"]),
        _s(row["encode_s"]),
        _s(row["train_s"]),
        _s(row["wait_s"]),
        row["provider"] or "-",
        row["version"] or "-",
        row["certificate_ends"] or "-",
    )


def _version(theirs: str | None, ours: str) -> str:
    """The version of a device's program, and the coordinator's if that is another one."""
    if not theirs:
        return ""
    return theirs if theirs == ours else f"{theirs}; the coordinator has {ours}"


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


def gain_text(accuracy: Mapping[str, Any]) -> str:
    best = "personal" if "personal" in accuracy else "federated"
    new, old = number(accuracy.get(best)), number(accuracy.get("zero_shot"))
    return "-" if new is None or old is None else points(new - old)


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def percent_text(value: object) -> str:
    known = number(value)
    return "-" if known is None else f"{100 * known:.1f}"


def _kb(value: object) -> str:
    return "-" if number(value) is None else kilobytes(value)


def _s(value: object) -> str:
    known = number(value)
    return "-" if known is None else f"{known:.1f}"
