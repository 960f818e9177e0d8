"""The feature cache of a device, which is made anew by itself if it cannot be used.

Law: the file holds nothing that cannot be computed again. So one that is damaged, or of another
version of this program, never ends the agent and needs no person: it is deleted, the log gives the
reason, and the features are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedclip_edge import log
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.cache_file import UnusableCacheError, delete_cache_file

T = TypeVar("T")


def with_cache(path: Path, work: Callable[[FeatureCache], T]) -> T:
    """Return what `work` returns, which is called with the open cache.

    If the cache cannot be used, `work` is called once more, with a new one. Only the agent and its
    children call this: no other program may delete their file. Passes on the errors of `work`.
    Raises DataError if the file is another program's database, DiskError if it cannot be used now.
    """
    try:
        with FeatureCache(path) as cache:
            return work(cache)
    except UnusableCacheError as error:
        log.event("feature_cache_rebuilt", file=path, reason=_reason(error))
    delete_cache_file(path)
    with FeatureCache(path) as cache:
        return work(cache)


def _reason(error: UnusableCacheError) -> str:
    """The cause without the advice, which the caller has followed."""
    return str(error.__cause__ or error).partition(";")[0]
