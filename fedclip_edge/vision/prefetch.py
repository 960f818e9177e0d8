"""The next piece of work is done while the caller uses the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(work, items)`, in a thread that is one item ahead; never more than two are held.

    What `work` raises is raised to the caller when that item's turn comes.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        waiting: Future[R] | None = None
        for item in items:
            following = thread.submit(work, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
