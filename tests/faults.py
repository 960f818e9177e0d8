"""What the adversary may do to a run, each choice by the world's own luck."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bad_network import storm
from crashing import Killed

if TYPE_CHECKING:
    from simulation import Party, World


def _anybody(world: World) -> Party:
    return world.luck.choice((world.serve, *world.agents))


def _cut(world: World) -> None:
    world.lose_link(_anybody(world))


def _kill(world: World) -> None:
    world.kill(_anybody(world), back_in_s=0.1)


def _stop(world: World) -> None:
    """Stopped on purpose, with a good-bye."""
    party = _anybody(world)
    if party.process is not None and party.link is not None:
        try:
            party.process.say_goodbye()
            party.link.close()
        except Killed:
            pass
        world.kill(party, back_in_s=1.0)


def _arm(world: World) -> None:
    party = _anybody(world)
    party.fuse.left, party.fuse.on_disk = world.luck.randint(1, 20), False


def _arm_journal(world: World) -> None:
    fuse = world.serve.fuse
    fuse.left, fuse.on_disk = world.luck.randint(1, 12), True


def _mute(world: World) -> None:
    for party in world.luck.sample((world.serve, *world.agents), world.luck.randint(1, 2)):
        party.muted_until = world.now + world.luck.uniform(0.5, 20)


def _kill_broker(world: World) -> None:
    world.note("broker killed")
    world.network.die(forgets=world.luck.random() < 0.5)


def _clone(world: World) -> None:
    """Somebody starts a copy of a box, with its key; the broker knows one client of an id."""
    clone = world.clones[0]
    world.start(clone)
    world.at(world.luck.uniform(1, 10), functools.partial(world.kill, clone, None))


def _storm(world: World) -> None:
    calm = world.weather
    world.weather = storm(world.luck)

    def end() -> None:
        if world.now < world.quiet_at:
            world.weather = calm

    world.at(world.luck.uniform(1, 10), end)


FAULTS = (
    _cut,
    _cut,
    _kill,
    _kill,
    _arm,
    _arm,
    _arm_journal,
    _arm_journal,
    _arm_journal,
    _stop,
    _mute,
    _kill_broker,
    _clone,
    _storm,
)
