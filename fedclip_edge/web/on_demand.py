"""A page that is served by a child process, which runs only while somebody looks.

The program that owns the page opens its socket, and looks for a connection in its main loop. Then
it starts the child, which gets the socket, serves the page, and ends when nobody uses it
(`serving.py`). So a page that nobody has open costs its owner a socket.

Laws:
- The page cannot disturb its owner: it is another process, and its end is a line in the log.
- No connection is lost between two children: it waits in the socket.
- A child that fails is started again after _AGAIN_S at the earliest, and not at all if a person
  must change something first. Its owner then goes on without a page.
- The web server is not loaded in this process.
"""

from __future__ import annotations

import importlib.util
import select
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.page import PageSettings
from fedclip_edge.errors import ConfigError
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.web.listening import address_of, open_listener, tls_context
from fedclip_edge.web.token_file import read_token

_AGAIN_S = 5.0  # from the end of a child that failed to the next start
# Codes of errors.py with which a person must change something first; 2 is that of a wrong command.
_FOR_A_PERSON = (2, *range(10, 20))
_LIBRARIES = ("starlette", "uvicorn", "jinja2")


class OnDemand:
    """The page of one program; `now` is monotonic, in seconds.

    `command` serves the page; the number of the socket's file descriptor is added to it. `owner` is
    the program, as a person calls it.
    """

    def __init__(
        self, listener: socket.socket, command: Sequence[str], children: Children, owner: str
    ) -> None:
        self._listener: socket.socket | None = listener
        self._command = command
        self._children = children
        self._owner = owner
        self._child: subprocess.Popen[str] | None = None
        self._looks_at = 0.0
        self._poll = select.poll()  # unlike select.select, it takes any number
        self._poll.register(listener, select.POLLIN)

    def look(self, now: float) -> None:
        """Start the child if a browser waits; log its end. Call it many times a second."""
        if self._listener is None:
            return
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            self._children.end(self._child)
            self._child = None
            if code != 0:
                self._note_failure(code, now)
        elif now >= self._looks_at and self._poll.poll(0):
            handle = self._listener.fileno()
            words = [*self._command, "--socket", str(handle)]
            try:
                self._child = self._children.start(words, None, keeps=[handle])
            except OSError as error:  # too many processes, or too little memory
                log.event("page_ended", reason=error.strerror or str(error))
                self._looks_at = now + _AGAIN_S

    def close(self) -> None:
        """Close the socket: browsers are refused. A child that runs is not ended."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _note_failure(self, code: int, now: float) -> None:
        is_over = code in _FOR_A_PERSON
        hint = f"correct [page] as the line above says, then restart {self._owner}"
        log.event("page_ended", code=code, hint=hint if is_over else None)
        self._looks_at = now + _AGAIN_S
        if is_over:
            self.close()


def open_page(
    settings: PageSettings,
    file: Path,
    token_file: Path,
    children: Children,
    *,
    owner: str,
    as_json: bool,
) -> OnDemand | None:
    """Open the page of the program that has its settings from `file`; log its address.

    If the page cannot be served as it is set up, that is logged, and None is returned.
    """
    try:
        _check_libraries()
        tls_context(settings)
        read_token(token_file)
        listener = open_listener(settings)
    except ConfigError as error:
        hint = f"correct [page], then restart {owner}"
        log.event("page_not_served", reason=str(error), hint=hint)
        return None
    log.event("page_served", address=address_of(settings), token_file=token_file)
    command = own_command("page", str(file), *(["--json"] if as_json else []))
    return OnDemand(listener, command, children, owner)


def _check_libraries() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not installed; install with pip install 'fedclip-edge[web]'"
        )
