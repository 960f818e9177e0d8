"""The operator of a simulated fleet, who changes the run under way while it has faults.

Commands go through `commands.answer`, as those from the control socket do. The operator has a
random source of its own, so a seed without commands is the same run as before there were any.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from unittest import mock

from cached_crypto import CLASSES, DIM
from in_memory import ENCODER
from simulated_processes import SimulatedServer

from fedclip_edge.coordinator import commands
from fedclip_edge.coordinator.control import Request
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.server import Basis

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
    if world.has_operator and world.forget_luck.random() < 0.6:
        world.at(world.forget_luck.uniform(0, span_s), functools.partial(_forget, world))


def _give(world: World, command: str) -> None:
    if command == "extend":
        most = world.plan.rounds + MORE_ROUNDS
        give(world, world.serve, "extend", rounds=world.operator_luck.randint(1, most))
    elif command == "end":
        give(world, world.serve, "close", now=True)
    else:
        give(world, world.serve, command)


def _forget(world: World) -> None:
    """Take a training device away, and forget it; so many stay as a run needs to begin.

    A coordinator that is down or busy, or killed meanwhile, is asked again.
    """
    good = world.good_agents()
    if not world.forgotten:
        # The first one has a copy with the same id.
        able = good[1:] if good and good[0] is world.agents[0] else good
        if len(good) <= world.rules.devices or not able:
            return
        world.forgotten = world.forget_luck.choice(able).name
        world.progress.bad += 1  # a round may wait for it until its absence is noticed
        world.lose_for_good([agent for agent in world.agents if agent.name == world.forgotten])
    if world.ended_at:
        return
    give(world, world.serve, "forget", device=world.forgotten)
    give(world, world.serve, "erase")
    if world.now < world.quiet_at and world.forget_luck.random() < 0.5:
        world.at(world.forget_luck.uniform(0, 5), functools.partial(_forget, world))


def let_go_on(world: World, simulated: SimulatedProcess) -> None:
    """Let a paused run go on."""
    give(world, simulated, "resume")


def give(world: World, simulated: SimulatedProcess, command: str, **arguments: Any) -> None:
    """Give a command to a coordinator, unless it is down or busy."""
    process = simulated.process
    if not isinstance(process, Coordinator) or simulated.busy_until > world.now or process.finished:
        return
    journal = process.run_state.journal
    server = SimulatedServer(process.config, journal, process, _never)
    server.world, server.simulated = world, simulated
    request = Request(command, arguments, "operator")

    def act() -> None:
        with mock.patch.object(commands, "read_basis", return_value=Basis(CLASSES, DIM, ENCODER)):
            answered = commands.answer(server, request, world.now)
        world.note(f"operator: {command} {arguments} {'ok' if answered['ok'] else 'refused'}")

    world.guarded(simulated, act)


def _never() -> Any:
    raise AssertionError("no run starts here")
