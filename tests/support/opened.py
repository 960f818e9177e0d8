"""What a test opens and leaves open as a killed process would: closed when the test has ended.

A file that nobody closes is a ResourceWarning from Python 3.13 on, blamed on whatever test runs when
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
    """`thing`, closed when the test has ended, what was opened last first; it may be before."""
    UNTIL_THE_TEST_ENDS.callback(thing.close)
    return thing
