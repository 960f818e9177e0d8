"""The state that the round machine works on: the rounds of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedclip_edge.config import RunRules
from fedclip_edge.protocol.cohort import EVERYBODY
from fedclip_edge.protocol.messages import Phase


@dataclass(frozen=True)
class RoundState:
    """The rounds of a run at one moment. Times are monotonic, in seconds; devices are ids."""

    run: str
    rules: RunRules
    rounds: int  # of the whole run
    round: int = 1  # open, or next to open; from 1
    phase: Phase = "gathering"
    attempt: int = 0  # from 0 in each round
    deadline: float = math.inf  # of the open round, or of the last evaluation
    trainers: frozenset[str] = frozenset()  # online, with the role "train"
    evaluators: frozenset[str] = frozenset()  # online, with the role "evaluate"
    # Time since which each device has been offline; -inf for one that is not admitted any more.
    away_since: Mapping[str, float] = field(default_factory=dict)
    cohort: frozenset[str] = frozenset()
    threshold: str = EVERYBODY  # largest cohort hash that takes part
    invited: frozenset[str] = frozenset()  # devices that the first round always waits for
    kept: Mapping[str, str] = field(default_factory=dict)  # device -> SHA-256, this round
    rejected: frozenset[str] = frozenset()  # in this attempt
    offered: frozenset[str] = frozenset()  # have offered in this attempt, and may upload
    heard: frozenset[str] = frozenset()  # sent a hello, a want or a report in this attempt
    reminded: int = 0  # times that silent devices got the manifest again in this attempt
    reported: frozenset[str] = frozenset()  # devices that evaluated the last model

    @property
    def quorum(self) -> int:
        """Number of contributions that the open round needs to close; 1 or more."""
        return max(1, math.ceil(self.rules.quorum * len(self.cohort)))
