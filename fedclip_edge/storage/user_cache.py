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
        configured = Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111 - never raises
    return configured / "fedclip-edge"
