"""A Gaussian head beside corrected text logits: closed form, one round.

Wang, Liang, Sheng, He, Wang, Tan 2024, "A Hard-to-Beat Baseline for Training-Free CLIP-Based
Adaptation" (ICLR), arXiv 2402.04087, adds the logits of a linear discriminant to CLIP's own. Here
the class means are shrunk towards the texts, and the text logits are corrected, so that few
pictures do no harm.

    logits = scale (t_c - t) . x - h_c + a (w_c . x + b_c)          x unit features, t mean of t_c

Means: over the classes with pictures, the class means mu_c are regressed on the texts, which gives
r_c = m + s (t_c - t). The mean of class c is (sum of its pictures + k r_c) / (n_c + k). The method
of moments gives k, in pictures, from two spreads: of the pictures in a class, and of mu_c around
r_c. A class without pictures has the mean r_c.

Discriminant: w_c = P m_c and b_c = -m_c . w_c / 2 for the shrunk means m_c. P is the inverse of the
covariance within the classes with the paper's shrinkage: tr(S) / (N - 1) is added to the diagonal,
and P is scaled by N - 1 + D. The share is a = n / (n + 32) / 2 for n pictures per class.

Correction: some texts are close to every picture. Let e_c be the mean logit of text c on pictures
of other classes, and a_c on its own. The best threshold between two normal distributions of equal
variance is h_c = (e_c + a_c) / 2. Because a_c rests on few pictures, it is replaced by its
regression on e_c, with a slope from 0 to 1. The deviations of e_c from their mean are reduced by
the part of their variance that follows from the choice of classes: pictures of two classes say
nothing about the other texts.

Devices send the same exact sums as for ridge.py, one set for the training and one for the
validation pictures; both are used. The result is the same for any partition of the pictures.
Without any training picture the model is zero-shot CLIP.

Options: `share`, which is a if given; `min_per_class` as in ridge.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning import mixture
from fedclip_edge.learning.kinds import Ballot, closed_form, within_float16
from fedclip_edge.learning.methods import ridge
from fedclip_edge.learning.moments import F64, Moments, added
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.records import I64, Arrays, ClassTexts

# 32 is from other sets of CLIP features. The limit of 1/2 was settled on those of methods.md, with
# their test pictures in sight (docs/explanation/methods.md says what that means).
_HALF_GROWN_AT = 32.0  # pictures per class, of the share a
_PSEUDO_PICTURES = (0.05, 50.0)
_TINY = 1e-9


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    share: float | None = None
    min_per_class: int = 5

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share <= 100:
            raise ValueError(f"share: expected 0 to 100, got {self.share}")
        if self.min_per_class < 1:
            raise ValueError(f"min_per_class: expected 1 or more, got {self.min_per_class}")


@dataclass(frozen=True, eq=False)
class Discriminant:
    """The linear discriminant of shrunk class means, centred over the classes."""

    weight: F64  # (C, D)
    bias: F64  # (C,)
    pseudo_pictures: float  # k


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the zero-shot head, with the scaled class texts as `weight`; it ignores the options.

    The parameters are float32: `weight` (C, D) and `bias` (C,).
    """
    weight = classes.vectors.astype(np.float64) * classes.logit_scale
    return _parameters(weight, np.zeros(len(weight)))


def solve(initial: Arrays, train: Moments, validation: Moments, options: Options) -> Arrays:
    """Solve for the head from all moments and from the head in `initial`, which has the texts."""
    seen = added(train, validation)
    share = _share(seen) if options.share is None else options.share
    head, pseudo_pictures = head_of(initial, seen, share)
    log.event(
        "gda_solved",
        pictures=seen.pictures,
        classes=int((seen.counts > 0).sum()),
        share=share,
        pseudo_pictures=pseudo_pictures,
    )
    return head


