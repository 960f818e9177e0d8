"""The prototype head: Gaussian discriminant analysis plus class texts, closed form, one round.

Wang, Liang, Sheng, He, Wang, Tan 2024, "A Hard-to-Beat Baseline for Training-Free CLIP-Based
Adaptation" (ICLR), arXiv 2402.04087, code mrflogs/ICLR24: class means and one shared covariance of
frozen features. The sums over devices in one round are as in TOFA (arXiv 2511.16423), without its
hierarchy of priors.

    mu_c   = sum of x over class c / n_c                    x unit features
    S      = sum x x^T - sum_c n_c mu_c mu_c^T              scatter within the classes
    P      = D (S + tr(S) / (N - 1) I)^-1                   inverse covariance, shrunk
    w_c    = P mu_c,   b_c = -mu_c^T P mu_c / 2             equal priors
    logits = s (scale * cos(f, t_c) + alpha (x . w_c + b_c))

The shrinkage is the paper's empirical Bayes ridge-type estimator (Kubokawa & Srivastava 2008).
Devices send the same exact integer sums as for the ridge head (learning/moments.py), one set for
the training and one for the validation pictures. The paper chooses alpha by accuracy on validation
pictures. Here no picture leaves its device, so the two parts of the logits (centred over the
classes) are fitted to the one-hot targets by least squares over the validation sums. The two
factors of this fit, divided by its mean squared error, are s and s * alpha; ridge.py explains the
division. No test pictures are used.

For a class without pictures the mean is estimated from its text: it is the mean of the known class
means plus a multiple of the text's difference from the mean text. The multiple is fitted to the
known classes by least squares. Without any picture the model is zero-shot CLIP. Without any
validation picture alpha and s are 1.

Options: `alpha`, which is chosen as above if not given; `shrinkage`, which multiplies
tr(S) / (N - 1); `min_per_class` as in ridge.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning.kinds import closed_form, within_float16
from fedclip_edge.learning.moments import F64, Moments
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.records import Arrays, ClassTexts

_VARIANCE_MIN = 1e-4  # lower limit: with almost no error, s would be huge


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    alpha: float | None = None
    shrinkage: float = 1.0
    min_per_class: int = 5

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1e6:
            raise ValueError(f"alpha: expected 0 to 1e6, got {self.alpha}")
        if not 0 < self.shrinkage <= 1e6:
            raise ValueError(f"shrinkage: expected above 0 and at most 1e6, got {self.shrinkage}")
        if self.min_per_class < 1:
            raise ValueError(f"min_per_class: expected 1 or more, got {self.min_per_class}")


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the zero-shot head, with the scaled class texts as `weight`; it ignores the options.

    The parameters are float32: `weight` (C, D), `bias` (C,) and the scalar `alpha`.
    """
    weight = classes.vectors.astype(np.float64) * classes.logit_scale
    return _parameters(weight, np.zeros(len(weight)), 0.0)


def solve(initial: Arrays, train: Moments, validation: Moments, options: Options) -> Arrays:
    """Compute the head from the moments and the scaled texts in `initial`."""
    texts = _affine(initial["weight"].astype(np.float64), np.zeros(len(train.counts)))
    images = discriminant(train, texts[:, :-1], options.shrinkage)
    shares = _shares(texts, images, validation, options.alpha)
    alpha = float(shares[1] / shares[0]) if shares[0] > 0 else np.inf
    log.event(
        "prototypes_chosen",
        alpha=alpha,
        scale=float(shares[0]),
        train_pictures=train.pictures,
        validation_pictures=validation.pictures,
    )
    head = shares[0] * texts + shares[1] * images  # (C, D + 1)
    finite = min(alpha, float(np.finfo(np.float16).max))
    return _parameters(*within_float16(head[:, :-1], head[:, -1]), finite)


