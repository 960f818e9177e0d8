"""Memory of a waiting coordinator and agent with `[page]`, before and while their pages are open.

Both are real ones, with the bundle that is given and a broker; the coordinator waits for a second
device. "Open" is a client that has logged in, has loaded the first page, and has the stream of live
updates.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import light
import system
from brokers import free_port
from page_client import PageClient
from processes import memory_mb, pss_mb

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.transport import local_broker
from fedclip_edge.vision.bundle import Bundle

_WAITS_S = 180.0  # the encoder process ends after a minute without work
_SETTLES_S = 3.0


def page_memory(folder: Path, bundle: Bundle) -> dict[str, float]:
    """Return megabytes of each role, of its page's process, and of both; `folder` is made."""
    folder.mkdir()
    system.write_pictures(folder / "pictures", bundle.classes.names[:3], 20, 0)
    ports = {"coordinator": free_port(), "agent": free_port()}
    tables = {role: f'[page]\nlisten = "127.0.0.1:{port}"\n' for role, port in ports.items()}
    tokens = {
        "coordinator": folder / "journal.token",
        "agent": folder / "state" / "page.token",
    }
    figures: dict[str, float] = {}
    with Children() as children:
        port = local_broker.start(children, folder / "broker").address.port
        toml = light.write_fleet(
            folder,
            bundle,
            port,
            RunRules(devices=2),
            Plan("fedclip"),
            journal=folder / "journal.sqlite",
        )
        with toml.open("a") as file:
            file.write(tables["coordinator"])
        config = folder / "agent.toml"
        config.write_text(
            f'id = "cam-01"\nfleet = "{light.FLEET}"\nbundle = "{bundle.folder}"\n'
            f'state_dir = "state"\n[data]\nfolder = "pictures"\n[broker]\nport = {port}\n'
            f"{tables['agent']}"
        )
        logs = {role: folder / f"{role}.log" for role in ports}
        serve = children.start(own_command("serve", str(toml), "--json"), logs["coordinator"])
        _wait(lambda: _said(logs["coordinator"], "page_served"))
        agent = children.start(own_command("agent", str(config), "--json"), logs["agent"])
        _wait(lambda: _said(logs["agent"], "connected"))
        _wait(lambda: not system.descendants(agent.pid))
        processes = {"coordinator": serve.pid, "agent": agent.pid}
        time.sleep(_SETTLES_S)
        for role, process in processes.items():
            figures |= _of(f"{role}, nobody looks", process, ())
        with contextlib.ExitStack() as open_pages:
            for role in processes:
                client = PageClient(f"http://127.0.0.1:{ports[role]}")
                client.log_in(tokens[role])
                client.get("/")
                open_pages.enter_context(client.open("/events"))
            time.sleep(_SETTLES_S)
            for role, process in processes.items():
                figures |= _of(f"{role}, page open", process, system.descendants(process))
    return figures


def _of(name: str, process: int, pages: Collection[int]) -> dict[str, float]:
    found = {
        f"{name}: main, resident MB": memory_mb(process),
        f"{name}: all processes, PSS MB": sum(map(pss_mb, (process, *pages))),
    }
    if pages:
        found |= {
            f"{name}: page, resident MB": sum(map(memory_mb, pages)),
            f"{name}: page, PSS MB": sum(map(pss_mb, pages)),
        }
    return found


def _said(log: Path, event: str) -> bool:
    lines = log.read_text().splitlines()
    return any(json.loads(line)["event"] == event for line in lines if line.startswith("{"))


def _wait(is_over: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + _WAITS_S
    while not is_over():
        if time.monotonic() > ends_at:
            raise RuntimeError("the programs do not wait yet")
        time.sleep(0.2)
