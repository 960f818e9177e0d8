"""The law of progress: a run with enough live devices closes its next round within a bound.

Enough live devices: from the last fault on, the training devices without a bad habit stay online.
They are as many as `devices`, or at least one if the first round is closed. Any number of others
may be away, or have the habits of habits.py. All times are simulated.

The bound follows from the rules of round_machine.py and attendance.py:

- An attempt ends at its deadline at the latest (`deadline_s`). `gathering` opens the next one as
  soon as enough devices are online, after `grace_s` at the latest; otherwise it counts a missed
  deadline after `deadline_s`.
- An attempt that ends without a quorum counts a missed deadline for each device that is not in, and
  so does `gathering` for each one that is offline. At least one of these devices was not left out
  before: the quorum counts no others. A device is left out after LEFT_OUT_AFTER of them, until a
  contribution of it is kept; then this round lacks nothing from it.
- So with `bad` training devices that may be missing, at most LEFT_OUT_AFTER * bad attempts or
  deadlines of `gathering` pass without a quorum. One more attempt closes the round.
- A good device may be late for one attempt: before it trains, its contribution to an earlier round
  has to be refused. It offers that one every REPEAT_S, and then trains for up to 6 s.
- A bad device that has an upload slot may hold it for LEASE_S without progress. If there are no
  more slots than bad devices, a good one may have to wait for it. Slots are given first come, first
  served, so it waits for each bad one once at most. It may then be too late for the open attempt.

Before the first round that is closed after the last fault, two more things can take time:

- A device may have to say hello first. It waits longest if it said _ALONE_HELLOS hellos in vain
  before the last fault ended: REPEAT_S * 2**_ALONE_HELLOS (handshake.py). More hellos would take
  longer than the faults last.
- A device may still be training for an attempt that has ended, and be late for the next one.

After the last round, `final` ends at its deadline at the latest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from broken_law import BrokenLawError

from fedclip_edge.agent import handshake
from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator.round_state import LEFT_OUT_AFTER
from fedclip_edge.coordinator.uploads import LEASE_S

_TICKS_S = 2.0  # a deadline is noticed at the next tick, in each of the two phases
_HELLO_S: float = REPEAT_S * 2**handshake._ALONE_HELLOS


@dataclass(eq=False)
class Progress:
    """The closed rounds of a run, and the bounds for the next one."""

    rules: RunRules
    rounds: int
    bad: int  # training devices that may be missing after the last fault
    quiet_at: float  # time of the last fault
    slowest: float = 0.0  # the largest share of a bound that was needed
    _closed: tuple[str, int] = ("", 0)  # run, and number of closed rounds
    _since: float = 0.0
    _is_first: bool = True  # since the last fault

    @property
    def attempt_s(self) -> float:
        """The longest time of one attempt with the `gathering` before it."""
        return self.rules.deadline_s + self.rules.grace_s + _TICKS_S

    @property
    def round_s(self) -> float:
        """The longest time from one closed round to the next."""
        attempts, blocked_s = LEFT_OUT_AFTER * self.bad + 2, 0.0
        if self.bad >= self.rules.upload_slots:
            attempts, blocked_s = attempts + 1, self.bad * LEASE_S
        return attempts * self.attempt_s + blocked_s

    @property
    def first_s(self) -> float:
        """The longest time from the last fault to the first closed round after it."""
        return _HELLO_S + self.attempt_s + self.round_s

    @property
    def run_s(self) -> float:
        """The longest time from the last fault to the end of the run."""
        return self.first_s + (self.rounds - 1) * self.round_s + self.final_s

    @property
    def final_s(self) -> float:
        """The longest time from the last closed round to the end of the run."""
        return self.rules.deadline_s + _TICKS_S

    def check(self, run: str, closed: int, now: float) -> None:
        """Record the number of closed rounds; raises BrokenLawError if the bound is exceeded."""
        if now <= self.quiet_at or run != self._closed[0]:  # a new run has closed nothing yet
            self._closed = run, closed
            return
        limit_s = self._limit_s()
        waited_s = now - max(self._since, self.quiet_at)
        if closed != self._closed[1]:
            self._is_first, self._closed, self._since = False, (run, closed), now
            self.slowest = max(self.slowest, waited_s / limit_s)
        if waited_s > limit_s:
            raise BrokenLawError(
                "progress",
                f"{waited_s:.0f} s after {self._closed[1]} closed rounds there is no other, the "
                f"bound is {limit_s:.0f} s",
            )

    def _limit_s(self) -> float:
        if self._closed[1] == self.rounds:
            return self.final_s if not self._is_first else math.inf
        return self.first_s if self._is_first else self.round_s
