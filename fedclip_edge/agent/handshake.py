"""Timing of a device's hellos, and detection of a coordinator that does not answer them.

Sans-I/O: the clock is passed in. `now` is monotonic, in seconds.

Laws:
- A hello is repeated until it is answered; without a coordinator, at growing intervals.
- A device whose hello was answered says hello again if it then gets no manifest for too long: the
  newest manifest may be lost.
- A device that is refused in a run says hello again after _ALONE_S, or to the next coordinator.
- A device that hears a coordinator behind it says hello at once, but REPEAT_S after its last hello
  at the earliest. The hello names the device's epoch, and the coordinator claims a later one. The
  device goes on with its work: the message may be a late one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.protocol.messages import CoordinatorState

# The longest interval between hellos while no coordinator is online; the hellos then take less than
# 9 kB an hour. The interval may be long because a new coordinator announces itself.
_ALONE_S = 300.0
_NO_ANSWER = (
    "check that `fedclip-edge serve` runs with the same broker, and compare 'fleet' here with "
    "'fleet' in its fleet.toml"
)
# After this many unanswered hellos in a row the coordinator counts as offline: the message that
# said so may have been lost.
_ALONE_HELLOS = 4


@dataclass(eq=False)
class Handshake:
    """The handshakes of one device, over successive links."""

    fleet: str
    trust: Trust
    is_answered: bool = False  # by the current coordinator, on this link
    since: float | None = None  # time of the first link
    is_refused: bool = False  # in this run
    _unanswered: int = 0  # hellos in a row
    _said_at: float | None = None  # time of the last hello; None while disconnected
    _heard_at: float = 0.0  # time of the last manifest
    _is_behind: bool = False  # a coordinator is online that is behind this device

    def start_link(self, now: float) -> None:
        self.since = now if self.since is None else self.since
        self.reset()

    def lose_link(self) -> None:
        self._said_at = None

    @property
    def is_connected(self) -> bool:
        return self._said_at is not None

    def reset(self) -> None:
        """Forget the answer to an earlier hello, so that the device waits for the next answer."""
        self.is_answered, self.is_refused, self._unanswered = False, False, 0

    def refuse(self) -> None:
        """Record that the coordinator refuses this device in its run."""
        self.is_answered, self.is_refused = False, True
        self._unanswered, self._is_behind = 0, False

    def note_hello(self, now: float) -> None:
        """Record that a hello was sent."""
        self._said_at = now

    def is_new(self, state: CoordinatorState) -> bool:
        """True if the state is of another coordinator process, or of one that was offline."""
        known = self.trust.coordinator
        return known is None or known.boot != state.boot or not known.online

    def note_manifest(self, now: float, *, direct: bool) -> bool:
        """Record that a manifest arrived; True if it answers the hello.

        `direct` means that it was sent to this device alone.
        """
        self._heard_at = now
        is_answer = direct and not self.is_answered
        if direct:
            self.is_answered, self.is_refused = True, False
            self._unanswered, self._is_behind = 0, False
        return is_answer

    def poll(self, now: float) -> bool:
        """True if the hello is due again; it then counts as unanswered until an answer arrives."""
        said_at = math.inf if self._said_at is None else self._said_at
        if self.trust.take_doubt():
            # -1: the hello that is due now is the first one that this coordinator can answer.
            self._is_behind, self._unanswered = True, -1
        if not self.is_answered or self._is_behind:
            is_due = now - said_at >= self._repeat_s
            if is_due and not self._unanswered and not self.is_refused:
                log.event("no_answer", fleet=self.fleet, hint=_NO_ANSWER)
        else:
            is_due = now - self._heard_at >= self._patience_s
            self._heard_at = now if is_due else self._heard_at
        self._unanswered += is_due
        return is_due

    @property
    def is_alone(self) -> bool:
        """True if the coordinator's state is offline, or if it does not answer hellos."""
        coordinator = self.trust.coordinator
        gone = coordinator is not None and not coordinator.online
        return (gone and not self._is_behind) or self.gets_no_answer

    @property
    def gets_no_answer(self) -> bool:
        """True if so many hellos in a row were not answered that no coordinator can be online."""
        return self._unanswered >= _ALONE_HELLOS

    @property
    def _repeat_s(self) -> float:
        """Seconds to wait for an answer to the last hello."""
        if self.is_refused and not self._is_behind:
            return _ALONE_S
        if self.is_alone or (self.trust.coordinator is None and not self._is_behind):
            return min(REPEAT_S * (1 << min(self._unanswered, 10)), _ALONE_S)
        return REPEAT_S

    @property
    def _patience_s(self) -> float:
        """Seconds without a manifest after which the device says hello again."""
        manifest = self.trust.manifest
        if manifest is None:
            return REPEAT_S
        is_near = manifest.phase == "final" or (manifest.phase == "done" and self.trust.is_mine)
        return REPEAT_S if is_near else manifest.deadline_s
