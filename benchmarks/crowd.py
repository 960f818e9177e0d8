"""A thousand light devices on one machine, in processes of some hundred each.

One real broker, one real `fedclip-edge serve`, and devices with the product's session, loop,
transport and state file. paho waits with select(), which cannot use descriptors above 1,023, so one
process cannot hold them all. All devices connect first. Then they say hello and fetch the model at
once.

Run as a program, it is one such process: it connects its devices and runs them to the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import light
from processes import memory_mb, processor_s

from fedclip_edge import log
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.state_db import StateDb, open_state_db
from fedclip_edge.agent.working import work
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.transport import local_broker
from fedclip_edge.vision.bundle import read_bundle

_ROUNDS = 4
_A_PROCESS = 125  # devices; each needs five descriptors, below select's 1,024
_KEEPALIVE_S = 60
_READY_S = 300.0
_ROUND_S = 300.0
_TICK_S = 0.2
_STACK_BYTES = 2**18  # of a device's threads; three for each device


@dataclass(frozen=True)
class _Moment:
    """A line of the coordinator's log, and what its process had used when the line came."""

    fields: Mapping[str, Any]
    at_s: float
    coordinator_s: float
    broker_s: float
    devices_s: float


def crowd(folder: Path, devices: int) -> dict[str, float]:
    """Run a crowd for some rounds and measure the coordinator.

    CPU time is that of whole processes, user and system, all threads. Other programs make it only
    a little larger. The times of rounds are only meaningful on a machine that is idle otherwise.
    """
    folder.mkdir()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    rules = RunRules(devices=devices, quorum=1.0)
    plan = Plan("fedclip", rounds=_ROUNDS, vote="off")
    with Children() as children:
        broker = local_broker.start(children, folder / "broker")
        bundle = light.make_bundle(folder / "bundle")
        fleet = light.write_fleet(
            folder, bundle, broker.address.port, rules, plan, journal=folder / "journal.sqlite"
        )
        serve = children.start(
            own_command("serve", "--once", str(fleet), "--json"), folder / "serve.log", pipe=True
        )
        crowds = [
            _start(children, folder, broker.address.port, first, min(_A_PROCESS, devices - first))
            for first in range(0, devices, _A_PROCESS)
        ]
        _await_ready(crowds, folder)
        seen: queue.SimpleQueue[_Moment] = queue.SimpleQueue()
        reader = threading.Thread(
            target=_read, args=(serve, broker.process, crowds, seen), daemon=True
        )
        reader.start()
        begins = _moment({}, serve, broker.process, crowds)
        (folder / "go").touch()
        closed = [seen.get(timeout=_ROUND_S) for _ in range(_ROUNDS)]
        coordinator_mb = memory_mb(serve.pid, "VmHWM")
        broker_mb = memory_mb(broker.process.pid, "VmHWM")
        devices_mb = sum(memory_mb(each.pid) for each in crowds)
        serve.wait(_READY_S)
        reader.join()
    first, last, later = closed[0], closed[-1], _ROUNDS - 1
    contributions = sum(moment.fields["contributions"] for moment in closed[1:])
    assert contributions == devices * later
    return {
        "crowd_devices": devices,
        "crowd_join_and_first_round_s": first.at_s - begins.at_s,
        "crowd_round_s": max(moment.fields["seconds"] for moment in closed[1:]),
        "crowd_median_round_s": sorted(moment.fields["seconds"] for moment in closed[1:])[
            later // 2
        ],
        # The whole round: contributions, reports on the model before, the new model.
        "crowd_coordinator_ms": 1e3 * (last.coordinator_s - first.coordinator_s) / contributions,
        # The same with each device's hello, and the model that each one asked for.
        "crowd_coordinator_first_ms": 1e3 * (first.coordinator_s - begins.coordinator_s) / devices,
        "crowd_coordinator_mb": coordinator_mb,
        "crowd_broker_ms": 1e3 * (last.broker_s - first.broker_s) / contributions,
        "crowd_broker_mb": broker_mb,
        "crowd_device_ms": 1e3 * (last.devices_s - first.devices_s) / contributions,
        "crowd_devices_mb": devices_mb,
        "crowd_update_bytes": last.fields["updates_bytes"] / devices,
        "crowd_model_bytes": last.fields["model_bytes"],
    }


def _start(
    children: Children, folder: Path, port: int, first: int, count: int
) -> subprocess.Popen[str]:
    # With one arena of memory for each thread, the devices would need three times as much.
    command = ["env", "MALLOC_ARENA_MAX=1", sys.executable, __file__, str(folder)]
    command += ["--port", str(port)]
    command += ["--first", str(first), "--count", str(count)]
    return children.start(command, folder / f"devices-{first}.log")


def _await_ready(crowds: list[subprocess.Popen[str]], folder: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while len(list(folder.glob("ready-*"))) < len(crowds):
        ended = [each for each in crowds if each.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("devices-*.log"))
            raise RuntimeError(f"the devices did not connect:\n{logs}")
        time.sleep(0.1)


def _read(
    serve: subprocess.Popen[str],
    broker: subprocess.Popen[str],
    crowds: list[subprocess.Popen[str]],
    seen: queue.SimpleQueue[_Moment],
) -> None:
    """Read the coordinator's log to its end, so that the pipe never blocks it."""
    assert serve.stdout is not None
    for line in serve.stdout:
        if '"round_closed"' in line:
            seen.put(_moment(json.loads(line), serve, broker, crowds))


def _moment(
    fields: Mapping[str, Any],
    serve: subprocess.Popen[str],
    broker: subprocess.Popen[str],
    crowds: list[subprocess.Popen[str]],
) -> _Moment:
    return _Moment(
        fields,
        time.monotonic(),
        processor_s(serve.pid),
        processor_s(broker.pid),
        sum(processor_s(each.pid) for each in crowds),
    )


def _run(folder: Path, port: int, first: int, count: int) -> None:
    """Connect `count` devices, wait until all of the crowd are connected, and run them."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))  # else select() fails later
    threading.stack_size(_STACK_BYTES)
    log.use_json(True)
    bundle = read_bundle(folder / "bundle")
    address = BrokerAddress(port=port, keepalive_s=_KEEPALIVE_S)
    # Shared: a thousand devices with updates of their own would need 4 GB.
    updates = light.ReadyUpdates(first, count=4)
    begins = {
        name: light.connect(folder / "state", bundle, address, name, updates)
        for name in (f"dev-{n:04}" for n in range(first, first + count))
    }
    (folder / f"ready-{first}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    turn = threading.Lock()
    threads = [
        threading.Thread(target=_live, args=(folder / "state", name, begin, turn), daemon=True)
        for name, begin in begins.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _live(
    folder: Path, name: str, begin: Callable[[StateDb], Session], turn: threading.Lock
) -> None:
    """One device. It is `agent.loop.loop`, except that the devices of a process take turns.

    All at work at once would need ten times as much memory. SQLite needs the thread that opened a
    file.
    """
    with contextlib.closing(
        open_state_db(light.state_of(folder, name) / "parked.sqlite")
    ) as state_db:
        session, worked = begin(state_db), False
        while not session.finished:
            event = session.transport.next_event(0 if worked else _TICK_S)
            with turn:
                while event is not None:
                    session.handle_event(event, time.monotonic())
                    event = session.transport.next_event(0)
                worked = session.act(time.monotonic())
                worked = work(session) or worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    _run(options.folder, options.port, options.first, options.count)
    sys.stdout.flush()
    os._exit(0)  # at once: closing hundreds of links one after the other takes minutes


if __name__ == "__main__":
    main()
