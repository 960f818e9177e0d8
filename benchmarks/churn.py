"""Measure rounds while devices come and go, stop, stay silent, or send updates that are refused.

Coordinator, sessions and journal are the real ones, in one process; the network is in memory, the
clock is simulated, and training takes no time. So a device costs the others only what the rules of
a round make them wait. Each case is compared with an undisturbed fleet. The exit code is 1 if a
case misses its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import in_memory
from cached_crypto import quickly
from fake_learner import FakeLearner

from fedclip_edge import log
from fedclip_edge.agent.working import work
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.learning import methods
from fedclip_edge.records import ClassTexts, Model, Plan, Role, Update
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport

TICK_S = 0.1
KEEPALIVE_ENDS_S = 45.0  # the broker notices then that a stopped process is gone
SHARE = 0.8  # of the undisturbed rounds per minute
_PLAN = Plan("fedclip", rounds=1_000_000, vote="off")
_USUAL = RunRules(devices=4)
_SHORT = RunRules(devices=4, deadline_s=15.0, grace_s=10.0)
_EVALUATES: tuple[Role, ...] = ("evaluate",)


class QuietBroker(InMemoryBroker):
    """A broker that drops the offers of some devices, so that they seem to do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.without_offers: set[str] = set()

    def accept(
        self, client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool
    ) -> None:
        if client.client_id in self.without_offers and payload.startswith(b'{"kind":"offer"'):
            return
        super().accept(client, topic, payload, retain=retain)


@dataclass
class Fleet(in_memory.Fleet):
    """A fleet on a simulated clock, and the times of its events."""

    broker: QuietBroker = field(default_factory=QuietBroker)
    stopped: dict[str, float] = field(default_factory=dict)  # by device, since when
    closed_at: list[float] = field(default_factory=list)
    named: set[str] = field(default_factory=set)  # devices in `missed` events

    def log(self, name: str, /, **fields: object) -> None:
        if name == "round_closed":
            self.closed_at.append(self.now)
        elif name == "missed":
            self.named.add(str(fields["device"]))

    def add(self, name: str, roles: tuple[Role, ...] = ("train", "evaluate")) -> None:
        some = in_memory.nothing()
        self.start_device(name, some, some, roles)

    def remove(self, name: str) -> None:
        self.broker.cut(name)
        del self.sessions[name]

    def step(self) -> None:
        for name, since in self.stopped.items():
            gone = self.now - since >= KEEPALIVE_ENDS_S
            if gone and self.broker.is_here(self._link_of(name)):
                self.broker.cut(name)
        for somebody, link in self.everybody():
            if link.client_id not in self.stopped:
                while (event := link.next_event(0)) is not None:
                    somebody.handle_event(event, self.now)
        for name, session in self.sessions.items():
            if name not in self.stopped:
                session.act(self.now)
                work(session, lambda: self.now)
        self.coordinator.tick(self.now)
        self.now += TICK_S

    def _link_of(self, name: str) -> InMemoryTransport:
        link = self.sessions[name].transport
        assert isinstance(link, InMemoryTransport)
        return link


def update_of(weight: int, model: Model) -> Update:
    """A small update of this weight; the plan allows only 1."""
    terms = {name: np.full_like(term, 0.001) for name, term in model.parameters.items()}
    return Update("sum", weight, terms)


def learner(config: AgentConfig, classes: ClassTexts, *_rest: object) -> FakeLearner:
    shapes = methods.shapes(methods.with_defaults(_PLAN), classes, classes.vectors.shape[1])
    weight = 2 if config.id.startswith("bad") else 1
    return FakeLearner(shapes, config.id, partial(update_of, weight), roles=config.roles)


Act = Callable[[Fleet, float], None]  # called before each step with the seconds since the start


def nothing(fleet: Fleet, at_s: float) -> None:
    """Disturb nothing."""


def comes_and_goes(name: str, here_s: float, away_s: float, late_s: float = 0.0) -> Act:
    """Let a device be online for `here_s` and then away for `away_s`, again and again."""

    def act(fleet: Fleet, at_s: float) -> None:
        should_be_here = (at_s + late_s) % (here_s + away_s) < here_s
        if should_be_here and name not in fleet.sessions:
            fleet.add(name, _EVALUATES if name.startswith("eval") else ("train", "evaluate"))
        elif not should_be_here and name in fleet.sessions:
            fleet.remove(name)

    return act


def take_turns(fleet: Fleet, at_s: float) -> None:
    """Two devices are away for 9 s, one after the other."""
    if at_s >= 5:  # all must be there for the first round
        comes_and_goes("cam-0", 9.0, 9.0)(fleet, at_s)
        comes_and_goes("cam-1", 9.0, 9.0, late_s=9.0)(fleet, at_s)


def stops(fleet: Fleet, at_s: float) -> None:
    """Stop a device as `kill -STOP` does."""
    if at_s >= 5:
        fleet.stopped.setdefault("cam-0", fleet.now)


