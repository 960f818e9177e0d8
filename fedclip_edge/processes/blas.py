"""One thread for numpy's matrix products, where several processes share a machine.

The threads of OpenBLAS, which numpy's wheels contain, wait for each other in busy loops. Agents or
workers on the same cores then slow each other down several times.
"""

from __future__ import annotations

import os

_THREADS = "OPENBLAS_NUM_THREADS"


def limit_blas_threads() -> None:
    """Make OpenBLAS use one thread in this process, and in processes that it starts later.

    Call it before numpy is imported; in a process that has imported numpy already, it has an effect
    only on the processes that are started later. A number that the user has set is kept.
    """
    os.environ.setdefault(_THREADS, "1")
