"""FEDOT: a shared classifier, and an orthogonal map of the features that each device keeps.

Kong, Yeom, Jeon, Kim 2026, "Generalized and Personalized Federated Learning with Black-Box
Foundation Models via Orthogonal Transformations" (CVPR), arXiv 2505.19888; its variant FEDOT(+B)
with a block-diagonal map. There is no public code; the formulas follow a published summary.

    logits = scale * (Q f / |f|) . w_c               w_c = t_c at the start; Q = I without a map
    Q_k    = (I + R_k) (I - R_k)^-1,  R_k = (A_k - A_k^T) / 2     block k of Q; A_k without limits

The classifier w is trained and averaged over the devices. A is never sent. Both are trained with
cross-entropy.

In the paper each device keeps A from round to round. Here an update must depend only on the
received model and the pictures, so that a device which was killed sends the same bytes again. So A
is found anew in every round, as in Singhal et al. 2021, "Federated Reconstruction: Partially Local
Federated Learning", arXiv 2102.03448: A begins at zero and is trained for `map_epochs` with w
fixed, then A and w are trained together for `epochs`, and A is dropped.

The device's own model is the shared w with the map that `map_epochs` give for it. It is kept in
`personal.safetensors` and never sent. If it is not better than the shared model on the device's
validation pictures, the map is the identity. So devices need no vote, and a run ends without one.

The paper averages w with equal weights, as the defaults do. Its learning rate and its number of
epochs are not known here; lr is that of `linear`.

Options: `blocks` (1 for the paper's plain FEDOT), `map_epochs`, and those of learning/options.py
with different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.method import LocalTask, Personal, scores
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.learning.options import Training
from fedclip_edge.records import F32, Arrays, ClassTexts, Model, Shapes, Update

if TYPE_CHECKING:
    from torch import Tensor

    from fedclip_edge.learning.training import Loss

WEIGHT, MAP = "weight", "map"  # the shared classifier; the device's map Q (D, D)
_FREE = "free"  # A of all blocks, the unlimited numbers that a map is made of


@dataclass(frozen=True)
class Options(Training):
    """Options; the constructor raises ValueError with the option's name and range."""

    lr: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.0
    blocks: int = 8
    map_epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise ValueError(f"blocks: expected 1 or more, got {self.blocks}")
        if self.map_epochs < 1:
            raise ValueError(f"map_epochs: expected 1 or more, got {self.map_epochs}")


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Begin at the class texts, float32 (C, D); the seed is unused."""
    return {WEIGHT: classes.vectors}


def fit(task: LocalTask, options: Options) -> Update:
    """Find the map for the received classifier, then train both; only the classifier is sent."""
    from fedclip_edge.learning import training

    weight = task.model.parameters[WEIGHT]
    start = {_FREE: _reconstruct(task, options), WEIGHT: weight}
    trained = training.train(start, task.train, _loss(task, {}), options, task.seed)
    return training.changed(task, {WEIGHT: trained[WEIGHT]}, options)


def own_model(task: LocalTask, options: Options) -> Model:
    """Make the device's own model: the shared classifier `weight`, and `map`, float32 (D, D)."""
    import torch

    weight, validation = task.model.parameters[WEIGHT], task.validation
    dim = weight.shape[1]
    free = _reconstruct(task, options)
    found = orthogonal(torch.from_numpy(free), dim).numpy()
    own = replace(task.model, parameters={WEIGHT: weight, MAP: found})
    if not len(validation):
        return own
    without = replace(task.model, parameters={WEIGHT: weight, MAP: np.eye(dim, dtype=np.float32)})

    def on_validation(its: Model) -> tuple[float, float]:
        found = scores(logits, its, validation.vectors, task.classes)
        return goodness(found, validation.labels)

    return max((without, own), key=on_validation)


def own_shapes(model: Model, classes: ClassTexts, dim: int) -> Shapes:
    """Shapes of the shared model, or of a device's own if `model` has a map."""
    shared: Shapes = {WEIGHT: (len(classes.names), dim)}
    return {**shared, MAP: (dim, dim)} if MAP in model.parameters else shared


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled scores (N, C) of features (N, D); the texts are only the classifier's start.

    Without a map the features stay as they are.
    """
    mapped = ops.linear(features, terms[MAP]) if MAP in terms else features  # (N, D)
    return scale * ops.normalize(mapped) @ terms[WEIGHT].T


def orthogonal(free: Tensor, dim: int) -> Tensor:
    """Make Q (D, D) from A of all blocks (K, S, S), by the Cayley transform; K S is at least D."""
    import torch

    blocks, size, _ = free.shape
    skew = (free - free.transpose(1, 2)) / 2
    real = (torch.arange(blocks * size) < dim).reshape(blocks, size)  # the last block may be cut
    skew = skew * real[:, :, None] * real[:, None, :]
    identity = torch.eye(size)
    # I + R and the inverse of I - R commute.
    turned: Tensor = torch.linalg.solve(identity - skew, identity + skew)  # (K, S, S)
    whole: Tensor = torch.block_diag(*turned)  # type: ignore[no-untyped-call]
    return whole[:dim, :dim]


def _reconstruct(task: LocalTask, options: Options) -> F32:
    """Train A, float32 (K, S, S), from zero for the received classifier."""
    from fedclip_edge.learning import training

    weight = task.model.parameters[WEIGHT]
    blocks = min(options.blocks, weight.shape[1])
    size = -(-weight.shape[1] // blocks)
    start = {_FREE: np.zeros((blocks, size, size), np.float32)}
    alone = replace(options, epochs=options.map_epochs, proximal_mu=0.0)
    loss = _loss(task, {WEIGHT: weight})
    return training.train(start, task.train, loss, alone, task.seed)[_FREE]


def _loss(task: LocalTask, fixed: Arrays) -> Loss:
    """Make the cross-entropy of A and the classifier, one of which may be `fixed`."""
    from fedclip_edge.learning import training

    dim = task.model.parameters[WEIGHT].shape[1]

    def mapped(
        ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
    ) -> Array:
        whole = {WEIGHT: terms[WEIGHT], MAP: orthogonal(terms[_FREE], dim)}
        return logits(ops, whole, features, texts, scale)

    return training.objective(mapped, task.classes, fixed=fixed)


METHOD = replace(
    averaged("fedot", Options, initial_parameters, logits, per_class=(WEIGHT,)),
    fit=fit,
    personal=Personal(own_model, own_shapes),
    vote=None,
    shares={},
)
