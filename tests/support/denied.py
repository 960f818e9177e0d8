"""A user that can be denied something: root reads every file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_NOBODY = 65534


@contextmanager
def without_root() -> Iterator[None]:
    """Run the block as the user "nobody" if this process is root's; otherwise change nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _can_change() -> bool:
    try:
        with without_root():
            return True
    except OSError:
        return False


# For a folder of mode 0.
needs_denial = pytest.mark.skipif(not _can_change(), reason="root cannot become another user")
