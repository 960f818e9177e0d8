"""The activity of a device, as its state tells the coordinator.

Law: an activity is told once it has lasted TELL_S. So rounds that take less cost no more messages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.task import Evaluation, Task, Training
from fedclip_edge.protocol.message_parts import Activity

TELL_S = 2.0


def activity_of(task: Task | None, *, has_model: bool) -> Activity:
    """The activity of a device in a run; `has_model` is true if it has the run's newest model."""
    if isinstance(task, Training):
        return "training"
    if isinstance(task, Evaluation):
        return "evaluating"
    return "waiting" if has_model else "downloading"


@dataclass(eq=False)
class Activities:
    """The activities of one device, while it counts as online."""

    publisher: Publisher
    _now: Activity = "waiting"
    _since: float = -math.inf

    def look(self, activity: Activity, now: float) -> None:
        """Tell the coordinator what the device does, if that is due; `now` is in seconds."""
        if activity != self._now:
            self._now, self._since = activity, now
        if activity != self.publisher.activity and now - self._since >= TELL_S:
            self.publisher.activity = activity
            self.publisher.publish_state(online=True)
