"""TOFA: Gaussian class models with a global and a personal posterior, closed form, one round.

Zhang, Han, Feng, Zhang, Li, Jiang, Lin, Chen 2026, "TOFA: Training-Free One-Shot Federated
Adaptation for Vision-Language Models" (AAAI), arXiv 2511.16423. There is no public code; the
formulas follow a published summary of the paper.

Features of class c are normal with the mean mu_c and one covariance for all classes. The posterior
of the fleet is that of all pictures under an uninformative prior. With the power alpha it is the
prior of a device, whose posterior is then proportional to L(own pictures) L(all pictures)^alpha.
That is the posterior of weighted sums: those of the device plus alpha times those of the fleet.

    mu_c  = (S_c^k + alpha S_c) / (n_c^k + alpha n_c)         S_c sums, n_c numbers of pictures
    f_V   = w_c . x + b_c,  w_c = P mu_c,  b_c = -mu_c . w_c / 2                  x unit features
    f_T   = scale * cos(f, t_c)
    logits = e f_V + (1 - e) f_T,  e = p_V / (p_V + p_T)

p_V and p_T are the highest probabilities of softmax(f_V) and softmax(f_T), so the surer part counts
more for each picture. (The paper writes e as the sigmoid of log(p_V / p_T), which is the same.)

P = (N - 1 + D) (S + tr(S) / (N - 1) I)^-1 for the scatter S within the classes: the posterior mean
of the precision under a Wishart prior with a scale matrix proportional to the identity. It is the
shrinkage of gda.py. The paper's own is not known here, nor its alpha.

Devices send the exact sums of ridge.py; those of the validation pictures are not used. The shared
model has the head of the fleet. It also has what a device needs for its own posterior: the class
means, the numbers of pictures, and the covariance within the classes. **So every device receives
the mean feature of each class of the fleet.** The device's own model has a head only. It is kept in
`personal.safetensors` and never sent.

alpha is chosen for the best accuracy on the device's validation pictures. The shared head, which is
the limit of a large alpha, is a candidate. Without validation pictures alpha is 1. As each device
chooses for itself, a run ends without a vote.

Not here: the paper's texts, which a language model writes on the devices; f_T has the class texts.
A class without pictures has a mean that is estimated from its text. Without two pictures of one
class there is no covariance, and the model is zero-shot CLIP.

Options: `alpha`, and `min_per_class` as in ridge.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning import moments
from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.kinds import closed_form, within_float16
from fedclip_edge.learning.method import LocalTask, Personal, scores
from fedclip_edge.learning.moments import F64, Moments
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.records import Arrays, ClassTexts, Model, Shapes

_ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0)
_ALPHA = 1.0
_LEAST_SPREAD = 1e-6  # mean of tr(S) per picture, which is about 0.5 for CLIP


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    alpha: float | None = None
    min_per_class: int = 5

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1e3:
            raise ValueError(f"alpha: expected 0 to 1e3, got {self.alpha}")
        if self.min_per_class < 1:
            raise ValueError(f"min_per_class: expected 1 or more, got {self.min_per_class}")


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the model of no pictures, whose head is the scaled class texts; it ignores the options.

    The parameters are float32: `weight` (C, D), `bias` (C,), `means` (C, D), `pictures` (C,) and
    `covariance` (D, D).
    """
    count = len(classes.names)
    nothing = Moments(np.zeros((dim, dim)), np.zeros((count, dim)), np.zeros(count))
    return {**_head(nothing, _scaled(classes)), **_statistics(nothing)}


def solve(initial: Arrays, train: Moments, validation: Moments, options: Options) -> Arrays:
    """Compute the head and the statistics of the fleet; `initial` has the scaled texts."""
    log.event("tofa_solved", pictures=train.pictures, classes=int((train.counts > 0).sum()))
    return {**_head(train, initial["weight"].astype(np.float64)), **_statistics(train)}


def own_model(task: LocalTask, options: Options) -> Model:
    """Make the device's own model: `weight` float32 (C, D) and `bias` (C,)."""
    shared, validation, classes = task.model.parameters, task.validation, task.classes
    own = moments.from_sums("own", moments.send("own", task.train, len(classes.names), 1))
    fleet = _fleet(shared)

    def posterior(alpha: float) -> Model:
        weighted = Moments(
            own.gram + alpha * fleet.gram,
            own.sums + alpha * fleet.sums,
            own.counts + alpha * fleet.counts,
        )
        return replace(task.model, parameters=_head(weighted, _scaled(classes)))

    if options.alpha is not None or not len(validation):
        return posterior(_ALPHA if options.alpha is None else options.alpha)
    head = {name: shared[name] for name in ("weight", "bias")}
    every = [replace(task.model, parameters=head), *map(posterior, _ALPHAS)]

    def on_validation(its: Model) -> tuple[float, float]:
        return goodness(scores(logits, its, validation.vectors, classes), validation.labels)

    return max(every, key=on_validation)


