"""Checks that every request to a page passes before anything else looks at it.

Laws:
- A request for a host name that is not the page's own gets nothing (DNS rebinding).
- A request that a page of another origin sends gets nothing (CSRF). One that can change something
  must name its origin, as every browser does.
- Without a session there is the login page and the static files, and nothing else.
- Every answer forbids scripts and frames of others, and is not stored by the browser.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedclip_edge.config.listen import is_loopback
from fedclip_edge.web.sessions import Sessions

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Of a report, which is one self-contained file without a script.
POLICY_OF_A_FILE = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer", browsers would send the origin "null" with a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OPEN_PATHS = ("/login", "/static/")


@dataclass(frozen=True)
class Door:
    """The values that a request has to match."""

    hosts: frozenset[str]  # lower case, without a port
    scheme: str
    cookie: str  # its name
    sessions: Sessions


def own_hosts(host: str, names: Collection[str]) -> frozenset[str]:
    """Return the host names of a page that listens at `host`; its port may be that of a tunnel."""
    loopback = _LOOPBACK if is_loopback(host) else ()
    return frozenset(name.lower() for name in (host, *names, *loopback))


class Guard:
    """The ASGI application around the others."""

    def __init__(self, inner: ASGIApp, door: Door) -> None:
        self._inner = inner
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that does not pass, and hand on the others."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inner(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "private, max-age=3600"  # they are named by version
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._inner)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that does not pass; note the session of one that does."""
        headers, door = Headers(scope=scope), self._door
        host = headers.get("host", "").lower()
        if _without_port(host) not in door.hosts:
            return PlainTextResponse(
                "This page is not served under this host name. Open it under its own address, or "
                "add the name to `names` under [page].\n",
                421,
            )
        origin = headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD")
        if (origin is None and changes) or (
            origin is not None and origin.lower() != f"{door.scheme}://{host}"
        ):
            return PlainTextResponse("A page of another origin may not send this request.\n", 403)
        session = door.sessions.find(_cookie(headers, door.cookie))
        scope["session"] = session
        if session is not None or scope["path"].startswith(_OPEN_PATHS):
            return None
        if changes or scope["path"] == "/events":
            return PlainTextResponse("The session is over. Log in again.\n", 401)
        return RedirectResponse("/login", 303)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
