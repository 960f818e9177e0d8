"""Pictures of none of the classes: a score, and the threshold below which a picture is unknown.

    score = mean_c cos(x, t_c) + (max_c l_c - mean_c l_c) / (scale * gain)       l_c the logits

The first term is low for a picture that is like none of the texts, the second for a picture that no
class stands out for. For zero-shot CLIP (gain 1) the score is the largest cosine. Softmax loses the
first term: a logit that all classes share changes no probability. The score is the largest logit of
Hendrycks et al. 2022, "Scaling Out-of-Distribution Detection for Real-World Settings" (ICML),
arXiv 1911.11132, but takes the shared part from the texts, because a trained model is free to
change its own. docs/explanation/methods.md compares it with other scores.

The threshold needs no picture of other classes. Each device counts, in bins of the score, its
validation pictures

    known     with all classes
    removed   without the column of its own class, as if the class were not in the list

and the counts of all devices are added. The threshold calls so few known pictures unknown that a
further one is called unknown with a probability of at most MOST_KNOWN: with r of n known pictures
below the threshold, this probability is at most (r + 1) / (n + 1) (split conformal prediction, Vovk
et al. 2005, "Algorithmic Learning in a Random World"). Of the thresholds that this allows it is the
one that separates both counts best. It is NEVER if none of them separates, and for fewer than 19
pictures.

The removed pictures are only a guide: the model has learned from pictures of their class, so it
rejects them more readily than pictures of a class that it has never met.

Laws:

- The counts of any partition of the same pictures add up to the same integers.
- A threshold is an edge of two bins, so the share of pictures below it follows from the counts. All
  edges are float16 numbers, so every codec keeps a threshold as it is.
- The order of the classes changes neither score nor counts, except by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedclip_edge.learning.operations import NUMPY, Array, Operations
from fedclip_edge.records import F32, I64, Arrays, Shapes, Sums

T = TypeVar("T")

BINS = 192
KNOWN, REMOVED = "known", "removed"
MOST_KNOWN = 0.05  # known pictures called unknown
NEVER = -1.0  # no score is lower: a mean cosine is at least -1, and the second term at least 0
THRESHOLD, GAIN = "unknown.threshold", "unknown.gain"  # parameters of a model
RULE: Shapes = {THRESHOLD: (), GAIN: ()}

# Bins are 1/192 wide at score 0, 0.007 at 0.25, a usual score of zero-shot CLIP, and 0.021 at 1.
_EDGES: F32 = (0.25 * np.sinh(np.arange(-47, 144) / 48)).astype(np.float16).astype(np.float32)


@dataclass(frozen=True)
class Rule:
    """A model's rule: a picture whose score is below the threshold is unknown."""

    threshold: float = NEVER
    gain: float = 1.0  # of the model's logits, against those that the threshold was measured with

    @property
    def applies(self) -> bool:
        """True if the rule can call a picture unknown."""
        return self.threshold > NEVER


@dataclass(frozen=True, eq=False)
class Separation:
    """Counts of the scores of pictures of the classes and of other pictures, for one rule."""

    known: I64  # (BINS,)
    others: I64  # (BINS,)
    threshold: float = NEVER

    def __add__(self, other: Separation) -> Separation:
        """Add the counts of another device; without a common threshold the sum has none."""
        threshold = self.threshold if self.threshold == other.threshold else NEVER
        return Separation(self.known + other.known, self.others + other.others, threshold)

    @property
    def auroc(self) -> float | None:
        """The probability that a known picture has a higher score than another one, 0 to 1.

        Pictures in the same bin count as a half. It is None if there are none on one side.
        """
        if not (self.known.any() and self.others.any()):
            return None
        lower = np.cumsum(self.others) - self.others  # (BINS,)
        pairs = float(self.known.sum()) * float(self.others.sum())
        return float((self.known * (lower + self.others / 2)).sum() / pairs)

    @property
    def known_unknown(self) -> float | None:
        """The share of known pictures that are called unknown; None without a threshold."""
        return _share_below(self.known, self.threshold)

    @property
    def others_unknown(self) -> float | None:
        """The share of other pictures that are called unknown; None without a threshold."""
        return _share_below(self.others, self.threshold)


