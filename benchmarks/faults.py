"""The fault matrix: the cost and the damage of each fault in each phase of a round.

Every cell is a run of its own with `fedclip-edge serve`, three agents and mosquitto as processes,
the certificates and configuration that ship, and a link that can inject a fault between two
messages (tests/support/matrix.py). `--markdown` writes the page that explains each figure. The exit
code is 1 if an acknowledged contribution is lost, one is counted twice, a model is not that of its
contributions, or a run does not end.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import fault_page
import matrix
from fault_page import Cell, Figures
from fault_table import FAULTS
from faulty_fleet import make_bundle
from fleet_faults import PHASES, Phase
from matrix import Undisturbed

# The faults that end within a few seconds. --quick runs only these.
QUICK = ("kill-agent", "kill-coordinator", "kill-broker", "duplicated", "corrupted")

# A link writes to connections that have just been lost, and asyncio warns each time.
logging.getLogger("asyncio").setLevel(logging.ERROR)

Usual = Mapping[int, Undisturbed]  # without a fault, by the number of rounds


def median(runs: Sequence[Undisturbed]) -> Undisturbed:
    run_s = {phase: statistics.median(run.run_s[phase] for run in runs) for phase in PHASES}
    round_s = {phase: statistics.median(run.round_s[phase] for run in runs) for phase in PHASES}
    return Undisturbed(run_s, round_s, runs[0].verdict)


def rest(rounds: int) -> Undisturbed:
    """A run without a fault, and another one that ends with a vote, for the phase of the vote."""
    runs = []
    for votes in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            bundle = make_bundle(Path(folder) / "bundle")
            runs.append(matrix.undisturbed(Path(folder), bundle, rounds, votes=votes))
    plain, voting = runs
    return Undisturbed(
        {**plain.run_s, **voting.run_s}, {**plain.round_s, **voting.round_s}, plain.verdict
    )


def play(usual: Usual, name: str, phase: Phase) -> Cell:
    """Run one cell."""
    fault = FAULTS[name]
    run_s, round_s = usual[fault.rounds].run_s[phase], usual[fault.rounds].round_s[phase]
    why = fault.nonsense.get(phase, "") or fault.impossible()
    if why:
        return Cell(name, phase, skipped=why)
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle")
        try:
            (outcome,) = matrix.run_with_fault(fault, (phase,), Path(folder), bundle)
        except Exception as error:  # noqa: BLE001 - the other runs continue
            return Cell(name, phase, failed=f"{type(error).__name__}: {error}")
    return Cell(
        name,
        phase,
        extra_s=outcome.run_s - run_s,
        round_extra_s=outcome.round_s - round_s,
        outcome=outcome,
    )


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, Phase]]:
    """The selected cells in the order of the table."""
    wanted = set(options.cell)
    for name in FAULTS:
        for phase in PHASES:
            if f"{name}:{phase}" in wanted or (not wanted and (name in QUICK or not options.quick)):
                yield name, phase


def machine() -> str:
    """The machine and its load at the start of the benchmark."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )


def _cell(text: str) -> str:
    name, _, phase = text.partition(":")
    if name not in FAULTS or phase not in PHASES:
        known = f"FAULT of {', '.join(FAULTS)}; PHASE of {', '.join(PHASES)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not FAULT:PHASE; {known}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"run only {', '.join(QUICK)}")
    parser.add_argument("--cell", type=_cell, action="append", default=[], metavar="FAULT:PHASE")
    parser.add_argument("--repeat", type=int, default=3, help="number of runs without a fault")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--markdown", type=Path, help="write the page of the manual to this file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    began, where = time.monotonic(), machine()
    cells = []
    with contextlib.ExitStack() as ends:
        each: Callable[..., Iterable[Any]] = map
        if options.jobs > 1:
            # Processes and not threads: a fork would copy the locks that other threads hold.
            workers = ProcessPoolExecutor(options.jobs, mp_context=get_context("forkserver"))
            each = ends.enter_context(workers).map
        picked = list(chosen(options))
        usual = {
            rounds: median(list(each(rest, [rounds] * options.repeat)))
            for rounds in sorted({FAULTS[name].rounds for name, _ in picked})
        }
        for cell in each(functools.partial(play, usual), *zip(*picked, strict=True)):
            cells.append(cell)
            print(" | ".join(fault_page.row(cell)), flush=True)
    seconds = time.monotonic() - began
    run_s = {rounds: runs.run_s for rounds, runs in usual.items()}
    print("\n" + fault_page.table(cells))
    if options.markdown is not None:
        figures = Figures(cells, run_s, where, seconds, options.jobs)
        options.markdown.write_text(fault_page.page(figures))
    broken = [f"{cell.fault}:{cell.phase}" for cell in cells if not cell.holds]
    slow = [f"{cell.fault}:{cell.phase}" for cell in cells if not cell.in_time]
    for which in broken:
        again = f"python benchmarks/faults.py --cell {which}"
        print(f"{which} is broken; {again} plays it again", file=sys.stderr)
    for which in slow:
        print(f"{which} is over its limit", file=sys.stderr)
    if options.json:
        whole = {
            "machine": where,
            "seconds": round(seconds, 1),
            "undisturbed_s": run_s,
            "broken": broken,
            "over_limit": slow,
            "cells": [asdict(cell) for cell in cells],
        }
        print(json.dumps(whole))
    sys.stdout.flush()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
