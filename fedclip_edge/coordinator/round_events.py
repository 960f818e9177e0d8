"""The events of a round, and the actions with which `round_machine.py` answers them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Joined:
    device: str
    trains: bool
    evaluates: bool


@dataclass(frozen=True)
class Left:
    device: str
    for_good: bool = False  # it will not be let in again: not waited for


@dataclass(frozen=True)
class Heard:
    """The device is there: it said something that decides nothing."""

    device: str


@dataclass(frozen=True)
class Offered:
    """A device has a contribution and asks whether to upload it."""

    device: str
    round: int
    sha256: str


@dataclass(frozen=True)
class Arrived:
    """A whole, verified contribution."""

    device: str
    round: int
    sha256: str


@dataclass(frozen=True)
class Rejected:
    """A contribution cannot be added; its device is not waited for in this attempt."""

    device: str
    round: int


@dataclass(frozen=True)
class Closed:
    """The model that closes the round is on disk."""


@dataclass(frozen=True)
class Reported:
    """A device evaluated the model that closed round `round`."""

    device: str
    round: int


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Announce:
    """Publish the manifest: the phase, the round or the attempt changed."""


@dataclass(frozen=True)
class Remind:
    """Tell the device again what is open: it has not answered."""

    device: str


@dataclass(frozen=True)
class Forget:
    """The device is taken for gone until it says hello."""

    device: str


@dataclass(frozen=True)
class Upload:
    """Let the device upload what it offered."""

    device: str


@dataclass(frozen=True)
class Keep:
    """Put this contribution on disk, then acknowledge it."""

    device: str


@dataclass(frozen=True)
class Acknowledge:
    """It is on disk already."""

    device: str


@dataclass(frozen=True)
class Drop:
    """Refuse this contribution."""

    device: str
    reason: str


@dataclass(frozen=True)
class CloseRound:
    """Combine what is kept into the next model and put it on disk, then say `Closed`."""


@dataclass(frozen=True)
class Finish:
    """Every round is closed, and the last model evaluated as far as anybody was there."""


Event = Joined | Left | Heard | Offered | Arrived | Rejected | Closed | Reported | Tick
Action = Announce | Remind | Forget | Upload | Keep | Acknowledge | Drop | CloseRound | Finish
