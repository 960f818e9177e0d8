"""The result of a vote: the final model, from the candidate that the devices chose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning import ballot, carried_state, methods, mixture
from fedclip_edge.learning.run_steps import stages
from fedclip_edge.learning.strategy import State
from fedclip_edge.learning.unknown import NEVER, Rule, with_rule
from fedclip_edge.records import Arrays, ClassTexts, Features, Model, Plan

_TINY = 1e-6  # logits


def ballot_heads(plan: Plan) -> frozenset[str]:
    """Labels of the heads on the ballot, without zero-shot CLIP."""
    return frozenset(methods.get(plan.method).shares) - {mixture.ZERO_SHOT}


def settle(
    plan: Plan, classes: ClassTexts, model: Model, choice: ballot.Choice, state: State
) -> Model:
    """Make the final model of a run from the ballot `model` and the choice of the devices.

    `state` holds what the methods in training have kept for the vote.
    """
    all_shares = methods.get(plan.method).shares
    shares = ballot.chosen_shares(all_shares, choice)
    heads = ballot.members_of(model)
    means: Features | None = None
    found: dict[str, Arrays] = {}
    weights: dict[str, float] = {}
    for i, stage in enumerate(stages(plan)):
        method = methods.get(stage.method)
        assert method.vote is not None
        # Zero-shot CLIP's share is settled together with the heads of the first method.
        labels = [label for label in method.shares if not i or label in ballot_heads(plan)]
        its = {label: heads[label] for label in labels if label in heads}
        kept = carried_state.kept_by(i, state)
        mine = {label: shares.get(label, 0.0) for label in labels}
        settled, its_shares = method.vote.settle(
            its, kept, mine, method.check_options(stage.options)
        )
        found.update(settled)
        weights.update(its_shares)
        if means is None and method.vote.means is not None:
            means = method.vote.means(kept)
    name, number = plan.method, model.round + 1
    if list(weights) == [name]:
        final = Model(name, number, found[name])
    else:
        final = mixture.mixed(name, number, found, weights)
    # The threshold was measured with the logits on the ballot, at temperature 1.
    gain = choice.temperature
    if means is not None and len(means):
        on_ballot = mixture.mixed(name, number, heads, shares)
        gain *= _growth(on_ballot, final, means, classes)
    rule = Rule(choice.unknown_below, gain)
    return replace(final, parameters=with_rule(final.parameters, rule))


def _growth(before: Model, after: Model, means: Features, classes: ClassTexts) -> float:
    """Divide the leads of two models: how far a class's logit is above the mean of all classes.

    They are taken at the classes' mean pictures. It is 1 if a model has no lead there.
    """
    leads = []
    for model in (before, after):
        logits = methods.predict(model, means.vectors, classes)  # (P, C)
        own = logits[np.arange(len(means)), means.labels]
        leads.append(float((own - logits.mean(axis=1)).mean()))
    return leads[1] / leads[0] if min(leads) > _TINY else 1.0


def log_decision(choice: ballot.Choice, *, decided: bool) -> None:
    """Log the choice; without `decided`, too few devices have voted."""
    log.event(
        "vote_decided",
        candidate=choice.candidate,
        temperature=choice.temperature,
        pictures=choice.pictures,
        loss=choice.loss,
        zero_shot_loss=choice.zero_shot_loss,
        correct=choice.correct,
        zero_shot_correct=choice.zero_shot_correct,
        unknown_below=choice.unknown_below if choice.unknown_below > NEVER else None,
        removed_unknown=choice.removed_unknown,
        hint=_hint(choice, decided=decided),
    )


def _hint(choice: ballot.Choice, *, decided: bool) -> str | None:
    """Say why the default candidate was taken without a comparison; None if there was one."""
    if not decided:
        return (
            "too few devices answered before the deadline, so the default candidate is taken; "
            "raise deadline_s, or see in the log which devices missed it"
        )
    if choice.loss is None:
        return (
            f"fewer than {ballot.ENOUGH} validation pictures voted, so the default candidate is "
            "taken; give the devices more pictures"
        )
    return None