def shapes(model: Model, classes: ClassTexts, dim: int) -> Shapes:
    """Shapes of a device's own model, or of the shared one if `model` has its statistics."""
    count = len(classes.names)
    head: Shapes = {"weight": (count, dim), "bias": (count,)}
    if "covariance" not in model.parameters:
        return head
    return {**head, "means": (count, dim), "pictures": (count,), "covariance": (dim, dim)}


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute logits (N, C) of raw features (N, D): the surer of both parts counts more."""
    visual = ops.linear(ops.normalize(features), terms["weight"], terms["bias"])  # (N, C)
    textual = cosine_logits(ops, features, texts, scale)  # (N, C)
    sure, other = (ops.largest(ops.softmax(part)) for part in (visual, textual))  # (N, 1) each
    share = sure / (sure + other)
    return share * visual + (1 - share) * textual


def _head(seen: Moments, texts: F64) -> Arrays:
    """Compute w (C, D) and b (C,) from moments; `texts` are the scaled class texts (C, D)."""
    pictures, dim = float(seen.counts.sum()), texts.shape[1]
    values, basis = np.linalg.eigh(_scatter(seen))
    values = np.maximum(values, 0)  # rounding makes some negative
    spread = float(values.sum())
    weight, bias = texts, np.zeros(len(texts))
    if spread > _LEAST_SPREAD * pictures:
        means = _means(seen, texts)
        ridge = spread / max(pictures - 1, 1.0)
        weight = (means @ basis * ((pictures - 1 + dim) / (values + ridge))) @ basis.T
        bias = -np.sum(weight * means, axis=1) / 2
        # The mean over the classes affects no decision.
        weight, bias = within_float16(weight - weight.mean(axis=0), bias - bias.mean())
    return {
        "weight": np.array(weight, np.float32, order="C"),
        "bias": np.array(bias, np.float32),
    }


def _statistics(seen: Moments) -> Arrays:
    """Compute the class means, numbers of pictures and covariance of the fleet, as float32.

    These are small numbers, which float16 can hold. The moments themselves are not.
    """
    return {
        "means": _class_means(seen).astype(np.float32),
        "pictures": seen.counts.astype(np.float32),
        "covariance": (_scatter(seen) / max(1, seen.pictures)).astype(np.float32),
    }


def _fleet(shared: Arrays) -> Moments:
    """Compute the moments of the fleet from the shared model."""
    means, covariance = (shared[name].astype(np.float64) for name in ("means", "covariance"))
    counts = shared["pictures"].astype(np.float64)  # (C,)
    gram = covariance * counts.sum() + (means.T * counts) @ means
    return Moments(gram, means * counts[:, None], counts)


def _class_means(seen: Moments) -> F64:
    """Compute the mean feature of each class (C, D); zero for a class without pictures."""
    return np.asarray(seen.sums / np.where(seen.counts > 0, seen.counts, 1)[:, None])


def _means(seen: Moments, texts: F64) -> F64:
    """Compute the class means (C, D); for a class without pictures, estimate it from its text.

    It is the mean of the known means plus a multiple of the text's difference from the mean text.
    The multiple is fitted to the known classes by least squares.
    """
    means, here = _class_means(seen), seen.counts > 0
    middle, offsets = means[here].mean(axis=0), texts - texts[here].mean(axis=0)
    length = max(float(np.sum(offsets[here] ** 2)), _LEAST_SPREAD)
    multiple = max(0.0, float(np.sum((means[here] - middle) * offsets[here])) / length)
    return np.where(here[:, None], means, middle + multiple * offsets)


def _scatter(seen: Moments) -> F64:
    """Compute the scatter within the classes (D, D)."""
    return np.asarray(seen.gram - _class_means(seen).T @ seen.sums)


def _scaled(classes: ClassTexts) -> F64:
    return classes.vectors.astype(np.float64) * classes.logit_scale


METHOD = replace(
    closed_form("tofa", Options, initial_parameters, logits, solve),
    personal=Personal(own_model, shapes),
    vote=None,
    shares={},
)
