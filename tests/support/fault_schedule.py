"""The faults of the adversary; the seed of the world decides every choice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from bad_network import Weather, bad_downloads, storm
from crashing import Killed
from simulated_processes import SimulatedProcess

from fedclip_edge.coordinator.journal import open_journal

if TYPE_CHECKING:
    from made_up_network import World


def _anybody(world: World) -> SimulatedProcess:
    return world.luck.choice((world.serve, *world.agents))


def _cut(world: World) -> None:
    world.lose_link(_anybody(world))


def _kill(world: World) -> None:
    world.kill(_anybody(world), back_in_s=0.1)


def _stop(world: World) -> None:
    """Stop a process on purpose, with its good-bye message."""
    simulated = _anybody(world)
    if simulated.process is not None and simulated.link is not None:
        try:
            simulated.process.say_goodbye()
            simulated.link.close()
        except Killed:
            pass
        world.kill(simulated, back_in_s=1.0)


def _arm(world: World) -> None:
    simulated = _anybody(world)
    simulated.fuse.left, simulated.fuse.on_disk = world.luck.randint(1, 20), False


def _arm_disk(world: World) -> None:
    simulated = world.luck.choice((world.serve, world.serve, *world.agents))
    simulated.fuse.left, simulated.fuse.on_disk = world.luck.randint(1, 12), True


def _arm_answer(world: World) -> None:
    world.serve.dies_of_answers = True


def _mute(world: World) -> None:
    for simulated in world.luck.sample((world.serve, *world.agents), world.luck.randint(1, 2)):
        simulated.muted_until = world.now + world.luck.uniform(0.5, 20)


def _kill_broker(world: World) -> None:
    world.note("broker killed")
    world.network.die(forgets=world.luck.random() < 0.5)


def _clone(world: World) -> None:
    """Start a copy of a box with the same key; the broker accepts one client per id."""
    clone = world.clones[0]
    world.start(clone)
    world.at(world.luck.uniform(1, 10), functools.partial(world.kill, clone, None))


def _lose_disk(world: World) -> None:
    """Restart a box with an empty disk."""
    agent = world.luck.choice(world.agents)
    world.note(f"{agent.name} loses its disk")
    world.kill(agent, back_in_s=1.0)
    agent.lose_disk()


def _take_over(world: World) -> None:
    """Start a second coordinator on the journal of the first, which is cut off or slow."""
    if world.serve.process is None or world.rival.process is not None or world.ended_at:
        return
    first, gone_s = world.serve, world.luck.uniform(1, 20)
    how = world.luck.choice(("mute", "slow", "cut", "deaf", "deaf"))
    world.note(f"take-over from one that is {how}")
    if how == "mute":
        first.muted_until = world.now + gone_s
    elif how == "slow":
        first.busy_until = world.now + gone_s
        world.at(gone_s, functools.partial(world.poke, first))
    elif how == "cut":
        world.lose_link(first)
    else:
        first.deaf_until = world.now + 2 * gone_s
    world.serve, world.rival = world.rival, world.serve
    world.start(world.serve, take_over=True)


def _back_up(world: World) -> None:
    """Copy the journal as it is now."""
    world.note("journal copied")
    world.backup = world.serve.disk.copy()


def _lose_journal(world: World) -> None:
    """Restart the coordinator with an old copy of its journal, or with none."""
    if world.ended_at:
        return
    for simulated in (world.serve, world.rival):
        world.kill(simulated, back_in_s=0.5)
    disk = world.serve.disk
    disk.replace(world.backup)
    world.note("journal replaced" if world.backup[0] else "journal lost")
    if world.backup[0] and world.laws is not None:
        journal = open_journal(disk.path)
        try:
            run = journal.runs.last()
            if run is not None and run.id == world.laws.run.id:
                world.laws.journal_replaced(journal)
        finally:
            journal.close()
            disk.replace(world.backup)


def _for_a_while(weather: Callable[[World], Weather]) -> Callable[[World], None]:
    def fault(world: World) -> None:
        calm = world.weather
        world.weather = weather(world)

        def end() -> None:
            if world.now < world.quiet_at:
                world.weather = calm

        world.at(world.luck.uniform(1, 10), end)

    return fault


_storm = _for_a_while(lambda world: storm(world.luck))
_bad_downloads = _for_a_while(lambda world: bad_downloads(world.weather, world.luck))

FAULTS = (
    *[_cut] * 2,
    *[_kill] * 2,
    *[_arm] * 2,
    *[_arm_disk] * 4,
    *[_arm_answer] * 2,
    _stop,
    _mute,
    _kill_broker,
    _clone,
    _storm,
    *[_bad_downloads] * 3,
    _lose_disk,
    *[_take_over] * 4,
    _back_up,
    *[_lose_journal] * 2,
)
