"""SCAFFOLD: devices correct their gradients for the drift from the fleet's mean gradient.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", arXiv 1910.06378, algorithm 1 with option II.

    on a device    w_k <- w_k - eta (g - c_i + c)       K steps of plain SGD, from w
                   c_i' = c_i - c + (w - w_K) / (K eta)
    it sends       w_K - w  and  c_i' - c_i
    coordinator    w <- w + lr mean(w_K - w);  c <- the mean of c_i over the devices

c is sent with the model and the change of c_i with the update, so both directions take twice the
bytes; c_i itself stays on its device. (w - w_K) / (K eta) is a mean gradient only if every step has
the same rate, so the method's `optimizer` must be "sgd". The paper divides by the number of all
devices. We divide by the number of devices that have taken part so far; the two numbers are equal
as soon as every device has taken part. A device marks its first update as new.

Law: a device counts once in a round, and a weight other than 1 is refused. Otherwise a device could
multiply its part of c at will.

Option: `lr`, the learning rate of the coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.strategy import State, moved
from fedclip_edge.records import F32, Arrays, Layout, Model, Shapes, Update

OPTIMIZER = "sgd"  # the only value allowed for the method's `optimizer`
_CONTROL = "control/"  # prefix of the control parameters
_NEW = "new"  # integer sum: the number of devices that send their first update
_DEVICES = "devices"  # in the coordinator's state: the number that have taken part


class CountedSum(ExactSum):
    """An exact sum of updates that have weight 1 and mark a device's first update."""

    def check(self, update: Update) -> float:
        """Check an update as ExactSum does; its weight must be 1 and `new` must be [0] or [1]."""
        _check_count(update)
        return super().check(update)

    def add(self, update: Update) -> None:
        """Add an update; raises PeerError and adds nothing if `check` refuses it."""
        _check_count(update)
        super().add(update)


def _check_count(update: Update) -> None:
    if update.weight != 1:
        raise PeerError(
            f"an update has weight {update.weight}; the strategy scaffold accepts only weight 1"
        )
    new = update.sums[_NEW].tolist() if _NEW in update.sums else None
    if new not in ([0], [1]):
        raise PeerError(
            f"the sum {_NEW!r} of an update is {new}; the strategy scaffold expects [1] in a "
            "device's first update and [0] in later ones"
        )


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    lr: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr <= 10:
            raise ValueError(f"lr: expected above 0 and at most 10, got {self.lr}")


def with_control(model: Model, trained: Shapes) -> Model:
    """Add c, which begins at zero, to the initial model; `trained` are the shapes of its delta."""
    control = {_CONTROL + name: np.zeros(shape, np.float32) for name, shape in trained.items()}
    return replace(model, parameters={**model.parameters, **control})


def extended_layout(own: Layout) -> Layout:
    """Add c to the models and its change to the updates of `own`, the layout of the method."""
    control = {_CONTROL + name: shape for name, shape in own.delta.items()}
    return Layout({**own.parameters, **control}, {**own.delta, **control}, {**own.sums, _NEW: (1,)})


def apart(model: Model) -> tuple[Model, Arrays]:
    """Split a model into the method's own model and c, by parameter name."""
    own = {name: term for name, term in model.parameters.items() if not name.startswith(_CONTROL)}
    control = {n.removeprefix(_CONTROL): t for n, t in model.parameters.items() if n not in own}
    return replace(model, parameters=own), control


def drift(control: Arrays, state: State) -> Arrays:
    """Compute c - c_i, which is added to every gradient; the state is c_i, or empty at first."""
    return {name: c - state[name] if name in state else c for name, c in control.items()}


def extended(
    update: Update, drift: Arrays, state: State, lr: float, steps: int
) -> tuple[Update, State]:
    """Add c_i' - c_i to a device's update; return the update and c_i', the device's next state.

    The update is the result of `steps` (K) steps with the learning rate `lr` (eta). `drift` is
    c - c_i and `state` is c_i, or empty at a device's first update.
    """
    following: dict[str, F32] = {}
    change: dict[str, F32] = {}
    for name, moved_by in update.delta.items():
        before = state.get(name, np.zeros_like(moved_by))
        following[name] = before  # without a step there is no new gradient
        if steps:
            following[name] = -drift[name] - moved_by / np.float32(steps * lr)
        change[name] = following[name] - before
    is_new = np.array([0 if state else 1], np.int64)
    sent = {_CONTROL + name: term for name, term in change.items()}
    terms = {**update.delta, **sent}
    return replace(update, delta=terms, sums={**update.sums, _NEW: is_new}), following


def step(model: Model, total: ExactSum, state: State, options: Options) -> tuple[Model, State]:
    """Update w and c; the state counts the devices that have taken part, float32 (1,)."""
    mean, change = total.mean(), dict[str, F32]()
    before = float(state[_DEVICES][0]) if _DEVICES in state else 0.0
    now = before + (float(total.sums[_NEW][0]) if total.sums else 0.0)
    for name, its in mean.items():
        if name.startswith(_CONTROL):
            # c was the mean over the earlier devices; new devices begin with c_i = 0.
            known = before * model.parameters[name] + total.weight * its
            change[name] = (known / max(now, 1.0) - model.parameters[name]).astype(np.float32)
        else:
            change[name] = np.float32(options.lr) * its
    return moved(model, change), {_DEVICES: np.array([now], np.float32)}
