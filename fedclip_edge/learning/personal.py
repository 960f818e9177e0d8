"""Personal models: made from the shared model on a device, chosen there and never sent.

Some methods (tip-adapter, tofa, fedot) make one for every shared model, by `Method.personal`. For
the other methods the plan's `personal_epochs` asks for one. After the last round the device then
continues to train the shared model alone, epoch by epoch. (A one-round method solves once more,
with the shared head in place of the class texts.) The model of each epoch is tried in four mixes
with the shared one. Every personal model is behind the device's gate (gate.py).

Laws:

- On the device's validation pictures the chosen model is never less accurate than the shared one,
  which is a candidate.
- A device without validation pictures keeps no personal model that `personal_epochs` asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedclip_edge import log
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import gate, local, methods, mixture, strategies
from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.local import Sides
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.records import ClassTexts, Model, Plan

SHARES = (0.25, 0.5, 0.75, 1.0)  # shares of the device's own logits in the tried mixes


def personal(
    plan: Plan, model: Model, sides: Sides, classes: ClassTexts, device: str
) -> Model | None:
    """Make the device's personal model, with its gate, from the shared `model`.

    Returns None without training pictures and for a plan without personal models. With
    `personal_epochs` it also returns None before the last round and without validation pictures,
    and returns `model` itself if no candidate is better. Raises ConfigError for a bad option and
    DataError if the features do not fit the classes.
    """
    if not len(sides.train):
        return None
    if not plan.personal_epochs:
        own = methods.personal(local.task_of(plan, model, sides, classes, device))
        return None if own is None else _with_gate(model, own, sides, classes)
    if model.round < exchanges(plan) or not len(sides.validation):
        return None
    vectors, labels = sides.validation.vectors, sides.validation.labels
    shared = methods.predict(model, vectors, classes)  # (N, C)
    best, chosen = goodness(shared, labels), model
    around = gate.gate_of(sides.train, sides.validation, shared)
    for own in _trained_on(plan, model, sides, classes, device):
        for share in SHARES:
            candidate = gate.beside(model, own, share, around)
            found = goodness(methods.predict(candidate, vectors, classes), labels)
            if found > best:
                best, chosen = found, candidate
    return chosen


def _with_gate(model: Model, own: Model, sides: Sides, classes: ClassTexts) -> Model:
    """Put the gate around a method's own model.

    The own model has no share if the shared one is better on the validation pictures.
    """
    vectors, labels = sides.validation.vectors, sides.validation.labels
    shared = methods.predict(model, vectors, classes)  # (N, C)
    around = gate.gate_of(sides.train, sides.validation, shared)
    gated = gate.beside(model, own, 1.0, around)
    if len(labels):
        found = goodness(methods.predict(gated, vectors, classes), labels)
        if found < goodness(shared, labels):
            return gate.beside(model, own, 0.0, around)
    return gated


def _trained_on(
    plan: Plan, model: Model, sides: Sides, classes: ClassTexts, device: str
) -> Iterator[Model]:
    """Yield the shared model after 1, 2, ... `personal_epochs` more epochs on the device alone.

    It ends early if training diverges.
    """
    options = dict(plan.options)
    if methods.get(plan.method).traits.is_averaged:
        options["epochs"] = 1
    its_plan = replace(
        plan, options=options, strategy=strategies.DEFAULT, strategy_options={}, vote="off"
    )
    its_plan = replace(its_plan, rounds=plan.rounds + plan.personal_epochs)
    alone = local.alone(its_plan, classes, sides.train.vectors.shape[1])
    alone.model = replace(mixture.member(model, plan.method), round=plan.rounds)
    for epoch in range(plan.personal_epochs):
        try:
            alone.train(sides, device)
        except (ConfigError, PeerError) as error:  # diverged: earlier models stay candidates
            log.event("personal_model_stopped", epoch=epoch + 1, reason=str(error))
            return
        yield replace(alone.model, round=model.round)
