"""The start of a run from the model of an earlier one.

Only what is trained step by step can go on from a model: a method in closed form computes its head
from the sums of a round, whatever the model before. A model that was mixed by a vote has one head
for each method in it.

Law: a method that begins in a later exchange, as the adapter of `auto` does, begins with its head
in the coordinator's state, under START.
"""

from __future__ import annotations

from dataclasses import replace

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import ballot, methods
from fedclip_edge.learning.strategy import State
from fedclip_edge.records import Arrays, ClassTexts, Model, Plan

START = "start/"


def start_from(
    initial: Model, stages: tuple[Plan, ...], classes: ClassTexts, dim: int, model: Model
) -> tuple[Model, State]:
    """Make the model of round 0 and the coordinator's state that go on from `model`.

    `initial` is the run's model without it, `stages` are the plans of its methods, and `dim` is the
    feature width D. Raises ConfigError if nothing in the plan goes on from a model, or if the model
    has no head of the method, or one of other shapes.
    """
    if not any(methods.get(stage.method).traits.is_averaged for stage in stages):
        raise ConfigError(
            f"{initial.method} computes its model anew in one round, so it cannot start from "
            "another model; leave out --from"
        )
    heads = ballot.members_of(model)
    found: dict[int, Arrays] = {}
    for i, stage in enumerate(stages):
        if methods.get(stage.method).traits.is_averaged:
            head = heads.get(stage.method, heads.get(model.method, {}))
            if {n: term.shape for n, term in head.items()} == methods.shapes(stage, classes, dim):
                found[i] = head
    if not found:
        raise ConfigError(
            f"the model has no part that {initial.method} with these options could go on from; "
            "name another run, or leave out --from"
        )
    started = replace(initial, parameters=found.pop(0)) if 0 in found else initial
    return started, {
        f"{START}{i}/{name}": term for i, head in found.items() for name, term in head.items()
    }


def begin(initial: Model, stage: int, state: State) -> Model:
    """Return the model with which the method of a later exchange begins."""
    prefix = f"{START}{stage}/"
    found = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return replace(initial, parameters=found) if found else initial
