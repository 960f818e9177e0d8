"""The operator of a simulated fleet, who changes the run under way while it has faults.

Commands go through `commands.answer`, as those from the control socket do. The operator has a
random source of its own, so a seed without commands is the same run as before there were any.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from fedclip_edge.coordinator import commands
from fedclip_edge.coordinator.control import Request
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.server import Server

if TYPE_CHECKING:
    from made_up_network import World
    from simulated_processes import SimulatedProcess

MORE_ROUNDS = 2  # at most, by an extension
_COMMANDS = ("pause", "pause", "resume", "close", "close", "extend", "extend", "end", "abandon")


def plan(world: World, span_s: float) -> None:
    """Choose the commands of a world; most worlds have none."""
    if world.has_operator:
        for _ in range(world.operator_luck.randint(1, 6)):
            command = world.operator_luck.choice(_COMMANDS)
            give = functools.partial(_give, world, command)
            world.at(world.operator_luck.uniform(0, span_s), give)


def _give(world: World, command: str) -> None:
    if command == "extend":
        most = world.plan.rounds + MORE_ROUNDS
        give(world, world.serve, "extend", rounds=world.operator_luck.randint(1, most))
    elif command == "end":
        give(world, world.serve, "close", now=True)
    else:
        give(world, world.serve, command)


def let_go_on(world: World, simulated: SimulatedProcess) -> None:
    """Let a paused run go on."""
    give(world, simulated, "resume")


def give(world: World, simulated: SimulatedProcess, command: str, **arguments: Any) -> None:
    """Give a command to a coordinator, unless it is down or busy."""
    process = simulated.process
    if not isinstance(process, Coordinator) or simulated.busy_until > world.now or process.finished:
        return
    journal = process.run_state.journal
    server = Server(process.config, journal, process, _never)
    request = Request(command, arguments, "operator")

    def act() -> None:
        answered = commands.answer(server, request, world.now)
        world.note(f"operator: {command} {arguments} {'ok' if answered['ok'] else 'refused'}")

    world.guarded(simulated, act)


def _never() -> Any:
    raise AssertionError("no run starts here")
