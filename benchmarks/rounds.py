"""The cost of a round without training, compared with a bare exchange and with a peer.

Four devices and the coordinator are separate processes on one machine, with mosquitto between them
and without TLS. The adapter has 525,312 parameters. "Without training" means that updates are
prepared and differ; all else is the product: sessions, journal and state files on a real disk. A
round's time is from one closed round to the next. The bare exchange (bare.py) has as many clients,
fp32 bytes, and one QoS 1 message each way; its blocks alternate with blocks of rounds in one run.
Bytes are counted on the sockets, by a proxy between each device and the broker, in a separate run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import bare
import peer_flwr
from federation import Federation
from link import Link

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.processes.children import Children
from fedclip_edge.records import Plan
from fedclip_edge.transport import local_broker

ADAPTER_BYTES = 525_312 * 4
DEVICES = 4
ROUND_S, OF_BARE = 0.15, 3.0  # the limits
UP_BYTES = 460_000  # with int8
_BLOCK = 10
_COUNTED_ROUNDS = 6
RULES = RunRules(devices=DEVICES, quorum=1.0)


@dataclass(frozen=True)
class Times:
    """Seconds of rounds, and of the bare exchanges that alternated with them."""

    rounds_s: list[float]
    bare_s: list[float]

    def figures(self) -> dict[str, float]:
        middle, floor = statistics.median(self.rounds_s), statistics.median(self.bare_s)
        return {
            "rounds": len(self.rounds_s),
            "median_s": middle,
            "min_s": min(self.rounds_s),
            "max_s": max(self.rounds_s),
            "bare_median_s": floor,
            "bare_min_s": min(self.bare_s),
            "bare_max_s": max(self.bare_s),
            "of_bare": middle / floor,
        }


def plan(up: str, down: str, rounds: int) -> Plan:
    return Plan("fedclip", rounds=rounds, vote="off", codec_up=up, codec_down=down)  # type: ignore[arg-type]


def measure(folder: Path, up: str, down: str, rounds: int) -> Times:
    """Measure alternating blocks of rounds and exchanges; the first of each block is dropped."""
    folder.mkdir()
    rounds_s, bare_s = [], []
    blocks = -(-rounds // _BLOCK)
    with Children() as children:
        # The bare exchange sends the whole adapter in one message.
        broker = local_broker.start(children, folder / "broker", max_packet_bytes=2 * ADAPTER_BYTES)
        port = broker.address.port
        fleet = Federation(
            children, folder / "fleet", port, RULES, plan(up, down, (blocks + 1) * (_BLOCK + 1) + 1)
        )
        with bare.Exchange(children, folder, port, DEVICES, ADAPTER_BYTES) as exchange:
            for block in range(blocks + 1):
                fleet.permit(_BLOCK + 1)
                closed = [fleet.next_closed().at_s for _ in range(_BLOCK + 1)]
                exchanged = [exchange.once() for _ in range(_BLOCK + 1)]
                if block:  # the first block is a warm-up
                    rounds_s += [b - a for a, b in pairwise(closed)]
                    bare_s += exchanged[1:]
        fleet.end()
    return Times(rounds_s, bare_s)


def count(folder: Path, up: str, down: str) -> dict[str, float]:
    """Bytes per round on the socket of the device with the most traffic."""
    folder.mkdir()
    with Children() as children:
        port = local_broker.start(children, folder / "broker").address.port
        with Link(port) as link:
            fleet = Federation(
                children,
                folder / "fleet",
                port,
                RULES,
                plan(up, down, _COUNTED_ROUNDS + 2),
                port_of=link.door,
            )

            def counted() -> list[tuple[int, int]]:
                doors = [link.counted(name) for name in fleet.devices]
                return [(door.up_bytes, door.down_bytes) for door in doors]

            fleet.permit(1)
            fleet.next_closed()
            _settle(counted)
            before = counted()
            fleet.permit(_COUNTED_ROUNDS)
            for _ in range(_COUNTED_ROUNDS):
                fleet.next_closed()
            _settle(counted)
            spent = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, counted(), strict=True)]
            fleet.end()
    return {
        "up_bytes": max(up for up, _ in spent) / _COUNTED_ROUNDS,
        "down_bytes": max(down for _, down in spent) / _COUNTED_ROUNDS,
    }


def _settle(counted: Any, quiet_s: float = 1.0) -> None:
    """Wait until no bytes move: all devices have the next model and wait in `fit`."""
    before, since = counted(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.05)
        if (now := counted()) != before:
            before, since = now, time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="number of rounds; use at least 30")
    parser.add_argument(
        "--folder",
        type=Path,
        help="a folder on the disk to measure; default: the system's temporary folder",
    )
    parser.add_argument(
        "--peer",
        choices=["flwr"],
        help="also measure this peer, in a virtual environment of its own",
    )
    parser.add_argument("--peer-rounds", type=int, default=10)
    parser.add_argument(
        "--peer-venv",
        type=Path,
        help="the peer's virtual environment; created if missing, and kept",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with code 1 if a figure exceeds its limit"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; {DEVICES} devices, {ADAPTER_BYTES:,} B adapter, no TLS"
    )
    print(f"{'codecs':13} {'round, s':>22}   {'bare, s':>22}   ratio    B up    B down")
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    missed = []
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        for up, down in (("int8", "fp16"), ("fp32", "fp32")):
            name = f"{up} up, {down} down"
            row: dict[str, float] = measure(
                Path(made) / f"{up}-times", up, down, options.rounds
            ).figures() | count(Path(made) / f"{up}-bytes", up, down)
            figures[name] = row
            print(
                f"{up}, {down:7} {_spread(row, '')}   {_spread(row, 'bare_')}   "
                f"{row['of_bare']:5.2f} {row['up_bytes']:9,.0f} {row['down_bytes']:9,.0f}",
                flush=True,
            )
            if row["median_s"] > ROUND_S:
                missed.append(f"{name}: a round takes {row['median_s']:.3f} s, at most {ROUND_S}")
            if row["of_bare"] > OF_BARE:
                missed.append(f"{name}: {row['of_bare']:.2f} times a bare exchange, at most 3")
            if up == "int8" and row["up_bytes"] > UP_BYTES:
                missed.append(f"{name}: {row['up_bytes']:,.0f} B up, at most {UP_BYTES:,}")
        if options.peer:
            peer = figures["flwr"] = peer_flwr.measure(
                Path(made) / "flwr", options.peer_venv, options.peer_rounds, DEVICES, ADAPTER_BYTES
            )
            print(
                f"flwr {peer['version']}, SuperLink and SuperNodes: {_spread(peer, '')} "
                f"over {peer['rounds']} rounds"
            )
    for sentence in missed:
        print(f"missed: {sentence}", file=sys.stderr)
    if options.json:
        print(json.dumps(figures | {"missed": missed}))
    return 1 if missed and options.check else 0


def _spread(row: dict[str, Any], prefix: str) -> str:
    return f"{row[prefix + 'median_s']:.3f} ({row[prefix + 'min_s']:.3f} to {row[prefix + 'max_s']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
