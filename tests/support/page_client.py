"""A client of a page that another process serves, without a browser."""

from __future__ import annotations

import http.cookiejar
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


class PageClient:
    """A client that keeps its cookie and follows redirects."""

    def __init__(self, address: str) -> None:
        self._address = address
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(cookies)

    def log_in(self, token_file: Path) -> None:
        self.get("/login", b"token=" + token_file.read_bytes().strip())

    def get(self, path: str, form: bytes | None = None) -> str:
        """The page at this path, also if it is one about an error; with `form`, after a POST."""
        try:
            with self.open(path, form) as answer:
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def open(self, path: str, form: bytes | None = None) -> Any:
        """The open answer, for example a stream of live updates."""
        request = urllib.request.Request(  # noqa: S310 - an address of this machine
            f"{self._address}{path}", form, {"Origin": self._address}
        )
        return self._opener.open(request, timeout=60)
