"""The events of a round, and the actions that `round_machine.py` returns for them."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.coordinator.round_state import RoundState


@dataclass(frozen=True)
class Joined:
    """A device said hello and was admitted."""

    device: str
    trains: bool
    evaluates: bool


@dataclass(frozen=True)
class Left:
    """A device went offline, or lost its admission."""

    device: str
    for_good: bool = False  # not admitted any more, so no round waits for it
    by_itself: bool = True  # False if the coordinator's own link broke


@dataclass(frozen=True)
class Enrolled:
    """The registry has changed; `devices` are enrolled and not revoked."""

    devices: frozenset[str]


@dataclass(frozen=True)
class Heard:
    """A device sent a message that only shows that it is online."""

    device: str


@dataclass(frozen=True)
class Offered:
    """A device offered a contribution for upload."""

    device: str
    round: int
    sha256: str


@dataclass(frozen=True)
class Arrived:
    """A complete, verified contribution arrived."""

    device: str
    round: int
    sha256: str


@dataclass(frozen=True)
class Rejected:
    """A contribution cannot be added; this attempt no longer waits for its device."""

    device: str
    round: int


@dataclass(frozen=True)
class Closed:
    """The model that closes the round is on disk."""


@dataclass(frozen=True)
class Reported:
    """A device reported on the model that closed round `round`."""

    device: str
    round: int


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Pause:
    """The operator pauses the run, or lets it go on."""

    paused: bool


@dataclass(frozen=True)
class Extend:
    """The operator changes the number of rounds; `votes` are the numbers of the votes then."""

    rounds: int
    votes: frozenset[int]


@dataclass(frozen=True)
class CloseEarly:
    """The operator closes the round with the contributions that are kept."""


@dataclass(frozen=True)
class EndEarly:
    """The operator ends the run with the model of the last closed round."""


@dataclass(frozen=True)
class GiveUp:
    """The operator has abandoned the run."""


@dataclass(frozen=True)
class Announce:
    """Publish the manifest: the phase, the round or the attempt has changed."""


@dataclass(frozen=True)
class Remind:
    """Send the manifest to a device that has been silent."""

    device: str


@dataclass(frozen=True)
class Forget:
    """Treat the device as offline until it says hello."""

    device: str


@dataclass(frozen=True)
class Missed:
    """The device missed a deadline; `left_out` once it no longer counts."""

    device: str
    reason: str
    left_out: bool


@dataclass(frozen=True)
class Restored:
    """The device was left out, has contributed, and counts again."""

    device: str


@dataclass(frozen=True)
class Waiting:
    """Say what the run waits for: `needs` devices or contributions; it has `has` of them."""

    needs: int
    has: int
    missing: tuple[str, ...]  # devices, sorted


@dataclass(frozen=True)
class Abandon:
    """End the run with an error: the contributions of every training device are refused."""


@dataclass(frozen=True)
class Upload:
    """Let the device upload the contribution that it offered."""

    device: str


@dataclass(frozen=True)
class Keep:
    """Put this contribution on disk, then acknowledge it."""

    device: str


@dataclass(frozen=True)
class Acknowledge:
    """Acknowledge this contribution again: it is on disk already."""

    device: str


@dataclass(frozen=True)
class Drop:
    """Refuse this contribution."""

    device: str
    reason: str


@dataclass(frozen=True)
class CloseRound:
    """Combine the kept contributions into the next model, put it on disk, then return `Closed`.

    Only a vote closes without a quorum, unless the operator closes the round.
    """

    has_quorum: bool = True


@dataclass(frozen=True)
class Finish:
    """Finish the run: the evaluation of the last model is over."""


Event = (
    Joined
    | Left
    | Enrolled
    | Heard
    | Offered
    | Arrived
    | Rejected
    | Closed
    | Reported
    | Tick
    | Pause
    | Extend
    | CloseEarly
    | EndEarly
    | GiveUp
)
Action = (
    Announce
    | Remind
    | Forget
    | Missed
    | Restored
    | Waiting
    | Abandon
    | Upload
    | Keep
    | Acknowledge
    | Drop
    | CloseRound
    | Finish
)

Step = tuple[RoundState, tuple[Action, ...]]  # the next state, and the actions in order
