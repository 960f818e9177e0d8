"""A child process that answers requests, and ends when it has had none for a while.

Its memory, and the libraries that only its work needs, are there only while it works.

Laws:
- The child starts with the first request. It does one request after the other.
- An error of the child's work is raised in the parent as the same class with the same message.
- If the child dies, the work is tried once more by a new child; then `ask` raises WorkerError.
- After an interrupt, after a request that took too long, and after an error of `meanwhile`, the
  child is ended.
- The child's log lines are written by the parent, in order.
- The child never outlives its parent (`children.py`).
- While `is_paused`, the child is stopped, and its work goes on afterwards. After PAUSE_S the child
  is ended, and `ask` raises PausedError.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from fedclip_edge import log
from fedclip_edge.errors import WorkerError
from fedclip_edge.processes import heap
from fedclip_edge.processes.child_limits import ChildLimits, memory_mb_of
from fedclip_edge.processes.children import Children, how_it_ended

IDLE_S = 60.0
PAUSE_S = 600.0
_WEIGHS_S = 1.0  # between two looks at the memory of the child
_LOOKS_S = 0.05  # between two calls of `meanwhile`
_ENDS_IN_S = 2.0  # from SIGTERM, which the child does not catch, to SIGKILL
_ADVICE = (
    "stop other programs, or raise the memory limit of the service, or max_memory_mb under "
    "[limits]; standard error may say more"
)


class PausedError(WorkerError):
    """The work was paused for so long that it was given up: do it again after the pause."""


def _nothing() -> None:
    """There is nothing else to do."""


def _never() -> bool:
    return False


@dataclass(eq=False)
class Worker:
    """A child process that works on an object, which it makes when it starts.

    `target` is the object's class as "module:name", called with what `arguments` returns, at each
    start. Arguments, requests and answers are pickled. `meanwhile` is called at least ten times a
    second while the parent waits; it must not use this worker. `ask` passes its errors on. Use a
    worker in one thread only.
    """

    children: Children
    name: str  # in log lines and errors, such as "encoder"
    target: str
    arguments: Callable[[], tuple[Any, ...]]
    idle_s: float = IDLE_S
    limits: Callable[[], ChildLimits] = ChildLimits  # called at each start of a child
    meanwhile: Callable[[], None] = _nothing
    is_paused: Callable[[], bool] = _never
    is_busy: bool = field(default=False, init=False)
    _child: _Child | None = field(default=None, init=False)
    _used_at: float = field(default=0.0, init=False)
    _weighed_at: float = field(default=0.0, init=False)

    @property
    def is_running(self) -> bool:
        """True if there is a child."""
        return self._child is not None

    @property
    def pid(self) -> int | None:
        """The process id of the child; None if there is none."""
        return None if self._child is None else self._child.process.pid

    def ask(
        self,
        method: str,
        *arguments: Any,
        progress: Callable[..., None] | None = None,
        deadline_s: float | None = None,
    ) -> Any:
        """Call a method of the child's object, and return what it returns.

        With `progress`, the method gets a function of the same name; the parent calls `progress`
        with what the child calls it with.

        Raises the errors of the method and of the object's class. Raises WorkerError if the child
        died twice, or did not answer within `deadline_s` seconds. Raises RuntimeError while the
        worker is busy.
        """
        if self.is_busy:
            raise RuntimeError(f"the {self.name} process already has a request")
        ends_at = None if deadline_s is None else time.monotonic() + deadline_s
        self.is_busy = True
        try:
            try:
                return self._tried(method, arguments, progress, ends_at)
            except _DiedError as died:
                log.event("worker_died", worker=self.name, reason=died.reason)
            try:
                return self._tried(method, arguments, progress, ends_at)
            except _DiedError as died:
                raise WorkerError(
                    f"the {self.name} process {died.reason}, twice in a row; often a machine has too "
                    f"little memory: {_ADVICE}"
                ) from None
        finally:
            self.is_busy = False
            self._used_at = time.monotonic()

    def rest(self, now: float) -> None:
        """End the child if it has had no request for `idle_s` seconds; `now` is monotonic.

        The parent's main loop calls it. It also takes away what is left of a child that has died,
        and ends one whose limits have changed: the next one starts with the new limits.
        """
        if self._child is None or self.is_busy:
            return
        is_idle = now - self._used_at >= self.idle_s
        has_died = self._child.process.poll() is not None
        if is_idle or has_died or self._child.limits != self.limits():
            self.end()

    def end(self) -> None:
        """End the child if there is one, at once."""
        if self._child is not None:
            child, self._child = self._child, None
            child.go_on()  # a stopped process does not see SIGTERM
            child.connection.close()
            self.children.end(child.process)
            heap.trim()  # what it sent and was sent; the parent may now wait for days

    def _tried(
        self,
        method: str,
        arguments: tuple[Any, ...],
        progress: Callable[..., None] | None,
        ends_at: float | None,
    ) -> Any:
        try:
            if self._child is not None and self._child.process.poll() is not None:
                self.end()  # it died while it had nothing to do
            if self._child is None:
                self._child = self._started()
                self._wait(self._child, "up", None, ends_at)
                self._child.send((self.target, self.arguments()))
                self._wait(self._child, "ready", None, ends_at)
            self._child.send((method, arguments, progress is not None))
            return self._wait(self._child, "answer", progress, ends_at)
        except _WorkError as failed:
            if not failed.child_goes_on:
                self.end()
            raise failed.error from _InChildError(failed.trace)
        except BaseException:
            self.end()  # its answer would be taken for that of the next request
            raise

    def _started(self) -> _Child:
        limits = self.limits()
        ours, its = socket.socketpair()
        with ours, its:
            words = [sys.executable, "-m", "fedclip_edge.processes.worker_child"]
            process = self.children.start(
                [*words, str(its.fileno()), limits.to_argument()],
                None,
                ends_in_s=_ENDS_IN_S,
                keeps=[its.fileno()],
                dies_by=signal.SIGKILL,  # a child that is stopped sees no other signal
            )
            return _Child(process, Connection(ours.detach()), limits)

    def _wait(
        self,
        child: _Child,
        kind: str,
        progress: Callable[..., None] | None,
        ends_at: float | None,
    ) -> Any:
        """Wait for a message of this kind, and return its content."""
        while True:
            self.meanwhile()
            if self.is_paused():
                paused_s = self._pause(child)
                ends_at = None if ends_at is None else ends_at + paused_s
            self._weigh(child)
            if ends_at is not None and time.monotonic() >= ends_at:
                raise WorkerError(
                    f"the {self.name} process took too long and was ended; the machine may be "
                    f"busy, or have too little memory: {_ADVICE}"
                )
            message = child.receive(_LOOKS_S)
            if message is None:
                continue
            got, *content = message
            if got == kind:
                return content[0] if content else None
            if got == "event":
                log.forward(*content)
            elif got == "progress" and progress is not None:
                progress(*content)
            elif got == "error":
                raise _WorkError(*content, child_goes_on=kind == "answer")
            elif got == "no_memory":
                raise _DiedError(f"ran out of memory ({content[0]})")

    def _pause(self, child: _Child) -> float:
        """Stop the child until the pause is over; return the seconds. Raises PausedError."""
        began = time.monotonic()
        child.stop()
        while self.is_paused():
            self.meanwhile()
            if time.monotonic() - began >= PAUSE_S:
                raise PausedError(f"the work of the {self.name} process is paused")
            time.sleep(_LOOKS_S)
        child.go_on()
        return time.monotonic() - began

    def _weigh(self, child: _Child) -> None:
        """Raise _DiedError if the child has more memory than it may."""
        now, limit_mb = time.monotonic(), child.limits.memory_mb
        if limit_mb is None or now - self._weighed_at < _WEIGHS_S:
            return
        self._weighed_at = now
        found = memory_mb_of(child.process.pid)
        if found is not None and found > limit_mb:
            raise _DiedError(f"took {found} MB of memory, more than its limit of {limit_mb} MB")


@dataclass(frozen=True, eq=False)
class _Child:
    process: subprocess.Popen[str]
    connection: Connection
    limits: ChildLimits  # those that it started with

    def stop(self) -> None:
        """Stop the process without ending it."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the process go on if it is stopped."""
        self.process.send_signal(signal.SIGCONT)

    def send(self, message: Any) -> None:
        data = pickle.dumps(message, protocol=5)
        with self._died():
            self.connection.send_bytes(data)

    def receive(self, timeout_s: float) -> Any:
        """The child's next message; None if there is none within `timeout_s`."""
        with self._died():
            if not self.connection.poll(timeout_s):
                return None
            data = self.connection.recv_bytes()
        return pickle.loads(data)  # noqa: S301 - our own child

    @contextlib.contextmanager
    def _died(self) -> Iterator[None]:
        """Turn the end of the connection into _DiedError, with what became of the child."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            code = _code_of(self.process)
            what = "closed its connection" if code is None else how_it_ended(code)
            raise _DiedError(what) from error


class _DiedError(Exception):
    """The child died before it answered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _WorkError(Exception):
    """The child's work raised `error`."""

    def __init__(self, error: Exception, trace: str, *, child_goes_on: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.trace = trace
        self.child_goes_on = child_goes_on


class _InChildError(Exception):
    """The cause of an error of the child's work: where in the child it was raised."""

    def __str__(self) -> str:
        return f"in a child process:\n{self.args[0]}"


def _code_of(process: subprocess.Popen[str]) -> int | None:
    """The exit code of a child that has closed its connection; None if it still runs."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_ENDS_IN_S)
    return None
