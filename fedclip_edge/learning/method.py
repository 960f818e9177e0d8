"""A method: what a device trains and sends, and how logits follow from the model.

A method is a value, an instance of `Method`. kinds.py makes one of each usual kind from a few
functions; the files in `methods/` have one for each paper. `initial_parameters` and `combine` run
on the coordinator, `fit` on a device. `logits` is used for training, evaluation, prediction and in
the exported classifier. Only training loads torch, inside `fit`.

The parameters of a model are named float32 arrays. `State` is what the coordinator keeps between
rounds; most methods keep nothing. For an averaged method, the strategy of the plan decides how the
deltas change the model (strategy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from fedclip_edge.config.reading import read_table
from fedclip_edge.learning.operations import NUMPY, Array, Operations
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

Options = Mapping[str, Scalar]
# A method's `logits`: takes the operations of a library, a model's parameters, raw features (N, D),
# unit texts (C, D) and the logit scale; returns logits (N, C). It may use only these operations and
# those that arrays of both libraries have, and no picture may affect another one.
Logits = Callable[[Operations, Mapping[str, Array], Array, Array, float], Array]
NO_OPTIONS: Options = MappingProxyType({})
_ROWS = 1024  # rows in a block: this limits the memory of intermediate arrays


def scores(logits: Logits, model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Compute the logits float32 (N, C) of raw features float32 (N, D) under a model.

    A model of huge numbers gives logits that are infinite or NaN, without a warning.
    """
    found = np.empty((len(vectors), len(classes.names)), np.float32)
    terms, texts, scale = model.parameters, classes.vectors, classes.logit_scale
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(vectors), _ROWS):
            rows = slice(first, first + _ROWS)
            found[rows] = logits(NUMPY, terms, vectors[rows], texts, scale)
    return found


@dataclass(frozen=True)
class Traits:
    """Properties of a method that a run needs before it starts."""

    rounds: int = 30  # used if the plan gives none
    is_averaged: bool = False  # devices send deltas, and a strategy combines them
    one_round: bool = False  # refuses a second round, which would add the same pictures again
    # The run's model is zero-shot CLIP. Each device keeps its own model and never sends it.
    is_personal: bool = False
    sends_moments: bool = False  # updates are the integer sums of moments.py, and nothing else
    # The model learns from validation pictures too, so they cannot choose a personal model.
    learns_from_validation: bool = False


@dataclass(frozen=True, eq=False)
class LocalTask:
    """The work of one device in one round.

    Features are raw, float32 (N, D). Both sets may be empty. Validation pictures are used only to
    choose settings, unless the method `learns_from_validation`.
    """

    plan: Plan
    model: Model  # the shared model, as received
    train: Features
    validation: Features
    classes: ClassTexts
    seed: int  # the same seed gives the same bytes


@dataclass(frozen=True)
class Personal:
    """The additional functions of a method that keeps a separate model on each device."""

    # make(task, options) returns the device's own model; `logits` accepts its parameters.
    make: Callable[[LocalTask, Any], Model]
    # shapes(model, classes, dim) returns the shapes of the parameters of such a model, for the
    # number of pictures it holds.
    shapes: Callable[[Model, ClassTexts, int], Shapes]


@dataclass(frozen=True)
class Vote:
    """The additional functions of a method whose models stand for election (ballot.py).

    A head is a set of parameters with the shapes of the method's models. Heads are named by label
    (mixture.py). `kept` are arrays that the coordinator keeps until the vote is decided.
    """

    # open(model, total, state, options) takes the arguments of the last `combine`, in place of it.
    # It returns the heads that the candidates are mixed from, and `kept`.
    open: Callable[[Model, Total, State, Any], tuple[Mapping[str, Arrays], State]]
    # settle(heads, kept, shares, options) returns the heads of the final model and their shares, by
    # the labels in `labels`. `shares` are those of the chosen candidate, by label.
    settle: Callable[
        [Mapping[str, Arrays], State, Mapping[str, float], Any],
        tuple[Mapping[str, Arrays], Mapping[str, float]],
    ]
    labels: tuple[str, ...]
    # means(kept) returns the mean training picture of each class that has pictures, if the devices
    # have sent such sums.
    means: Callable[[State], Features] | None = None


@dataclass(frozen=True)
class Method:
    """An entry of the registry of methods. `options` below are the parsed options of the plan."""

    name: str
    options: type[Any]  # a frozen dataclass of scalars; its constructor checks them
    # initial_parameters(classes, dim, seed, options) returns the parameters of round 0, the same on
    # every machine, for features of width `dim`.
    initial_parameters: Callable[[ClassTexts, int, int, Any], Arrays]
    # layout(model) returns the names and shapes in every model and update of a run that starts
    # from this model.
    layout: Callable[[Model], Layout]
    # fit(task, options) returns the device's update. It raises ConfigError if training diverges,
    # and DataError if a device has more pictures than can be summed exactly.
    fit: Callable[[LocalTask, Any], Update]
    # combine(model, total, state, options) returns the model of the next round and the
    # coordinator's state. `state` is float32 arrays by name, and empty before the first round.
    combine: Callable[[Model, Total, State, Any], tuple[Model, State]]
    logits: Logits
    traits: Traits = Traits()
    personal: Personal | None = None
    vote: Vote | None = None
    # The shares of each head, zero-shot CLIP among them, in the candidates of the vote that ends a
    # run. Empty for a method that trains nothing.
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # The parameters with one row for each class, in the order of the classes. No other parameter
    # depends on the classes (continuation.py).
    per_class: Collection[str] = ()
    # stages(plan) returns the plans of other methods that are trained one after the other. It
    # raises ConfigError for a plan, with a number of rounds, that does not fit.
    stages: Callable[[Plan], tuple[Plan, ...]] | None = None
    # without_vote(kept) returns the candidate that is taken if too few pictures have voted, from
    # what the first stage has kept; by default ballot.DEFAULT.
    without_vote: Callable[[State], int] | None = None

    def check_options(self, options: Options) -> Any:
        """Parse the options; raises ConfigError for an unknown name or a value out of range."""
        return read_table(self.options, options, f"{self.name} options")

    def initial(
        self, classes: ClassTexts, dim: int, seed: int, options: Options = NO_OPTIONS
    ) -> Model:
        """Make the model of round 0; raises the errors of `check_options`."""
        parsed = self.check_options(options)
        return Model(self.name, 0, self.initial_parameters(classes, dim, seed, parsed))
