"""The HTTP server of a page, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from fedclip_edge import log
from fedclip_edge.config.page import PageSettings
from fedclip_edge.web.listening import address_of, open_listener, tls_context
from fedclip_edge.web.live import Pieces

IDLE_S = 60.0  # without a request, after which a page that was started on demand ends
_LINGER_S = 1.0  # for the first request of a connection that was accepted just before that
_GOODBYE_S = 4  # then what is still open is cut
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REQUESTS = 100  # at the same time


def serve_page(
    settings: PageSettings,
    app: ASGIApp,
    pieces: Pieces,
    token_file: Path,
    given: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, in the main thread; `pieces` are those of the live updates.

    With `given`, a socket that another process has opened (`on_demand.py`), it also ends when
    nobody uses the page. Raises ConfigError if the address cannot be opened, or if the certificate
    or key cannot be used.
    """
    tls = tls_context(settings)
    used = _Use(app)
    config = uvicorn.Config(
        used,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http="h11",
        loop="asyncio",
        lifespan="on",
        timeout_graceful_shutdown=_GOODBYE_S,
        limit_concurrency=_REQUESTS,
    )
    config.load()
    config.ssl = tls  # uvicorn's own settings allow no choice of the oldest TLS version
    idle_s = None if given is None else IDLE_S
    with given or open_listener(settings) as listener:
        if given is None:
            log.event("page_served", address=address_of(settings), token_file=token_file)
        asyncio.run(_Server(config, pieces, used, idle_s).serve(sockets=[listener]))


class _Use:
    """The ASGI application around a page that notes when it was last used."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner
        self._requests = 0  # that are being answered, streams included
        self._last_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and count a request until its answer is complete."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self._requests -= 1
            self._last_at = time.monotonic()

    def idle_s(self, now: float) -> float:
        """Return the seconds since the last request ended; 0 while one is being answered."""
        return 0.0 if self._requests else now - self._last_at


class _Server(uvicorn.Server):
    """A server whose streams end when it is told to, and which then returns.

    With `idle_s` it ends by itself when the page was not used for so long. It first stops to accept
    connections: those that arrive then wait in the socket, which the parent process has too.
    """

    def __init__(
        self, config: uvicorn.Config, pieces: Pieces, use: _Use, idle_s: float | None
    ) -> None:
        super().__init__(config)
        self._pieces = pieces
        self._use = use
        self._idle_s = idle_s
        self._ends_at: float | None = None

    async def on_tick(self, counter: int) -> bool:
        """Do what is due; True to end."""
        return await super().on_tick(counter) or self._is_over(time.monotonic())

    def _is_over(self, now: float) -> bool:
        if self._idle_s is None:
            return False
        idle_s = self._use.idle_s(now)
        if self._ends_at is None:
            if idle_s >= self._idle_s:
                self._ends_at = now + _LINGER_S
                for server in self.servers:
                    server.close()
            return False
        return now >= self._ends_at and idle_s >= _LINGER_S

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let the streams end first: the server waits for them."""
        self._pieces.is_over = True
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals until the end of the block; uvicorn would raise them again then."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
