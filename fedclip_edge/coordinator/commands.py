"""The operator's commands, by name. They run in the main thread, between two events of the link.

A command is a function of the server's state and its checked arguments; it returns what the client
gets. A mistake of the operator raises ConfigError with a sentence that says what to do next.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedclip_edge import log
from fedclip_edge.config import read_table, unknown
from fedclip_edge.coordinator.bundle_choice import choose_bundle, publish_classes
from fedclip_edge.coordinator.control import Request, failure, success
from fedclip_edge.coordinator.server import Server
from fedclip_edge.errors import ConfigError


@dataclass(frozen=True)
class NoArguments:
    """The arguments of a command that takes none."""


@dataclass(frozen=True)
class Start:
    """The arguments of `start`."""


@dataclass(frozen=True)
class Publish:
    """The arguments of `publish`."""

    bundle: Path  # folder of the bundle, absolute


@dataclass(frozen=True)
class Command:
    """One command: its function, and the data class of its arguments."""

    function: Callable[[Server, Any], dict[str, Any]]
    arguments: type[Any] = NoArguments
    changes: bool = False  # True if it changes the run, so it is logged with its user


def start(server: Server, arguments: Start) -> dict[str, Any]:
    """Start a new run; raises ConfigError while another one is under way."""
    run = server.coordinator.run_state
    raise ConfigError(
        f"{run.run.id} is under way ({run.model.round} of {server.coordinator.rounds.rounds} rounds "
        "closed); wait until it is done"
    )


def publish(server: Server, arguments: Publish) -> dict[str, Any]:
    """Publish the classes of a bundle for the next run; raises ConfigError if it cannot be used."""
    registry, run = server.coordinator.admission.registry, server.coordinator.run_state.run
    used = choose_bundle(server.config, run)
    export_key = "" if registry is None else registry.export_key
    try:
        done = publish_classes(server.config, arguments.bundle, used, export_key)
    except OSError as error:
        raise ConfigError(f"{error.filename or arguments.bundle}: {error.strerror}") from error
    return dataclasses.asdict(done)


COMMANDS: Mapping[str, Command] = {
    "start": Command(start, Start, changes=True),
    "publish": Command(publish, Publish, changes=True),
}


def answer(server: Server, request: Request) -> dict[str, Any]:
    """Carry out a request; returns the line for the client, which is an error or a result.

    Raises JournalError and RunError as the coordinator does: they end the process.
    """
    try:
        if request.command not in COMMANDS:
            raise unknown("command", request.command, COMMANDS)
        command = COMMANDS[request.command]
        arguments = read_table(command.arguments, request.arguments, request.command)
        result = command.function(server, arguments)
    except ConfigError as error:
        return failure(str(error))
    if command.changes:
        log.event(
            "operator_action",
            command=request.command,
            arguments=json.dumps(request.arguments),
            user=request.user,
        )
    return success(result)
