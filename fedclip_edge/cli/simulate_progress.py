"""Progress of `fedclip-edge simulate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from fedclip_edge.cli.progress import Bar, Pace

if TYPE_CHECKING:
    from fedclip_edge.simulating.comparison import Step


class Show:
    """Progress on standard error: a bar on a terminal, a line for each finished run elsewhere."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._done = 0
        self._bar = Bar(sys.stderr)
        self._pace = Pace()

    def note(self, text: str) -> None:
        self._bar.say(f"Note: {text}.")

    def step(self, step: Step) -> None:
        self._done += 1
        run = step.run
        apart = f", {run.held_out} held out" if run.held_out else ""
        what = f"{run.setting.label}, seed {run.seed}{apart}"
        if self._bar.is_drawn:
            self._bar.show(self._done, self._rounds, f"{what}, round {step.round}")
        elif not step.outcomes:
            if self._pace.is_due():
                of_all = f"{self._done} of {self._rounds} in all runs"
                click.echo(f"{what}: round {step.round} ({of_all})", err=True)
        else:
            for one in step.outcomes:
                if one.fleet and one.zero_shot:
                    shares = (
                        f"accuracy {100 * one.fleet.mean:.1f} %, "
                        f"zero-shot {100 * one.zero_shot.mean:.1f} %"
                    )
                    view = f" ({one.view} classes)" if one.view else ""
                    rounds = f"{step.round} round{'s' * (step.round != 1)}"
                    click.echo(f"{what}: {rounds}, {shares}{view}", err=True)

    def end(self) -> None:
        self._bar.end()
