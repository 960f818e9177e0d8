"""Bad members of a simulated fleet: what they do from their start until the run ends.

The faults of fault_schedule.py stop at some time; these habits do not. A fleet has to go on while
a few of its devices have them. They are devices of their own: without them, the rest of the fleet
is enough for a run. When the run is over they stop, and must learn of the end like all others.

The choices here have a random source of their own, so a seed without bad members is the same run
as before there were any.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from crashing import Killed
from simulated_processes import SimulatedProcess

if TYPE_CHECKING:
    from made_up_network import World

Habit = Callable[["World", SimulatedProcess], float]
"""Does something and returns the time in seconds until it is done again."""


def _churns(world: World, box: SimulatedProcess) -> float:
    """Go away for a while, come back for a while: a box on a bad power supply, or a laptop."""
    if box.process is None:
        world.start(box)
    else:
        if box.link is not None and world.habit_luck.random() < 0.3:
            try:
                box.process.say_goodbye()
                box.link.close()
            except Killed:
                pass
        world.kill(box, back_in_s=None)
    return world.habit_luck.uniform(1, 30)


def _flaps(world: World, box: SimulatedProcess) -> float:
    """Lose the link again and again; it comes back on its own."""
    world.lose_link(box)
    return world.habit_luck.uniform(1, 15)


def _sleeps(world: World, box: SimulatedProcess) -> float:
    """Stop like a process that got SIGSTOP, with the link up, and wake later for a moment."""
    asleep_s = world.habit_luck.uniform(5, 150)
    world.note(f"{box.label} sleeps")
    box.sleep(world, asleep_s)
    return asleep_s + world.habit_luck.uniform(0.1, 10)


def _floods(world: World, box: SimulatedProcess) -> float:
    """Send one message hundreds of times, faster than anybody reads."""
    said = world.habit_luck.choice(("hello", "want"))
    if box.link is not None and said in box.last_said and world.network.is_here(box.link):
        topic, payload = box.last_said[said]
        world.network.flood(box.link, topic, payload, world.habit_luck.randint(10, 300))
    return world.habit_luck.uniform(2, 40)


def _does_nothing(world: World, box: SimulatedProcess) -> float:
    """Behave, but send updates that are refused, or train and send for longer than rounds wait."""
    return 60.0


HABITS: dict[str, Habit] = {
    "churns": _churns,
    "flaps": _flaps,
    "sleeps": _sleeps,
    "floods": _floods,
    "is refused": _does_nothing,
    "is slow": _does_nothing,
}


def choose(world: World) -> dict[str, str]:
    """The habits of a world's bad members, by name; most worlds have none."""
    luck = world.habit_luck
    if luck.random() < 0.9:
        return {}
    return {f"bad-{i}": luck.choice(tuple(HABITS)) for i in range(luck.choice((1, 1, 2)))}


def leavers(world: World, good: list[SimulatedProcess]) -> list[SimulatedProcess]:
    """The training devices that go away for good after the last fault; one of `good` stays."""
    luck = world.habit_luck
    if luck.random() < 0.85:
        return []
    return luck.sample(good, luck.randint(0, len(good) - 1))


def begin(world: World) -> None:
    """Start the habits of all bad members."""
    for box in world.bad:
        act = functools.partial(_act, world, box, HABITS[world.habits[box.name]])
        world.at(world.habit_luck.uniform(0, 30), act)


def _act(world: World, box: SimulatedProcess, habit: Habit) -> None:
    if not world.ended_at:
        world.at(habit(world, box), functools.partial(_act, world, box, habit))


def end(world: World) -> None:
    """Wake and start the bad members, so that they hear that the run is over."""
    for box in world.bad:
        box.sleep(world, 0.0)
        world.start(box)
