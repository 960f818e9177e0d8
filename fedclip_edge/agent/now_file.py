"""The state of a running agent in a file, for its page: STATE_DIR/now.json.

Laws:
- The file is complete or not there. It is written when its content changes, and at most once per
  WRITE_S.
- A file that cannot be written is reported in the log. It never stops the agent.
- What a restarted agent does not know yet, such as accuracies, stays as the agent before it wrote.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedclip_edge import log
from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.storage import atomic

if TYPE_CHECKING:  # the page's process, which reads the file, needs none of them
    from fedclip_edge.agent.model_in_use import ModelInUse
    from fedclip_edge.agent.pause import Pause
    from fedclip_edge.agent.session import Session

NOW = "now.json"  # in state_dir
WRITE_S = 1.0
_HINT = "free or repair the disk; the agent goes on, and its page shows an old state"


@dataclass(frozen=True)
class Now:
    """The state of an agent."""

    pid: int
    at: float  # Unix time of the last change, in seconds
    doing: str = ""  # in words, as `systemctl status` shows it
    activity: str = ""  # in the run, as the coordinator is told it (protocol/message_parts.py)
    is_connected: bool = False  # to the broker
    has_coordinator: bool = False  # it has answered, and is online
    run: str = ""  # the run that the coordinator serves
    phase: str = ""  # of the run: "gathering", "open", "final" or "done"
    round: int = 0  # of the run
    left_out: str = ""  # the reason why this device takes no part in the run
    paused: str = ""  # the reason why the device pauses
    # While pictures are encoded: those that have features, and all.
    encoded: int | None = None
    to_encode: int | None = None
    provider: str = ""  # that runs the encoder
    model: str = ""  # kind of the model that answers: "zero-shot", "fleet" or "own"
    model_run: str = ""  # the run that made it
    model_version: str = ""  # SHA-256 of the fleet's model
    # Of the last report: fractions of this device's test pictures, under the names of a report.
    accuracy: Mapping[str, float] = field(default_factory=dict)
    accuracy_run: str = ""
    accuracy_round: int = 0
    # Labelled pictures with features, by side.
    train: int = 0
    validation: int = 0
    test: int = 0
    withheld: int = 0


def read_now(state_dir: Path) -> Now | None:
    """Return the state that an agent wrote; None if there is none that can be read."""
    try:
        table = json.loads((state_dir / NOW).read_bytes())
        return decode_table(Now, table, NOW) if isinstance(table, dict) else None
    except (OSError, ValueError, DecodeError):
        return None


class NowFile:
    """The file of one agent."""

    def __init__(self, state_dir: Path, provider: str) -> None:
        self._file = state_dir / NOW
        before = read_now(state_dir) or Now(0, 0.0)
        # What another process did is over; what it measured still holds.
        self._now = Now(
            os.getpid(),
            0.0,
            provider=provider,
            accuracy=before.accuracy,
            accuracy_run=before.accuracy_run,
            accuracy_round=before.accuracy_round,
            train=before.train,
            validation=before.validation,
            test=before.test,
            withheld=before.withheld,
        )
        self._looked_at = -math.inf
        self._written: Now | None = None
        self._has_failed = False

    def name_provider(self, provider: str) -> None:
        """Note the provider of the encoder: an EncoderConfig.label."""
        self._now = replace(self._now, provider=provider)

    def tell(self, done: int, total: int) -> None:
        """Note that `done` of `total` pictures are encoded."""
        is_over = done >= total
        self._now = replace(
            self._now,
            encoded=None if is_over else done,
            to_encode=None if is_over else total,
        )

    def look(
        self,
        session: Session | None,
        pause: Pause,
        model: ModelInUse | None,
        now: float,
    ) -> None:
        """Write the file if that is due; `now` is monotonic, in seconds."""
        if now - self._looked_at < WRITE_S:
            return
        self._looked_at = now
        self._now = replace(self._now, doing=SYSTEMD.text, paused=pause.reason)
        if model is not None:
            self._now = replace(
                self._now, model=model.kind, model_run=model.run, model_version=model.version
            )
        if session is not None:
            self._now = _of_session(self._now, session)
        if self._now != self._written:
            self._write()

    def _write(self) -> None:
        try:
            shown = dataclasses.asdict(replace(self._now, at=time.time()))
            atomic.write_file(self._file, json.dumps(shown).encode())
        except OSError as error:
            if not self._has_failed:
                reason = error.strerror or str(error)
                log.event("state_not_written", file=self._file, reason=reason, hint=_HINT)
            self._has_failed = True
        else:
            self._has_failed, self._written = False, self._now


def _of_session(before: Now, session: Session) -> Now:
    """The state with what the session knows."""
    manifest, handshake = session.trust.manifest, session.handshake
    pictures = session.publisher.capabilities.pictures
    answers = handshake.is_answered or handshake.is_refused
    report = session.evaluation_queue.report
    found = replace(
        before,
        is_connected=handshake.is_connected,
        has_coordinator=handshake.is_connected and answers and not handshake.is_alone,
        left_out=session.standby.reason,
        activity=session.publisher.activity,
        run="" if manifest is None else manifest.run,
        phase="" if manifest is None else manifest.phase,
        round=0 if manifest is None else manifest.exchange.number,
        train=pictures.train,
        validation=pictures.validation,
        test=pictures.test,
        withheld=pictures.withheld,
    )
    if report is None:
        return found
    return replace(
        found, accuracy=report.accuracy, accuracy_run=report.run, accuracy_round=report.round
    )
