"""Largest norm of an update in a round, computed from the norms of the round before.

Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping",
arXiv 1905.03871, estimate a quantile of the norms under noise, and move the bound towards it in
geometric steps. Here the coordinator knows every norm, so it takes an exact order statistic:

    next = FACTOR * lower median of the norms of the last closed round

A norm is that of the decoded delta, divided by its weight. The factor leaves room for devices with
more pictures, and lets a bound grow that was too small. A device scales its update down to the
bound (agent/clipping.py), and the coordinator refuses a larger one.

The lower median allows an attacker less than the upper one. Of four devices it is the second
smallest norm: one that lies at the top cannot raise it above the second smallest of the others, and
one that lies at the bottom cannot push it below the smallest.

Laws:

- The bound follows from the plan, the layout and the norms of the closed rounds in the journal.
- The order of the norms within a round does not matter.
- Among three norms above 0 or more, no single one can move the next bound outside FACTOR times the
  range of the others, except to the limits below.
- A round multiplies the bound by at most FACTOR. A round of one or two updates, whose median one
  device can choose, divides it by at most FACTOR.
- The bound stays within `least` and `most`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedclip_edge.learning import methods
from fedclip_edge.learning.options import Training
from fedclip_edge.records import Layout, Plan

# Large enough to cost no accuracy where nobody lies, and otherwise as small as possible
# (benchmarks/poisoning.py --factor).
FACTOR = 1.5
# Pictures of a device for which the first bound is made. The coordinator may not use the counts
# that devices declare, because they could change before a restart. A device with more pictures is
# scaled down in the first round, and the bound grows afterwards.
PICTURES = 2048
# The least bound, as a part of the first one. From here a bound reaches the first one again within
# 14 rounds, when new pictures arrive after a run has converged.
_LEAST = 2.0**-8
_ROBUST = 3  # with so many norms one device alone cannot choose the median


@dataclass(frozen=True)
class NormBound:
    """The bound of a round, and the limits that no later bound leaves."""

    value: float
    least: float
    most: float

    def after(self, norms: Sequence[float]) -> NormBound:
        """Return the bound of the next round, from the norms of the contributions to this round.

        Norms of 0 are left out: a device without pictures sends one. Without any other norm the
        bound stays as it is. Raises ValueError for a norm that is negative or not finite.
        """
        if not all(0 <= norm < math.inf for norm in norms):
            raise ValueError(f"norms: expected finite numbers, 0 or more, got {list(norms)}")
        moved = sorted(norm for norm in norms if norm > 0)
        if not moved or self.least == self.most:
            return self
        wanted = FACTOR * moved[(len(moved) - 1) // 2]
        if len(moved) < _ROBUST:
            wanted = max(wanted, self.value / FACTOR)
        wanted = min(wanted, FACTOR * self.value)
        return replace(self, value=min(max(wanted, self.least), self.most))


def first_bound(plan: Plan, layout: Layout) -> NormBound:
    """Return the bound of the first round; `layout` is that of the plan (`methods.plan_layout`).

    A step of Adam moves each parameter by about the learning rate at most (Kingma & Ba 2015,
    section 2.1), so `steps` steps move a delta of `size` numbers by at most

        lr * steps * sqrt(size)

    The same number is a first guess for SGD, whose gradients have no limit. The bound is always the
    plan's `max_norm` for methods without a delta.

    Raises ConfigError for an unknown method or a bad option.
    """
    options = methods.get(plan.method).check_options(plan.options)
    if not layout.delta or not isinstance(options, Training):
        return NormBound(plan.max_norm, plan.max_norm, plan.max_norm)
    steps = options.epochs * math.ceil(PICTURES / options.batch_size)
    size = sum(math.prod(shape) for shape in layout.delta.values())
    value = min(options.lr * steps * math.sqrt(size), plan.max_norm)
    return NormBound(value, _LEAST * value, plan.max_norm)


def bound_after(plan: Plan, layout: Layout, rounds: Iterable[Sequence[float]]) -> NormBound:
    """Return the bound of the open round from the norms of all closed rounds, the oldest first.

    Raises the errors of `first_bound` and `NormBound.after`.
    """
    bound = first_bound(plan, layout)
    for norms in rounds:
        bound = bound.after(norms)
    return bound
