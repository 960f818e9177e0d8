"""The child of a worker (`worker.py`): it does one request of its parent after the other.

    python -m fedclip_edge.processes.worker_child DESCRIPTOR LIMITS

It ends when its parent closes the connection. What it sends are tuples of a kind and the content:
`up` when it listens, `ready` when its object is made, then for each request any number of `event`
and `progress`, and at last one `answer`, `error` or `no_memory`.

Law: parent and child are one program. Nothing that came from the network is unpickled as such.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from fedclip_edge import log
from fedclip_edge.errors import reason_of
from fedclip_edge.processes.child_limits import ChildLimits

_PLAIN = (str, int, float, bool, type(None))
# How libraries say that an allocation failed, in errors that are not a MemoryError.
_NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "Failed to allocate memory",
    "failed to map segment",
)


class _Line:
    """The connection to the parent, for all threads of this process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: str, *content: Any) -> None:
        data = pickle.dumps((kind, *content), protocol=5)
        with self._lock:
            self._connection.send_bytes(data)

    def send_event(self, name: str, fields: Mapping[str, Any]) -> None:
        shown = {k: v if isinstance(v, _PLAIN) else str(v) for k, v in fields.items()}
        self.send("event", name, shown)

    def send_progress(self, *figures: Any) -> None:
        self.send("progress", *figures)

    def receive(self) -> Any:
        return pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own parent


def main(descriptor: int, limits: ChildLimits) -> None:
    """Serve the parent at the other end of the socket `descriptor` until it closes it."""
    limits.apply()
    line = _Line(Connection(descriptor))
    log.redirect(line.send_event)
    # EOFError, ConnectionError: the parent has closed the connection, or has died.
    with contextlib.suppress(EOFError, ConnectionError):
        line.send("up")
        target, arguments = line.receive()
        made: list[Any] = []
        if not _tried(line, "ready", lambda: made.append(_found(target)(*arguments))):
            return
        while True:
            method, arguments, has_progress = line.receive()
            work = getattr(made[0], method)
            extra = {"progress": line.send_progress} if has_progress else {}
            if not _tried(line, "answer", lambda: work(*arguments, **extra)):  # noqa: B023
                return


def _found(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _tried(line: _Line, kind: str, work: Callable[[], Any]) -> bool:
    """Send what `work` returns as `kind`, or its error; False if this process should end."""
    try:
        value = work()
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            line.send("no_memory", reason_of(error))
            return False
        line.send("error", _sendable(error), traceback.format_exc())
        return kind == "answer"
    line.send(kind, value)
    return True


def _sendable(error: Exception) -> Exception:
    """`error` if the parent can unpickle it without loading a library, else its text."""
    home = type(error).__module__.partition(".")[0]
    if home in ("builtins", "fedclip_edge"):
        with contextlib.suppress(Exception):
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
            if type(copy) is type(error) and str(copy) == str(error):
                return error
    return RuntimeError(f"{type(error).__qualname__}: {reason_of(error)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), ChildLimits.of_argument(sys.argv[2]))
