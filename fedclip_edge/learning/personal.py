"""A device's own model: made of the shared one on the device, chosen there, never sent.

Methods that keep one by themselves (tip-adapter) have it at every model. For the others the plan's
`personal_epochs` asks for one: after the last round a device trains on alone from the shared model,
epoch by epoch (a one-round method solves once more, round the shared head in the texts' place), and
each model on the way is tried in four mixes with the shared one (mixture.py).

Law: on the device's validation pictures what is kept is never less accurate than the shared model,
which is among the candidates and wins where none is better. Without such pictures nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedclip_edge import log
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import local, methods, mixture, strategies
from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.local import Sides
from fedclip_edge.records import ClassTexts, Model, Plan

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the device's own logits


def personal(
    plan: Plan, model: Model, sides: Sides, classes: ClassTexts, device: str
) -> Model | None:
    """The device's own model beside `model`; None where there is none, or nothing to make it of."""
    if not len(sides.train):
        return None
    if not plan.personal_epochs:
        return methods.personal(model, sides.train, sides.validation, classes, plan)
    if model.round < plan.rounds or not len(sides.validation):
        return None
    vectors, labels = sides.validation.vectors, sides.validation.labels
    shared = methods.predict(model, vectors, classes)  # (N, C)
    best, chosen = goodness(shared, labels), model
    for own in _trained_on(plan, model, sides, classes, device):
        theirs = methods.predict(own, vectors, classes)
        for share in SHARES:
            found = goodness(shared + share * (theirs - shared), labels)
            if found > best:
                best, chosen = found, mixture.mixed(model, own, share)
    return chosen


def _trained_on(
    plan: Plan, model: Model, sides: Sides, classes: ClassTexts, device: str
) -> Iterator[Model]:
    """The shared model after one epoch more on the device alone, after two, ..."""
    options = dict(plan.options)
    if methods.get(plan.method).TRAITS.is_averaged:
        options["epochs"] = 1
    its_plan = replace(plan, options=options, strategy=strategies.DEFAULT, strategy_options={})
    part = strategies.get(plan.strategy).on_devices
    own = model if part is None else part.apart(model)[0]
    alone = local.Alone(its_plan, own)
    for epoch in range(plan.personal_epochs):
        try:
            alone.train(sides, classes, device)
        except (ConfigError, PeerError) as error:  # it ran away: what came before stays a candidate
            log.event("personal_model_stopped", epoch=epoch + 1, reason=str(error))
            return
        # As many terms as the shared model has: what a strategy keeps in it stays as it was.
        yield replace(
            alone.model,
            round=model.round,
            parameters={**model.parameters, **alone.model.parameters},
        )
