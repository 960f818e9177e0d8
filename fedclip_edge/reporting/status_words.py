"""The state of a fleet in words, from the JSON object of `coordinator/snapshot.py`.

No text here has a line break.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fedclip_edge.reporting.figures import duration, kilobytes, percent, whole

# How bad each state of a device is; the worst comes first.
SEVERITY: Mapping[str, Literal["bad", "warning", "well", "past"]] = {
    "refused": "bad",
    "muted": "bad",
    "left out": "bad",
    "offline": "bad",
    "paused": "warning",
    "not seen": "warning",
    "late": "warning",
    "encoding": "well",
    "online": "well",
    "revoked": "past",
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


def headline(status: Mapping[str, Any]) -> str:
    """Name the run, its method and its progress."""
    run = status["run"]
    closed = f"{run['rounds_closed']} of {run['rounds']} rounds closed"
    return f"{run['id']}, method {run['method']}, {closed}"


def facts(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what a status says, as (name, sentence), without what it does not know."""
    run = status["run"]
    updates, model = (_size(run[f"{name}_bytes"]) for name in ("updates", "model"))
    rows = [
        ("now", _phase(run)),
        ("waiting for", _waiting(run["phase"], status["waiting"])),
        ("next run", _next(status["next"])),
        ("devices", _counts(status["counts"])),
        ("accuracy", _accuracy(status["accuracy"])),
        ("data", f"{updates} of updates in this run; the model has {model}"),
        ("traffic", _traffic(status["traffic"])),
        ("certificates", _certificates(status["certificates"])),
        ("refused", _refused(status["refused_messages"])),
    ]
    return [(name, text) for name, text in rows if text]


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
    states = [name for name in reversed(list(SEVERITY)) if name.replace(" ", "_") in counts]
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


def _traffic(traffic: Mapping[str, int] | None) -> str:
    if traffic is None:
        return ""
    return (
        f"the coordinator has sent {_size(traffic['up'])} and received {_size(traffic['down'])} "
        "since it started"
    )


def _refused(count: int) -> str:
    return f"{count} messages since the coordinator started; its log says why" if count else ""


def _size(count: int) -> str:
    return f"{kilobytes(count)} kB" if count < 1_000_000 else f"{whole(count / 1e6)} MB"
