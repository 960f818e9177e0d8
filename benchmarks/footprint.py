"""What a fleet keeps in memory and says while it waits.

- crowd: many light devices in one process, and a round of them; the coordinator's and the broker's
  memory at their highest.
- slope: so many rounds of four devices; how the resident memory of the coordinator and of each
  device grows with the round, by least squares over all but the first fifth.
- idle: a real agent whose features are cached, with a coordinator that waits for more devices, and
  without one; its memory, and the bytes on its socket over some minutes, for an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import light
import system
from federation import Federation
from link import Link

from fedclip_edge.config import RunRules
from fedclip_edge.messaging import loopback
from fedclip_edge.parked import open_parked
from fedclip_edge.processes import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.vision.bundle import read_bundle

LIMITS = {
    "crowd_round_s": 6.0,
    "crowd_coordinator_mb": 200.0,
    "crowd_broker_mb": 60.0,
    "slope_coordinator_mb": 0.1,
    "slope_device_mb": 0.1,
    "idle_mb": 120.0,
    "idle_kb_an_hour": 20.0,
}
_CROWD_ROUNDS = 3
_KEEPALIVE_S = 60
_READY_S = 120.0


def memory_mb(process: int, field: str = "VmRSS") -> float:
    """What the kernel counts as resident; `VmHWM` for its highest."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(field)


def crowd(folder: Path, devices: int) -> dict[str, float]:
    folder.mkdir()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    rules = RunRules(devices=devices, quorum=1.0)
    plan = replace(Plan(), rounds=_CROWD_ROUNDS)
    with Children() as children:
        broker = loopback.start(children, folder / "broker")
        bundle = light.make_bundle(folder / "bundle")
        fleet = light.write_fleet(
            folder, bundle, broker.address.port, rules, plan, journal=folder / "journal.sqlite"
        )
        said = folder / "serve.log"  # a pipe that nobody reads would stop it
        serve = children.start(own_command("serve", str(fleet), "--json"), said)
        address = replace(broker.address, keepalive_s=_KEEPALIVE_S)
        names = [f"dev-{n}" for n in range(devices)]
        # All sockets before the first file: paho's select() knows no descriptor above 1023.
        connected = {
            name: light.connect(folder, bundle, address, name, seed=n, ready=2)
            for n, name in enumerate(names)
        }
        sessions = [
            begin(open_parked(light.state_of(folder, name) / "parked.sqlite"))
            for name, begin in connected.items()
        ]
        coordinator_mb = 0.0
        with (folder / "devices.log").open("w") as log, contextlib.redirect_stdout(log):
            while not all(session.finished for session in sessions):
                if serve.poll() is None:
                    with contextlib.suppress(ValueError):  # it has just ended
                        coordinator_mb = max(coordinator_mb, memory_mb(serve.pid, "VmHWM"))
                worked = False
                for session in sessions:
                    while (event := session.transport.next_event(0)) is not None:
                        session.take(event, time.monotonic())
                        worked = True
                    worked |= session.act(time.monotonic())
                if not worked:
                    time.sleep(0.002)
        broker_mb = memory_mb(broker.process.pid, "VmHWM")
        for session in sessions:
            session.transport.close()
            session.parked.close()
        serve.wait(_READY_S)
        events = [json.loads(line) for line in said.read_text().splitlines()]
    closed = [event["seconds"] for event in events if event["event"] == "round_closed"]
    return {
        "crowd_devices": devices,
        "crowd_first_round_s": closed[0],
        "crowd_round_s": max(closed[1:]),
        "crowd_coordinator_mb": coordinator_mb,
        "crowd_broker_mb": broker_mb,
    }


