"""Tip-Adapter: class texts plus a cache of the device's own features, without training.

Zhang et al. 2022, "Tip-Adapter: Training-Free Adaption of CLIP for Few-Shot Classification",
arXiv 2207.09519; reference code gaopengcuhk/Tip-Adapter.

    logits = scale * cos(f, t_c) + alpha * sum_i exp(-beta (1 - cos(f, k_i))) [y_i = c]

k_i are the device's normalised training features and y_i their labels. They must not leave the
device, so the method is **personal**: the device sends an empty update, and the run's model is
zero-shot CLIP. Each device keeps its own model in `personal.safetensors`, which `predict` and
`export-classifier` accept. It is made anew at each evaluation from the cached features.

alpha and beta are chosen for the best accuracy on the device's validation pictures; among equal
accuracies the lowest cross-entropy decides. alpha 0, which is zero-shot CLIP, is one of the
candidates, so on these pictures the device's model is never less accurate than zero-shot. Without
validation pictures alpha is 1 and beta 5.5, as in the paper.

Options: `alpha` and `beta`; a value that is not given is chosen as above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.kinds import untrained
from fedclip_edge.learning.method import LocalTask, Personal, scores
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.records import ClassTexts, Model, Shapes

_ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_BETAS = (1.0, 2.0, 5.5, 10.0, 20.0, 50.0)
_ALPHA, _BETA = 1.0, 5.5  # from the paper


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1e4:
                raise ValueError(f"{name}: expected 0 to 1e4, got {value}")


def own_model(task: LocalTask, options: Options) -> Model:
    """Make the device's cache of n training pictures, with alpha and beta as described above.

    Its parameters are float32: `keys` (n, D) unit rows, `values` (n, C) one-hot labels, and the
    scalars `alpha` and `beta`.
    """
    model, train, validation, classes = task.model, task.train, task.validation, task.classes
    norms = np.linalg.norm(train.vectors, axis=1, keepdims=True)
    keys = (train.vectors / np.where(norms > 0, norms, 1)).astype(np.float32)  # (N, D)
    values = np.eye(len(classes.names), dtype=np.float32)[train.labels]  # (N, C)

    def cached(alpha: float, beta: float) -> Model:
        chosen = {"alpha": np.array(alpha, np.float32), "beta": np.array(beta, np.float32)}
        return replace(model, parameters={"keys": keys, "values": values, **chosen})

    alphas = _ALPHAS if options.alpha is None else (options.alpha,)
    betas = _BETAS if options.beta is None else (options.beta,)
    if not len(validation):
        return cached(
            _ALPHA if options.alpha is None else options.alpha,
            _BETA if options.beta is None else options.beta,
        )
    every = [cached(alpha, beta) for alpha in alphas for beta in betas]

    def on_validation(its: Model) -> tuple[float, float]:
        return goodness(scores(logits, its, validation.vectors, classes), validation.labels)

    return max(every, key=on_validation)


def own_shapes(model: Model, classes: ClassTexts, dim: int) -> Shapes:
    """Shapes of a device's own model, for its number of keys and the width `dim`."""
    count = len(model.parameters["keys"]) if model.parameters.get("keys", np.zeros(())).ndim else 0
    return {"keys": (count, dim), "values": (count, len(classes.names)), "alpha": (), "beta": ()}


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute logits (N, C) of raw features (N, D); without a cache they are zero-shot CLIP's."""
    zero_shot = cosine_logits(ops, features, texts, scale)  # (N, C)
    if "keys" not in terms:
        return zero_shot
    near = ops.normalize(features) @ terms["keys"].T  # (N, n), n cached pictures
    votes = ops.exp(terms["beta"] * (near - 1)) @ terms["values"]  # (N, C)
    return zero_shot + terms["alpha"] * votes


METHOD = untrained("tip-adapter", Options, logits, Personal(own_model, own_shapes))
