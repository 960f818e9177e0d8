"""Memory and traffic of a fleet that waits, and memory of an agent's processes.

- crowd: a thousand light devices (crowd.py); the time of one of their rounds, the CPU time of the
  coordinator for each contribution, and the peak memory of coordinator and broker.
- slope: many rounds of four devices; the growth of the resident memory of the coordinator and of
  each device per round, by least squares without the first fifth.
- idle: a real agent with cached features, with a coordinator that waits for more devices, and
  without one; its memory, and the bytes on its socket in whole periods of its own messages (five
  and ten minutes), scaled to an hour.
- agent: one agent's processes while it encodes, trains and waits (agent_memory.py). `--bundle`
  names the bundle to measure with.
- page: a waiting coordinator and a waiting agent with `[page]`, before somebody opens the page and
  while it is open (page_memory.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import light
import system
from agent_memory import agent_memory
from crowd import crowd
from federation import Federation
from link import Link
from page_memory import page_memory
from processes import memory_mb

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.transport import local_broker
from fedclip_edge.vision.bundle import read_bundle

LIMITS = {
    "crowd_round_s": 35.0,
    "crowd_coordinator_ms": 5.0,
    "crowd_coordinator_mb": 300.0,
    "slope_coordinator_mb": 0.1,
    "slope_device_mb": 0.1,
    "idle_mb": 80.0,
    "waiting: main, resident MB": 80.0,
    "waiting again: main, resident MB": 80.0,
    "encoding: all processes, PSS MB": 400.0,
    "training: all processes, PSS MB": 450.0,
    "idle_kb_an_hour": 20.0,
    "agent, nobody looks: main, resident MB": 110.0,
    "agent, page open: all processes, PSS MB": 110.0,
    "coordinator, nobody looks: main, resident MB": 120.0,
    "coordinator, page open: all processes, PSS MB": 120.0,
}
_KEEPALIVE_S = 60
_READY_S = 120.0
_SETTLES_S = 10.0
_ASKS_S = 610.0  # a waiting device asks once per deadline_s, by default 600
_RAMP_S = 240.0  # hellos after 10, 20, 40 ... s; the next interval is the full one
_RARE_S = 300.0  # the longest interval between hellos


def slope(folder: Path, rounds: int) -> dict[str, float]:
    folder.mkdir()
    with Children() as children:
        port = local_broker.start(children, folder / "broker").address.port
        fleet = Federation(
            children,
            folder / "fleet",
            port,
            RunRules(devices=4),
            Plan("fedclip", rounds=rounds, vote="off"),
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


def idle(folder: Path) -> dict[str, float]:
    folder.mkdir()
    bundle = _tiny(folder / "bundle")
    classes = read_bundle(bundle).classes.names
    system.write_pictures(folder / "pictures", classes, 20, 0)
    fleet = light.FLEET
    with Children() as children, contextlib.ExitStack() as agents:
        port = local_broker.start(children, folder / "broker").address.port
        link = agents.enter_context(Link(port))
        with _agent(folder, bundle, link.door("filling"), fleet, "state") as process:
            figures = {"idle_after_encoding_mb": memory_mb(process)}
        rules, journal = RunRules(devices=2), folder / "journal.sqlite"
        toml = light.write_fleet(
            folder, read_bundle(bundle), port, rules, Plan("fedclip"), journal=journal
        )
        children.start(own_command("serve", "--once", str(toml)), folder / "serve.log")
        processes = {}
        for name, its in (("gathering", fleet), ("no coordinator", "nobodys")):
            state = name.replace(" ", "-")
            shutil.copytree(folder / "state", folder / state)
            agent = _agent(folder, bundle, link.door(name), its, state)
            processes[name] = agents.enter_context(agent)
        began = time.monotonic()

        def counted(name: str, at_s: float) -> int:
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            door = link.counted(name)
            return door.up_bytes + door.down_bytes

        known = counted("gathering", _SETTLES_S)
        rare = counted("no coordinator", _RAMP_S)
        rare = counted("no coordinator", _RAMP_S + _RARE_S) - rare
        known = counted("gathering", _SETTLES_S + _ASKS_S) - known
        for name, spent, seconds in (
            ("no coordinator", rare, _RARE_S),
            ("gathering", known, _ASKS_S),
        ):
            process = processes[name]
            maps = Path(f"/proc/{process}/maps").read_text()
            figures |= {
                f"idle_mb, {name}": memory_mb(process),
                f"idle_kb_an_hour, {name}": spent / 1e3 * 3600 / seconds,
                f"torch loaded, {name}": float("libtorch" in maps),
            }
    for figure in ("idle_mb", "idle_kb_an_hour"):
        figures[figure] = max(v for name, v in figures.items() if name.startswith(f"{figure}, "))
    return figures


def _tiny(folder: Path) -> Path:
    subprocess.run(own_command("export", "tiny", "--out", str(folder)), check=True)
    return folder


@contextlib.contextmanager
def _agent(folder: Path, bundle: Path, port: int, fleet: str, state: str) -> Iterator[int]:
    """The process id of a connected agent."""
    config = folder / f"{state}.toml"
    config.write_text(
        f'id = "cam-01"\nfleet = "{fleet}"\nbundle = "{bundle}"\nstate_dir = "{state}"\n'
        f'[data]\nfolder = "pictures"\n[broker]\nport = {port}\nkeepalive_s = {_KEEPALIVE_S}\n'
    )
    log = folder / f"{state}.log"
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
    parser.add_argument(
        "what", nargs="*", choices=["crowd", "slope", "idle", "agent", "page", []], default=[]
    )
    parser.add_argument("--devices", type=int, default=1000, help="size of the crowd")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="a folder on the disk to measure; default: the system's temporary folder",
    )
    parser.add_argument(
        "--bundle", type=Path, help="for the figures of one agent; default: the tiny CLIP"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = options.what or ["crowd", "slope", "idle", "agent", "page"]
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
            figures |= idle(Path(made) / "idle")
        if "agent" in wanted or "page" in wanted:
            bundle = read_bundle(options.bundle or _tiny(Path(made) / "tiny"))
            if "agent" in wanted:
                figures |= agent_memory(Path(made) / "agent", bundle)
            if "page" in wanted:
                figures |= page_memory(Path(made) / "page", bundle)
    missed = [name for name, limit in LIMITS.items() if figures.get(name, 0.0) > limit]
    for name, value in figures.items():
        limit = f"  at most {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:36} {value:10.3f}{limit}{'  MISSED' if name in missed else ''}")
    if options.json:
        print(json.dumps(figures | {"missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