def slope(folder: Path, rounds: int) -> dict[str, float]:
    folder.mkdir()
    with Children() as children:
        port = loopback.start(children, folder / "broker").address.port
        fleet = Federation(
            children, folder / "fleet", port, RunRules(devices=4), replace(Plan(), rounds=rounds)
        )
        fleet.permit(rounds)
        processes = {"coordinator": fleet.serve.pid}
        processes |= {name: device.pid for name, device in fleet.devices.items()}
        seen: dict[str, list[float]] = {name: [] for name in processes}
        closed = []
        for _ in range(rounds - 1):
            closed.append(fleet.next_closed().at_s)
            for name, process in processes.items():
                seen[name].append(memory_mb(process))
        journal_mb = sum(p.stat().st_size for p in (folder / "fleet").glob("journal*")) / 1e6
        fleet.end()
    first = rounds // 5
    grows = {
        name: float(np.polyfit(np.arange(len(its) - first), its[first:], 1)[0])
        for name, its in seen.items()
    }
    return {
        "slope_rounds": rounds,
        "slope_median_s": float(np.median([b - a for a, b in pairwise(closed)])),
        "slope_coordinator_mb": grows.pop("coordinator"),
        "slope_coordinator_ends_mb": seen["coordinator"][-1],
        "slope_device_mb": max(grows.values()),
        "slope_device_ends_mb": max(seen[name][-1] for name in grows),
        "slope_journal_mb_a_round": journal_mb / rounds,
    }


def idle(folder: Path, minutes: float) -> dict[str, float]:
    folder.mkdir()
    bundle = folder / "bundle"
    subprocess.run(own_command("export", "tiny", "--out", str(bundle)), check=True)
    classes = read_bundle(bundle).classes.names
    system.write_pictures(folder / "pictures", classes, 20, 0)
    with Children() as children:
        port = loopback.start(children, folder / "broker").address.port
        with Link(port) as link, _agent(folder, bundle, link.door("filling"), "cold") as fresh:
            figures = {"idle_after_encoding_mb": memory_mb(fresh)}
        for alone in (True, False):
            name = "no coordinator" if alone else "gathering"
            with Children() as coordinators, Link(port) as link:
                if not alone:
                    fleet = light.write_fleet(
                        folder,
                        read_bundle(bundle),
                        port,
                        RunRules(devices=2),
                        Plan(),
                        journal=folder / "journal.sqlite",
                    )
                    coordinators.start(own_command("serve", str(fleet)), folder / "serve.log")
                with _agent(folder, bundle, link.door("agent"), name) as process:
                    time.sleep(5)
                    before = link.counted("agent")
                    began, bytes_before = time.monotonic(), before.up_bytes + before.down_bytes
                    time.sleep(60 * minutes)
                    after = link.counted("agent")
                    spent = after.up_bytes + after.down_bytes - bytes_before
                    hours = (time.monotonic() - began) / 3600
                    maps = Path(f"/proc/{process}/maps").read_text()
                    figures |= {
                        f"idle_mb, {name}": memory_mb(process),
                        f"idle_kb_an_hour, {name}": spent / 1e3 / hours,
                        f"torch loaded, {name}": float("libtorch" in maps),
                    }
    for figure in ("idle_mb", "idle_kb_an_hour"):
        figures[figure] = max(v for name, v in figures.items() if name.startswith(f"{figure}, "))
    return figures


@contextlib.contextmanager
def _agent(folder: Path, bundle: Path, port: int, name: str) -> Iterator[int]:
    """A connected agent's process id."""
    config = folder / "agent.toml"
    config.write_text(
        f'id = "cam-01"\nfleet = "{light.FLEET}"\nbundle = "{bundle}"\nstate_dir = "state"\n'
        f'[data]\nfolder = "pictures"\n[broker]\nport = {port}\nkeepalive_s = {_KEEPALIVE_S}\n'
    )
    log = folder / f"agent {name}.log"
    with Children() as children:
        started = children.start(own_command("agent", str(config)), log)
        deadline = time.monotonic() + _READY_S
        while " connected " not in log.read_text():
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the agent did not connect: {log.read_text()}")
            time.sleep(0.1)
        yield started.pid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=["crowd", "slope", "idle", []], default=[])
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; temporary otherwise")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure is missed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = options.what or ["crowd", "slope", "idle"]
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        if "crowd" in wanted:
            figures |= crowd(Path(made) / "crowd", options.devices)
        if "slope" in wanted:
            figures |= slope(Path(made) / "slope", options.rounds)
        if "idle" in wanted:
            figures |= idle(Path(made) / "idle", options.minutes)
    missed = [name for name, limit in LIMITS.items() if figures.get(name, 0.0) > limit]
    for name, value in figures.items():
        limit = f"  at most {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:36} {value:10.3f}{limit}{'  MISSED' if name in missed else ''}")
    if options.json:
        print(json.dumps(figures | {"missed": missed}))
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
