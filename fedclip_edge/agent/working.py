"""The work of a session's task, by its learner, while the session follows the run.

Law: work that nobody wants any more ends at once, and its result is not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedclip_edge import log
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.task import Task, Training
from fedclip_edge.errors import ConfigError, WorkerError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.records import Measured, Update

_EVENTS_AT_ONCE = 256
Clock = Callable[[], float]  # monotonic, in seconds


class UnwantedError(Exception):
    """Nobody wants the result of the work any more."""


def handle_events(session: Session, wait_s: float, clock: Clock = time.monotonic) -> None:
    """Handle the events that wait; wait up to `wait_s` seconds for the first one.

    At most _EVENTS_AT_ONCE are handled, so that an endless stream of messages cannot block the
    work. Raises the errors of `Session.handle_event`.
    """
    event, handled = session.transport.next_event(wait_s), 0
    while event is not None:
        session.handle_event(event, clock())
        handled += 1
        event = session.transport.next_event(0) if handled < _EVENTS_AT_ONCE else None


def work(session: Session, clock: Clock = time.monotonic) -> bool:
    """Have the session's task done, and give the session the result; False if it has no task.

    Errors of the learner that only mean that the plan does not work here are given to the session;
    others are passed on. Raises DiskError if the state file cannot be written.
    """
    task = session.task
    if task is None:
        return False
    try:
        result = _done(session, task)
    except UnwantedError:
        _log_dropped(task)
        session.drop_task()
    except PausedError:
        session.drop_task()  # it is done after the pause, if it is still wanted
    except (ConfigError, WorkerError) as error:
        session.take_failure(str(error), clock())
    else:
        session.take_result(result, clock())
    return True


def follow(session: Session, clock: Clock = time.monotonic) -> None:
    """Let the session follow the run while its task is done; to be called many times a second.

    Raises UnwantedError once nobody wants the result, and the errors of `Session.handle_event`.
    """
    handle_events(session, 0, clock)
    session.act(clock())
    if not session.is_task_wanted:
        raise UnwantedError


def _done(session: Session, task: Task) -> Update | Measured:
    model, plan, learner = task.held.model, task.manifest.plan, session.work.learner
    if isinstance(task, Training):
        return learner.fit(model, plan)
    return learner.evaluate(model, plan, final=task.is_last)


def _log_dropped(task: Task) -> None:
    if isinstance(task, Training):
        log.event("work_dropped", work="training", round=task.manifest.exchange.number)
    else:
        log.event("work_dropped", work="evaluation", round=task.held.model.round)
