"""The HTTP server of a page: its socket, its TLS settings, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from fedclip_edge import log
from fedclip_edge.config.page import PageSettings
from fedclip_edge.errors import ConfigError
from fedclip_edge.web.live import Pieces

_GOODBYE_S = 4  # then what is still open is cut
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REQUESTS = 100  # at the same time


def serve_page(settings: PageSettings, app: ASGIApp, pieces: Pieces, token_file: Path) -> None:
    """Serve until SIGTERM or Ctrl-C, in the main thread; `pieces` are those of the live updates.

    Raises ConfigError if the address cannot be opened, or if the certificate or key cannot be used.
    """
    tls = _tls_context(settings)

    config = uvicorn.Config(
        app,
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
    with _listening(settings) as listener:
        scheme = "http" if tls is None else "https"
        host, port = settings.address
        named = next(iter(settings.names), f"[{host}]" if ":" in host else host)
        log.event("page_served", address=f"{scheme}://{named}:{port}", token_file=token_file)
        asyncio.run(_Server(config, pieces).serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """A server whose streams end when it is told to, and which then returns."""

    def __init__(self, config: uvicorn.Config, pieces: Pieces) -> None:
        super().__init__(config)
        self._pieces = pieces

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


def _listening(settings: PageSettings) -> socket.socket:
    host, port = settings.address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"[page] listen: {settings.listen} cannot be opened ({error.strerror or error}); choose "
            "another port, or an address of this machine"
        ) from error


def _tls_context(settings: PageSettings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(settings.certificate, settings.key)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or error
        raise ConfigError(
            f"{settings.certificate} and {settings.key} under [page] cannot be used as certificate "
            f"and key ({reason}); name a PEM certificate chain and its private key, both readable "
            "by this user"
        ) from error
    return made
