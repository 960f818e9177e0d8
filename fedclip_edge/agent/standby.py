"""The reason why a device takes no part in the coordinator's run, and its lines in the log.

Law: the reason is logged at once when it changes, and then once per REPEAT_S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.protocol.messages import Refused

REPEAT_S = 3600.0
_NAMES = 10  # classes that one line names
_HINT = (
    "this device stays connected, asks again from time to time, and takes part once the "
    "coordinator's run fits it"
)


@dataclass(eq=False)
class Standby:
    """The standby of one device. `reason` is empty while the device takes part."""

    class_names: tuple[str, ...]  # of the device's bundle
    reason: str = ""
    _said: str = ""
    _said_at: float = -math.inf

    def refuse(self, refused: Refused, now: float) -> None:
        """Record the coordinator's refusal; `now` is monotonic, in seconds."""
        self._wait(refused.reason, now, refused.classes)

    def fail(self, reason: str, now: float) -> None:
        """Record that this device cannot follow the run's plan; `now` is monotonic, in seconds."""
        self._wait(reason, now)

    def end(self) -> None:
        """Record that the device takes part."""
        self.reason = ""

    def _wait(self, reason: str, now: float, theirs: Sequence[str] = ()) -> None:
        self.reason = reason
        if reason == self._said and now - self._said_at < REPEAT_S:
            return
        self._said, self._said_at = reason, now
        ours = self.class_names
        log.event(
            "not_in_run",
            reason=reason,
            run_adds=_listed([name for name in theirs if name not in ours]),
            run_lacks=_listed([name for name in ours if theirs and name not in theirs]),
            hint=_HINT,
        )


def _listed(names: Sequence[str]) -> str | None:
    rest = len(names) - _NAMES
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:_NAMES]) + more if names else None
