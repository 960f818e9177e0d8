"""The interface of a method: a module with a few functions and its traits.

`initial` and `combine` run on the coordinator and use numpy only. `fit` runs on a device. `logits`
is used for evaluation, for prediction and in the exported classifier. `fit` and `logits` import
torch inside the function. `State` is what the device or the coordinator keeps between rounds; most
methods keep nothing. For an averaged method, the strategy of the plan decides how the deltas change
the model (strategy.py).

The terms of a model are its parameters: named float32 arrays.
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
# A method's `logits`: takes a model's parameters, raw features (N, D), unit texts (C, D) and the
# logit scale; returns logits (N, C).
Logits = Callable[[Mapping[str, "Tensor"], "Tensor", "Tensor", float], "Tensor"]
NO_OPTIONS: Options = MappingProxyType({})
NO_TERMS: Arrays = MappingProxyType({})


def scores(logits: Logits, model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Compute the logits float32 (N, C) of raw features float32 (N, D) under a model."""
    import torch

    with torch.inference_mode():
        terms = {name: torch.from_numpy(term) for name, term in model.parameters.items()}
        texts = torch.from_numpy(classes.vectors)  # (C, D)
        found = logits(terms, torch.from_numpy(vectors), texts, classes.logit_scale)  # (N, C)
    return np.asarray(found.numpy(), np.float32)


@dataclass(frozen=True)
class Traits:
    """Properties of a method that a run needs before it starts."""

    rounds: int = 30  # used if the plan gives none
    is_averaged: bool = False  # devices send deltas, and a strategy combines them
    one_round: bool = False  # refuses a second round, which would add the same pictures again
    # The run's model is zero-shot CLIP. Each device keeps its own model and never sends it.
    is_personal: bool = False
    sends_moments: bool = False  # updates are the integer sums of moments.py, and nothing else


class Method(Protocol):
    """The functions of a module in `methods/`."""

    TRAITS: Traits

    def check_options(self, options: Options) -> object:
        """Parse the options; raises ConfigError for an unknown name or a value out of range."""

    def initial(
        self, classes: ClassTexts, dim: int, seed: int, options: Options = NO_OPTIONS
    ) -> Model:
        """Make the model of round 0 for features of width `dim`.

        The same arguments give the same model on every machine. A method whose initial model
        depends on its options raises the errors of `check_options`; other methods ignore them.
        """

    def layout(self, model: Model) -> Layout:
        """Names and shapes in every model and update of a run that starts from this model."""

    def fit(
        self,
        model: Model,
        features: Features,
        validation: Features,
        classes: ClassTexts,
        plan: Plan,
        state: State,
        seed: int,
    ) -> tuple[Update, State]:
        """Compute the device's update and its next state from raw features float32 (N, D).

        The same seed gives the same bytes. `validation` is used only to choose settings. Both sets
        may be empty: a device without pictures changes nothing.

        Raises ConfigError for an unknown option, for a value out of range, and if training
        diverges. Raises DataError if a device has more pictures than can be summed exactly.
        """

    def combine(self, model: Model, total: Total, state: State) -> tuple[Model, State]:
        """Make the model of the next round, and the coordinator's state, from all updates.

        `state` holds float32 arrays by name, and is empty before the first round.
        """

    def logits(
        self, terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float
    ) -> Tensor:
        """Compute logits float32 (N, C) of raw features (N, D) and unit texts (C, D).

        `terms` are the model's parameters. Only torch operations on these tensors are allowed, and
        no picture may affect another one: exporting/classifier.py turns the function into a graph.
        """


class Personal(Protocol):
    """Additional functions of a method that keeps a separate model on each device."""

    def personal(
        self,
        model: Model,
        features: Features,
        validation: Features,
        classes: ClassTexts,
        plan: Plan,
    ) -> Model:
        """Make the device's own model; the method's `logits` accepts its parameters.

        The features are raw, float32 (N, D). Raises ConfigError for a bad option.
        """

    def personal_shapes(self, model: Model, classes: ClassTexts, dim: int) -> Shapes:
        """Shapes of the parameters of such a model, for the number of pictures it holds."""
