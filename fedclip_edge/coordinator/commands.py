"""The operator's commands, by name. They run in the main thread, between two events of the link.

A command is a function of the server's state and its checked arguments; it returns what the client
gets. One that changes the run returns a `Change` instead.

Laws:
- A mistake of the operator raises ConfigError with a sentence that says what to do next, and
  changes nothing.
- A change is in the journal, with its user and its time, before it takes effect.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedclip_edge import log
from fedclip_edge.config.reading import read_table, unknown
from fedclip_edge.coordinator import forgetting, snapshot
from fedclip_edge.coordinator.bundle_choice import choose_bundle, publish_classes
from fedclip_edge.coordinator.control import Request, failure, success
from fedclip_edge.coordinator.journal_tables import ZERO_SHOT
from fedclip_edge.coordinator.server import Server, read_basis
from fedclip_edge.errors import BundleError, ConfigError, JournalError

_START = "start the next run with `fedclip-edge run start`"


@dataclass(frozen=True)
class NoArguments:
    """The arguments of a command that takes none."""


@dataclass(frozen=True)
class Start:
    """The arguments of `start`."""

    start: str = ZERO_SHOT  # or "last", or the id of a run


@dataclass(frozen=True)
class Close:
    """The arguments of `close`."""

    now: bool = False  # end the run with its last model


@dataclass(frozen=True)
class Extend:
    """The arguments of `extend`."""

    rounds: int

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 1_000_000:
            raise ValueError(f"rounds: expected 1 to 1000000, got {self.rounds}")


@dataclass(frozen=True)
class Forget:
    """The arguments of `forget`."""

    device: str
    without_vote: bool = False  # take the default candidate instead of a new vote
    delete_models: bool = False  # delete models that contain the device and cannot be made again


@dataclass(frozen=True)
class Change:
    """A change that has been checked. `take_effect` gets the time (monotonic, in seconds)."""

    take_effect: Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Status:
    """The arguments of `status`."""

    every: bool = False  # list every device, not only those that need attention


@dataclass(frozen=True)
class Devices:
    """The arguments of `devices`."""

    by_class: bool = False  # with the pictures of each class


@dataclass(frozen=True)
class Publish:
    """The arguments of `publish`."""

    bundle: Path  # folder of the bundle, absolute


@dataclass(frozen=True)
class Command:
    """One command: its function, and the data class of its arguments."""

    function: Callable[[Server, Any], dict[str, Any] | Change]
    arguments: type[Any] = NoArguments


def start(server: Server, arguments: Start) -> Change:
    """Start a new run; raises ConfigError while another one is under way."""
    if not (server.course.is_over or server.course.state == "held"):
        raise ConfigError(
            f"{_progress(server)}; wait until it is done, or end it with `fedclip-edge run close "
            "--now` or `fedclip-edge run abandon`"
        )
    try:
        begin = server.prepare_run(by="`run start`", start=arguments.start)
    except BundleError as error:
        raise ConfigError(str(error)) from error

    def take_effect(now: float) -> dict[str, Any]:
        run = begin(now)
        return {"run": run.id, "started_from": server.course.started_from}

    return Change(take_effect)


def pause(server: Server, arguments: NoArguments) -> Change:
    """Open no further round; raises ConfigError if the run is over or paused."""
    _check_open(server)
    if server.coordinator.rounds.phase == "final":
        raise ConfigError(
            f"every round of {server.run.id} is closed, so there is none to pause before; the run "
            "waits for the evaluation of its last model"
        )
    if server.coordinator.rounds.paused:
        raise ConfigError(f"{server.run.id} is paused; `fedclip-edge run resume` lets it go on")
    return _change(server, lambda now: server.coordinator.driver.pause(now, paused=True))


def resume(server: Server, arguments: NoArguments) -> Change:
    """Open rounds again; raises ConfigError if the run is not paused."""
    _check_open(server)
    if not server.coordinator.rounds.paused or server.coordinator.rounds.phase == "final":
        raise ConfigError(f"{server.run.id} is not paused; there is nothing to do")
    return _change(server, lambda now: server.coordinator.driver.pause(now, paused=False))


def close(server: Server, arguments: Close) -> Change:
    """Close the open round, or the run; raises ConfigError if there is nothing to close with."""
    _check_open(server)
    driver = server.coordinator.driver
    state, closed = driver.state, driver.run_state.model.round
    if arguments.now:
        if not closed:
            raise ConfigError(
                f"{server.run.id} has no closed round, so it has no model to end with; end it with "
                "`fedclip-edge run abandon`"
            )
        return _change(server, driver.end_early)
    if state.phase == "final":
        raise ConfigError(
            f"every round of {server.run.id} is closed; it waits for the evaluation of its last "
            "model, which `fedclip-edge run close --now` ends"
        )
    if not state.kept and not state.is_vote:
        raise ConfigError(
            f"round {state.round} of {server.run.id} has no contribution yet; wait for one, or end "
            "the run with `fedclip-edge run close --now` or `fedclip-edge run abandon`"
        )
    return _change(server, driver.close_early)


def abandon(server: Server, arguments: NoArguments) -> Change:
    """End the run without a model file; raises ConfigError if it is over."""
    _check_open(server)
    return _change(server, server.coordinator.driver.abandon)


def extend(server: Server, arguments: Extend) -> Change:
    """Change the number of rounds; raises ConfigError if that is too late, or if it is too low."""
    _check_open(server)
    driver = server.coordinator.driver
    state = driver.state
    if state.phase == "final" or state.is_vote:
        raise ConfigError(
            f"the last round of {server.run.id} is closed, so it cannot get more; go on from its "
            "model with `fedclip-edge run start --from last`, once it is over"
        )
    if arguments.rounds < state.round:
        raise ConfigError(
            f"{server.run.id} is in round {state.round} already; give at least so many rounds, or "
            "end it with `fedclip-edge run close --now`"
        )
    driver.run_state.schedule.with_rounds(arguments.rounds)  # raises ConfigError
    return _change(server, lambda now: driver.extend(arguments.rounds, now))


def forget(server: Server, arguments: Forget) -> Change:
    """Remove a device; raises ConfigError if it is not known, or if the newest model needs it."""
    config, journal, run = server.config, server.journal, server.run
    try:
        basis = read_basis(config, run)
    except BundleError as error:
        raise ConfigError(str(error)) from error
    if (run.encoder_id, run.classes_digest) != (basis.encoder_id, basis.classes.digest):
        raise ConfigError(
            f"the bundle in fleet.toml is not the one that {run.id} began with; put it back, or "
            f"first start a run with it, then forget {arguments.device}"
        )
    choices = forgetting.Choices(
        config.rules.quorum, arguments.without_vote, arguments.delete_models
    )
    forgetting.check(journal, arguments.device, basis, choices)

    def take_effect(now: float) -> dict[str, Any]:
        server.coordinator.driver.sync()
        done = forgetting.forget(journal, arguments.device, basis, choices)
        server.serve_again(basis, now)
        return done.to_json()

    return Change(take_effect)


def erase(server: Server, arguments: NoArguments) -> dict[str, Any]:
    """Erase some of what is left of deleted rows; raises ConfigError on a disk error."""
    try:
        return {"left": server.journal.erase_step()}
    except JournalError as error:
        raise ConfigError(str(error)) from error


def _check_open(server: Server) -> None:
    """Raise ConfigError unless the newest run is under way."""
    course = server.course
    if course.state == "held":
        raise ConfigError(f"{server.run.id} has not been started; {_START}")
    if course.is_over:
        raise ConfigError(f"{server.run.id} is {course.state}; {_START}")


def _change(server: Server, act: Callable[[float], None]) -> Change:
    def take_effect(now: float) -> dict[str, Any]:
        act(now)
        driver = server.coordinator.driver
        return {
            "run": server.run.id,
            "phase": driver.state.phase,
            "paused": driver.state.paused,
            "closed": driver.run_state.model.round,
            "rounds": driver.state.rounds,
        }

    return Change(take_effect)


def _progress(server: Server) -> str:
    state, closed = server.coordinator.rounds, server.coordinator.run_state.model.round
    return f"{server.run.id} is under way ({closed} of {state.rounds} rounds closed)"


def status(server: Server, arguments: Status) -> dict[str, Any]:
    """Describe the run and the fleet now and, between two runs, what the next one waits for."""
    found = snapshot.status(server.coordinator, time.monotonic(), every=arguments.every)
    needs = server.config.schedule.new_pictures
    following = {
        "at": server.next_at(),
        "new_pictures": needs,
        "has_new_pictures": server.new_pictures if needs else None,
    }
    is_between = found["run"]["state"] in ("held", "done", "abandoned")
    return {**found, "next": following if is_between else None}


def devices(server: Server, arguments: Devices) -> dict[str, Any]:
    """Describe every device now."""
    now = time.monotonic()
    return snapshot.devices(server.coordinator, now, by_class=arguments.by_class)


def publish(server: Server, arguments: Publish) -> dict[str, Any]:
    """Publish the classes of a bundle for the next run; raises ConfigError if it cannot be used."""
    registry, run = server.coordinator.admission.registry, server.coordinator.run_state.run
    used = choose_bundle(server.config, run)
    # The next run may start from the model of the last one that is done, and needs its classes.
    done_run = server.journal.runs.last_done()
    keeps = () if done_run is None else (choose_bundle(server.config, done_run).folder,)
    export_key = "" if registry is None else registry.export_key
    try:
        done = publish_classes(server.config, arguments.bundle, used, export_key, keeps)
    except OSError as error:
        raise ConfigError(f"{error.filename or arguments.bundle}: {error.strerror}") from error
    return dataclasses.asdict(done)


COMMANDS: Mapping[str, Command] = {
    "start": Command(start, Start),
    "pause": Command(pause),
    "resume": Command(resume),
    "close": Command(close, Close),
    "abandon": Command(abandon),
    "extend": Command(extend, Extend),
    "status": Command(status, Status),
    "devices": Command(devices, Devices),
    "forget": Command(forget, Forget),
    "erase": Command(erase),
    "publish": Command(publish, Publish),
}


def answer(server: Server, request: Request, now: float) -> dict[str, Any]:
    """Carry out a request; returns the line for the client, which is an error or a result.

    `now` is monotonic, in seconds. Raises JournalError and RunError as the coordinator does: they
    end the process.
    """
    try:
        if request.command not in COMMANDS:
            raise unknown("command", request.command, COMMANDS)
        command = COMMANDS[request.command]
        arguments = read_table(command.arguments, request.arguments, request.command)
        result = command.function(server, arguments)
    except ConfigError as error:
        return failure(str(error))
    if isinstance(result, Change):
        text = json.dumps(request.arguments)
        server.journal.actions.add(request.user, request.command, text)
        log.event("operator_action", command=request.command, arguments=text, user=request.user)
        result = result.take_effect(now)
    return success(result)
