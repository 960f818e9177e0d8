"""The exchanges of a run, by its plan: the rounds of each method in training, and the vote."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.learning import methods
from fedclip_edge.records import ExchangeKind, Plan


@dataclass(frozen=True)
class Step:
    """An exchange of a run, by number."""

    kind: ExchangeKind
    stage: int  # index of the method in training; of the last one in a vote


def stages(plan: Plan) -> tuple[Plan, ...]:
    """Return the plans of the methods that a run trains one after the other."""
    method = methods.get(plan.method)
    return (plan,) if method.stages is None else method.stages(plan)


def steps(plan: Plan) -> tuple[Step, ...]:
    """Return the exchanges of a run in their order."""
    every = stages(plan)
    found: list[Step] = []
    for i, stage in enumerate(every):
        found += [Step("round", i)] * rounds_of(stage)
    if has_vote(plan):
        found.append(Step("vote", len(every) - 1))
    return tuple(found)


def rounds_of(plan: Plan) -> int:
    """Return the number of training rounds of a plan with one method."""
    return plan.rounds or methods.get(plan.method).traits.rounds


def exchanges(plan: Plan) -> int:
    """Return the number of exchanges of a run."""
    return len(steps(plan))


def has_vote(plan: Plan) -> bool:
    """Return whether the run ends with a vote."""
    return plan.vote == "on" and bool(methods.get(plan.method).shares)


def sends_moments(plan: Plan) -> bool:
    """Return whether the run of a plan has a round of exact sums (moments.py)."""
    return any(methods.get(stage.method).traits.sends_moments for stage in stages(plan))
