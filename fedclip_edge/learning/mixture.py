"""A mix of the shared model and a device's own model, stored as one model.

    logits = (1 - share) logits(shared) + share logits(own)

With a gate (gate.py) that is the device's own model, which the gate blends with the shared one.
Both models have the same method and shapes. The parameters of both are in one model, so that
evaluation, prediction and the exported classifier accept it like any other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedclip_edge.learning import gate
from fedclip_edge.learning.method import Logits
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.records import Arrays, Model, Shapes

_SHARE, _OWN = "mix", "own/"  # name of the share; prefix of the names of the device's parameters


def mixed(shared: Model, own: Model, share: float) -> Model:
    """Mix two models of the same shapes; the result has the round of the shared one.

    `share` is the fraction of the device's own logits, from 0 to 1.
    """
    prefixed = {_OWN + name: term for name, term in own.parameters.items()}
    terms: Arrays = {**shared.parameters, **prefixed, _SHARE: np.array(share, np.float32)}
    return replace(shared, parameters=terms)


def is_one(model: Model) -> bool:
    """Return whether the model is a mix."""
    return _SHARE in model.parameters


def shapes(its: Shapes) -> Shapes:
    """Compute the shapes of a mix; `its` are the shapes of each of the two models."""
    return {**its, **{_OWN + name: shape for name, shape in its.items()}, _SHARE: ()}


def logits(own: Logits) -> Logits:
    """Make the `logits` function of a mix from `own`, the `logits` function of the method."""

    def of_both(
        ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
    ) -> Array:
        theirs = {name.removeprefix(_OWN): t for name, t in terms.items() if name.startswith(_OWN)}
        shared = own(ops, terms, features, texts, scale)  # (N, C)
        mixed = shared + terms[_SHARE] * (own(ops, theirs, features, texts, scale) - shared)
        return gate.blended(ops, terms, features, shared, mixed)

    return of_both
