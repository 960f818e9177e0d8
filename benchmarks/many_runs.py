"""Memory and journal of a coordinator that serves many runs, one after the other.

Two devices over the in-memory transport compute a head, in runs of one round and a vote. The
program prints the memory of the process after 10 runs and after the last one, and the journal's
growth per run. It exits with code 1 if the memory has grown by more than MEMORY_BYTES a run.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from coordinated_fleet import RULES, device  # noqa: E402
from in_memory import Fleet  # noqa: E402
from served import Served  # noqa: E402

from fedclip_edge import log  # noqa: E402
from fedclip_edge.records import Plan  # noqa: E402

FIRST = 10  # runs before the first measurement: libraries are loaded, and caches are full
# About 11 kB a run was measured, of which the program's own objects are 3 kB. SQLite's cache of the
# journal, up to 2 MB, may be the rest.
MEMORY_BYTES = 20_000


def resident_bytes() -> int:
    """Memory of this process, from /proc."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    log.mute()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.runs)
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"{figures['runs']} runs in {figures['seconds']:.0f} s: "
            f"{figures['memory_first_mb']:.1f} MB after {FIRST} runs, "
            f"{figures['memory_last_mb']:.1f} MB after the last one; "
            f"the journal has {figures['journal_bytes_per_run']:.0f} bytes a run"
        )
    return int(figures["memory_bytes_per_run"] > MEMORY_BYTES)


def measure(folder: Path, runs: int) -> dict[str, float]:
    """Serve so many runs; memory in MB, sizes in bytes."""
    plan = Plan("ridge", rounds=1, vote="on")
    fleet = Fleet(folder, plan, replace(RULES, devices=2))
    for number in range(2):
        device(fleet, number)
    served, began = Served(fleet), time.monotonic()
    memory: list[int] = []
    sizes: list[int] = []
    for count in range(1, runs + 1):
        served.finish()
        if count in (FIRST, runs):
            fleet.journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # noqa: SLF001
            memory.append(resident_bytes())
            sizes.append(fleet.journal.path.stat().st_size)
        if count < runs:
            served.done("start")
    files = sum(path.stat().st_size for path in (folder / "models").iterdir())
    seconds = time.monotonic() - began
    fleet.close()
    return {
        "runs": runs,
        "seconds": seconds,
        "memory_first_mb": memory[0] / 1e6,
        "memory_last_mb": memory[-1] / 1e6,
        "memory_bytes_per_run": (memory[-1] - memory[0]) / (runs - FIRST),
        "journal_bytes_per_run": (sizes[-1] - sizes[0]) / (runs - FIRST),
        "model_file_bytes": files / runs,
    }


if __name__ == "__main__":
    sys.exit(main())
