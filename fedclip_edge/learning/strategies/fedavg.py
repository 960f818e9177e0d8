"""FedAvg: the weighted average of the models that the devices trained.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", arXiv 1602.05629.

    w <- w + sum_k n_k (w_k - w) / sum_k n_k

n_k is 1, as in FedCLIP's reference code, or the number of pictures on the device (the method's
option `weighting`). With the method's `proximal_mu` above 0 this is FedProx (learning/training.py).
FedAvg has no options.
"""

from __future__ import annotations

from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.strategy import NoOptions, State, moved
from fedclip_edge.records import Model


def step(model: Model, total: ExactSum, state: State, options: NoOptions) -> tuple[Model, State]:
    """Add the weighted mean change to the model; the state stays as it is."""
    return moved(model, total.mean()), state
