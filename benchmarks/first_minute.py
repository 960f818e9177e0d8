"""The waiting times of a newcomer: the start of the command, and the first and second demo.

Whole processes, timed from outside. Start-up times are medians of --repeat runs that alternate with
a bare interpreter, the lower bound. Each demo runs once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def starts(repeat: int) -> dict[str, float]:
    contenders = {
        "bare interpreter": [sys.executable, "-c", "pass"],
        "import fedclip_edge": [sys.executable, "-c", "import fedclip_edge"],
        "fedclip-edge --help": [sys.executable, "-m", "fedclip_edge.cli.main", "--help"],
        "import serving": [sys.executable, "-c", "import fedclip_edge.coordinator.process"],
    }
    for command in contenders.values():
        seconds(command)  # fills the file cache and writes bytecode
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, command in contenders.items():
            times[name].append(seconds(command))
    return {name: statistics.median(values) for name, values in times.items()}


def demos() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo-run"
        command = [sys.executable, "-m", "fedclip_edge.cli.main", "demo", "--out", str(out)]
        measured = {}
        for run in ("first", "second"):
            measured[f"demo, {run} run"] = seconds(command)
            summary = json.loads((out / "summary.json").read_text())
            for phase in ("federation", "baselines"):
                measured[f"demo, {run} run: {phase}"] = summary["seconds"][phase]
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {**starts(options.repeat), **demos()}
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, load {load:.1f}"
    )
    for name, value in figures.items():
        print(f"{name:36} {value:8.3f} s")
    if options.json:
        print(json.dumps({"cores": cores, "load": load, **figures}))


if __name__ == "__main__":
    main()
