"""Memory of an agent's processes: while it encodes, waits, trains and waits again.

The agent is a real one, with the bundle that is given (by default the tiny CLIP) and drawn noise,
and trains by gradients with a real coordinator. In each phase, the memory is read several times a
second. PSS counts shared pages in parts, so that the PSS of all processes can be added; for the
main process alone, the figure is its resident memory, with the pages that it shares.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import light
import numpy as np
import system
from PIL import Image
from processes import memory_mb, pss_mb

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.transport import local_broker
from fedclip_edge.vision.bundle import Bundle

_PER_CLASS = 40
_SIDE_PX = 640
_READS_S = 0.1
_IDLE_S = 90.0  # a child ends after a minute without work
_PHASE_S = 600.0
_ROUNDS = 3


def agent_memory(folder: Path, bundle: Bundle) -> dict[str, float]:
    """Return megabytes by phase: of the main process, of all processes, and without the main one.

    `folder` is made.
    """
    folder.mkdir()
    classes = bundle.classes.names[:3]
    _draw(folder / "pictures", classes)
    figures: dict[str, float] = {}
    with Children() as children:
        port = local_broker.start(children, folder / "broker").address.port
        config = folder / "agent.toml"
        config.write_text(
            f'id = "cam-01"\nfleet = "{light.FLEET}"\nbundle = "{bundle.folder}"\n'
            f'state_dir = "state"\n[data]\nfolder = "pictures"\n[broker]\nport = {port}\n'
        )
        log = folder / "agent.log"
        agent = children.start(own_command("agent", str(config), "--json"), log)

        def phase(name: str, is_over: Callable[[], bool]) -> None:
            figures.update(_phase(agent, name, is_over, log))

        phase("encoding", lambda: _said(log, "connected") == 1)
        phase("encoder idle", _for(_IDLE_S))
        phase("waiting", _for(5.0))
        plan = Plan("fedclip", rounds=_ROUNDS, vote="off")
        toml = light.write_fleet(
            folder, bundle, port, RunRules(devices=1), plan, journal=folder / "journal.sqlite"
        )
        children.start(own_command("serve", "--once", str(toml)), folder / "serve.log")
        phase("training", lambda: _said(log, "run_done") == 1)
        phase("trainer idle", _for(_IDLE_S))
        phase("waiting again", _for(5.0))
    return figures


def _draw(folder: Path, classes: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(_PER_CLASS):
            pixels = random.integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg", quality=90)


def _phase(
    agent: subprocess.Popen[str], name: str, is_over: Callable[[], bool], log: Path
) -> dict[str, float]:
    main = whole = children = count = 0.0
    deadline = time.monotonic() + _PHASE_S
    while not is_over():
        if agent.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the agent ended, or {name} takes too long: {log.read_text()}")
        with contextlib.suppress(ValueError, OSError):  # a child that has just ended
            its = [pss_mb(pid) for pid in system.descendants(agent.pid)]
            main = max(main, memory_mb(agent.pid))
            whole = max(whole, pss_mb(agent.pid) + sum(its))
            children = max(children, sum(its))
            count = max(count, len(its))
        time.sleep(_READS_S)
    return {
        f"{name}: main, resident MB": main,
        f"{name}: children, PSS MB": children,
        f"{name}: all processes, PSS MB": whole,
        f"{name}: children at once": count,
    }


def _said(log: Path, event: str) -> int:
    return sum(json.loads(line)["event"] == event for line in _lines(log))


def _lines(log: Path) -> Iterator[str]:
    for line in log.read_text().splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield line


def _for(seconds: float) -> Callable[[], bool]:
    ends_at = time.monotonic() + seconds
    return lambda: time.monotonic() >= ends_at
