"""The registry of strategies by name, and access to the strategy of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedclip_edge.config.reading import read_table, unknown
from fedclip_edge.learning.singles import Singles
from fedclip_edge.learning.strategies import adaptive, fedavg, fedavgm, robust
from fedclip_edge.learning.strategy import NoOptions, State, Strategy, Total
from fedclip_edge.records import Model, Plan

DEFAULT = "fedavg"


def _robust(step: Callable[..., tuple[Model, State]], options: type[Any]) -> Strategy:
    return Strategy(step, options, total=Singles, kind="single", is_uniform=True)


_STRATEGIES: dict[str, Strategy] = {
    DEFAULT: Strategy(fedavg.step, NoOptions),
    "fedavgm": Strategy(fedavgm.step, fedavgm.Options),
    "fedadam": Strategy(adaptive.fedadam, adaptive.Options),
    "fedyogi": Strategy(adaptive.fedyogi, adaptive.Options),
    "median": _robust(robust.median, NoOptions),
    "trimmed-mean": _robust(robust.trimmed_mean, robust.Options),
    "krum": _robust(robust.krum, robust.Options),
    "multi-krum": _robust(robust.multi_krum, robust.Options),
}


def get(name: str) -> Strategy:
    """Return the strategy `name`; raises ConfigError with the nearest name if there is none."""
    if name not in _STRATEGIES:
        raise unknown("strategy", name, _STRATEGIES)
    return _STRATEGIES[name]


def names() -> tuple[str, ...]:
    """Names of all strategies."""
    return tuple(_STRATEGIES)


def register(name: str, strategy: Strategy) -> None:
    """Add a strategy to the table of this process; raises ValueError if the name is taken.

    It is for experiments in one process. A strategy for a fleet has a file in this package and an
    entry in the table, because the coordinator, the devices and worker processes all need it.
    """
    if name in _STRATEGIES:
        raise ValueError(f"there is a strategy {name!r} already; choose another name")
    _STRATEGIES[name] = strategy


def options(plan: Plan) -> Any:
    """Parse the plan's strategy options into the strategy's dataclass.

    Raises ConfigError for an unknown strategy or option, or a value out of range.
    """
    own = get(plan.strategy).options
    return read_table(own, plan.strategy_options, f"{plan.strategy} options")


def total(plan: Plan, max_norm: float | None = None) -> Total:
    """Make an empty total for one round; raises ConfigError for an unknown strategy.

    `max_norm` is the round's bound (norm_bound.py); None stands for the plan's.
    """
    its = plan if max_norm is None else replace(plan, max_norm=max_norm)
    return get(plan.strategy).total(its)


def step(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Make the model and the strategy's state of the next round from the round's updates.

    `state` holds float32 arrays by name, and is empty before the first round. The plan's `max_norm`
    bounds every change, so that no strategy leaves the range of float32.
    """
    plan = total.plan
    return get(plan.strategy).step(model, total, state, options(plan))
