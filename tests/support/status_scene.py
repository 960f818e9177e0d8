"""A fleet of any size that exists only as answers on a real control socket, and its journal."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
from journal_scene import RUN, model

from fedclip_edge.coordinator import control
from fedclip_edge.coordinator.control import Request
from fedclip_edge.coordinator.journal import open_journal

CLASSES = ("circle", "square", "triangle")


def device_row(
    number: int, state: str = "online", detail: str = "", **changes: Any
) -> dict[str, Any]:
    """A row of a status, as `coordinator/snapshot.py` makes it."""
    rng = random.Random(number)
    zero_shot = rng.uniform(0.7, 0.9)
    row: dict[str, Any] = {
        "id": f"cam-{number:04d}",
        "state": state,
        "detail": detail,
        "part": "training" if state in ("online", "late") else None,
        "seen_s": rng.uniform(1, 40) if state != "not seen" else None,
        "domain": "",
        "roles": ["train", "evaluate"],
        "pictures": {"train": 600 + number % 7, "validation": 200, "test": 200, "withheld": 0},
        "provider": "CPUExecutionProvider",
        "encoder_id": "e" * 64,
        "classes_digest": "c" * 64,
        "certificate_ends": "2027-03-01",
        "reported_round": 4,
        "accuracy": {"zero_shot": zero_shot, "federated": zero_shot + rng.uniform(-0.02, 0.09)},
        "contributions": 4,
        "norm": rng.uniform(0.2, 0.4),
        "updates_bytes": 140_000,
        "bytes_up": 200_000,
        "bytes_down": 400_000,
        "encode_s": 12.5,
        "train_s": 3.5,
        "wait_s": 60.0,
        "skipped": 0,
        "refused_messages": 0,
    }
    return {**row, **changes}


def status(rows: list[dict[str, Any]], **run: Any) -> dict[str, Any]:
    """A status with these devices, in the middle of a run."""
    counts: dict[str, Any] = {}
    for row in rows:
        name = row["state"].replace(" ", "_")
        counts[name] = counts.get(name, 0) + 1
    means = {
        kind: sum(row["accuracy"].get(kind, 0.0) for row in rows) / max(1, len(rows))
        for kind in ("zero_shot", "federated")
    }
    return {
        "version": "0",
        "time": "2026-11-30T12:00:00+00:00",
        "fleet": "lab",
        "epoch": 1,
        "run": {
            "id": RUN.id,
            "method": "fedclip",
            "state": "open",
            "paused": False,
            "phase": "open",
            "running_s": 700.0,
            "kind": "round",
            "round": 1,
            "rounds": 3,
            "rounds_closed": 0,
            "attempt": 1,
            "contributions": sum(row["part"] == "done" for row in rows),
            "cohort": len(rows),
            "quorum": round(0.75 * len(rows)),
            "deadline_in_s": 540.0,
            "updates_bytes": 12_000_000,
            "model_bytes": 34_500,
            **run,
        },
        "waiting": {"needs": round(0.75 * len(rows)), "has": 0, "missing": [], "more": 0},
        "counts": {"enrolled": len(rows), "known": len(rows), **counts},
        "accuracy": {"devices": len(rows), **means} if rows else None,
        "traffic": {"up": 120_000_000, "down": 12_000_000},
        "certificates": {"coordinator": "2036-11-27"},
        "refused_messages": 0,
        "bundle": {"encoder_id": "e" * 64, "classes_digest": "c" * 64},
        "devices": rows,
        "more": 0,
        "next": None,
    }


@dataclass
class SceneFleet:
    """Answers on the control socket; a test changes `status` while it serves."""

    folder: Path
    status: dict[str, Any]
    requests: list[Request] = field(default_factory=list)
    made_at: float = field(default_factory=time.monotonic)
    answers: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite"

    def write_settings(self, port: int, extra: str = "") -> Path:
        path = self.folder / "fleet.toml"
        path.write_text(
            f'fleet = "lab"\nbundle = "bundle"\n[page]\nlisten = "127.0.0.1:{port}"\n{extra}\n'
        )
        return path

    def _answer(self, request: Request) -> Mapping[str, Any]:
        self.requests.append(request)
        if request.command in self.answers:
            return self.answers[request.command]
        if request.command == "devices":
            rows = [
                {
                    **row,
                    "pictures_by_class": {
                        s: [200, 200, 200] for s in ("train", "validation", "test")
                    },
                    "accuracy_by_class": {
                        "zero_shot": [0.5, 0.6, 0.7],
                        "federated": [0.6, 0.7, 0.8],
                    },
                }
                for row in self.status["devices"]
            ]
            return control.success({**self.status, "classes": list(CLASSES), "devices": rows})
        if request.command == "status":
            age = time.monotonic() - self.made_at
            rows = [
                {**row, "seen_s": None if row["seen_s"] is None else row["seen_s"] + age}
                for row in self.status["devices"]
            ]
            return control.success({**self.status, "devices": rows})
        return control.failure(f"no {request.command} here")

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer until the end of the block, in a thread."""
        opened = open_journal(self.journal)
        if opened.runs.last() is None:
            opened.runs.add(RUN, model(0, state=safetensors.numpy.save({})))
        opened.close()
        socket, is_over = control.listen(control.socket_path(self.journal)), threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                asked = socket.next_request()
                if asked is None:
                    time.sleep(0.01)
                    continue
                request, reply = asked
                reply(self._answer(request))

        thread = threading.Thread(target=serve, name="drawn-fleet")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            socket.close()


def fleet_of(count: int) -> list[dict[str, Any]]:
    """Devices of which some have faults, the worst first."""
    faults = [
        ("refused", "its bundle has another encoder"),
        ("offline", ""),
        ("offline", ""),
        ("late", "half of the deadline is over, and the round waits for it"),
        ("encoding", "1200 of 5000 pictures"),
    ]
    bad = [device_row(n, *faults[n % 5]) for n in range(min(count // 5, 40))]
    order = ["refused", "offline", "late", "encoding"]
    bad.sort(key=lambda row: order.index(row["state"]))
    parts = ("done", "done", "uploading", "in the queue", "training")
    rest = [device_row(n, part=parts[n % 5]) for n in range(len(bad), count)]
    return bad + rest
