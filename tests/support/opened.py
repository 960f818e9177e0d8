"""Objects that a test leaves open, as a killed process would; they are closed after the test.

From Python 3.13 on, a file that is not closed gives a ResourceWarning in whatever test runs when
the garbage is collected.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol, TypeVar


class _Closes(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closes)
UNTIL_THE_TEST_ENDS = ExitStack()  # conftest.py closes it


def opened(thing: T) -> T:
    """Return `thing` and close it after the test, in reverse order; it may be closed earlier."""
    UNTIL_THE_TEST_ENDS.callback(thing.close)
    return thing
