"""The geometric median of the devices' changes: a strategy outside the package.

Pillutla, Kakade, Harchaoui 2022, "Robust Aggregation for Federated Learning", arXiv 1912.13445,
with the smoothed Weiszfeld algorithm, started from the median of every coordinate.

    z <- the median of every coordinate of the changes u_k
    z <- sum_k w_k u_k / sum_k w_k,   w_k = 1 / max(smoothing, |u_k - z|)        `steps` times

A change far from the others gets a small weight. Distances are over all parameters together. Every
device counts the same, because a false update could claim any weight.

Options: `steps`, `smoothing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedclip_edge.learning.singles import Singles
from fedclip_edge.learning.strategy import State, Strategy, moved
from fedclip_edge.records import Model

NAME = "geometric-median"


@dataclass(frozen=True)
class Options:
    """The constructor raises ValueError with the option's name and range."""

    steps: int = 10
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps: expected 1 to 1000, got {self.steps}")
        if not 1e-12 <= self.smoothing <= 1:
            raise ValueError(f"smoothing: expected 1e-12 to 1, got {self.smoothing}")


def step(model: Model, total: Singles, state: State, options: Options) -> tuple[Model, State]:
    """Add the geometric median of the changes to the model; the state stays as it is."""
    changes = {name: total.of(name).astype(np.float64) for name in total.shapes}  # (n, ...)
    middle = {name: np.median(its, axis=0) for name, its in changes.items()}
    for _ in range(options.steps):
        squared = np.zeros(total.weight)  # (n,)
        for name, its in changes.items():
            squared += np.square(its - middle[name]).reshape(total.weight, -1).sum(axis=1)
        weights = 1 / np.maximum(options.smoothing, np.sqrt(squared))
        shares = weights / weights.sum()
        middle = {name: np.einsum("k,k...->...", shares, its) for name, its in changes.items()}
    return moved(model, {name: its.astype(np.float32) for name, its in middle.items()}), state


STRATEGY = Strategy(step, Options, total=Singles, kind="single", is_uniform=True)


if __name__ == "__main__":
    from drawn_fleet import compare

    from fedclip_edge.learning import strategies

    strategies.register(NAME, STRATEGY)
    settings = "linear,linear@strategy=geometric-median"
    for share in (0.0, 0.2):
        print(f"{share:.0%} of the devices send noise")
        compare(settings, rounds=10, noisy=share)
