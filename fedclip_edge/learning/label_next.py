"""A choice of the unlabelled pictures that are most worth a label. Numpy only.

Two of three pictures are those that the model is least sure of: the smallest margin between the
probabilities of its two likeliest classes (Scheffer, Decomain, Wrobel 2001, "Active Hidden Markov
Models for Information Extraction", IDA), with at most an equal share of the list for each class
that the model names. Every third picture is the one least like everything that has a label or is
in the list already (k-centre greedy: Sener, Savarese 2018, "Active Learning for Convolutional
Neural Networks: A Core-Set Approach", ICLR, arXiv 1708.00489).

Of near-duplicates, which are pictures with a cosine of NEAR or more, one is chosen, and none if a
labelled picture is one.

docs/how-to/label-next.md compares the rule with others on true CLIP features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.records import F32

NEAR = 0.97  # cosine: two pictures of one scene
UNLIKE_EVERY = 3
_ROWS = 512  # rows of a block of cosines: this limits the memory

Reason = Literal["unsure", "unlike"]


@dataclass(frozen=True)
class Chosen:
    """One chosen picture."""

    index: int  # into the unlabelled pictures
    reason: Reason  # small margin, or unlike all labelled pictures
    margin: float  # between the two largest probabilities, 0 to 1
    nearest: float  # cosine to the nearest labelled or chosen picture; -1 if there is none


def label_next(
    vectors: F32, known: F32, probabilities: F32, most: int, near: float = NEAR
) -> list[Chosen]:
    """Choose at most `most` of the unlabelled pictures, the most useful first.

    `vectors` are the raw features of the unlabelled pictures, float32 (N, D), `known` those of the
    labelled ones, float32 (K, D), and `probabilities` what the model gives the unlabelled ones,
    float32 (N, C). Equal pictures come in their own order. Raises ValueError if the rows do not
    match.
    """
    if len(vectors) != len(probabilities):
        raise ValueError(f"{len(vectors)} features, but probabilities of {len(probabilities)}")
    if not len(vectors):
        return []
    unit, classes = NUMPY.normalize(vectors), probabilities.shape[1]
    two = np.sort(probabilities, axis=1)[:, -2:]
    margins = two[:, 1] - two[:, 0]  # (N,)
    named = probabilities.argmax(axis=1)  # (N,)
    nearest = _nearest(unit, NUMPY.normalize(known)) if len(known) else np.full(len(unit), -1.0)
    quota, given = -(-most // classes), np.zeros(classes, np.int64)
    free: NDArray[np.bool_] = nearest < near  # (N,)
    unsure = np.argsort(margins, kind="stable")
    chosen: list[Chosen] = []
    while len(chosen) < most and free.any():
        reason: Reason = "unlike" if len(chosen) % UNLIKE_EVERY == UNLIKE_EVERY - 1 else "unsure"
        if reason == "unlike":
            index = int(np.argmin(np.where(free, nearest, np.inf)))
        else:
            open_ones = unsure[free[unsure]]
            within = open_ones[given[named[open_ones]] < quota]
            index = int((within if len(within) else open_ones)[0])
        chosen.append(Chosen(index, reason, float(margins[index]), float(nearest[index])))
        given[named[index]] += 1
        nearest = np.maximum(nearest, unit @ unit[index])
        free &= nearest < near
        free[index] = False  # also a feature of zeros
    return chosen


def _nearest(unit: F32, known: F32) -> NDArray[np.floating]:
    """Compute the largest cosine of each row of `unit` (N, D) to a row of `known` (K, D): (N,)."""
    blocks = [
        (unit[first : first + _ROWS] @ known.T).max(axis=1) for first in range(0, len(unit), _ROWS)
    ]
    return np.concatenate(blocks)
