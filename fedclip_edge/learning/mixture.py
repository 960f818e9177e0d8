"""A device's own model as a mix: its logits are a share of its own and the rest of the shared one's.

    logits = (1 - share) logits(shared) + share logits(own)

Both are models of one method and of the same shapes, side by side in one model's terms, so that
evaluation, prediction and the exported classifier take it as they take any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedclip_edge.learning.method import Logits
from fedclip_edge.records import Arrays, Model, Shapes

if TYPE_CHECKING:
    from torch import Tensor

_SHARE, _OWN = "mix", "own/"  # a term, and what stands before the names of the device's own


def mixed(shared: Model, own: Model, share: float) -> Model:
    """The mix, of the shared model's round."""
    beside = {_OWN + name: term for name, term in own.parameters.items()}
    terms: Arrays = {**shared.parameters, **beside, _SHARE: np.array(share, np.float32)}
    return replace(shared, parameters=terms)


def is_one(model: Model) -> bool:
    """Whether the model is a mix."""
    return _SHARE in model.parameters


def shapes(its: Shapes) -> Shapes:
    """Of a mix of two models of these shapes."""
    return {**its, **{_OWN + name: shape for name, shape in its.items()}, _SHARE: ()}


def logits(own: Logits) -> Logits:
    """The mix's, by the method's own."""

    def of_both(
        terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float
    ) -> Tensor:
        theirs = {name.removeprefix(_OWN): t for name, t in terms.items() if name.startswith(_OWN)}
        shared = own(terms, features, texts, scale)  # (N, C)
        return shared + terms[_SHARE] * (own(theirs, features, texts, scale) - shared)

    return of_both
