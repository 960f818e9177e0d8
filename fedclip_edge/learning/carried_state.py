"""Arrays in the coordinator's state that are carried from one exchange to the next.

These are the heads for the ballot, what each method keeps for the vote, and what a continued run
started from. The rest of the state belongs to the method in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedclip_edge.learning import continuation
from fedclip_edge.learning.strategy import State
from fedclip_edge.records import Arrays

_KEPT = "vote/"  # prefix of what the coordinator's state keeps for the vote
_HEADS = f"{_KEPT}heads/"
_CARRIED = (_KEPT, continuation.START)  # from one exchange to the next, whatever the method


def carried(state: State) -> dict[str, NDArray[Any]]:
    """Return the arrays that go on, whatever method trains next."""
    return {name: term for name, term in state.items() if name.startswith(_CARRIED)}


def of_method(state: State) -> State:
    """The state of the method in training, without what is kept for later exchanges."""
    return {name: term for name, term in state.items() if not name.startswith(_CARRIED)}


def keep(stage: int, kept: State) -> dict[str, NDArray[Any]]:
    """The part of the state with what a stage keeps for the vote."""
    return {f"{_KEPT}{stage}/{name}": term for name, term in kept.items()}


def kept_by(stage: int, state: State) -> State:
    """The arrays that a stage has kept for the vote."""
    prefix = f"{_KEPT}{stage}/"
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def keep_heads(heads: Mapping[str, Arrays]) -> dict[str, NDArray[Any]]:
    """The part of the state with heads for the ballot, by label."""
    return {f"{_HEADS}{label}/{n}": t for label, its in heads.items() for n, t in its.items()}


def heads_in(state: State) -> dict[str, Arrays]:
    """The heads for the ballot in a state, by label."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, term in state.items():
        if name.startswith(_HEADS):
            label, _, rest = name.removeprefix(_HEADS).partition("/")
            found.setdefault(label, {})[rest] = term
    return dict(found)