def discriminant(train: Moments, texts: F64, shrinkage: float) -> F64:
    """Compute W and b as float64 (C, D + 1), with b in the last column.

    `texts` are float64 (C, D), for classes without pictures. The mean over the classes is
    subtracted, because it affects no decision.
    """
    means = _means(train, texts)  # (C, D)
    scatter = train.gram - (means.T * train.counts) @ means  # (D, D)
    dim = len(scatter)
    ridge = shrinkage * max(float(np.trace(scatter)), 1e-9) / max(1, train.pictures - 1)
    values, basis = np.linalg.eigh(scatter)
    values = np.maximum(values, 0)  # rounding makes some negative
    precision = (basis * (dim / (values + ridge))) @ basis.T  # (D, D)
    weight = means @ precision  # (C, D)
    return _affine(weight, -np.sum(weight * means, axis=1) / 2)


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scores (N, C) of features (N, D); `texts` and `scale` are unused."""
    return ops.linear(ops.normalize(features), terms["weight"], terms["bias"])


def _means(train: Moments, texts: F64) -> F64:
    """Compute the class means (C, D); for a class without pictures, estimate it from its text."""
    present = train.counts > 0
    means = train.sums / np.maximum(train.counts, 1)[:, None]
    if present.all():
        return means
    middle, centre = means[present].mean(axis=0), texts[present].mean(axis=0)
    followed = texts - centre  # (C, D)
    length = float(np.sum(followed[present] ** 2))
    share = float(np.sum((means[present] - middle) * followed[present])) / max(length, 1e-9)
    return np.where(present[:, None], means, middle + max(0.0, share) * followed)


def _shares(texts: F64, images: F64, held: Moments, alpha: float | None) -> F64:
    """Compute the factors s and s * alpha, (2,) and not negative, of the two parts (C, D + 1)."""
    if not held.pictures:
        return np.array([1.0, 1.0 if alpha is None else alpha])
    parts = [texts, images] if alpha is None else [texts + alpha * images]
    sums = held.sums.sum(axis=0)[:, None]  # (D, 1)
    # The Gram matrix (D + 1, D + 1) of features with a column of ones for the bias.
    gram = np.block([[held.gram, sums], [sums.T, np.array([[float(held.pictures)]])]])
    targets = np.concatenate([held.sums, held.counts[:, None]], axis=1)  # (C, D + 1)
    normal = np.array([[np.sum(a * (b @ gram)) for b in parts] for a in parts])
    wanted = np.array([np.sum(a * targets) for a in parts])
    shares = _not_negative(normal, wanted)
    count = len(texts)
    squared = held.pictures * (1 - 1 / count) - 2 * shares @ wanted + shares @ normal @ shares
    variance = max(float(squared) / (held.pictures * (count - 1)), _VARIANCE_MIN)
    if alpha is not None:
        shares = np.array([shares[0], alpha * shares[0]])
    if not shares.any():  # both factors are zero: use zero-shot CLIP
        return np.array([1.0, 0.0])
    return shares / variance


def _not_negative(normal: F64, wanted: F64) -> F64:
    """Solve non-negative least squares with one or two unknowns."""
    free = np.linalg.lstsq(normal, wanted, rcond=None)[0]
    if (free >= 0).all():
        return np.asarray(free)
    alone = np.maximum(wanted, 0) / np.maximum(np.diag(normal), 1e-12)
    gains = alone * np.maximum(wanted, 0)
    return np.where(np.arange(len(alone)) == gains.argmax(), alone, 0.0)


def _affine(weight: F64, bias: F64) -> F64:
    """Join weight (C, D) and bias (C,) to (C, D + 1), centred over the classes."""
    joined = np.concatenate([weight, bias[:, None]], axis=1)
    return np.asarray(joined - joined.mean(axis=0))


def _parameters(weight: F64, bias: F64, alpha: float) -> Arrays:
    values = {"weight": weight, "bias": bias, "alpha": np.array(alpha)}
    return {name: np.array(value, np.float32, order="C") for name, value in values.items()}


METHOD = closed_form("prototypes", Options, initial_parameters, logits, solve)
