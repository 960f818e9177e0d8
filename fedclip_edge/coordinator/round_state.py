"""The state that the round machine works on: the rounds of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.protocol.cohort import EVERYBODY
from fedclip_edge.protocol.messages import Phase

LEFT_OUT_AFTER = 2  # a device that missed this many deadlines in a row no longer counts


@dataclass(frozen=True)
class RoundState:
    """The rounds of a run at one moment. Times are monotonic, in seconds; devices are ids."""

    run: str
    rules: RunRules
    rounds: int  # exchanges of the whole run: rounds and votes
    votes: frozenset[int] = frozenset()  # numbers of the exchanges that are votes
    round: int = 1  # open, or next to open; from 1
    phase: Phase = "gathering"
    paused: bool = False  # no round is opened
    attempt: int = 0  # from 0 in each round
    deadline: float = math.inf  # of the phase; in `gathering` it is set again each time it passes
    gathering_since: float = 0.0
    again_at: float = -math.inf  # devices that were refused open no other attempt before this time
    trainers: frozenset[str] = frozenset()  # online, with the role "train"
    evaluators: frozenset[str] = frozenset()  # online, with the role "evaluate"
    receivers: frozenset[str] = frozenset()  # online, without a role: they only receive models
    absent: frozenset[str] = frozenset()  # offline, with the role "train" as far as is known
    # Time since which each device has been offline; -inf for one that is not admitted any more.
    away_since: Mapping[str, float] = field(default_factory=dict)
    # The times at which each device last went away by itself, two at most, oldest first.
    departures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # Deadlines that each device has missed since its last kept contribution, up to LEFT_OUT_AFTER.
    missed: Mapping[str, int] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()  # devices whose last contribution was rejected
    told_at: float | None = None  # time of the last `Waiting` in this phase
    cohort: frozenset[str] = frozenset()
    threshold: str = EVERYBODY  # largest cohort hash that takes part
    invited: frozenset[str] = frozenset()  # devices that the first round always waits for
    enrolled: frozenset[str] = frozenset()  # and not revoked; empty without a registry
    kept: Mapping[str, str] = field(default_factory=dict)  # device -> SHA-256, this round
    rejected: frozenset[str] = frozenset()  # in this attempt
    offered: frozenset[str] = frozenset()  # have offered in this attempt, and may upload
    heard: frozenset[str] = frozenset()  # sent a hello, a want or a report in this attempt
    reminded: int = 0  # times that silent devices got the manifest again in this attempt
    reported: frozenset[str] = frozenset()  # devices that evaluated the last model

    @property
    def online(self) -> frozenset[str]:
        """The devices that are online."""
        return self.trainers | self.evaluators | self.receivers

    @property
    def is_vote(self) -> bool:
        """True if the exchange that is open, or opens next, is a vote."""
        return self.round in self.votes

    @property
    def left_out(self) -> frozenset[str]:
        """The devices that do not count until they contribute."""
        return frozenset(d for d, missed in self.missed.items() if missed >= LEFT_OUT_AFTER)

    @property
    def quorum(self) -> int:
        """Number of contributions that the open round needs to close; 1 or more."""
        return max(1, math.ceil(self.rules.quorum * len(self.cohort - self.left_out)))
