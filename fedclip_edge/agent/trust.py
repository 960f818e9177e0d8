"""Signature and freshness checks for coordinator messages.

Laws:
- A message is accepted if the coordinator's key signed it. That is the key that enrolment pinned,
  or without enrolment the first key that was seen in the run.
- A pinned key is replaced only by one that it named itself, maybe through others (hand_over.py).
- An older epoch or round is refused, also after a restart.
- A direct answer names this process, so that an old answer cannot be replayed to it.
- A device that took part in a run ends it exactly once, even if it was killed before it received
  the message that the run is done.
- A message of a coordinator with an older epoch, or with another journal, raises one doubt. The
  device then says hello (`handshake.py`), and that coordinator claims a later epoch.
- Such a coordinator may end the run and go before it hears the hello. Its end of the run is then
  noted, but not accepted: `miss_end` ends the run and keeps the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedclip_edge import log
from fedclip_edge.agent.state_db import RunPosition, StateDb
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.hand_over import newest_key
from fedclip_edge.protocol.messages import CoordinatorState, Manifest
from fedclip_edge.records import COORDINATOR

_RUNS_PINNED = 64


@dataclass(eq=False)
class Trust:
    """The last coordinator messages that a device accepted, and the checks of new ones."""

    incarnation: str  # of this process
    coordinator_key: str  # pinned by enrolment, 64 hex digits; empty without enrolment
    state_db: StateDb
    coordinator: CoordinatorState | None = None
    manifest: Manifest | None = None
    is_mine: bool = False  # this device is in the manifest's run, and is not done with it
    # The end of this device's run, as a coordinator with an older epoch announced it.
    older_end: Manifest | None = None
    _doubted: dict[type, CoordinatorState | Manifest] = field(default_factory=dict)
    _doubts: bool = False
    _pins: dict[str, str] = field(default_factory=dict)  # run -> the coordinator's key

    def check(self, signed: wire.Signed) -> None:
        """Raise PeerError unless the coordinator signed the message."""
        message = signed.message
        if signed.sender != COORDINATOR:
            raise PeerError(f"a message from {signed.sender!r} where only the coordinator may send")
        if isinstance(message, CoordinatorState):
            self._follow(signed, message)
        if isinstance(message, CoordinatorState | Manifest):
            key = self.coordinator_key or self._pins.get(message.run, message.key)
            signed.check(key)
            self._pins.setdefault(message.run, key)
            if len(self._pins) > _RUNS_PINNED:  # drop the oldest, but not the current run's
                current = "" if self.manifest is None else self.manifest.run
                del self._pins[next(run for run in self._pins if run != current)]
        elif self.manifest is not None:
            signed.check(self._pins[self.manifest.run])
        else:
            raise PeerError("the message came before the first manifest of its run")

    def _follow(self, signed: wire.Signed, state: CoordinatorState) -> None:
        """Pin the key of the message, if statements lead to it from the one that is pinned.

        Raises PeerError if that key did not sign the message, DiskError on a disk error.
        """
        pinned = self.coordinator_key
        if not pinned or state.key == pinned or newest_key(pinned, state.hand_overs) != state.key:
            return
        signed.check(state.key)
        self.state_db.add_hand_overs(state.hand_overs)
        self.coordinator_key = state.key
        self._pins = dict.fromkeys(self._pins, state.key)
        log.event("coordinator_key_replaced", before=pinned[:16], key=state.key[:16])

    def accept_coordinator(self, state: CoordinatorState) -> None:
        """Accept this coordinator's state; raises PeerError if a later epoch is known."""
        known = self.coordinator
        epoch = max(self.state_db.position.epoch, 0 if known is None else known.epoch)
        # A lower epoch of the same process is accepted: a coordinator that raises its epoch cannot
        # change the will that it left with the broker, which still has the old epoch.
        if state.epoch < epoch and (known is None or state.boot != known.boot):
            if state.online:
                self._doubt(state)
            raise PeerError(
                f"coordinator of epoch {state.epoch}, older than the known epoch {epoch}"
            )
        self.coordinator = state

    def accept_manifest(self, manifest: Manifest, *, direct: bool) -> None:
        """Accept this manifest; `direct` is true if it was sent to this device alone.

        Raises PeerError if a direct manifest answers another process, or if the manifest is older
        than the stored position; DiskError if the new position cannot be written.
        """
        if direct and manifest.answers != self.incarnation:
            raise PeerError(
                f"the manifest answers the process {manifest.answers[:40]!r}, "
                f"this one is {self.incarnation!r}; if that is no earlier process of this device, "
                "another box has its id and key: give that box its own"
            )
        known = self.state_db.position
        is_done = manifest.phase == "done"
        here = RunPosition(manifest.epoch, manifest.run, manifest.closed, over=is_done)
        if known.is_newer_than(here):
            if here.epoch < known.epoch or here.run != known.run:
                self._doubt(manifest)
            if is_done and here.run == known.run and not known.over:
                self.older_end = manifest
            raise PeerError(f"manifest at {_described(here)}, older than {_described(known)}")
        self.is_mine = not is_done or (known.run == manifest.run and not known.over)
        self.state_db.move_position(replace(here, over=not self.is_mine))
        self.manifest, self.older_end = manifest, None

    def take_doubt(self) -> bool:
        """True once after each new message of a coordinator that is behind this device."""
        doubts, self._doubts = self._doubts, False
        return doubts

    def end_run(self) -> None:
        """Record that the device is done with the manifest's run; DiskError on a disk error."""
        self.is_mine = False
        self.state_db.move_position(replace(self.state_db.position, over=True))

    def miss_end(self) -> str:
        """Record that the run of `older_end` is over, in the epoch that is known; returns the run.

        If a coordinator of that epoch is back later, with fewer closed rounds, it learns the stored
        number from this device's hello and claims a later epoch. Raises DiskError on a disk error.
        """
        assert self.older_end is not None
        closed, self.older_end, self.is_mine = self.older_end.closed, None, False
        known = self.state_db.position
        self.state_db.move_position(replace(known, closed=max(known.closed, closed), over=True))
        return known.run

    def _doubt(self, message: CoordinatorState | Manifest) -> None:
        # A retained message comes again with every hello.
        if self._doubted.get(type(message)) != message:
            self._doubted[type(message)] = message
            self._doubts = True


def _described(position: RunPosition) -> str:
    rounds = "the end" if position.over else f"{position.closed} closed rounds"
    return f"{rounds} of {position.run or 'no run'} in epoch {position.epoch}"
