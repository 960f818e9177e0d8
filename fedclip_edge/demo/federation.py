"""The demo's processes: a broker, a coordinator, and one agent for each domain.

The coordinator's trainer evaluates on the held-out domain. The processes are the programs that a
user would start by hand, with the configurations that stage.py writes; they are started, watched
and ended here.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.demo.stage import DEADLINE_S, Stage, configure
from fedclip_edge.errors import RunError
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.transport import local_broker

# One JSON line of the coordinator's or trainer's log, or of a device's log with an event of these.
Event = Mapping[str, Any]
_FROM_DEVICES = frozenset({"encoding_pictures", "files_ignored", "not_used", "picture_skipped"})
_LOOK_S = 0.5  # between checks that every process is alive
_AGENT_ENDS_S = 20.0
_SERVE_ENDS_S = 20.0  # time for serve to disconnect and to end its trainer
# The longest time without an event after the first closed round: at the latest, a round has an
# event at its deadline. Before that there is no limit, because a device may encode for hours.
_SILENT_S = DEADLINE_S + 60.0


@dataclass(frozen=True)
class Started:
    """The broker's name and address, for the callback when all processes have been started."""

    broker: str
    address: BrokerAddress


@dataclass(frozen=True)
class _Watched:
    name: str
    process: subprocess.Popen[str]
    log: Path
    ends_with_run: bool = True  # it then exits with code 0, possibly before the run_done event


def run(stage: Stage, started: Callable[[Started], None], happened: Callable[[Event], None]) -> str:
    """Run the federation to its end and return the broker's name.

    `started` is called once, `happened` for each event. No process outlives the call. Raises
    RunError if a process ends too early or with an error, does not end with the run, or if there
    is no event for too long. Raises BrokerError if no broker can be started.
    """
    logs = stage.settings.out / "logs"
    logs.mkdir(exist_ok=True)
    for log in logs.iterdir():
        log.unlink()
    with Children() as children:
        broker = local_broker.start(children, logs)
        configure(stage, broker.address)
        log = logs / "serve.log"
        command = own_command("serve", "--once", str(stage.fleet), "--json")
        serve = children.start(command, log, pipe=True, ends_in_s=_SERVE_ENDS_S)
        lines = _lines(serve)
        watched = [
            _Watched("coordinator", serve, log),
            _Watched(broker.name, broker.process, logs / "broker.log", ends_with_run=False),
        ]
        for device in stage.devices:
            log = logs / f"{device.id}.log"
            command = own_command("agent", str(device.config), "--once", "--json")
            watched.append(_Watched(device.id, children.start(command, log), log))
        started(Started(broker.name, broker.address))
        _watch(lines, watched, happened)
        for one in watched:
            if one.ends_with_run:
                _await_end(one)
    return broker.name


def _watch(
    lines: queue.SimpleQueue[str | None],
    watched: list[_Watched],
    happened: Callable[[Event], None],
) -> None:
    """Pass events to `happened` until the run is done; raise RunError if it cannot continue."""
    heard_at, last, silent_s = time.monotonic(), "", math.inf
    read: dict[str, int] = {}
    while True:
        try:
            line = lines.get(timeout=_LOOK_S)
        except queue.Empty:
            _check_alive(watched)
            _pass_on(watched, read, happened)
            if time.monotonic() - heard_at > silent_s:
                raise RunError(
                    f"the run is stalled: no event for {silent_s:.0f} s after {last}; "
                    f"look into the logs of all processes in {watched[0].log.parent}"
                ) from None
            continue
        if line is None:  # the coordinator has ended
            raise RunError(_exit_message(watched[0]))
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a warning from a library
        happened(event)
        heard_at = time.monotonic()
        last = event["event"] + (f" of {event['device']}" if "device" in event else "")
        if event["event"] == "round_closed":
            silent_s = _SILENT_S
        if event["event"] == "run_done" and "run" in event:
            _pass_on(watched, read, happened)
            return
        if event["event"] == "trainer_ended" and event["code"] != 0:
            raise RunError(
                f"the agent of the held-out domain exited with code {event['code']} before the run "
                f"was done; the reason is in {watched[0].log}"
            )


def _pass_on(
    watched: list[_Watched], read: dict[str, int], happened: Callable[[Event], None]
) -> None:
    """Call `happened` with the new events in all devices' logs."""
    for one in watched[2:]:  # skip the coordinator and the broker
        for event in _device_events(one, read):
            happened(event)


def _device_events(one: _Watched, read: dict[str, int]) -> Iterator[Event]:
    """Yield new events about a device's pictures; `read` holds the byte offset in each log."""
    with one.log.open("rb") as file:
        file.seek(read.get(one.name, 0))
        lines = [line for line in file if line.endswith(b"\n")]
    read[one.name] = read.get(one.name, 0) + sum(map(len, lines))
    for line in lines:
        with contextlib.suppress(ValueError):  # not JSON: a warning from a library
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") in _FROM_DEVICES:
                yield {**event, "device": one.name}


def _check_alive(watched: list[_Watched]) -> None:
    for one in watched:
        code = one.process.poll()
        if code or (code == 0 and not one.ends_with_run):
            raise RunError(_exit_message(one))


def _await_end(one: _Watched) -> None:
    try:
        code = one.process.wait(_AGENT_ENDS_S)
    except subprocess.TimeoutExpired:
        raise RunError(
            f"the process {one.name} did not exit after the run; its log is {one.log}"
        ) from None
    if code != 0:
        raise RunError(_exit_message(one))


def _exit_message(one: _Watched) -> str:
    """Return the error message for a process that ended, with the last line of its log."""
    with contextlib.suppress(subprocess.TimeoutExpired):  # output may close before it ends
        one.process.wait(_LOOK_S)
    try:
        words = one.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        words = []
    last = words[-1].removeprefix("fedclip-edge: ") if words else "its log is empty"
    return (
        f"the process {one.name} exited with code {one.process.poll()} before the run was done: "
        f"{last} (log: {one.log})"
    )


def _lines(process: subprocess.Popen[str]) -> queue.SimpleQueue[str | None]:
    """Return a queue; a thread puts each line of the process's output into it, then None."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    output = process.stdout
    assert output is not None

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="serve-output", daemon=True).start()
    return lines
