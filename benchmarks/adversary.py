"""Run the laws of a run against an adversary, for as many seeds as time allows.

Every seed is a federation of its own (tests/support/made_up_network.py) with the real coordinator,
sessions and SQLite journal, and a simulated network and clock. The exit code is 1 if a seed breaks
a law; the command that replays it step by step is printed. With `--progress FILE`, each finished
batch of seeds is a line of FILE, and the same command continues where it was interrupted. The
file belongs to one version of the code.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from made_up_network import simulate

ROOT = Path(__file__).parents[1]
_BATCH = 50
_TOLD_S = 60.0  # how often the number of seeds is printed


@dataclass
class Found:
    """The results of some seeds, added up."""

    seeds: list[int] = field(default_factory=list)
    rounds: int = 0
    events: int = 0
    kills: int = 0
    with_bad_members: int = 0
    longest_settled_s: float = 0.0
    largest_share_of_a_bound: float = 0.0
    broken: dict[int, str] = field(default_factory=dict)  # by seed

    def add(self, other: Found) -> None:
        self.seeds += other.seeds
        self.rounds += other.rounds
        self.events += other.events
        self.kills += other.kills
        self.with_bad_members += other.with_bad_members
        self.longest_settled_s = max(self.longest_settled_s, other.longest_settled_s)
        share = max(self.largest_share_of_a_bound, other.largest_share_of_a_bound)
        self.largest_share_of_a_bound = share
        self.broken |= other.broken


def run_batch(seeds: list[int], *, trace: bool = False) -> Found:
    """Run these seeds in this process."""
    found = Found(list(seeds))
    for seed in seeds:
        outcome = simulate(seed, print if trace else None)
        found.rounds += outcome.rounds
        found.events += outcome.events
        found.kills += outcome.kills
        found.with_bad_members += outcome.bad > 0
        found.longest_settled_s = max(found.longest_settled_s, round(outcome.settled_s, 1))
        share = max(found.largest_share_of_a_bound, round(outcome.slowest, 3))
        found.largest_share_of_a_bound = share
        if outcome.broken:
            found.broken[seed] = outcome.broken
    return found


@functools.cache
def code_version() -> str:
    """A hash of the code that decides the outcome of a seed, as it was at the first call."""
    files = [*(ROOT / "fedclip_edge").rglob("*.py"), *(ROOT / "tests" / "support").rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def read_progress(text: str, path: Path | None) -> Found:
    """The results in a progress file; raises SystemExit if they are those of other code."""
    found, version = Found(), code_version()
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # not written completely
        if entry.pop("code") != version:
            raise SystemExit(f"{path} has results of other code; delete it or name another file")
        entry["broken"] = {int(seed): law for seed, law in entry["broken"].items()}
        found.add(Found(**entry))
    return found


def write_progress(file: TextIO, found: Found) -> None:
    """Add one line with these results."""
    file.write(json.dumps({"code": code_version(), **asdict(found)}) + "\n")
    file.flush()


def batches(first: int, count: int, done: set[int]) -> list[list[int]]:
    """The seeds that are not done yet, in batches, in order."""
    left = [seed for seed in range(first, first + count) if seed not in done]
    return [left[at : at + _BATCH] for at in range(0, len(left), _BATCH)]


def results(todo: list[list[int]], jobs: int) -> Generator[Found]:
    """The results of the batches in order, so that the first broken seed is the smallest."""
    workers = ProcessPoolExecutor(jobs, mp_context=get_context("forkserver"))
    try:
        yield from workers.map(run_batch, todo)
    finally:
        workers.shutdown(cancel_futures=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--progress", type=Path, help="file of results, to continue from")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a broken law")
    parser.add_argument("--trace", action="store_true", help="print every event; uses one core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = told_at = time.perf_counter()
    code_version()
    text = ""
    if options.progress and options.progress.exists():
        text = options.progress.read_text(encoding="utf-8")
    total = read_progress(text, options.progress)
    todo = batches(options.first_seed, options.seeds, set(total.seeds))
    if options.trace:
        found = (run_batch([seed], trace=True) for batch in todo for seed in batch)
    else:
        found = results(todo, options.jobs)
    with Path(options.progress or os.devnull).open("a", encoding="utf-8") as file:
        if text and not text.endswith("\n"):
            file.write("\n")  # after a line that was being written when the benchmark was killed
        while not (total.broken and not options.keep_going):
            one = next(found, None)
            if one is None:
                break
            total.add(one)
            write_progress(file, one)
            if not options.json and time.perf_counter() - told_at > _TOLD_S:
                told_at = time.perf_counter()
                print(f"{len(total.seeds):8} seeds, {told_at - began:.0f} s", flush=True)
    found.close()
    return report(total, options.first_seed, time.perf_counter() - began, as_json=options.json)


def report(total: Found, first_seed: int, seconds: float, *, as_json: bool) -> int:
    """Print the figures and the broken laws; returns the exit code."""
    broken = sorted(total.broken.items())
    figures = {
        **asdict(total),
        "first_seed": first_seed,
        "seeds": len(total.seeds),
        "seconds": round(seconds, 1),
        "broken": {"seed": broken[0][0], "law": broken[0][1]} if broken else None,
    }
    if as_json:
        print(json.dumps(figures))
    else:
        print(
            f"{len(total.seeds)} seeds, {total.with_bad_members} of them with bad members, "
            f"{total.rounds} rounds, {total.events} events, {total.kills} kills; the slowest run "
            f"ended {total.longest_settled_s:.0f} s of simulated time after the last fault, and a "
            f"round took {total.largest_share_of_a_bound:.0%} of its bound at most; "
            f"{len(broken)} seeds break a law; {seconds:.1f} s"
        )
    for seed, law in broken:
        again = f"python benchmarks/adversary.py --seeds 1 --first-seed {seed} --trace"
        print(f"seed {seed} breaks a law: {law}\n{again}", file=sys.stderr)
    sys.stdout.flush()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
