"""Run the laws of a run against an adversary, for as many seeds as time allows.

Every seed is a federation of its own (tests/support/made_up_network.py) with the real coordinator,
sessions and SQLite journal, and a simulated network and clock. The exit code is 1 at the first seed
that breaks a law; the command that replays it step by step is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from made_up_network import Outcome, simulate

_CHUNK = 50


def outcomes(first: int, count: int, processes: int) -> Iterator[Outcome]:
    """Results in the order of the seeds, so that the first broken seed is the smallest."""
    with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as workers:
        seeds = iter(range(first, first + count))
        # Seeds are submitted in batches: 100,000 at once would all be queued before the first
        # result.
        while batch := list(itertools.islice(seeds, processes * _CHUNK * 4)):
            yield from workers.map(simulate, batch, chunksize=_CHUNK)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="print every event; uses one core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.trace:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        found: Iterator[Outcome] = (simulate(seed, print) for seed in seeds)
    else:
        found = outcomes(options.first_seed, options.seeds, options.processes)
    done = events = kills = rounds = 0
    slowest, broken = 0.0, None
    for outcome in found:
        done += 1
        events, kills = events + outcome.events, kills + outcome.kills
        rounds, slowest = rounds + outcome.rounds, max(slowest, outcome.settled_s)
        if outcome.broken:
            broken = outcome
            break
        if not options.json and done % 5000 == 0:
            print(f"{done:8} seeds, {time.perf_counter() - began:.0f} s", flush=True)
    figures = {
        "first_seed": options.first_seed,
        "seeds": done,
        "rounds": rounds,
        "events": events,
        "kills": kills,
        "longest_settled_s": round(slowest, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "broken": None if broken is None else {"seed": broken.seed, "law": broken.broken},
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"{done} seeds, {rounds} rounds, {events} events, {kills} kills; the slowest run ended "
            f"{slowest:.0f} s of simulated time after the last fault; {figures['seconds']} s"
        )
    if broken is not None:
        again = f"python benchmarks/adversary.py --seeds 1 --first-seed {broken.seed} --trace"
        print(f"seed {broken.seed} breaks a law: {broken.broken}\n{again}", file=sys.stderr)
    sys.stdout.flush()
    return 0 if broken is None else 1


if __name__ == "__main__":
    sys.exit(main())
