"""The timing of a device's hello, and whether a coordinator is there to answer it.

Laws:
- A hello is repeated until it is answered; where nobody coordinates it becomes rare.
- A device that was answered and then hears nothing for too long asks what is open: the manifest
  that said so may be lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.protocol.messages import CoordinatorState

# Between hellos where nobody coordinates: under 9 kB an hour. A coordinator that comes says so.
_ALONE_S = 300.0
_ALONE_HELLOS = 4  # unanswered on end; a good-bye may have been lost


@dataclass(eq=False)
class Handshake:
    """The hellos of one device, over one link after another."""

    fleet: str
    trust: Trust
    is_answered: bool = False  # by the coordinator in charge, on this link
    since: float | None = None  # when the first link came
    _unanswered: int = 0  # hellos on end
    _said_at: float | None = None  # None while disconnected
    _heard_at: float = 0.0  # when the last manifest came

    def start_link(self, now: float) -> None:
        self.since = now if self.since is None else self.since
        self.reset()

    def lose_link(self) -> None:
        self._said_at = None

    @property
    def is_connected(self) -> bool:
        return self._said_at is not None

    def reset(self) -> None:
        """Forget the answer to an earlier hello."""
        self.is_answered, self._unanswered = False, 0

    def note_hello(self, now: float) -> None:
        """A hello was sent."""
        self._said_at = now

    def is_new(self, state: CoordinatorState) -> bool:
        """True where another process coordinates than so far, or the same one once more."""
        known = self.trust.coordinator
        return known is None or known.boot != state.boot or not known.online

    def note_manifest(self, now: float, *, direct: bool) -> bool:
        """A manifest came; True where it is the answer that was waited for."""
        self._heard_at = now
        is_answer = direct and not self.is_answered
        if direct:
            self.is_answered, self._unanswered = True, 0
        return is_answer

    def poll(self, now: float) -> bool:
        """True where the hello is to be repeated now; it is then counted as not answered."""
        said_at = math.inf if self._said_at is None else self._said_at
        if not self.is_answered:
            is_due = now - said_at >= self._repeat_s
            if is_due and not self._unanswered:
                log.event("no_answer", fleet=self.fleet, hint="does its serve run?")
        else:
            is_due = now - self._heard_at >= self._patience_s
            self._heard_at = now if is_due else self._heard_at
        self._unanswered += is_due
        return is_due

    @property
    def is_alone(self) -> bool:
        """True where the coordinator said that it goes, or answers no more."""
        coordinator = self.trust.coordinator
        gone = coordinator is not None and not coordinator.online
        return gone or self._unanswered >= _ALONE_HELLOS

    @property
    def _repeat_s(self) -> float:
        """Time to wait for an answer to the last hello."""
        if self.is_alone or self.trust.coordinator is None:
            return min(REPEAT_S * (1 << min(self._unanswered, 10)), _ALONE_S)
        return REPEAT_S

    @property
    def _patience_s(self) -> float:
        """Time without a manifest after which to ask whether one was missed."""
        manifest = self.trust.manifest
        if manifest is None:
            return REPEAT_S
        is_near = manifest.phase == "final" or (manifest.phase == "done" and self.trust.is_mine)
        return REPEAT_S if is_near else manifest.deadline_s
