"""The gate of a personal model: for each picture, how much the device's own model counts.

A personal model is better on pictures like the device's own, and can be far worse on others. The
gate estimates from the picture alone, without a label, how likely it is one of the device's own:

    odds  = sum_c p_shared(c) f_c * exp(-max(0, slope (distance - limit)))
    trust = odds / (1 + odds)
    p     = trust p_own + (1 - trust) p_shared

p_own are the probabilities for the logits (1 - share) logits(shared) + share logits(own).

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
- The gate's parameters are a few means and directions of the device's pictures. They stay on the
  device, in the file of its personal model.
- A personal model has the shared model's rule for unknown pictures (unknown.py). It is applied to
  the logits of the shared model, with which it was measured.

The parameters of both models and of the gate are in one model, so that evaluation, prediction and
the exported classifier accept it like any other model. Those of the shared model keep their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.learning.method import Logits
from fedclip_edge.learning.operations import NUMPY, Array, Operations
from fedclip_edge.records import F32, Arrays, Features, Model, Shapes

T = TypeVar("T")

# Directions of the largest variance. On the features of docs/explanation/methods.md, 32 are not
# better; without any, the accuracy on others' pictures was 0.3 points lower.
AXES = 8
_ABSENT = 0.5  # pictures that are added, shared by all classes, so that no class is impossible
_LEAST = 5  # validation pictures; fewer say nothing about the distance
# A picture one standard deviation farther away than the mean validation picture still counts as the
# device's own. With each further one, the odds fall by the factor exp(-2).
_STEPS = 2.0
_TINY = 1e-30  # added to probabilities before the logarithm; a normal float32

_GATE, _OWN = "gate/", "own/"  # prefixes of parameters
_OWN_SHARE, _FREQUENCY, _MEAN, _AXES, _WEIGHTS, _LIMIT, _SLOPE = (
    f"{_GATE}{name}"
    for name in ("own_share", "frequency", "mean", "axes", "weights", "limit", "slope")
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


def beside(shared: Model, own: Model, share: float, gate: Arrays) -> Model:
    """Put a device's own model, of the same method, and its gate beside the shared model.

    `share` is the fraction of the device's own logits, from 0 to 1. The result has the round of the
    shared model.
    """
    theirs = {_OWN + name: term for name, term in own.parameters.items()}
    terms = {**shared.parameters, **theirs, _OWN_SHARE: np.array(share, np.float32), **gate}
    return replace(shared, parameters=terms)


def is_in(model: Model) -> bool:
    """Return whether the model has a gate."""
    return _FREQUENCY in model.parameters


def shared_of(model: Model) -> Model:
    """Return the shared model in a model with a gate; any other model is returned as it is."""
    return replace(model, parameters=shared_terms(model.parameters)) if is_in(model) else model


def own_of(model: Model) -> Model:
    """Return the device's own model in a model with a gate."""
    return replace(model, parameters=_own_terms(model.parameters))


def shapes(shared: Shapes, own: Shapes, classes: int, dim: int) -> Shapes:
    """Compute the shapes of a model with a gate, for C classes and features of width D."""
    return {
        **shared,
        **{_OWN + name: shape for name, shape in own.items()},
        _OWN_SHARE: (),
        _FREQUENCY: (classes,),
        _MEAN: (dim,),
        _AXES: (AXES, dim),
        _WEIGHTS: (AXES,),
        _LIMIT: (),
        _SLOPE: (),
    }


def logits(of_shared: Logits, of_own: Logits) -> Logits:
    """Make the `logits` function of a model with a gate from those of its two models."""

    def of_both(
        ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
    ) -> Array:
        shared = of_shared(ops, shared_terms(terms), features, texts, scale)  # (N, C)
        own = of_own(ops, _own_terms(terms), features, texts, scale)  # (N, C)
        return blended(ops, terms, features, shared, shared + terms[_OWN_SHARE] * (own - shared))

    return of_both


def shared_terms(terms: Mapping[str, T]) -> dict[str, T]:
    """Return the parameters of the shared model; without a gate in `terms` these are all."""
    return {n: term for n, term in terms.items() if not n.startswith((_GATE, _OWN))}


def _own_terms(terms: Mapping[str, T]) -> dict[str, T]:
    return {n.removeprefix(_OWN): term for n, term in terms.items() if n.startswith(_OWN)}


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

    The result is logarithms of probabilities (N, C).
    """
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
