"""The state of a run's rounds, as the round machine has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedclip_edge.config import RunRules
from fedclip_edge.protocol.cohort import EVERYBODY
from fedclip_edge.protocol.messages import Phase


@dataclass(frozen=True)
class RoundState:
    """The rounds of a run at one moment. `round` is the one open, or next to open; from 1."""

    run: str
    rules: RunRules
    rounds: int
    round: int = 1
    phase: Phase = "gathering"
    attempt: int = 0
    deadline: float = math.inf  # of the open round, or of the last evaluation
    trainers: frozenset[str] = frozenset()  # online, and willing to train
    evaluators: frozenset[str] = frozenset()  # online, and willing to evaluate
    away_since: Mapping[str, float] = field(default_factory=dict)  # went away, not back yet
    cohort: frozenset[str] = frozenset()
    threshold: str = EVERYBODY
    invited: frozenset[str] = frozenset()  # by name: the first round waits for these as well
    kept: Mapping[str, str] = field(default_factory=dict)  # device -> SHA-256, this round
    rejected: frozenset[str] = frozenset()  # in this attempt
    offered: frozenset[str] = frozenset()  # in this attempt, and may upload
    heard: frozenset[str] = frozenset()  # said anything at all in this attempt
    reminded: int = 0  # times in this attempt
    reported: frozenset[str] = frozenset()  # devices that evaluated the last model

    @property
    def quorum(self) -> int:
        """Contributions without which the open round cannot close."""
        return max(1, math.ceil(self.rules.quorum * len(self.cohort)))
