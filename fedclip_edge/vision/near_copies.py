"""Counts of pictures that look almost like another one, such as frames of one event."""

from __future__ import annotations

import numpy as np

from fedclip_edge.records import F32

# Cosine of two pictures' features. Among true CLIP features of 336 pictures of 21 dishes and of 992
# pictures of 248 things, the nearest other picture reaches it for 0.0 % and 0.2 %; with the stand-in
# encoder on 300 photos and sketches, for 6 %. A picture that is shifted by a few pixels, brighter or
# stored again reaches it for 85 to 100 %.
NEAR = 0.97
_ROWS = 256


def near_copies(some: F32, others: F32) -> int:
    """Count the rows of `some` (N, D) with a cosine of NEAR or more to a row of `others` (M, D)."""
    if not len(some) or not len(others):
        return 0
    found = 0
    known = _unit(others)  # (M, D)
    for start in range(0, len(some), _ROWS):
        cosines = _unit(some[start : start + _ROWS]) @ known.T  # (rows, M)
        found += int((cosines.max(axis=1) >= NEAR).sum())
    return found


def _unit(vectors: F32) -> F32:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)
