"""The limit of the device's feature cache: features that are not needed are deleted.

Laws:
- Above the limit, the features whose last use is longest ago go first: of deleted pictures, of an
  earlier encoder, of pictures that were only answered.
- The features that the device trains and evaluates on stay, also above the limit: without them it
  would encode the same pictures again and again. The log says so once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.limits import Limits
from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.monitoring.process_figures import database_bytes
from fedclip_edge.vision.cache import FeatureCache

LOOK_S = 300.0
_DAY_S = 24 * 3600


@dataclass(eq=False)
class CacheQuota:
    """The quota of one cache. `needed` gives the hashes of the pictures that the device uses."""

    cache: Path
    feature_key: str
    limits: Callable[[], Limits]
    needed: Callable[[], Iterable[str]]
    _looked_at: float = -math.inf
    _has_said: bool = False

    def look(self, now: float) -> None:
        """Delete features if the cache is above its limit and a look is due."""
        limit_mb = self.limits().max_cache_mb
        if limit_mb is None or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        if database_bytes(self.cache) > limit_mb * 10**6:
            self._trim(limit_mb * 10**6)

    def _trim(self, limit_bytes: int) -> None:
        today = int(time.time() // _DAY_S)
        try:
            with FeatureCache(self.cache) as cache:
                if cache.held_bytes() <= limit_bytes:
                    return  # the file is larger only by what is free in it
                cache.note_use(tuple(self.needed()), self.feature_key, today)
                deleted = cache.trim(limit_bytes, unused_since=today)
                held = cache.held_bytes()
        except (DataError, DiskError) as error:
            log.event("cache_not_trimmed", file=self.cache, reason=str(error))
            return
        if deleted:
            log.event("cache_trimmed", deleted=deleted, mb=round(held / 1e6, 1))
        if held > limit_bytes and not self._has_said:
            log.event("cache_above_limit", mb=round(held / 1e6, 1), max_cache_mb=limit_bytes / 1e6)
        self._has_said = held > limit_bytes