def head_of(initial: Arrays, seen: Moments, share: float | None = None) -> tuple[Arrays, float]:
    """Solve for the head from moments of at least one picture; the second value is k."""
    share = _share(seen) if share is None else share
    texts = initial["weight"].astype(np.float64)  # (C, D)
    bias = initial["bias"].astype(np.float64)  # (C,)
    head = discriminant(seen, texts / np.linalg.norm(texts, axis=1).mean())
    bias = bias - thresholds(seen, texts, bias) + share * head.bias
    weight = texts - texts.mean(axis=0) + share * head.weight
    return _parameters(*within_float16(weight, bias)), head.pseudo_pictures


def heads(
    initial: Arrays, fitted: Moments, train: Moments, validation: Moments, options: Options
) -> Mapping[str, Arrays]:
    """Compute the two linear heads that the candidates consist of, beside the scaled texts.

    One is everything that `solve` adds to the texts, fitted to the moments `fitted`. The other is
    the head of ridge.py, with the settings that are best on the validation sums.
    """
    texts = initial["weight"].astype(np.float64)  # (C, D)
    scale = float(np.linalg.norm(texts, axis=1).mean())
    nothing = Moments(np.zeros_like(fitted.gram), np.zeros_like(fitted.sums), 0 * fitted.counts)
    whole = solve(initial, fitted, nothing, options)
    chosen = ridge.solve_head(train, validation, texts / scale, ridge.Options())
    settings = ridge.Options(chosen.l2, chosen.prior)
    squares = ridge.solve_head(fitted, validation, texts / scale, settings)
    variance = max(chosen.error, ridge.VARIANCE_MIN)
    return {
        "gda.added": _parameters(
            whole["weight"] - texts, whole["bias"].astype(np.float64) - initial["bias"]
        ),
        "gda.ridge": _parameters(squares.weight / variance, np.zeros(len(texts))),
    }


def unsolved(initial: Arrays) -> Mapping[str, Arrays]:
    """Make the two heads of a run without pictures: nothing is added, and the other is the start.

    So every candidate is zero-shot CLIP.
    """
    return {
        "gda.added": {name: np.zeros_like(term) for name, term in initial.items()},
        "gda.ridge": initial,
    }


def shares() -> Mapping[str, tuple[float, ...]]:
    """Make the candidates: zero-shot CLIP, the fixed rule, and three mixes of it with ridge.py.

    Other corrections and other shares of the discriminant gained nothing, and with 14 candidates
    chance finds a worse one more often (docs/explanation/methods.md).
    """
    rows = [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0)]
    rows += [(1 - part, 1 - part, part) for part in (0.25, 0.5, 0.75)]
    labels = (mixture.ZERO_SHOT, "gda.added", "gda.ridge")
    return {label: tuple(row[i] for row in rows) for i, label in enumerate(labels)}


def merge(initial: Arrays, parts: Mapping[str, Arrays], shares: Mapping[str, float]) -> Arrays:
    """Add up the heads, and the scaled texts in `initial`, by their shares."""
    every = {**parts, mixture.ZERO_SHOT: initial}
    weight: F64 = np.zeros(initial["weight"].shape)
    bias: F64 = np.zeros(initial["bias"].shape)
    for label, share in shares.items():
        weight += share * every[label]["weight"].astype(np.float64)
        bias += share * every[label]["bias"].astype(np.float64)
    return _parameters(*within_float16(weight, bias))


