"""Live updates of a page: its pieces, and the stream of those that changed (server-sent events).

A piece is an element of the page with an id, as HTML.

Laws:
- Each change of a piece has a number. A browser names the last number that it has, so a connection
  that was lost and comes back gets every change since, and only the newest of each piece.
- One message has at most MESSAGE_BYTES, and there is one per EVERY_S for each browser, so a fleet
  of any size costs a browser less than 100 kB/s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

EVERY_S = 1.0
MESSAGE_BYTES = 64_000
_QUIET_S = 10.0  # after which an empty line shows that the connection is alive
_LASTS_S = 3600.0  # then the browser connects again, and its session is checked
_STREAMS = 32  # at the same time


@dataclass(frozen=True)
class _Piece:
    html: str  # empty once the piece is gone
    number: int


@dataclass(eq=False)
class Pieces:
    """The newest HTML of every piece of a page, by the id of its element."""

    streams: int = 0
    is_over: bool = False  # every stream ends
    # Another process counts anew, so its numbers mean nothing to this one.
    _process: str = field(default_factory=lambda: secrets.token_hex(4))
    _number: int = 0
    _pieces: dict[str, _Piece] = field(default_factory=dict)  # by number, the oldest first

    def replace(self, pieces: Mapping[str, str]) -> None:
        """Take the pieces of the page as it is now; those that are missing are gone."""
        gone = {name: "" for name, its in self._pieces.items() if its.html and name not in pieces}
        for name, html in (*pieces.items(), *gone.items()):
            old = self._pieces.get(name)
            if old is None or old.html != html:
                self._number += 1
                self._pieces.pop(name, None)
                self._pieces[name] = _Piece(html, self._number)

    def __getitem__(self, name: str) -> str:
        return self._pieces[name].html

    def all(self) -> dict[str, str]:
        """Return every piece that is there, in the order of its last change."""
        return {name: its.html for name, its in self._pieces.items() if its.html}

    @property
    def version(self) -> str:
        """The number of the last change, and the process that counted it."""
        return f"{self._process}.{self._number}"

    def since(self, version: str) -> tuple[dict[str, str], str]:
        """Return pieces that changed after `version`, the oldest first, and the version then.

        They have at most MESSAGE_BYTES together, or are one piece. The rest comes with the next
        call.
        """
        process, _, text = version.partition(".")
        known = int(text) if process == self._process and text.isdecimal() else 0
        found: dict[str, str] = {}
        if known >= self._number:
            return found, self.version
        size = 0
        for name, piece in self._pieces.items():
            if piece.number <= known:
                continue
            size += len(json.dumps({name: piece.html}))
            if found and size > MESSAGE_BYTES:
                break
            found[name] = piece.html
            last = piece.number
        return found, f"{self._process}.{last}"


def stream(request: Request, pieces: Pieces) -> Response:
    """Answer with the stream of changes since the version that the browser has."""
    if pieces.streams >= _STREAMS:
        return PlainTextResponse("Too many pages are open. Close some of them.\n", 503)
    since = request.headers.get("last-event-id") or request.query_params.get("since", "")
    # The connection is of no use to other requests, also not after the browser has left the stream.
    return StreamingResponse(
        _messages(pieces, since),
        media_type="text/event-stream",
        headers={"Connection": "close"},
    )


@contextlib.asynccontextmanager
async def following(
    pieces: Pieces,
    refresh: Callable[[], Awaitable[None]],
    every_s: Callable[[], float] = lambda: EVERY_S,
) -> AsyncIterator[None]:
    """Call `refresh` every `every_s()` seconds while a browser listens, until the block ends."""

    async def follow() -> None:
        while True:
            await asyncio.sleep(every_s())
            if pieces.streams:
                await refresh()

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _messages(pieces: Pieces, since: str) -> AsyncIterator[str]:
    pieces.streams += 1
    began = said = time.monotonic()
    try:
        yield "retry: 1000\n\n"
        while not pieces.is_over and time.monotonic() - began < _LASTS_S:
            changed, since = pieces.since(since)
            if changed:
                said = time.monotonic()
                yield f"id: {since}\ndata: {json.dumps(changed)}\n\n"
            elif time.monotonic() - said > _QUIET_S:
                said = time.monotonic()
                yield ": the connection is alive\n\n"
            await asyncio.sleep(EVERY_S)
    finally:
        pieces.streams -= 1
