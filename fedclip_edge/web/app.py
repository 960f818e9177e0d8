"""The application around a page's own routes: login, logout, static files, errors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from fedclip_edge import __version__, log
from fedclip_edge.config.page import PageSettings
from fedclip_edge.errors import FedclipError
from fedclip_edge.reporting.figures import duration
from fedclip_edge.reporting.page import templates
from fedclip_edge.web.guard import Door, Guard, own_hosts
from fedclip_edge.web.sessions import LASTS_S, Sessions

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).resolve().parent
_FORM_BYTES = 65_536
_WRONG = "This is not the token of this page."
_WRONG_TOKEN_S = 1.0  # between two answers to a wrong token


class Pages:
    """Templates of a page; every one gets the title of the site and its navigation.

    The login asks for the name of the person; `name_for` is the place that has it later.
    """

    def __init__(
        self, folder: Path, title: str, links: Mapping[str, str], *, name_for: str
    ) -> None:
        self.environment: Environment = templates(folder, _HERE / "templates")
        self.environment.filters["age"] = lambda at: duration(max(0.0, time.time() - at))
        self.environment.globals.update(
            site=title, links=links, version=__version__, name_for=name_for
        )

    def html(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Render a template as the answer to a request."""
        values = {"session": request.scope.get("session"), "path": request.url.path, **values}
        page = self.environment.get_template(template).render(**values)
        # A name of a file or a device can hold any bytes.
        return HTMLResponse(page.encode(errors="replace"), status)

    def message(self, request: Request, heading: str, text: str, status: int = 200) -> Response:
        """Answer with a page that has one message."""
        return self.html(request, "message.html.j2", status, heading=heading, text=text)


def page_app(
    settings: PageSettings,
    token: str,
    pages: Pages,
    routes: Sequence[BaseRoute],
    background: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
) -> Starlette:
    """Make the application; `background` is entered while it runs."""
    host, port = settings.address
    is_secure = settings.certificate is not None
    door = Door(
        own_hosts(host, settings.names),
        "https" if is_secure else "http",
        # Cookies do not tell ports apart, and two pages can be open on one machine.
        f"fedclip-edge-{port}",
        Sessions(token),
    )
    desk = _Desk(door, pages, is_secure=is_secure)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with background():
            yield

    return Starlette(
        routes=[
            Route("/login", desk.show, methods=["GET"]),
            Route("/login", desk.log_in, methods=["POST"]),
            Route("/logout", desk.log_out, methods=["POST"]),
            Route("/static/page.css", desk.style),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
            *routes,
        ],
        middleware=[Middleware(Guard, door=door)],
        exception_handlers={HTTPException: desk.http_error, FedclipError: desk.own_error},
        lifespan=lifespan,
    )


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form, each with its last value; raises as `fields_of` does."""
    return dict(await fields_of(request))


async def fields_of(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a form in their order, some of which may have the same name.

    Raises HTTPException 413 if it is larger than _FORM_BYTES.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
    return parse_qsl(body.decode(errors="replace"), keep_blank_values=True)


class _Desk:
    """The login, and pages about errors."""

    def __init__(self, door: Door, pages: Pages, *, is_secure: bool) -> None:
        self._door = door
        self._pages = pages
        self._is_secure = is_secure
        self._one_at_a_time = asyncio.Lock()
        self._style = pages.environment.get_template("site.css.j2").render()

    async def show(self, request: Request) -> Response:
        return self._pages.html(request, "login.html.j2", refused="")

    async def log_in(self, request: Request) -> Response:
        form = await form_of(request)
        address = "" if request.client is None else request.client.host
        if not self._door.sessions.is_token(form.get("token", "").strip()):
            async with self._one_at_a_time:  # so there is at most one line in the log per second
                log.event("page_login_refused", address=address)
                await asyncio.sleep(_WRONG_TOKEN_S)
            return self._pages.html(request, "login.html.j2", 403, refused=_WRONG)
        value = self._door.sessions.begin(form.get("name", ""))
        session = self._door.sessions.find(value)
        log.event("page_login", address=address, name=(session and session.name) or None)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._door.cookie,
            value,
            max_age=LASTS_S,
            httponly=True,
            samesite="strict",
            secure=self._is_secure,
        )
        return answer

    async def log_out(self, request: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._door.cookie, httponly=True, samesite="strict")
        return answer

    async def style(self, request: Request) -> Response:
        return Response(self._style, media_type="text/css")

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headings = {404: "There is no such page", 413: "Too large"}
        heading = headings.get(error.status_code, "This is not possible")
        answer = self._pages.message(request, heading, error.detail, error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    async def own_error(self, request: Request, error: Exception) -> Response:
        return self._pages.message(request, "This is not possible", str(error), 409)
