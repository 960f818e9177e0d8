"""The draw of a round's cohort: the devices with the smallest hashes take part.

The coordinator publishes the largest hash that takes part. So the cohort's size is exact, and no
list of devices is sent.
"""

from __future__ import annotations

import hashlib

# Thresholds with which every device takes part, or no device.
EVERYBODY, NOBODY = "f" * 64, "0" * 64


def cohort_hash(run: str, round: int, device: str) -> str:
    """The hash that ranks a device in a round's draw: SHA-256 of "RUN/ROUND/DEVICE", in hex.

    The coordinator and the device both compute it.
    """
    return hashlib.sha256(f"{run}/{round}/{device}".encode()).hexdigest()
