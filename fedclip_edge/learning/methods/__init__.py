"""One paper, one file; the registry of methods by name.

A method is a module of a few functions. What runs on the coordinator (`initial`, `combine`) is
numpy; `fit`, which runs on a device, and `logits`, from which evaluation, prediction and the
exported classifier are made, import torch inside. `State` is what one side keeps between rounds
(a server optimiser's moments, a device's control variates); most methods keep nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.methods import fedclip, zeroshot
from fedclip_edge.records import F32, ClassTexts, Features, Model, Plan, Scalar, Terms, Update

if TYPE_CHECKING:
    from torch import Tensor

State = Terms


class Method(Protocol):
    """What a module in this package offers."""

    def check_options(self, options: Mapping[str, Scalar]) -> object:
        """Raises ConfigError for an option that the method does not have."""

    def initial(self, classes: ClassTexts, dim: int, seed: int) -> Model:
        """The model of round 0; the same for the same seed, on every machine."""

    def fit(
        self,
        model: Model,
        features: Features,
        classes: ClassTexts,
        plan: Plan,
        state: State,
        seed: int,
    ) -> tuple[Update, State]:
        """Trains from `model` on the device's raw features; the same seed gives the same bytes."""

    def combine(self, model: Model, total: ExactSum, state: State) -> tuple[Model, State]:
        """The next model from the sum of all updates."""

    def logits(
        self, terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float
    ) -> Tensor:
        """Logits f32 (N, C) of raw features (N, D) under a model's terms, unit texts (C, D).

        Torch operations on its tensors alone, each picture by itself: exporting/classifier.py
        turns it into a graph.
        """


_METHODS: Mapping[str, Method] = {"fedclip": fedclip, "zeroshot": zeroshot}


def shapes(plan: Plan, classes: ClassTexts, dim: int) -> dict[str, tuple[int, ...]]:
    """The terms that every model and update of a plan has, by name.

    Raises ConfigError for an unknown method.
    """
    initial = get(plan.method).initial(classes, dim, plan.seed)
    return {name: term.shape for name, term in initial.terms.items()}


def get(name: str) -> Method:
    """The method of that name; raises ConfigError naming the nearest one."""
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_METHODS)}"
    raise ConfigError(f"unknown method {name!r}; {hint}")


def predict(model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Logits (N, C) of raw features (N, D), as the model's own method computes them.

    Raises ConfigError for an unknown method.
    """
    method = get(model.method)
    import torch

    with torch.inference_mode():
        terms = {name: torch.tensor(term) for name, term in model.terms.items()}
        texts = torch.tensor(classes.vectors)  # (C, D)
        logits = method.logits(terms, torch.tensor(vectors), texts, classes.logit_scale)  # (N, C)
    return np.asarray(logits.numpy(), np.float32)
