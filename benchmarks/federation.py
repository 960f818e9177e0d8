"""A federation of light devices for benchmarks: mosquitto, `fedclip-edge serve` and devices.

Each is a process of its own. The journal is in the caller's folder, on a real disk.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import light

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.records import Plan
from fedclip_edge.vision.bundle import Bundle

_WAIT_S = 120.0


@dataclass(frozen=True)
class Logged:
    """A line of the coordinator's log, and its time; often that a round is closed."""

    at_s: float
    fields: Mapping[str, Any]


class Federation:
    """A coordinator and as many gated devices as its rules require.

    With a `registry`, the keys of coordinator and devices must be in the folder already.
    """

    def __init__(
        self,
        children: Children,
        folder: Path,
        port: int,
        rules: RunRules,
        plan: Plan,
        port_of: Callable[[str], int] | None = None,
        registry: Path | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.bundle = bundle or light.make_bundle(folder / "bundle")
        fleet = light.write_fleet(
            folder,
            self.bundle,
            port,
            rules,
            plan,
            journal=folder / "journal.sqlite",
            registry=registry,
        )
        self.serve = children.start(
            own_command("serve", "--once", str(fleet), "--json"), folder / "serve.log", pipe=True
        )
        self.closed: queue.SimpleQueue[Logged] = queue.SimpleQueue()
        self.links: list[Logged] = []  # which devices joined or are muted
        threading.Thread(target=self._read, daemon=True).start()
        self.devices = {
            name: _start(children, folder, self.bundle, name, n, port_of(name) if port_of else port)
            for n, name in enumerate(f"dev-{n}" for n in range(rules.devices))
        }

    def permit(self, rounds: int) -> None:
        """Let every device take part in that many more rounds."""
        for device in self.devices.values():
            assert device.stdin is not None
            device.stdin.write(f"{rounds}\n".encode())
            device.stdin.flush()

    def next_closed(self) -> Logged:
        return self.closed.get(timeout=_WAIT_S)

    def end(self) -> None:
        """End the devices; the coordinator ends with its `Children`."""
        for device in self.devices.values():
            device.kill()
            device.wait()

    def _read(self) -> None:
        assert self.serve.stdout is not None
        for line in self.serve.stdout:
            now, fields = time.perf_counter(), json.loads(line)
            if fields["event"] == "round_closed":
                self.closed.put(Logged(now, fields))
            elif fields["event"] in ("joined", "device_muted"):
                self.links.append(Logged(now, fields))


def _start(
    children: Children, folder: Path, bundle: Bundle, name: str, seed: int, port: int
) -> subprocess.Popen[bytes]:
    command = [sys.executable, light.__file__, str(folder / "state"), str(bundle.folder), name]
    command += ["--port", str(port), "--seed", str(seed), "--gated"]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
