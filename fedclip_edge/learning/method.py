"""What a method is: a module of a few functions, and what it says about itself.

What runs on the coordinator (`initial`, `combine`) is numpy; `fit`, which runs on a device, and
`logits`, from which evaluation, prediction and the exported classifier are made, import torch
inside. `State` is what one side keeps between rounds; most methods keep nothing. What the changes of a
method that is averaged become is its plan's strategy's (strategy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import (
    F32,
    Arrays,
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

Options = Mapping[str, Scalar]
# Of a model's terms, raw features (N, D), unit texts (C, D) and their scale: a method's `logits`.
Logits = Callable[[Mapping[str, "Tensor"], "Tensor", "Tensor", float], "Tensor"]
NO_OPTIONS: Options = MappingProxyType({})
NO_TERMS: Arrays = MappingProxyType({})


def scores(logits: Logits, model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """The logits (N, C) of a model's terms on raw features (N, D), as arrays."""
    import torch

    with torch.inference_mode():
        terms = {name: torch.from_numpy(term) for name, term in model.parameters.items()}
        texts = torch.from_numpy(classes.vectors)  # (C, D)
        found = logits(terms, torch.from_numpy(vectors), texts, classes.logit_scale)  # (N, C)
    return np.asarray(found.numpy(), np.float32)


@dataclass(frozen=True)
class Traits:
    """What a run has to know of its method before it starts."""

    rounds: int = 30  # where the plan names none
    is_averaged: bool = False  # devices send changes of a model, for a strategy to put together
    one_round: bool = False  # a second would add the same pictures once more: it is refused
    # The run's model is the zero-shot one; what is better lies on each device and never leaves it.
    is_personal: bool = False


class Method(Protocol):
    """What a module in `methods/` offers."""

    TRAITS: Traits

    def check_options(self, options: Options) -> object:
        """Raises ConfigError for an option that the method does not have."""

    def initial(
        self, classes: ClassTexts, dim: int, seed: int, options: Options = NO_OPTIONS
    ) -> Model:
        """The model of round 0; the same for the same seed and options, on every machine."""

    def layout(self, model: Model) -> Layout:
        """What every model and update of a run holds that starts from this initial model."""

    def fit(
        self,
        model: Model,
        features: Features,
        validation: Features,
        classes: ClassTexts,
        plan: Plan,
        state: State,
        seed: int,
        drift: Arrays = NO_TERMS,
    ) -> tuple[Update, State]:
        """Trains from `model` on the device's raw features; the same seed gives the same bytes.

        `validation` is for choosing settings alone. Both may be empty: a device without pictures
        of its own adds nothing. `drift` is added to every gradient of the terms that it names.
        """

    def combine(self, model: Model, total: Total, state: State) -> tuple[Model, State]:
        """The next model from the sum of all updates."""

    def logits(
        self, terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float
    ) -> Tensor:
        """Logits f32 (N, C) of raw features (N, D) under a model's terms, unit texts (C, D).

        Torch operations on its tensors alone, each picture by itself: exporting/classifier.py
        turns it into a graph.
        """


class Personal(Protocol):
    """What a method offers besides that keeps a model of each device's own on the device."""

    def personal(
        self,
        model: Model,
        features: Features,
        validation: Features,
        classes: ClassTexts,
        plan: Plan,
    ) -> Model:
        """The device's own model, which the method's `logits` takes as it takes the shared one."""

    def personal_shapes(self, model: Model, classes: ClassTexts, dim: int) -> Shapes:
        """What the terms of such a model must be, by the number of pictures it holds."""