def falls_silent(fleet: Fleet, at_s: float) -> None:
    """Let a device go on with everything but its offers."""
    if at_s >= 5:
        fleet.broker.without_offers.add("cam-0")


def leaves(fleet: Fleet, at_s: float) -> None:
    """End a device for good."""
    if at_s >= 5 and "cam-0" in fleet.sessions:
        fleet.remove("cam-0")


@dataclass(frozen=True)
class Case:
    """A disturbance and its bounds."""

    name: str
    act: Act
    rules: RunRules = _USUAL
    trainers: int = 4
    others: tuple[str, ...] = ()  # devices that are added to the trainers
    lasts_s: float = 150.0
    longest_s: float = 0.0  # bound for the longest round; 0: one deadline
    settled_s: float = 60.0  # rounds per minute are counted from here
    names: tuple[str, ...] = ()  # devices that the log must name


_EVALUATORS = tuple(f"eval-{number}" for number in range(8))
CASES = (
    Case("undisturbed", nothing, others=_EVALUATORS),
    Case(
        "one of eight evaluators comes and goes",
        comes_and_goes("eval-0", 20.0, 40.0),
        others=_EVALUATORS,
        settled_s=0.0,
    ),
    Case("a trainer comes and goes", comes_and_goes("cam-0", 20.0, 40.0), longest_s=30.0),
    Case("two trainers take turns", take_turns, _SHORT),
    Case("a trainer is stopped", stops, _SHORT, names=("cam-0",)),
    Case("a trainer is online and silent", falls_silent, _SHORT, names=("cam-0",)),
    Case(
        "one of three is refused",
        nothing,
        RunRules(devices=3, deadline_s=15.0, grace_s=10.0),
        trainers=2,
        others=("bad",),
        names=("bad",),
    ),
    Case(
        "one of two leaves",
        leaves,
        RunRules(devices=2, deadline_s=15.0, grace_s=10.0),
        trainers=2,
        longest_s=2 * 15.0 + 10.0,  # the quorum needs both until one has missed two deadlines
        names=("cam-0",),
    ),
)


@dataclass(frozen=True)
class Result:
    """The figures of a case; times are simulated seconds."""

    name: str
    rounds: int
    per_minute: float
    longest_s: float
    bound_s: float
    unnamed: tuple[str, ...]
    seconds: float

    def missed(self, undisturbed: Result) -> str:
        """The bound that the case misses; empty if there is none."""
        if self.unnamed:
            return f"the log does not name {', '.join(self.unnamed)}"
        if self.longest_s > self.bound_s + 2 * TICK_S:
            return f"a round took {self.longest_s:.1f} s, bound {self.bound_s:.0f} s"
        if self.per_minute < SHARE * undisturbed.per_minute:
            return f"fewer than {SHARE:.0%} of the undisturbed rounds per minute"
        return ""


@contextmanager
def started(case: Case) -> Iterator[Fleet]:
    with (
        tempfile.TemporaryDirectory() as home,
        quickly(logs=False),
        mock.patch.object(in_memory, "local_trainer", learner),
    ):
        fleet = Fleet(Path(home), _PLAN, case.rules)
        try:
            with mock.patch.object(log, "event", fleet.log):
                for number in range(case.trainers):
                    fleet.add(f"cam-{number}")
                for name in case.others:
                    fleet.add(name, _EVALUATES if name.startswith("eval") else ("train",))
                yield fleet
        finally:
            fleet.close()


def measure(case: Case, share: float) -> Result:
    """Run a case, for `share` of its time after it has settled."""
    began, lasts_s = time.perf_counter(), case.settled_s + share * (case.lasts_s - case.settled_s)
    with started(case) as fleet:
        start = fleet.now
        while fleet.now - start < lasts_s:
            case.act(fleet, fleet.now - start)
            fleet.step()
        closed = [at - start for at in fleet.closed_at]
    edges = [0.0, *closed, lasts_s]  # a round that is still open counts with its time so far
    settled = [at for at in closed if at >= case.settled_s]
    return Result(
        name=case.name,
        rounds=len(closed),
        per_minute=60 * len(settled) / (lasts_s - case.settled_s),
        longest_s=max(b - a for a, b in itertools.pairwise(edges)),
        bound_s=case.longest_s or case.rules.deadline_s,
        unnamed=tuple(name for name in case.names if name not in fleet.named),
        seconds=time.perf_counter() - began,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the measured time, up to 1")
    parser.add_argument("--case", help="only the cases whose name contains this text")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    usual, *rest = CASES
    chosen = [case for case in rest if options.case is None or options.case in case.name]
    undisturbed = measure(usual, options.share)
    broken = False
    for result in (undisturbed, *(measure(case, options.share) for case in chosen)):
        missed = result.missed(undisturbed)
        broken = broken or bool(missed)
        if options.json:
            print(json.dumps({**vars(result), "missed": missed}), flush=True)
        else:
            print(
                f"{result.name:40} {result.rounds:5} rounds, {result.per_minute:5.0f} per minute, "
                f"longest {result.longest_s:5.1f} s  {missed or 'ok'}",
                flush=True,
            )
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
