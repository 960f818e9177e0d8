"""The main loop of an agent: it handles messages, does the device's work, and its other duties."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from fedclip_edge import log
from fedclip_edge.agent.backlog import Backlog
from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.rescan import Rescan
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.working import handle_events, work
from fedclip_edge.errors import RefusedError
from fedclip_edge.processes.systemd import SYSTEMD

_TICK_S = 0.2
Ending = Literal["run", "bundle", "broker"]  # what ended the loop


def _nothing() -> None:
    """There are no other duties."""


def loop(
    session: Session,
    *,
    once: bool,
    rescan: Rescan | None = None,
    backlog: Backlog | None = None,
    begins_again: Callable[[], bool] = lambda: False,
    duties: Callable[[], None] = _nothing,
    choice: BrokerChoice | None = None,
) -> Ending:
    """Handle pending events, do one piece of work, and repeat; with `once`, return after one run.

    Returns the reason: that run is over, `begins_again` is true, or the device should
    use the other address of `choice`.

    Without `once`, a device that the coordinator refuses in its run waits for another run. With
    `once` that raises RefusedError.

    `duties` is called in each turn. It is what the agent does beside its part in the run, and the
    caller has it called also while a child process works (`serving.py`). `backlog` has its turn
    when the session has nothing to do.

    Events come first because they may make work unnecessary. While the learner does the session's
    task, the session follows the run (`working.py`).
    """
    worked = False
    while True:
        handle_events(session, 0 if worked else _TICK_S)
        if rescan is not None and not session.paused:
            rescan.look(session, time.monotonic())
        worked = session.act(time.monotonic())
        worked = work(session) or worked
        if begins_again():
            session.say_goodbye()
            return "bundle"
        if once and session.standby.reason and not session.is_fetching_bundle:
            raise RefusedError(
                f"{session.config.id} cannot take part in the run: {session.standby.reason}"
            )
        duties()
        if backlog is not None and not worked and not session.paused:
            worked = backlog.look(time.monotonic())
        SYSTEMD.status(_status(session))
        if session.finished:
            log.event("run_done", refused_messages=session.refused_messages)
            if once:
                return "run"
            session.finished = False
        if choice is not None and choice.look(session, time.monotonic()):
            return "broker"


def _status(session: Session) -> str:
    """The device's part in the run, in one line for systemd."""
    manifest = session.trust.manifest
    if not session.handshake.is_connected:
        return "no link to the broker; connects again"
    if session.paused:
        return f"pauses: {session.paused}"
    if session.standby.reason:
        return f"takes no part in the run: {session.standby.reason}"
    if manifest is None or not session.handshake.is_answered:
        return "waits for the coordinator"
    if manifest.phase == "done":
        return f"{manifest.run}: over"
    return f"{manifest.run}: round {manifest.exchange.number} ({manifest.phase})"
