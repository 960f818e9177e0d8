"""Small copies of the device's pictures: /pictures/ID.jpg?size=s or l.

Laws:
- A picture is found by its id among those that the agent has read, and by nothing else: no address
  contains a path.
- What is sent was made from bytes with the hash of the id. A file that has changed since, or is
  gone, gives a drawing that says so.
- At most _AT_ONCE pictures are decoded at the same time, and the memory of made ones is limited.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.agent.page.picture_map import Known
from fedclip_edge.errors import DataError
from fedclip_edge.vision.picture_bytes import read_picture
from fedclip_edge.vision.picture_index import FileState, state_of
from fedclip_edge.vision.pictures import picture_hash
from fedclip_edge.vision.thumbnail import thumbnail

SIZES_PX = {"s": 256, "l": 1024}  # the longer side
MEMORY_BYTES = 16_000_000
_AT_ONCE = 2
_KEPT_S = 3600  # by the browser

_DRAWING = """\
<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256" viewBox="0 0 256 256">
<rect width="256" height="256" fill="#777"/>
<path d="M88 96h80v64H88z M88 96l80 64" fill="none" stroke="#fff" stroke-width="4"/>
<text x="128" y="200" fill="#fff" font-family="sans-serif" font-size="20" text-anchor="middle">\
{text}</text>
</svg>
"""


@dataclass(frozen=True)
class _Made:
    content: bytes
    state: FileState  # of the file that it was made from


@dataclass(eq=False)
class Memory:
    """The newest small copies, at most `most_bytes` together; threads may use it."""

    most_bytes: int = MEMORY_BYTES
    _made: OrderedDict[tuple[str, str], _Made] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, picture: str, size: str, state: FileState) -> bytes | None:
        """Return a copy that was made from a file in this state."""
        with self._lock:
            made = self._made.get((picture, size))
            if made is None or made.state != state:
                return None
            self._made.move_to_end((picture, size))
            return made.content

    def keep(self, picture: str, size: str, state: FileState, content: bytes) -> None:
        """Keep a copy; forget those that were not used for the longest time."""
        with self._lock:
            before = self._made.pop((picture, size), None)
            self._bytes += len(content) - (0 if before is None else len(before.content))
            self._made[picture, size] = _Made(content, state)
            while self._bytes > self.most_bytes:
                _, gone = self._made.popitem(last=False)
                self._bytes -= len(gone.content)


@dataclass(frozen=True, eq=False)
class ThumbnailRoutes:
    """The route of the small copies."""

    find: Callable[[str], Known | None]  # by id
    memory: Memory = field(default_factory=Memory)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def routes(self) -> list[BaseRoute]:
        """List the route; it comes before /pictures/ID, which would match as well."""
        return [Route("/pictures/{picture}.jpg", self.picture)]

    async def picture(self, request: Request) -> Response:
        """Send a small copy of a picture."""
        name = request.path_params["picture"]
        size = request.query_params.get("size", "s")
        known = await asyncio.to_thread(self.find, name)
        if known is None or size not in SIZES_PX:
            raise HTTPException(404, "The box has no such picture.")
        async with self._turns:
            try:
                content = await asyncio.to_thread(self._copy, known, size)
            except (OSError, _ChangedError):
                return _drawn("no longer there")
            except DataError:
                return _drawn("cannot be shown")
        mark = f'"{name}-{size}"'
        headers = {"ETag": mark, "Cache-Control": f"private, max-age={_KEPT_S}"}
        if request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="image/jpeg", headers=headers)

    def _copy(self, known: Known, size: str) -> bytes:
        state = state_of(known.path)
        found = self.memory.find(known.hash, size, state)
        if found is not None:
            return found
        data = read_picture(known.path)
        if picture_hash(data) != known.hash:
            raise _ChangedError
        content = thumbnail(data, SIZES_PX[size])
        self.memory.keep(known.hash, size, state, content)
        return content


class _ChangedError(Exception):
    """The file has other bytes than the picture that was asked for."""


def _drawn(text: str) -> Response:
    # With the status of a success, since a browser reports any other one to the console.
    return Response(_DRAWING.format(text=text), media_type="image/svg+xml")
