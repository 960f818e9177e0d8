"""The worker processes of a simulation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import system

_FULL = """
import resource, signal
import numpy as np
from fedclip_edge.errors import DiskError
from fedclip_edge.records import ClassTexts
from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.workers import Workers

none = np.zeros(4000, np.int64)
texts = ClassTexts(("a", "b"), np.eye(2, 64, dtype=np.float32), 100.0, "e")
vectors = np.ones((4000, 64), np.float32)  # 1 MB
pool = Pool(texts, "e", vectors, none, none.astype(np.uint8), (), none)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Workers(pool, 1).__enter__()
except DiskError as error:
    print(error)
"""


@pytest.mark.one_python
def test_a_full_disk_is_named() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _FULL],
        capture_output=True,
        text=True,
        timeout=system.DEADLINE_S,
        check=False,
    )
    assert ended.stdout.startswith("the features cannot be written to /"), ended.stderr
    assert "TMPDIR" in ended.stdout
