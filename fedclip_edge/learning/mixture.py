"""A weighted sum of the logits of several heads, stored as one model.

    logits = sum over the members m of share_m * logits_m

A member is a set of parameters of one method. Its label is the name of that method, or that name, a
dot and a word of its own, such as `gda.added` and `gda.ridge`. Its parameters are stored with the
prefix `LABEL/`, and its share, a scalar, as `LABEL/share`. So evaluation, prediction and the
exported classifier accept a mixture like any other model. A member of zero-shot CLIP has only a
share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from fedclip_edge.learning.method import Logits
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.learning.unknown import without_rule
from fedclip_edge.records import Arrays, Model, Shapes

T = TypeVar("T")

ZERO_SHOT = "zeroshot"
_SHARE = "share"


def mixed(
    method: str, round: int, members: Mapping[str, Arrays], shares: Mapping[str, float]
) -> Model:
    """Make a mixture of members by label; a member of zero-shot CLIP needs a share only."""
    return Model(method, round, parameters(members, shares))


def parameters(members: Mapping[str, Arrays], shares: Mapping[str, float]) -> Arrays:
    """Make the parameters of a mixture; `shares` has all labels, `members` those with arrays."""
    terms = {
        f"{label}/{name}": term for label, its in members.items() for name, term in its.items()
    }
    return {
        **terms,
        **{f"{label}/{_SHARE}": np.array(s, np.float32) for label, s in shares.items()},
    }


def shapes(members: Mapping[str, Shapes]) -> Shapes:
    """Compute the shapes of a mixture from those of its members, by label."""
    terms = {
        f"{label}/{name}": shape for label, its in members.items() for name, shape in its.items()
    }
    return {**terms, **{f"{label}/{_SHARE}": () for label in members}}


def is_one(model: Model) -> bool:
    """Return whether the model is a mixture."""
    return any(name.endswith(f"/{_SHARE}") for name in model.parameters)


def member(model: Model, label: str) -> Model:
    """Return one member of a mixture; a model that is no mixture is its own only member."""
    return Model(method_of(label), model.round, members_of(model)[label])


def members_of(model: Model) -> dict[str, Arrays]:
    """Return the parameters of all members by label, without their shares.

    A rule for unknown pictures (unknown.py) belongs to no member.
    """
    if not is_one(model):
        return {model.method: without_rule(model.parameters)}
    found = _by_label(model.parameters)
    return {
        label: {name: term for name, term in terms.items() if name != _SHARE}
        for label, terms in found.items()
    }


def shares_of(model: Model) -> dict[str, float]:
    """Return the share of each member by label."""
    if not is_one(model):
        return {model.method: 1.0}
    return {label: float(its[_SHARE]) for label, its in _by_label(model.parameters).items()}


def method_of(label: str) -> str:
    """Return the name of the method of a member."""
    return label.partition(".")[0]


def logits(of: Callable[[str], Logits]) -> Logits:
    """Make the `logits` function of a mixture; `of` returns that of a method by name."""

    def of_all(
        ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
    ) -> Array:
        total = None
        for label, its in sorted(_by_label(terms).items()):
            own = its[_SHARE] * of(method_of(label))(ops, its, features, texts, scale)  # (N, C)
            total = own if total is None else total + own
        return total

    return of_all


def _by_label(terms: Mapping[str, T]) -> dict[str, dict[str, T]]:
    found: dict[str, dict[str, T]] = {}
    for name, term in without_rule(terms).items():
        label, _, rest = name.partition("/")
        found.setdefault(label, {})[rest] = term
    return found
