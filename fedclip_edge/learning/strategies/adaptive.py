"""FedAdam and FedYogi: an adaptive optimizer on the coordinator, driven by the mean change.

Reddi et al. 2021, "Adaptive Federated Optimization", arXiv 2003.00295, algorithm 2. d is the mean
change of a round:

    m <- beta1 m + (1 - beta1) d
    v <- beta2 v + (1 - beta2) d^2                      FedAdam
    v <- v - (1 - beta2) d^2 sign(v - d^2)              FedYogi
    w <- w + lr m / (sqrt(v) + tau)                     m = 0, v = tau^2 at the start

There is no bias correction, as in the paper. With the defaults a step changes a parameter by at
most about 2 `lr`, for any learning rate on the devices.

Options: `lr`, `beta1`, `beta2`, `tau`; the defaults of beta1, beta2 and tau are the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.strategy import State, moved
from fedclip_edge.records import F32, Model

_MEAN, _SQUARE = "mean/", "square/"  # prefixes of m and v in the state


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.lr <= 10:
            raise ValueError(f"lr: expected above 0 and at most 10, got {self.lr}")
        if not 1e-12 <= self.tau <= 10:
            raise ValueError(f"tau: expected 1e-12 to 10, got {self.tau}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(
                f"beta1, beta2: expected at least 0 and below 1, got {self.beta1} and {self.beta2}"
            )


def fedadam(model: Model, total: ExactSum, state: State, options: Options) -> tuple[Model, State]:
    """Make a step of FedAdam; the state is m and v of every parameter, float32 of its shape."""

    def second(v: F32, squared: F32) -> F32:
        return np.float32(options.beta2) * v + np.float32(1 - options.beta2) * squared

    return _step(model, total, state, options, second)


def fedyogi(model: Model, total: ExactSum, state: State, options: Options) -> tuple[Model, State]:
    """Make a step of FedYogi; the state is m and v of every parameter, float32 of its shape."""

    def second(v: F32, squared: F32) -> F32:
        return np.asarray(v - np.float32(1 - options.beta2) * squared * np.sign(v - squared))

    return _step(model, total, state, options, second)


def _step(
    model: Model,
    total: ExactSum,
    state: State,
    options: Options,
    second: Callable[[F32, F32], F32],
) -> tuple[Model, State]:
    beta1, tau, lr = (np.float32(x) for x in (options.beta1, options.tau, options.lr))
    following: dict[str, F32] = {}
    change: dict[str, F32] = {}
    for name, mean in total.mean().items():
        before = state.get(_MEAN + name, np.zeros_like(mean))
        start = state.get(_SQUARE + name, np.full_like(mean, options.tau**2))
        m, v = beta1 * before + np.float32(1 - options.beta1) * mean, second(start, mean * mean)
        change[name] = np.asarray(lr * m / (np.sqrt(v) + tau), np.float32)
        following |= {_MEAN + name: m, _SQUARE + name: v}
    return moved(model, change), following
