"""The device's process: its event loop, and its clean-up when it cannot start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fedclip_edge.agent.loop import loop
from fedclip_edge.agent.process import run
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.standby import Standby
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import DataError
from fedclip_edge.storage.lock import lock_file
from fedclip_edge.transport.base import Received
from fedclip_edge.vision.bundle import Bundle


def test_messages_without_end_do_not_keep_it_from_its_work() -> None:
    class Endless:
        def next_event(self, timeout_s: float) -> Received:
            return Received("x", b"")

    class Worker:
        transport = Endless()
        finished = False
        task = None
        refused_messages = taken = 0
        standby = Standby(())
        trust = SimpleNamespace(manifest=None)
        handshake = SimpleNamespace(is_connected=False)

        def handle_event(self, event: Received, now: float) -> None:
            self.taken += 1
            assert self.taken < 10_000

        def act(self, now: float) -> bool:
            self.finished = True
            return True

    worker = Worker()
    loop(cast("Session", worker), once=True)
    assert worker.taken > 1


def test_one_that_cannot_begin_closes_what_it_opened(tmp_path: Path, random_bundle: Bundle) -> None:
    data, state = DataConfig(tmp_path / "nothing"), tmp_path / "state"
    with pytest.raises(DataError) as refused:
        run(AgentConfig("cam-a", "lab", data, state, bundle=random_bundle.folder), once=True)
    assert refused.tb is not None, "the traceback must keep the frames alive, and so any open file"
    lock_file(state / "lock", "the state_dir").close()
    # SQLite deletes the write-ahead log when the last connection is closed.
    assert {path.name for path in state.iterdir()} == {
        "lock",
        "parked.sqlite",
        "position.json",
        "device.key",
        "pictures.sqlite",
        "answered.sqlite",
        "encoder.json",
    }
