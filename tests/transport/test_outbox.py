"""The queue of messages to send."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from system import DEADLINE_S, wait_until

from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import outbox
from fedclip_edge.transport.outbox import Limits, Outbox

LAB = Topics("lab")


class Broker:
    """The far end of an outbox: it notes what is handed over, and acknowledges on demand."""

    def __init__(self, *, named: bool = True) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.box = Outbox(self._hand_over, LAB.owner if named else None)
        self.box.link_up(Limits())

    def _hand_over(self, topic: str, payload: bytes, retain: bool) -> None:
        self.sent.append((topic, payload))

    def begin(self) -> None:
        self.box.start()

    def answer_all(self) -> None:
        """Acknowledge until nothing is left."""
        deadline = time.monotonic() + DEADLINE_S
        while self.box.backlog():
            assert time.monotonic() < deadline
            if not self.box.acknowledged():
                time.sleep(0.001)


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()
    yield made
    made.box.link_down()
    made.box.drain(DEADLINE_S)


def parts(count: int, made: list[int] | None = None, size: int = 1) -> Iterator[bytes]:
    for number in range(count):
        if made is not None:
            made.append(number)
        yield bytes([number % 256]) * size


def test_parts_are_made_only_when_they_are_sent(broker: Broker) -> None:
    made: list[int] = []
    broker.box.put_parts(LAB.down("cam-01"), "model", parts(100, made))
    broker.begin()
    wait_until(lambda: len(broker.sent) == outbox.WINDOW, "a window")
    assert len(made) <= outbox.WINDOW + 1
    # In addition the part that waits for the window, and all other parts as one.
    assert outbox.WINDOW + 1 <= broker.box.backlog() <= outbox.WINDOW + 2
    broker.answer_all()
    assert [payload for _, payload in broker.sent] == [bytes([n]) for n in range(100)]
    assert not broker.box.holds(LAB.down("cam-01"), "model")


def test_the_same_payload_is_queued_once_for_each_topic(broker: Broker) -> None:
    for _ in range(50):
        for name in ("cam-01", "cam-02"):
            broker.box.put_parts(LAB.down(name), "model", parts(3))
    assert broker.box.holds(LAB.down("cam-01"), "model")
    assert not broker.box.holds(LAB.down("cam-01"), "another")
    broker.begin()
    broker.answer_all()
    assert sorted(topic for topic, _ in broker.sent) == sorted(
        3 * [LAB.down("cam-01"), LAB.down("cam-02")]
    )
    broker.box.put_parts(LAB.down("cam-01"), "model", parts(3))
    broker.answer_all()
    assert len(broker.sent) == 9, "once it has been sent, it can be sent again"


def test_a_newer_payload_replaces_one_that_waits(broker: Broker) -> None:
    down = LAB.down("cam-01")
    broker.box.put_parts(down, "old", parts(40))
    broker.begin()
    wait_until(lambda: len(broker.sent) == outbox.WINDOW, "a window")
    broker.box.put_parts(down, "new", iter([b"new 1", b"new 2"]))
    broker.answer_all()
    sent = [payload for _, payload in broker.sent]
    assert sent[-2:] == [b"new 1", b"new 2"]
    assert len(sent) <= outbox.WINDOW + 1 + 2


def test_many_requests_hold_no_copy_of_the_model() -> None:
    model = bytes(2**20)
    broker = Broker()
    tracemalloc.start()
    for _ in range(20):
        for number in range(200):
            chunked = (model[at : at + 2**16] for at in range(0, 2**20, 2**16))
            broker.box.put_parts(LAB.down(f"cam-{number}"), "model", chunked)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2**20


def test_receivers_take_turns_and_one_that_is_answered_without_end_is_bounded(
    broker: Broker,
) -> None:
    for number in range(5_000):
        broker.box.put(LAB.down("mallory"), str(number).encode(), retain=False)
    broker.box.put(LAB.down("cam-01"), b"kept", retain=False)
    assert broker.box.backlog() == outbox.SHARE.items + 1
    broker.begin()
    broker.answer_all()
    assert broker.sent[1] == (LAB.down("cam-01"), b"kept")
    assert len(broker.sent) == outbox.SHARE.items + 1
    assert broker.sent[-1] == (LAB.down("mallory"), b"4999")


def test_a_dropped_payload_can_be_queued_again(broker: Broker) -> None:
    down = LAB.down("cam-01")
    broker.box.put_parts(down, "model", parts(3))
    for _ in range(outbox.SHARE.items):
        broker.box.put(down, b"x", retain=False)
    assert not broker.box.holds(down, "model")
    broker.box.put_parts(down, "model", parts(3))
    assert broker.box.holds(down, "model")
    broker.begin()
    broker.answer_all()
    assert [payload for _, payload in broker.sent][-3:] == list(parts(3))


def test_without_names_the_order_is_kept_and_bytes_are_bounded() -> None:
    broker = Broker(named=False)
    for number in range(1000):
        broker.box.put(f"t/{number}", bytes(200_000), retain=False)
    waiting = broker.box.backlog()
    assert 0 < waiting * 200_000 <= outbox.ALONE.size_bytes
    broker.begin()
    broker.answer_all()
    assert [topic for topic, _ in broker.sent] == [f"t/{n}" for n in range(1000 - waiting, 1000)]
    broker.box.drain(DEADLINE_S)


def test_a_broken_link_drops_parts_and_the_next_one_begins_afresh(broker: Broker) -> None:
    down = LAB.down("cam-01")
    broker.box.put_parts(down, "model", parts(30))
    broker.begin()
    wait_until(lambda: len(broker.sent) == outbox.WINDOW, "a window")
    assert broker.box.link_down() is not None
    assert broker.box.backlog() == 0
    broker.box.put_parts(down, "model", parts(30))
    assert not broker.box.holds(down, "model")
    broker.box.link_up(Limits())
    before = len(broker.sent)
    broker.box.put_parts(down, "model", parts(5))
    broker.answer_all()
    assert len(broker.sent) == before + 5


def test_a_link_is_stuck_if_nothing_is_acknowledged_for_long() -> None:
    now, sent = 0.0, list[str]()
    box = Outbox(lambda topic, *_: sent.append(topic), clock=lambda: now)
    assert not box.is_stuck()
    box.link_up(Limits())
    now = 1000.0
    assert not box.is_stuck(), "nothing is on its way"
    for number in range(2):
        box.put(LAB.manifest, bytes([number]), retain=False)
    box.start()
    wait_until(lambda: len(sent) == 2, "the messages to be handed over")
    now += outbox.STUCK_S / 2
    answered = box.acknowledged()
    assert answered is not None
    assert answered.topic == LAB.manifest
    now += outbox.STUCK_S - 1
    assert not box.is_stuck()
    now += 1
    assert box.is_stuck()
    box.link_down()
    box.link_up(Limits())
    assert not box.is_stuck()
    box.link_down()
    box.drain(DEADLINE_S)


def test_the_end_waits_for_parts() -> None:
    broker = Broker()
    broker.box.put_parts(LAB.down("cam-01"), "model", parts(30))
    broker.begin()
    ending = threading.Thread(target=broker.box.drain, args=(DEADLINE_S,))
    ending.start()
    broker.answer_all()
    ending.join(DEADLINE_S)
    assert len(broker.sent) == 30
