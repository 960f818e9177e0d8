"""The state of a device in two files, so that damage to one of them stops no agent.

    STATE_DIR/parked.sqlite    all of it (state_db.py)
    STATE_DIR/position.json    the part of it that nobody can give the device again

That part is the position (without it, an older message of the coordinator could pass for a new
one), the statements that lead to the coordinator's newest key (without them, the earlier key would
count again), and the address to which the broker moved.

Laws:
- If one file is damaged or missing, it is made anew from the other; so is a state file of another
  version of this program. The log says what is lost: a pending update, which the device trains
  again while its round is open, and the residuals, which are what the codec has lost of the last
  update.
- If both are damaged, or the state file is and there is no other, the agent does not start. Only a
  person can know that no older message can arrive.
- A state file that lacks what position.json has gets it: a damaged write-ahead log is one that ends
  too early.
- position.json has the epoch and the run of the state file when a change of them returns. The
  number of closed rounds in it may be smaller. While it cannot be written, the log says so, once.
- A state file that is replaced is not deleted: it gets the ending .old.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedclip_edge import log
from fedclip_edge.agent.state_db import RunPosition, StateDb, open_state_db
from fedclip_edge.agent.state_db_file import DamagedStateError, OtherStateVersionError
from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.protocol.hand_over import HandOver
from fedclip_edge.protocol.message_parts import Address
from fedclip_edge.storage import atomic

STATE, POSITION = "parked.sqlite", "position.json"  # in state_dir
_LOST = "a pending update, which is trained again, and what the codec has lost of the last one"


@dataclass(frozen=True)
class Move:
    """A move of the broker, from the address that agent.toml had to another one."""

    was: Address
    now: Address


@dataclass(frozen=True)
class Lasting:
    """The content of position.json."""

    position: RunPosition
    hand_overs: tuple[HandOver, ...] = ()
    move: Move | None = None


def open_state(state_dir: Path) -> StateDb:
    """Open the state of a device, and make a file anew that is damaged or missing.

    Raises ConfigError if both files are damaged, if there is only a state file of another version,
    or if that is another program's; DiskError on a disk error.
    """
    state, beside = state_dir / STATE, state_dir / POSITION
    is_missing = not state.exists() or state.stat().st_size == 0
    kept = _read(beside)
    aside, reason = None, "it is missing or empty" if is_missing else ""
    try:
        state_db = open_state_db(state)
    except (DamagedStateError, OtherStateVersionError) as error:
        is_damaged = isinstance(error, DamagedStateError)
        if kept is None:
            if is_damaged:
                raise ConfigError(_both_damaged(state, beside, error)) from error
            raise
        reason = f"it is damaged ({error.__cause__})" if is_damaged else "it has another version"
        aside = _set_aside(state)
        state_db = open_state_db(state)
    if kept is not None:
        _add(state_db, kept)
        if reason:
            log.event("state_file_rebuilt", file=state, reason=reason, kept=aside, lost=_LOST)
    copy = _Copy(beside, kept)
    copy.update(state_db)
    state_db.on_change = lambda: copy.update(state_db)
    return state_db


def _set_aside(state: Path) -> Path:
    """Rename the state file, so that a new one can be made; returns its new name."""
    aside = Path(f"{state}.old")
    try:
        # Its log first: SQLite would read it into the new file.
        for end in ("-wal", "-shm"):
            Path(f"{state}{end}").unlink(missing_ok=True)
        state.replace(aside)
    except OSError as error:
        raise DiskError(
            f"{state} cannot be used, and cannot be renamed either: {error.strerror or error}; free "
            "or repair the disk"
        ) from error
    return aside


def _add(state_db: StateDb, kept: Lasting) -> None:
    """Add what the state file lacks; it may lack the end of its write-ahead log."""
    here = state_db.position
    if kept.position.is_newer_than(here) and not here.is_newer_than(kept.position):
        state_db.move_position(kept.position)
    if not set(kept.hand_overs) <= set(state_db.hand_overs()):
        state_db.add_hand_overs(kept.hand_overs)
    if kept.move is not None and state_db.broker_move() is None:
        state_db.move_broker(kept.move.was, kept.move.now)


def _both_damaged(state: Path, beside: Path, error: Exception) -> str:
    what = "is damaged too" if beside.exists() else "is not there"
    return (
        f"{state} is damaged ({error.__cause__}), and {beside}, from which it could be made anew, "
        f"{what}. The device does not know any more which messages of the coordinator are old. Make "
        f"sure that nobody else controls the broker, then delete {state.name} and {beside.name}, and "
        "start the agent"
    )


class _Copy:
    """The file position.json; `known` is its content, None if it cannot be read."""

    def __init__(self, path: Path, known: Lasting | None) -> None:
        self._path = path
        self._known = known
        self._failed = False

    def update(self, state_db: StateDb) -> None:
        """Write what has changed; a failure is logged once."""
        move = state_db.broker_move()
        now = Lasting(
            state_db.position, state_db.hand_overs(), None if move is None else Move(*move)
        )
        if now == self._known:
            return
        try:
            atomic.write_file(self._path, _packed(asdict(now)))
        except OSError as error:
            if not self._failed:
                reason = error.strerror or str(error)
                log.event("position_not_written", file=self._path, reason=reason)
            self._failed = True
        else:
            self._known, self._failed = now, False


def _packed(table: Mapping[str, Any]) -> bytes:
    return json.dumps({**table, "sha256": _digest(table)}, indent=2).encode() + b"\n"


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Lasting | None:
    """Read position.json; None if it is missing or damaged, which is logged."""
    try:
        table = json.loads(path.read_bytes())
        if table.pop("sha256") != _digest(table):
            raise ValueError("its checksum is wrong")
        return decode_table(Lasting, table, str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DecodeError) as error:
        reason = str(error)
    log.event("position_damaged", file=path, reason=reason)
    return None
