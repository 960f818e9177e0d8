"""The average of what the devices trained.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", arXiv 1602.05629.

    w <- w + sum_k n_k (w_k - w) / sum_k n_k

n_k is the method's `weighting`: 1, as in FedCLIP's reference code, or the device's pictures. FedProx
is this with the method's `proximal_mu` above 0 (learning/training.py). It has no options.
"""

from __future__ import annotations

from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.strategy import NoOptions, State, moved
from fedclip_edge.records import Model


def step(model: Model, total: ExactSum, state: State, options: NoOptions) -> tuple[Model, State]:
    """The model plus the weighted mean change."""
    return moved(model, total.mean()), state
