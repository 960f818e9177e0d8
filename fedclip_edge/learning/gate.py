"""The gate of a personal model: for each picture, how much the device's own model counts.

A personal model is better on pictures like the device's own, and can be far worse on others. The
gate estimates from the picture alone, without a label, how likely it is one of the device's own:

    odds  = sum_c p_shared(c) f_c * exp(-max(0, slope (distance - limit)))
    trust = odds / (1 + odds)
    p     = trust p_own + (1 - trust) p_shared

- Labels: f_c is the number of the device's training pictures of class c, divided by the mean over
  the classes. By Bayes' rule the first factor is then the likelihood ratio of the device's pictures
  to those of a fleet that has as many of each class, if pictures of one class look alike
  everywhere. f is pulled towards 1 if the shared model does not know the classes of the device's
  own validation pictures.
- Look: `distance` is a Mahalanobis distance to the device's training pictures (see `gate_of`). It
  lowers the odds of a picture that is farther away than most of the device's validation pictures.
- Without any evidence the odds are even.

The probabilities are mixed, not the logits, because that is Bayes' rule for two possible origins.
Measurements are in docs/explanation/methods.md.

Laws:

- No test picture and no label of the picture is used.
- Where both models give the same probabilities, the result is the same too, for any gate.
- The parameters are a few means and directions of the device's pictures. They stay on the device,
  in the file of its personal model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.learning.operations import NUMPY, Array, Operations
from fedclip_edge.records import F32, Arrays, Features, Model, Shapes

# Directions of the largest variance. On the features of docs/explanation/methods.md, 32 are not
# better; without any, the accuracy on others' pictures was 0.3 points lower.
AXES = 8
_ABSENT = 0.5  # pictures that are added, shared by all classes, so that no class is impossible
_LEAST = 5  # validation pictures; fewer say nothing about the distance
# A picture one standard deviation farther away than the mean validation picture still counts as the
# device's own. With each further one, the odds fall by the factor exp(-2).
_STEPS = 2.0
_TINY = 1e-30  # added to probabilities before the logarithm; a normal float32

_FREQUENCY, _MEAN, _AXES, _WEIGHTS, _LIMIT, _SLOPE = (
    f"gate/{name}" for name in ("frequency", "mean", "axes", "weights", "limit", "slope")
)


def gate_of(train: Features, validation: Features, shared: F32) -> Arrays:
    """Make the parameters of a device's gate from its features, raw float32 (N, D).

    `shared` are the logits float32 (N, C) of the shared model for the validation pictures. Their
    labels are not used.

    The distance is that to a normal distribution with the mean of the unit training features. Its
    covariance is theirs in the AXES directions of the largest variance, shrunk by the total
    variance, and the same in all other directions. With fewer than 5 validation pictures or without
    a training picture, the distance counts for nothing.

    The parameters are float32: `frequency` (C,), `mean` (D,), `axes` (AXES, D), `weights` (AXES,),
    and the scalars `limit` and `slope`.
    """
    dim = train.vectors.shape[1]
    terms: dict[str, np.ndarray] = {
        _FREQUENCY: _frequency(train, shared),
        _MEAN: np.zeros(dim),
        _AXES: np.zeros((AXES, dim)),
        _WEIGHTS: np.zeros(AXES),
        _LIMIT: np.zeros(()),
        _SLOPE: np.zeros(()),
    }
    if len(train) and len(validation) >= _LEAST:
        unit = NUMPY.normalize(train.vectors).astype(np.float64)  # (N, D)
        terms[_MEAN] = unit.mean(axis=0)
        spread = unit - terms[_MEAN]
        _, sizes, axes = np.linalg.svd(spread, full_matrices=False)
        kept = min(AXES, len(sizes))
        shrinkage = np.square(sizes).sum() / max(len(train) - 1, 1)
        terms[_AXES][:kept] = axes[:kept]
        if shrinkage > 0:
            terms[_WEIGHTS][:kept] = (sizes**2 / (sizes**2 + shrinkage))[:kept]
        usual = _distance(NUMPY, _float32(terms), NUMPY.normalize(validation.vectors))  # (N,)
        deviation = max(float(usual.std(ddof=1)), 1e-6)
        terms[_LIMIT] = np.array(usual.mean() + deviation)
        terms[_SLOPE] = np.array(_STEPS / deviation)
    return _float32(terms)


def _frequency(train: Features, shared: F32) -> NDArray[np.float64]:
    """Compute f (C,), as described above."""
    classes = shared.shape[1]
    counts = np.bincount(train.labels, minlength=classes) + _ABSENT / classes
    frequency = counts / counts.mean()
    likely = np.minimum(NUMPY.softmax(shared) @ frequency, 1)  # (N,)
    known = (likely.sum() + 1) / (len(shared) + 1)  # one more picture, for a device without any
    return np.asarray(known * frequency + (1 - known))


def gated(model: Model, gate: Arrays) -> Model:
    """Add the parameters of a gate to a model."""
    return replace(model, parameters={**model.parameters, **gate})


def is_in(model: Model) -> bool:
    """Return whether the model has a gate."""
    return _FREQUENCY in model.parameters


def shapes(classes: int, dim: int) -> Shapes:
    """Shapes of the parameters of a gate for C classes and features of width D."""
    return {
        _FREQUENCY: (classes,),
        _MEAN: (dim,),
        _AXES: (AXES, dim),
        _WEIGHTS: (AXES,),
        _LIMIT: (),
        _SLOPE: (),
    }


def trust(ops: Operations, terms: Mapping[str, Array], features: Array, shared: Array) -> Array:
    """Compute the weight (N, 1) of the device's own model, from 0 to 1.

    Takes raw features (N, D) and the logits (N, C) of the shared model.
    """
    likely = ops.softmax(shared) @ terms[_FREQUENCY][:, None]  # (N, 1)
    distance = _distance(ops, terms, ops.normalize(features))  # (N,)
    away = ops.relu(terms[_SLOPE] * (distance - terms[_LIMIT]))
    odds = likely * ops.exp(-away)[:, None]
    return odds / (1 + odds)


def blended(
    ops: Operations, terms: Mapping[str, Array], features: Array, shared: Array, own: Array
) -> Array:
    """Blend the logits (N, C) of two models for raw features (N, D), as described above.

    The result is logarithms of probabilities (N, C). Without a gate in `terms` it is `own`.
    """
    if _FREQUENCY not in terms:
        return own
    weight = trust(ops, terms, features, shared)  # (N, 1)
    mixed = weight * ops.softmax(own) + (1 - weight) * ops.softmax(shared)
    return ops.log(mixed + _TINY)


def _distance(ops: Operations, terms: Mapping[str, Array], unit: Array) -> Array:
    """Compute the squared distances (N,) of unit features (N, D), but for a scale and a constant.

    |x - mean|^2 is 2 - 2 x mean plus a constant, as x has length 1.
    """
    along = (unit - terms[_MEAN]) @ terms[_AXES].T  # (N, AXES)
    return -2 * (unit @ terms[_MEAN]) - (along * along) @ terms[_WEIGHTS]


def _float32(terms: Mapping[str, np.ndarray]) -> dict[str, F32]:
    return {name: np.asarray(term, np.float32) for name, term in terms.items()}
