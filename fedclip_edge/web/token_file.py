"""The file with the token that opens a page."""

from __future__ import annotations

import contextlib
import secrets
import stat
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.storage import atomic

_BYTES = 24  # of randomness
_LEAST_CHARS = 16  # of a token that a person wrote
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_token(path: Path) -> str:
    """Return the token in the file; a file that does not exist is made, with mode 0600.

    Raises ConfigError if other users have access to the file, if it cannot be read or made, or if
    its token is short.
    """
    try:
        with contextlib.suppress(FileExistsError):
            token = secrets.token_urlsafe(_BYTES)
            atomic.write_new_files(path.parent, {path.name: f"{token}\n".encode()})
        mode, token = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"the token file {path} cannot be used ({reason}); let this user read it, or delete it "
            "for a new token"
        ) from error
    if mode & _OTHERS:
        raise ConfigError(
            f"other users have access to the token file {path}; run `chmod 600 {path}`, or delete "
            "it for a new token"
        )
    if len(token) < _LEAST_CHARS:
        raise ConfigError(
            f"the token in {path} has fewer than {_LEAST_CHARS} characters; delete the file for a "
            "new token"
        )
    return token
