"""Flower's deployment runtime with the same payload: a SuperLink, SuperNodes, FedAvg, no training.

Runs in an environment of its own, which is created if it is missing, with telemetry off. Each
client adds its own number to the model, because flwr sends equal arrays only once.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import venv
from itertools import pairwise
from pathlib import Path
from typing import Any

VERSION = "1.41.0"
_RUN_S = 900.0
_LIMIT_S_A_ROUND = 30.0

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "ready"
version = "1.0.0"
description = "no training"
license = "Apache-2.0"
dependencies = ["flwr=={version}"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "ready.server_app:app"
clientapp = "ready.client_app:app"

[tool.flwr.app.config]
rounds = {rounds}
parameters = {parameters}
clients = {clients}
times = "{times}"
"""

_SERVER = """\
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    began: list = []

    def configure_train(self, *arguments, **named):
        self.began.append(time.time())
        return super().configure_train(*arguments, **named)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    model = np.random.default_rng(0).normal(size=config["parameters"]).astype(np.float32)
    strategy = Timed(
        fraction_evaluate=0.0,
        min_train_nodes=config["clients"],
        min_available_nodes=config["clients"],
    )
    strategy.start(grid=grid, initial_arrays=ArrayRecord([model]), num_rounds=config["rounds"] + 2)
    Path(config["times"]).write_text(json.dumps(Timed.began))
"""

_CLIENT = """\
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    (model,) = msg.content["arrays"].to_numpy_ndarrays()
    own = np.float32(context.node_id % 1000 + 1)
    content = {
        "arrays": ArrayRecord([model + own]),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(content=RecordDict(content), reply_to=msg)
"""


def measure(
    folder: Path, environment: Path | None, rounds: int, clients: int, model_bytes: int
) -> dict[str, Any]:
    """Seconds per round, from one configure step to the next; the first round is left out."""
    binaries = _environment(environment or folder / "venv") / "bin"
    times = folder / "times.json"
    _write_app(folder / "app", rounds, clients, model_bytes // 4, times)
    link, *nodes = _free_ports(1 + clients)
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{link}"\n'
        "insecure = true\n"
    )
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    settings["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    commands = [[str(binaries / "flower-superlink"), "--insecure", "--port", str(link)]]
    node = [str(binaries / "flower-supernode"), "--insecure"]
    commands += [[*node, "--superlink", f"127.0.0.1:{link}", "--port", str(port)] for port in nodes]
    running = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"process-{number}.log").open("wb") as log:
                running.append(subprocess.Popen(command, env=settings, stdout=log, stderr=log))
            if number == 0:
                _await_port(link, running[0])
        run = [str(binaries / "flwr"), "run", str(folder / "app"), "bench", "--stream"]
        done = subprocess.run(
            run,
            env=settings,
            timeout=_RUN_S + _LIMIT_S_A_ROUND * rounds,
            capture_output=True,
            text=True,
            check=False,
        )
        if not times.exists():
            raise RuntimeError(
                f"flwr ended without writing its times: {done.stdout[-800:]}{done.stderr[-800:]}"
            )
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait()
    began = json.loads(times.read_text())
    taken = [b - a for a, b in pairwise(began)][1:]
    return {
        "version": VERSION,
        "rounds": len(taken),
        "median_s": statistics.median(taken),
        "min_s": min(taken),
        "max_s": max(taken),
    }


def _environment(folder: Path) -> Path:
    if not (folder / "bin" / "flower-superlink").exists():
        print(f"installing flwr {VERSION}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += ["--disable-pip-version-check", f"flwr=={VERSION}", "numpy"]
        subprocess.run(command, check=True)
    return folder


def _write_app(folder: Path, rounds: int, clients: int, parameters: int, times: Path) -> None:
    package = folder / "ready"
    package.mkdir(parents=True)
    project = _PROJECT.format(
        version=VERSION, rounds=rounds, parameters=parameters, clients=clients, times=times
    )
    (folder / "pyproject.toml").write_text(project)
    (package / "__init__.py").write_text("")
    (package / "server_app.py").write_text(_SERVER)
    (package / "client_app.py").write_text(_CLIENT)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"flwr's SuperLink does not answer on port {port}")
