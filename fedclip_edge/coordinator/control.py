"""The control socket of `serve`: a Unix socket through which the operator's commands arrive.

One JSON object per line goes in, `{"command": "start", "arguments": {...}}`, and one comes out:
`{"ok": true, "result": {...}}` or `{"ok": false, "error": "sentence"}`. A program that passes on
what somebody else asked for adds `"via": "page (anna)"`, which the journal records too.

Laws:
- Only the user that runs `serve`, and root, can connect: the socket has mode 0600 from the moment
  at which it exists.
- Commands run in the main thread, between two events of the link, so each one sees a consistent
  state. The threads here only move lines.
- The socket never ends the process: a client that sends garbage, stops reading or goes away only
  loses its own connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import queue
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ConfigError, LinkError

MAX_LINE_BYTES = 2**20
_ANSWERS_S = 60.0  # closing a round of many large updates takes seconds
_SLOW_S = {"forget": 900.0}  # it adds up the contributions of all other devices again
_PATH_BYTES = 107  # the longest path of a Unix socket on Linux (unix(7))
_MODE = 0o600
_VIA_MAX = 100  # characters

Reply = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Request:
    """One command of an operator."""

    command: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    user: str = ""  # Unix user of the process that sent it, and what it says it sent it for


class NotServingError(LinkError):
    """No coordinator listens on the control socket."""


class ControlSocket:
    """The listening socket; `next_request` hands out what arrived."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self.path = path
        self._listener = listener
        self._inode = path.stat().st_ino
        self._requests: queue.SimpleQueue[tuple[Request, Reply]] = queue.SimpleQueue()

    def next_request(self) -> tuple[Request, Reply] | None:
        """The next request and the function that answers it, or None; never blocks."""
        try:
            return self._requests.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop listening, and remove the socket's file unless another process has replaced it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in `accept`
        self._listener.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def accept(self) -> None:
        """Serve every connection in a thread of its own, until the socket is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(
                target=self._read, args=(client,), name="control-client", daemon=True
            ).start()

    def _read(self, client: socket.socket) -> None:
        user = _user_of(client)
        with client, contextlib.suppress(OSError), client.makefile("rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                client.sendall(_line(self._answer(line, user)))

    def _answer(self, line: bytes, user: str) -> Mapping[str, Any]:
        try:
            request = _decoded(line, user)
        except ValueError as error:
            return failure(str(error))
        answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._requests.put((request, answers.put))
        return answers.get()


def success(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"ok": True, "result": dict(result)}


def failure(sentence: str) -> dict[str, Any]:
    return {"ok": False, "error": sentence}


def socket_path(journal: Path) -> Path:
    """The control socket of the coordinator that serves from this journal."""
    return journal.with_suffix(".sock")


def listen(path: Path) -> ControlSocket:
    """Open the control socket in place of one that another process left there.

    Raises ConfigError if it cannot be made in that folder.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the file gets the mode of the unbound socket, so nobody else can ever connect.
        os.fchmod(listener.fileno(), _MODE)
        aside = path.with_name(f".{secrets.token_hex(4)}.sock")
        with _address(aside) as address:
            listener.bind(address)
        listener.listen()
        aside.rename(path)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the control socket {path} cannot be made ({error.strerror or error}); set 'journal' "
            "to a file in a folder of this machine that this user can write to"
        ) from error
    control = ControlSocket(path, listener)
    threading.Thread(target=control.accept, name="control", daemon=True).start()
    return control


def ask(path: Path, command: str, via: str = "", /, **arguments: Any) -> dict[str, Any]:
    """Send one command to the coordinator behind the socket `path`; returns its result.

    `via` names whoever asked this program for the command, for the journal.

    Raises NotServingError if no coordinator serves there, LinkError if it does not answer;
    ConfigError, with the coordinator's own sentence, if it refuses the command, or if this user may
    not connect.
    """
    line = _line({"command": command, "arguments": arguments, **({"via": via} if via else {})})
    answers_s = _SLOW_S.get(command, _ANSWERS_S)
    try:
        with (
            _address(path) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link,
        ):
            link.settimeout(answers_s)
            link.connect(address)
            link.sendall(line)
            with link.makefile("rb") as lines:
                answer = lines.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotServingError(
            f"no coordinator serves behind {path}; start `fedclip-edge serve` with the same "
            "fleet.toml, then try again"
        ) from None
    except PermissionError:
        raise ConfigError(
            f"this user may not connect to {path}; run the command as the user that runs `serve`, "
            "or with sudo"
        ) from None
    except TimeoutError:
        raise LinkError(
            f"the coordinator behind {path} did not answer within {answers_s:.0f} s; look at its "
            "log, then try again"
        ) from None
    except OSError as error:
        raise LinkError(f"{path}: {error.strerror or error}; try again") from error
    try:
        answered = json.loads(answer)
    except ValueError:
        raise LinkError(
            f"the coordinator behind {path} ended before it answered; look at its log"
        ) from None
    if not answered["ok"]:
        raise ConfigError(answered["error"])
    result: dict[str, Any] = answered["result"]
    return result


def is_served(path: Path) -> bool:
    """Return whether a coordinator listens behind the socket `path`, also to other users."""
    try:
        with (
            _address(path) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link,
        ):
            link.connect(address)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """An address for the socket `path`, also if the path is longer than a socket's may be."""
    if len(os.fsencode(path)) <= _PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _user_of(client: socket.socket) -> str:
    """The Unix user of the process at the other end (SO_PEERCRED, unix(7))."""
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # a user of another system, such as a container


def _decoded(line: bytes, user: str) -> Request:
    """Decode a line; raises ValueError with a sentence for the client."""
    if not line.endswith(b"\n"):
        raise ValueError(f"a line is at most {MAX_LINE_BYTES} bytes long and ends with a line feed")
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("command"), str):
        raise ValueError('expected an object {"command": "...", "arguments": {...}}')  # noqa: TRY004
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("expected an object as 'arguments'")  # noqa: TRY004
    via = found.get("via", "")
    if not isinstance(via, str) or len(via) > _VIA_MAX or not via.isprintable():
        raise ValueError(f"expected at most {_VIA_MAX} printable characters as 'via'")
    return Request(found["command"], arguments, f"{user} via {via}" if via else user)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
