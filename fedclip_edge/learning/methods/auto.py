"""The default method: one round of gda, then FedCLIP's adapter, and a vote over both.

The first round is that of gda.py, which is the best head after one round with few pictures. In the
following rounds the devices train FedCLIP's adapter (fedclip.py) with settings in which it learns:
class cross-entropy, a learning rate of 1e-3 and no weight decay. The vote (learning/ballot.py)
then compares zero-shot CLIP, the candidates of gda, and mixes of gda with the adapter.

    logits = (1 - w) gda + w adapter

Without a vote, w is 1/2 if the sums of gda have a training picture of every class, and two of each
on average. Otherwise w is 0: an adapter that knows few of the classes prefers those to all others.
With a vote, the model with w = 1/2 stays unless another candidate is clearly better.

The two make different mistakes: gda knows the mean of each class and one covariance, the adapter
knows which values of a feature matter. So their mean is often better than either. If the devices
withhold all sums, because no class has `min_per_class` pictures on a device, the part of gda is
zero-shot CLIP.

Options: those of fedclip.py with different defaults, and `min_per_class` of gda.py. The plan's
strategy combines the adapters. `rounds` counts the round of gda.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import strategies
from fedclip_edge.learning.ballot import DEFAULT
from fedclip_edge.learning.method import LocalTask, Method, Traits
from fedclip_edge.learning.methods import fedclip, gda
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import Arrays, ClassTexts, Model, Plan, Update

# After about 20 rounds the adapter fits few pictures too closely, and 5 rounds are hardly worse
# (docs/explanation/methods.md).
_ROUNDS = 11  # one of gda, ten of the adapter
_PICTURES_PER_CLASS = 2  # on average, below which the adapter has no part without a vote
_ADAPTER = (0.5, 0.25, 0.75, 1.0)  # shares w of the adapter; the first is taken without a vote


@dataclass(frozen=True)
class Options(fedclip.Options):
    """Options; the constructor raises ValueError with the option's name and range."""

    loss: Literal["contrastive", "multi-positive", "cross-entropy"] = "cross-entropy"
    lr: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.0
    min_per_class: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _of_gda(self)  # raises ValueError


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the initial model of gda, which is zero-shot CLIP."""
    return gda.initial_parameters(classes, dim, seed, _of_gda(options))


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute the logits (N, C) of a model before the vote: the head of gda, or the adapter."""
    own = fedclip if fedclip.W1 in terms else gda
    return own.logits(ops, terms, features, texts, scale)


def fit(task: LocalTask, options: Options) -> Update:
    """Make the update of the first round, which is that of gda."""
    return gda.METHOD.fit(task, _of_gda(options))


def combine(model: Model, total: Total, state: State, options: Options) -> tuple[Model, State]:
    """Make the model of the first round, which is that of gda."""
    return gda.METHOD.combine(model, total, state, _of_gda(options))


def stages(plan: Plan) -> tuple[Plan, ...]:
    """Return the plans of gda and of the adapter.

    Raises ConfigError for a plan with too few rounds, or without the vote.
    """
    rounds = plan.rounds or _ROUNDS
    if rounds < 2:
        raise ConfigError(
            f"auto trains gda in one round and an adapter in the others, so rounds = {plan.rounds} "
            'is too few; write rounds = 2 or more, or method = "gda"'
        )
    if plan.vote == "off":
        raise ConfigError(
            'auto mixes two methods by a vote; leave out vote = "off", or write method = "gda" or '
            '"fedclip"'
        )
    options = METHOD.check_options(plan.options)
    adapter = {its.name: getattr(options, its.name) for its in fields(fedclip.Options)}
    first = replace(
        plan,
        method="gda",
        options={"min_per_class": options.min_per_class},
        rounds=1,
        strategy=strategies.DEFAULT,
        strategy_options={},
    )
    return first, replace(plan, method="fedclip", options=adapter, rounds=rounds - 1)


def shares() -> Mapping[str, tuple[float, ...]]:
    """Make the candidates: those of gda, and mixes of its default with the adapter.

    Candidate DEFAULT is the first of these mixes; the default of gda comes after it.
    """
    of_gda = gda.shares()
    rows = list(zip(*of_gda.values(), strict=True))
    alone = rows[DEFAULT]
    mixes = [(*((1 - w) * share for share in alone), w) for w in _ADAPTER]
    every = [(*row, 0.0) for row in rows]
    every = [*every[:DEFAULT], mixes[0], *every[DEFAULT:], *mixes[1:]]
    return dict(zip((*of_gda, "fedclip"), zip(*every, strict=True), strict=True))


def without_vote(kept: State) -> int:
    """Return the candidate that is taken if too few pictures have voted."""
    counts = kept.get("train.counts", np.zeros(1, np.int64))  # (C,)
    is_known = counts.min() >= 1 and counts.mean() >= _PICTURES_PER_CLASS
    return DEFAULT if is_known else DEFAULT + 1


def _of_gda(options: Options) -> gda.Options:
    return gda.Options(min_per_class=options.min_per_class)


METHOD = Method(
    "auto",
    Options,
    initial_parameters,
    gda.METHOD.layout,
    fit,
    combine,
    logits,
    Traits(rounds=_ROUNDS, is_averaged=True, learns_from_validation=True),
    shares=shares(),
    stages=stages,
    without_vote=without_vote,
)
