"""Sessions of a page, as signed values of a cookie; nothing is stored.

Laws:
- Only a process that knows the token can make a value. A new token ends all sessions.
- A value ends LASTS_S seconds after the login, whatever the browser does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass

LASTS_S = 7 * 24 * 3600
NAME_MAX = 40  # characters of a name


@dataclass(frozen=True)
class Session:
    """One login; the name is what the person wrote, and is not proven."""

    name: str


@dataclass(frozen=True)
class Sessions:
    """The sessions of one page."""

    token: str

    def is_token(self, given: str) -> bool:
        """Compare with the token, in a time that does not depend on the difference."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def begin(self, name: str) -> str:
        """Return the value of the cookie for a person of this name."""
        shown = "".join(c for c in name if c.isprintable()).strip()[:NAME_MAX]
        text = base64.urlsafe_b64encode(shown.encode(errors="replace")).decode()
        body = f"{int(time.time()) + LASTS_S}.{text}"
        return f"{body}.{self._signature(body)}"

    def find(self, value: str) -> Session | None:
        """Return the session of a cookie; None if it is over, or was not made here."""
        body, _, signature = value.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return None
        ends, _, text = body.partition(".")
        if int(ends) < time.time():
            return None
        return Session(base64.urlsafe_b64decode(text).decode())

    def _signature(self, body: str) -> str:
        return hmac.new(self.token.encode(), body.encode(), hashlib.sha256).hexdigest()
