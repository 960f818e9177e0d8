"""The hellos of a device, and the messages that it sends again with each of them.

`handshake.py` says when a hello is due.

Law: a device that pauses says no hello, because a hello makes it count as online.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.state_db import StateDb
from fedclip_edge.agent.upload import Upload
from fedclip_edge.config.agent import AgentConfig


@dataclass(eq=False)
class Greeting:
    """The hellos of one device; `now` is monotonic, in seconds."""

    config: AgentConfig
    state_db: StateDb
    publisher: Publisher
    handshake: Handshake
    upload: Upload
    evaluation_queue: EvaluationQueue

    def say_hello(self, now: float) -> None:
        """Say hello, and have the last report and the offer sent again: they may be lost."""
        self.handshake.note_hello(now)
        if self.publisher.paused:
            return  # the hello follows after the pause
        self.publisher.send_hello(self.state_db.position)
        self.publisher.activity = "waiting"  # the coordinator forgets it with the hello
        if self.config.reports and self.evaluation_queue.report is not None:
            self.publisher.send(self.evaluation_queue.report)
        self.upload.hurry()

    def repeat_hello(self, now: float) -> None:
        """Repeat the hello, and ask the broker for retained messages: one may have been lost."""
        self.publisher.transport.resubscribe()
        self.say_hello(now)

    def begin_again(self, now: float) -> None:
        """Say hello as on a new link, and wait for the answer; nothing while there is no link."""
        if self.handshake.is_connected:
            self.handshake.reset()
            self.say_hello(now)