def score(
    ops: Operations, logits: Array, zero_shot: Array, scale: float, gain: float = 1.0
) -> Array:
    """Compute the score float32 (N,) from the logits of a model and of zero-shot CLIP, both (N, C).

    `scale` is the logit scale of the class texts. Scores are in units of a cosine.
    """
    return (zero_shot.mean(1) + (ops.largest(logits)[:, 0] - logits.mean(1)) / gain) / scale


def scores(logits: F32, zero_shot: F32, scale: float, gain: float = 1.0) -> F32:
    """Compute the scores float32 (N,) of `score` with numpy.

    Logits (N, C) that are infinite or NaN give such scores, without a warning.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(score(NUMPY, logits, zero_shot, scale, gain))


def count(logits: F32, zero_shot: F32, scale: float, labels: I64) -> Sums:
    """Count scores in bins: int64 (BINS,) for KNOWN and for REMOVED.

    Takes the logits (N, C) of a model and of zero-shot CLIP, and labels int64 (N,).
    """
    others = np.ones(logits.shape, bool)
    others[np.arange(len(labels)), labels] = False
    shape = (len(labels), logits.shape[1] - 1)
    rest, rest_zero_shot = logits[others].reshape(shape), zero_shot[others].reshape(shape)
    return {
        KNOWN: histogram(scores(logits, zero_shot, scale)),
        REMOVED: histogram(scores(rest, rest_zero_shot, scale)),
    }


def histogram(scores: F32) -> I64:
    """Count scores (N,) in bins: int64 (BINS,); a NaN counts as the lowest score."""
    ordered = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return np.bincount(np.searchsorted(_EDGES, ordered, side="right"), minlength=BINS)


def sum_shapes() -> Shapes:
    """Names and shapes of the counts of one model."""
    return {KNOWN: (BINS,), REMOVED: (BINS,)}


def threshold(sums: Sums) -> float:
    """Choose a threshold from the added counts; NEVER if there is none that helps."""
    known, removed = sums[KNOWN], sums[REMOVED]
    pictures = int(known.sum())
    below = np.cumsum(known)[:-1]  # known pictures below each edge (BINS - 1,)
    allowed = below + 1 <= MOST_KNOWN * (pictures + 1)
    if not allowed.any():
        return NEVER
    gained = np.cumsum(removed)[:-1] - below  # both counts have the same number of pictures
    gained[~allowed] = 0
    best = int(gained.argmax())
    return float(_EDGES[best]) if gained[best] > 0 else NEVER


def rule_of(parameters: Mapping[str, Array]) -> Rule:
    """Return the rule in a model's parameters; without one, the model never says unknown."""
    if THRESHOLD not in parameters:
        return Rule()
    return Rule(float(parameters[THRESHOLD]), float(parameters[GAIN]))


def with_rule(parameters: Arrays, rule: Rule) -> dict[str, F32]:
    """Add a rule to a model's parameters, as two scalars, or replace the rule in them."""
    numbers = {THRESHOLD: rule.threshold, GAIN: rule.gain}
    return {**parameters, **{name: np.array(its, np.float32) for name, its in numbers.items()}}


def rule_shapes(parameters: Mapping[str, Array]) -> Shapes:
    """Shapes of the rule in a model's parameters; empty if there is none."""
    return RULE if any(name in parameters for name in RULE) else {}


def without_rule(parameters: Mapping[str, T]) -> dict[str, T]:
    """Return the parameters that the method itself uses."""
    return {name: its for name, its in parameters.items() if name not in RULE}


def _share_below(counts: I64, threshold: float) -> float | None:
    """Compute the share of counted pictures (BINS,) below an edge of two bins, 0 to 1."""
    if threshold <= NEVER or not counts.any():
        return None
    return float(counts[: np.searchsorted(_EDGES, threshold, side="right")].sum() / counts.sum())
