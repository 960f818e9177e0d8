"""Size of a coordinator's journal after many rounds.

Drawn updates go through the coordinator's own run state, as if devices had sent them, and each
device reports on each model, as agents do. A model has 122 kB in float32 (FedCLIP with 123
features), and the codecs are the default ones. The program exits with code 1 if the journal is then
larger than the limit: 2 kB a round and 200 bytes a contribution. Its write-ahead log, which SQLite
deletes when the journal is closed, is measured separately: its size does not depend on the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Arrays, ClassTexts, Contribution, Plan, Update

A_ROUND_BYTES, A_CONTRIBUTION_BYTES = 2000, 200
DIM = 123
ENCODER = "e" * 64
_DRAWN = 16  # different updates; each is sent in turn
_SHOWS = 1000  # rounds between two lines


def class_texts() -> ClassTexts:
    """Two classes with unit text vectors."""
    return ClassTexts(("a", "b"), np.eye(2, DIM, dtype=np.float32), 100.0, "a photo of a {}")


def drawn_updates(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> list[Arrays]:
    """Updates with the size of honest ones, from a fixed seed."""
    random = np.random.default_rng(0)
    return [
        {name: random.normal(0, 1e-3, shape).astype(np.float32) for name, shape in shapes}
        for _ in range(_DRAWN)
    ]


def report(state: run_state.RunState, device: str) -> Report:
    """A report of the size of an agent's."""
    drawn = np.random.default_rng(state.model.round)
    names = [f"{name}{kind}" for name in ("zero_shot", "federated") for kind in ("", "_f1", "_ece")]
    return Report(
        run=state.run.id,
        round=state.model.round,
        device=device,
        domain="photo",
        model=state.version,
        accuracy={name: float(drawn.random()) for name in names},
        train_pictures=1234,
        test_pictures=411,
        encoded=2056,
        skipped=0,
        bytes_up=30_000 * (state.model.round + 1),
        bytes_down=60_000 * (state.model.round + 1),
        encode_s=float(drawn.random()),
        train_s=float(drawn.random()),
        wait_s=float(drawn.random()),
    )


def close_rounds(journal: Journal, rounds: int, devices: int) -> None:
    """Run the rounds, and print the size of the journal at times."""
    classes = class_texts()
    plan = methods.with_defaults(Plan("fedclip", rounds=rounds, vote="off"))
    config = FleetConfig("lab", bundle=Path(), journal=journal.path, plan=plan)
    run = choose_run(config, classes, DIM, ENCODER, journal).begin()
    state = run_state.open_run_state(run, journal, Schedule(plan, classes, DIM))
    updates = drawn_updates(tuple(state.layout.delta.items()))
    names = [f"cam-{number:02}" for number in range(devices)]
    for device in names:
        journal.devices.pin_key(run.id, device, "a" * 64)
    for number in range(rounds):
        for at, device in enumerate(names):
            made = Contribution(
                run=run.id,
                round=number + 1,
                device=device,
                exchange=state.exchange.sha256,
                update=Update("sum", 1, updates[(number + at) % _DRAWN]),
            )
            payload = wire.pack_contribution(made, plan.codec_up)
            arrived = wire.unpack_contribution(
                payload, plan.codec_up, state.layout.delta, state.layout.sums
            )
            state.check(device, number + 1, arrived)
            state.keep(arrived, hashlib.sha256(payload).hexdigest(), payload)
        state.close_round()
        for device in names:
            journal.reports.add(report(state, device))
        if (number + 1) % _SHOWS == 0:
            print(f"round {number + 1}: {size_bytes(journal.path) / 1e6:.1f} MB", flush=True)


def size_bytes(journal: Path) -> int:
    """Size of the journal with its write-ahead log."""
    return sum(
        path.stat().st_size
        for path in journal.parent.glob(f"{journal.name}*")
        if path.suffix != ".sqlite-shm"
    )


def tables(path: Path) -> dict[str, int]:
    """Bytes of the pages of each table and index, and of the free pages."""
    query = "SELECT name, SUM(pgsize) FROM dbstat GROUP BY name"
    with contextlib.closing(sqlite3.connect(path)) as database:
        found = dict(database.execute(query).fetchall())
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    return {**found, "free pages": free * page_bytes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument(
        "--folder",
        type=Path,
        help="a folder on the disk to use; default: the system's temporary folder",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "journal.sqlite"
        with contextlib.closing(open_journal(path)) as journal:
            close_rounds(journal, options.rounds, options.devices)
            log_bytes = size_bytes(path) - path.stat().st_size
            checked = time.monotonic()
            journal.check()
            check_s = time.monotonic() - checked
        total, parts = size_bytes(path), tables(path)
    limit = options.rounds * (A_ROUND_BYTES + options.devices * A_CONTRIBUTION_BYTES)
    figures = {
        "rounds": options.rounds,
        "devices": options.devices,
        "journal_bytes": total,
        "limit_bytes": limit,
        "bytes_a_round": total / options.rounds,
        "log_bytes": log_bytes,
        "check_s": check_s,
        "seconds": time.monotonic() - began,
        **{f"bytes of {name}": size for name, size in parts.items()},
    }
    for name, value in figures.items():
        print(f"{name:44} {value:16,.2f}")
    missed = total > limit
    print("MISSED" if missed else "within the limit")
    if options.json:
        print(json.dumps({**figures, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
