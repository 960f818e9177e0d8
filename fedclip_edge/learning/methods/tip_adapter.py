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
from typing import TYPE_CHECKING

import numpy as np

from fedclip_edge.config import read_table
from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.method import NO_OPTIONS, Traits, scores
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import (
    ClassTexts,
    Features,
    Layout,
    Model,
    Plan,
    Scalar,
    Shapes,
    Update,
)

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(rounds=1, one_round=True, is_personal=True)
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


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Parse the options; raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "tip-adapter options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Return a model without parameters: zero-shot CLIP. It ignores the options."""
    return Model("tip-adapter", 0, {})


def layout(model: Model) -> Layout:
    """Return empty shapes, because nothing is shared."""
    return Layout({}, {})


def fit(
    model: Model,
    features: Features,
    validation: Features,
    classes: ClassTexts,
    plan: Plan,
    state: State,
    seed: int,
) -> tuple[Update, State]:
    """Check the options and return an empty update of weight 1."""
    check_options(plan.options)
    return Update("sum", 1, {}), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Return the same model with the next round number."""
    return replace(model, round=model.round + 1), state


def personal(
    model: Model, features: Features, validation: Features, classes: ClassTexts, plan: Plan
) -> Model:
    """Make the device's cache of n training pictures, with alpha and beta as described above.

    Its parameters are float32: `keys` (n, D) unit rows, `values` (n, C) one-hot labels, and the
    scalars `alpha` and `beta`. Raises ConfigError for a bad option.
    """
    options = check_options(plan.options)
    norms = np.linalg.norm(features.vectors, axis=1, keepdims=True)
    keys = (features.vectors / np.where(norms > 0, norms, 1)).astype(np.float32)  # (N, D)
    values = np.eye(len(classes.names), dtype=np.float32)[features.labels]  # (N, C)

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


def personal_shapes(model: Model, classes: ClassTexts, dim: int) -> Shapes:
    """Shapes of a device's own model, for its number of keys and the width `dim`."""
    count = len(model.parameters["keys"]) if model.parameters.get("keys", np.zeros(())).ndim else 0
    return {"keys": (count, dim), "values": (count, len(classes.names)), "alpha": (), "beta": ()}


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute logits (N, C) of raw features (N, D); without a cache they are zero-shot CLIP's."""
    import torch
    from torch.nn.functional import normalize

    from fedclip_edge.learning import adapter

    zero_shot = adapter.logits(features, texts, scale)  # (N, C)
    if "keys" not in terms:
        return zero_shot
    near = normalize(features, dim=1) @ terms["keys"].T  # (N, n), n cached pictures
    votes = torch.exp(terms["beta"] * (near - 1)) @ terms["values"]  # (N, C)
    return zero_shot + terms["alpha"] * votes
