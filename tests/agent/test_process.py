"""The device's process: it takes what came, and works all the same."""

from __future__ import annotations

from typing import cast

from fedclip_edge.agent.process import loop
from fedclip_edge.agent.session import Session
from fedclip_edge.transport.base import Received


def test_messages_without_end_do_not_keep_it_from_its_work() -> None:
    class Endless:
        def next_event(self, timeout_s: float) -> Received:
            return Received("x", b"")

    class Worker:
        transport = Endless()
        finished = False
        refused_messages = taken = 0

        def take(self, event: Received, now: float) -> None:
            self.taken += 1
            assert self.taken < 10_000

        def act(self, now: float) -> bool:
            self.finished = True
            return True

    worker = Worker()
    loop(cast("Session", worker), once=True)
    assert worker.taken > 1
