"""Check of one device's update against its plan and the pictures that the device declared.

The bounds of a sum (aggregation.py) keep it from overflowing. These checks refuse what no honest
device sends:

- a weight above 1, unless the plan weighs devices by their pictures;
- a weight above the number of pictures that the device declared, or above the plan's `max_weight`;
- sums of more pictures than declared, or that no pictures have (moment_check.py).

Law: an update that `methods.fit` makes from the declared pictures passes.
"""

from __future__ import annotations

from fedclip_edge.errors import PeerError
from fedclip_edge.learning import methods
from fedclip_edge.learning.moment_check import check_moments, counts_of
from fedclip_edge.learning.options import Training
from fedclip_edge.records import Plan, Update


def check_update(plan: Plan, update: Update, declared: int | None = None) -> None:
    """Raise PeerError, with the reason, if no device with so many declared pictures sends this.

    `declared` counts the pictures of the training and the validation side, and those that the
    device withholds: which of them it sends, and on which side, also depends on the plan.

    The update must have the names and shapes of the plan's layout. Without `declared` its counts
    are not compared. Of a method of your own (`methods.register`), only the weight is checked.
    Raises ConfigError for an unknown method or a bad option.
    """
    if update.weight > plan.max_weight:
        raise PeerError(
            f"the update's weight {update.weight} is above the plan's max_weight {plan.max_weight}"
        )
    method = methods.get(plan.method)
    options = method.check_options(plan.options)
    if method.traits.sends_moments:
        check_moments(update, getattr(options, "min_per_class", 1))
        if declared is not None:
            _check_declared(update, declared)
    elif isinstance(options, Training) and options.weighting == "pictures":
        if declared is not None and update.weight > max(1, declared):
            raise PeerError(
                f"the update's weight is {update.weight}, but the device declared {declared} "
                "pictures"
            )
    elif update.weight != 1 and (
        isinstance(options, Training) or not (update.delta or update.sums)
    ):
        raise PeerError(
            f"the update's weight is {update.weight}; the plan gives every device the weight 1"
        )


def _check_declared(update: Update, declared: int) -> None:
    train, validation = counts_of(update.sums)
    if train + validation > declared:
        raise PeerError(
            f"the sums are of {train} training and {validation} validation pictures, but the "
            f"device declared {declared} pictures"
        )
