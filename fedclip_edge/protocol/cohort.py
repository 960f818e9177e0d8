"""The draw of a round's cohort: the devices with the smallest hashes take part.

The coordinator publishes the largest hash that takes part, so a cohort's size is exact and no list
of devices travels.
"""

from __future__ import annotations

import hashlib

# Thresholds that let every device take part, and none.
EVERYBODY, NOBODY = "f" * 64, "0" * 64


def cohort_hash(run: str, round: int, device: str) -> str:
    """The hash that draws a device's place in the queue for a round; anybody can compute it."""
    return hashlib.sha256(f"{run}/{round}/{device}".encode()).hexdigest()