def thresholds(seen: Moments, texts: F64, bias: F64) -> F64:
    """Compute h_c (C,) for the logits of scaled texts (C, D) and a bias (C,).

    It is zero with pictures of fewer than four classes.
    """
    here = _here(seen)
    if len(here) < 4:
        return np.zeros(len(texts))
    means = seen.sums[here] / seen.counts[here, None]  # (P, D)
    scores = (texts - texts[here].mean(axis=0)) @ means.T + bias[:, None]  # (C, P)
    own = np.zeros(scores.shape, bool)
    own[here, np.arange(len(here))] = True
    others = np.ma.masked_array(scores, own)
    mean = others.mean(axis=1).data  # e_c (C,)
    by_choice = float((others.var(axis=1, ddof=1) / others.count(axis=1)).mean())
    # With few classes the ratio of the two variances is uncertain. The mean of an F distribution
    # with K - 1 degrees of freedom is (K - 1) / (K - 3).
    caution = (len(here) - 1) / (len(here) - 3)
    kept = max(0.0, 1 - caution * by_choice / max(float(mean.var()), _TINY))
    mean = mean.mean() + kept * (mean - mean.mean())
    x, y = mean[here] - mean[here].mean(), scores[own] - scores[own].mean()
    slope = min(max(float(x @ y) / max(float(x @ x), _TINY), 0.0), 1.0)
    own_mean = scores[own].mean() + slope * (mean - mean[here].mean())  # a_c (C,)
    return np.asarray((mean + own_mean) / 2)


def discriminant(seen: Moments, texts: F64) -> Discriminant:
    """Compute the discriminant from at least one picture; `texts` are unit, float64 (C, D)."""
    here = _here(seen)
    counts, pictures, dim = seen.counts[:, None], float(seen.pictures), texts.shape[1]
    means = seen.sums[here] / counts[here]  # mu_c (P, D)
    offsets = texts - texts[here].mean(axis=0)  # (C, D)
    length = max(float(np.sum(offsets[here] ** 2)), _TINY)
    slope = max(0.0, float(np.sum((means - means.mean(axis=0)) * offsets[here])) / length)
    expected = means.mean(axis=0) + slope * offsets  # r_c (C, D)
    pseudo = _pseudo_pictures(seen, means, expected[here], here)
    shrunk = (seen.sums + pseudo * expected) / (counts + pseudo)  # m_c (C, D)
    mixed = shrunk.T @ seen.sums
    scatter = seen.gram - mixed - mixed.T + (shrunk * counts).T @ shrunk  # (D, D)
    # The shrunk means use up one degree of freedom for each class, less their share of r_c.
    scatter *= pictures / max(pictures - len(here) / (1 + pseudo), 1.0)
    values, basis = np.linalg.eigh(scatter)
    values = np.maximum(values, 0)  # rounding makes some negative
    ridge = max(float(values.sum()) / max(pictures - 1, 1.0), _TINY)
    weight = (shrunk @ basis * ((pictures - 1 + dim) / (values + ridge))) @ basis.T
    bias = -np.sum(shrunk * weight, axis=1) / 2
    return Discriminant(weight - weight.mean(axis=0), bias - bias.mean(), pseudo)


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scores (N, C) of features (N, D); `texts` and `scale` are unused."""
    return ops.linear(ops.normalize(features), terms["weight"], terms["bias"])


def _pseudo_pictures(seen: Moments, means: F64, expected: F64, here: I64) -> float:
    """Compute k; `means` and `expected` are (P, D). It is 1 if no class has two pictures."""
    counts, free = seen.counts[here], seen.pictures - len(here)
    if not free:
        return 1.0
    within = (float(np.trace(seen.gram)) - counts @ np.sum(means**2, axis=1)) / free
    around = np.sum((means - expected) ** 2, axis=1).mean() - within * np.mean(1 / counts)
    return float(np.clip(within / max(around, _TINY), *_PSEUDO_PICTURES))


def _share(seen: Moments) -> float:
    """Compute a, the share of the discriminant, from the number of pictures per class."""
    per_class = seen.pictures / len(seen.counts)
    return per_class / (per_class + _HALF_GROWN_AT) / 2


def _here(seen: Moments) -> I64:
    """Return the labels of the classes with pictures, int64 (P,)."""
    return np.flatnonzero(seen.counts)


def _parameters(weight: F64, bias: F64) -> Arrays:
    return {
        "weight": np.array(weight, np.float32, order="C"),
        "bias": np.array(bias, np.float32),
    }


METHOD = closed_form(
    "gda",
    Options,
    initial_parameters,
    logits,
    solve,
    ballot=Ballot(shares(), heads, unsolved, merge),
    learns_from_validation=True,
)
