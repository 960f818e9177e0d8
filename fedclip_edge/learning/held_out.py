"""Predictions for labelled pictures by heads that were solved without them. Numpy only.

The pictures are divided into folds. The moments (moments.py) of all pictures less those of one fold
are the moments of the other folds, exactly, so no feature is added up twice. The head of gda.py is
solved on them and predicts that fold.

Laws:

- The prediction for a picture does not depend on its label.
- The order of the pictures changes nothing but the order of the predictions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fedclip_edge.learning import moments
from fedclip_edge.learning.methods import gda
from fedclip_edge.learning.moments import Moments, added
from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.records import F32, I64, ClassTexts, Features


def folds_of(hashes: Sequence[str], folds: int) -> I64:
    """Give each picture hash its fold, int64 (N,) from 0; equal hashes are in the same fold."""
    return np.array([int(one[:8], 16) % folds for one in hashes], np.int64)


def held_out_logits(features: Features, classes: ClassTexts, folds: I64) -> F32:
    """Predict each picture without its fold: logits float32 (N, C).

    `folds` is int64 (N,). A picture whose feature is all zeros has no direction and counts for no
    class. Raises DataError for more than 2**23 pictures.
    """
    count = len(classes.names)
    initial = gda.initial_parameters(classes, features.vectors.shape[1], 0, gda.Options())
    logits = np.zeros((len(features), count), np.float32)
    parts = {}  # rows, pictures and moments of each fold
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        own = Features(features.vectors[rows], features.labels[rows], features.encoder_id)
        parts[fold] = rows, own, _moments(own, count)
    if not parts:
        return logits
    total = functools.reduce(added, (its for _, _, its in parts.values()))
    for rows, own, its in parts.values():
        rest = _less(total, its)
        head = gda.head_of(initial, rest)[0] if rest.pictures else initial
        scale = classes.logit_scale
        logits[rows] = gda.logits(NUMPY, head, own.vectors, classes.vectors, scale)
    return logits


def _moments(features: Features, classes: int) -> Moments:
    return moments.from_sums("train", moments.send("train", features, classes, min_per_class=1))


def _less(total: Moments, part: Moments) -> Moments:
    return Moments(total.gram - part.gram, total.sums - part.sums, total.counts - part.counts)
