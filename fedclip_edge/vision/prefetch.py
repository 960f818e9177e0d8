"""A `map` that computes in threads, some items ahead of its caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    work: Callable[[T], R], items: Iterable[T], *, threads: int = 1, ahead: int = 1
) -> Generator[R, None, None]:
    """Yield `map(work, items)` in its order, computed by `threads` threads.

    Beside the result that the caller has, at most `ahead` others are computed or kept. `items` is
    iterated in the caller's thread. An exception of `work` is raised in place of its result.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller may want no more of them
            for future in waiting:
                future.cancel()
