"""FedAvgM: the weighted average of the changes, with momentum on the coordinator.

Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv 1909.06335, section 4.3.

    v <- momentum v + mean change;  w <- w + lr v

Options: `lr`, `momentum`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.strategy import State, moved
from fedclip_edge.records import Model


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.lr <= 10:
            raise ValueError(f"lr: expected above 0 and at most 10, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected at least 0 and below 1, got {self.momentum}")


def step(model: Model, total: ExactSum, state: State, options: Options) -> tuple[Model, State]:
    """Apply v to the model; the state is v, float32 arrays by parameter name."""
    velocity = {
        name: np.float32(options.momentum) * state[name] + change if name in state else change
        for name, change in total.mean().items()
    }
    return moved(model, {n: np.float32(options.lr) * v for n, v in velocity.items()}), velocity
