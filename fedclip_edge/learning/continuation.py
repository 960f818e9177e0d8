"""The start of a run from the model of an earlier one.

Only what is trained step by step can go on from a model: a method in closed form computes its head
from the sums of a round, whatever the model before. A model that was mixed by a vote has one head
for each method in it.

Laws:
- A method that begins in a later exchange, as the adapter of `auto` does, begins with its head in
  the coordinator's state, under START.
- The classes may have changed. A parameter with one row for each class (`Method.per_class`) keeps
  the rows of the classes that are still there, found by name; a new class begins as in a new run,
  at its text. All other parameters stay as they are. So the logits of the classes that are in both
  runs do not change.
"""

from __future__ import annotations

from dataclasses import replace

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import ballot, methods
from fedclip_edge.learning.strategy import State
from fedclip_edge.records import Arrays, ClassTexts, Model, Plan

START = "start/"


def start_from(
    initial: Model,
    stages: tuple[Plan, ...],
    classes: ClassTexts,
    dim: int,
    model: Model,
    before: ClassTexts,
) -> tuple[Model, State]:
    """Make the model of round 0 and the coordinator's state that go on from `model`.

    `initial` is the run's model without it, `stages` are the plans of its methods, `dim` is the
    feature width D, and `before` are the classes of `model`. Raises ConfigError, with the reason,
    if nothing in the plan goes on from a model, if the model has no head of the method or one of
    other shapes, or if none of its classes is left in a head with one row for each.
    """
    trained = [i for i, stage in enumerate(stages) if methods.get(stage.method).traits.is_averaged]
    if not trained:
        sums = any(methods.get(stage.method).traits.sends_moments for stage in stages)
        why = (
            "computes its model anew in one round, from the sums of all pictures"
            if sums
            else "trains no shared model"
        )
        raise ConfigError(
            f"{initial.method} {why}, so it cannot start from another model; leave out --from"
        )
    heads = ballot.members_of(model)
    found: dict[int, Arrays] = {}
    for i in trained:
        stage = stages[i]
        head = heads.get(stage.method, heads.get(model.method, {}))
        shapes = {name: term.shape for name, term in head.items()}
        if shapes == methods.shapes(stage, before, dim):
            found[i] = _carried(head, stage, before, classes, dim)
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


def _carried(
    head: Arrays, stage: Plan, before: ClassTexts, classes: ClassTexts, dim: int
) -> Arrays:
    """Make the parameters for `classes` of a head that was trained with the classes `before`."""
    per_class, fresh = methods.get(stage.method).per_class, methods.initial(stage, classes, dim)
    if any(
        term.shape != head[n].shape for n, term in fresh.parameters.items() if n not in per_class
    ):
        raise ConfigError(
            f"{stage.method} does not say how its parameters change with the classes, so it cannot "
            "start from a model of other classes; leave out --from"
        )
    if classes.names == before.names or not per_class:
        return head
    place = {name: row for row, name in enumerate(before.names)}
    stay = [row for row, name in enumerate(classes.names) if name in place]
    if not stay:
        raise ConfigError(
            f"{stage.method} has parameters for each class, and no class of the model is in the new "
            "run; name another run, or leave out --from"
        )
    came_from = [place[classes.names[row]] for row in stay]
    carried = dict(head)
    for name in per_class:
        rows = fresh.parameters[name].copy()
        rows[stay] = head[name][came_from]
        carried[name] = rows
    return carried
