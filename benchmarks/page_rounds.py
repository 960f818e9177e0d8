"""Seconds of a round of four devices, with the fleet's page open and closed, in turns.

The devices are light ones (light.py) that do not train, so the figure is that of the messages, the
aggregation and the journal. "Open" is a client with the stream of live updates.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from brokers import free_port
from federation import Federation
from page_client import PageClient
from system import wait_until

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.transport import local_broker

_LIMIT = 1.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="of one turn")
    parser.add_argument("--turns", type=int, default=10, help="half of them with the page open")
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as made:
        took = measure(Path(made), options.rounds, options.turns)
    figures = {how: statistics.median(times) for how, times in took.items()}
    figures["times"] = figures["open"] / figures["closed"]
    for how in ("closed", "open"):
        print(f"a round with the page {how:6}  {1e3 * figures[how]:7.1f} ms")
    print(f"{figures['times']:.3f} times, at most {_LIMIT}")
    if options.json:
        print(json.dumps(figures))
    return 1 if figures["times"] > _LIMIT else 0


def measure(folder: Path, rounds: int, turns: int) -> dict[str, list[float]]:
    """Seconds of single rounds, by the state of the page."""
    took: dict[str, list[float]] = {"closed": [], "open": []}
    plan = Plan("fedclip", rounds=rounds * turns + 2, vote="off")
    with Children() as children:
        broker = local_broker.start(children, folder / "broker").address.port
        fleet = Federation(children, folder / "fleet", broker, RunRules(devices=4), plan)
        page = _start_page(children, folder / "fleet")
        fleet.permit(1)
        fleet.next_closed()  # the first one waits for the devices
        for turn in range(turns):
            how = "open" if turn % 2 else "closed"
            with contextlib.ExitStack() as open_page:
                if how == "open":
                    page.get("/")
                    stream = open_page.enter_context(page.open("/events"))
                    threading.Thread(target=_read, args=[stream], daemon=True).start()
                    time.sleep(2.0)
                fleet.permit(rounds)
                before = fleet.next_closed().at_s
                for _ in range(rounds - 1):
                    at = fleet.next_closed().at_s
                    took[how].append(at - before)
                    before = at
            time.sleep(1.0)
        fleet.end()
    return took


def _start_page(children: Children, folder: Path) -> PageClient:
    port, config = free_port(), folder / "with-page.toml"
    config.write_text(
        (folder / "fleet.toml").read_text() + f'\n[page]\nlisten = "127.0.0.1:{port}"\n'
    )
    log = folder / "page.log"
    children.start(own_command("page", str(config)), log)
    wait_until(lambda: log.exists() and "page_served" in log.read_text(), "the page")
    client = PageClient(f"http://127.0.0.1:{port}")
    client.log_in(folder / "journal.token")
    return client


def _read(stream: Any) -> None:
    # It is closed in the other thread.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        while stream.readline():
            pass


if __name__ == "__main__":
    sys.exit(main())
