"""The trainer: an ordinary agent that `serve` starts beside itself, and its lines in serve's log.

Law: each line of the trainer has the field `trainer` with its device id, and no other line has. So
none is taken for one of the coordinator.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from fedclip_edge import log
from fedclip_edge.config.agent import load_agent
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.processes.children import Children, own_command

_ENDS_S = 10.0
_LAST_LINES_S = 5.0


@dataclass(frozen=True, eq=False)
class Trainer:
    """The trainer's process, and the thread that copies its lines to the log."""

    process: subprocess.Popen[str]
    copier: threading.Thread

    def code(self) -> int | None:
        """The exit code, once the process has ended and its last line is in the log, else None."""
        code = self.process.poll()
        if code is not None:
            self.copier.join(_LAST_LINES_S)
        return code

    def wait(self) -> None:
        """Wait a limited time until the process ends and its last line is in the log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDS_S)
            self.copier.join(_LAST_LINES_S)


def trainer_id(config: FleetConfig) -> str | None:
    """The trainer's device id, or None without a trainer.

    Raises ConfigError if the trainer would join another fleet.
    """
    if config.trainer is None:
        return None
    agent = load_agent(config.trainer.config)
    theirs = (agent.fleet, agent.broker.host, agent.broker.port)
    ours = (config.fleet, config.broker.host, config.broker.port)
    if theirs != ours:
        raise ConfigError(
            f"{config.trainer.config}: the trainer belongs to fleet {theirs[0]!r} at "
            f"{theirs[1]}:{theirs[2]}; change it to {ours[0]!r} at {ours[1]}:{ours[2]}, as in "
            "fleet.toml"
        )
    return agent.id


def start_trainer(config: FleetConfig, device: str, children: Children, *, once: bool) -> Trainer:
    """Start the trainer, whose device id is `device`; with `once` for one run only."""
    assert config.trainer is not None
    ends = ("--once",) if once else ()
    command = own_command("agent", str(config.trainer.config), *ends, "--json")
    process = children.start(command, None, pipe=True, errors_too=True)
    assert process.stdout is not None
    copier = threading.Thread(
        target=_copy, args=(process.stdout, device), name="trainer-output", daemon=True
    )
    copier.start()
    return Trainer(process, copier)


def _copy(output: IO[str], device: str) -> None:
    for line in _lines(output):
        fields = _decoded(line)
        if fields is None:
            log.event("trainer_output", trainer=device, line=line.rstrip("\n"))
        else:
            ours = ("event", "time", "trainer")
            rest = {key: value for key, value in fields.items() if key not in ours}
            log.event(str(fields["event"]), trainer=device, **rest)


def _lines(output: IO[str]) -> Iterator[str]:
    with contextlib.suppress(ValueError):  # `Children` has ended the process and closed the pipe
        yield from output


def _decoded(line: str) -> dict[str, object] | None:
    """The fields of a log line; None for any other line, such as an error message."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("event"), str) else None
