"""The folder for files that this user's programs can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return fedclip-edge in $XDG_CACHE_HOME, or in ~/.cache; it need not exist.

    A relative $XDG_CACHE_HOME is ignored, as the XDG Base Directory Specification wants it. Without
    a home folder, the path is one that cannot be used.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not configured.is_absolute():
        home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises without a home
        configured = (home if home.is_absolute() else Path(os.devnull)) / ".cache"
    return configured / "fedclip-edge"
