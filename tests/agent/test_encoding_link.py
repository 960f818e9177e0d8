"""The link of a device that encodes: its progress and its pauses, with a link that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import pytest

from fedclip_edge.agent import encoding_link
from fedclip_edge.agent.encoding_link import EncodingLink
from fedclip_edge.errors import LinkError
from fedclip_edge.protocol.message_parts import Encoding
from fedclip_edge.protocol.messages import DeviceState
from fedclip_edge.transport.base import Will
from fedclip_edge.transport.mqtt import PahoTransport


class FakeLink:
    """A link that counts attempts to connect; `is_up` is false while no broker answers."""

    is_up = True

    def __init__(self) -> None:
        self.attempts = 0

    def connect(self, timeout_s: float, meanwhile: Callable[[], None] | None = None) -> None:
        self.attempts += 1
        if meanwhile is not None:
            meanwhile()
        if not self.is_up:
            raise LinkError("no broker answers")

    def next_event(self, timeout_s: float) -> None:
        return None

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert retain


class Device:
    """A device that encodes; `told` has the states that it published."""

    def __init__(self) -> None:
        self.link = FakeLink()
        self.told: list[DeviceState] = []
        self.early = EncodingLink(self._make, self._pack, "b1")

    def _make(self, _topics: Iterable[str]) -> PahoTransport:
        return cast("PahoTransport", self.link)

    def _pack(self, state: DeviceState) -> Will:
        self.told.append(state)
        return Will("state", b"")


@pytest.fixture
def device() -> Device:
    return Device()


def paused(done: int, total: int) -> DeviceState:
    return DeviceState("b1", True, Encoding(done, total), "paused", "too hot")


def test_a_pause_is_told_once_with_the_progress_and_then_the_progress_at_once(
    device: Device,
) -> None:
    device.early.tell(10, 90)
    for _ in range(3):
        device.early.pause("too hot")
    device.early.pause("")
    device.early.tell(11, 90)
    assert device.told == [
        DeviceState("b1", True, Encoding(10, 90)),
        paused(10, 90),
        DeviceState("b1", True, Encoding(11, 90)),
    ]
    assert device.link.attempts == 1


def test_a_box_that_is_hot_at_the_start_connects_to_tell_it(device: Device) -> None:
    device.early.pause("")
    assert device.link.attempts == 0
    device.early.pause("too hot")
    assert device.told == [paused(0, 0)]


def test_without_a_broker_a_pause_is_told_later(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.link.is_up = False
    for _ in range(3):
        device.early.pause("too hot")
    assert (device.link.attempts, device.told) == (1, [])
    device.link.is_up = True
    monkeypatch.setattr(device.early, "_next_at", 0.0)
    device.early.pause("too hot")
    assert device.told == [paused(0, 0)]


def test_while_it_connects_for_good_no_pause_makes_a_second_link(device: Device) -> None:
    device.early.connect((), meanwhile=lambda: device.early.pause("too hot"))
    assert device.link.attempts == 1


def test_progress_is_told_once_in_a_while(device: Device) -> None:
    for done in range(5):
        device.early.tell(done, 90)
    assert len(device.told) == 1
    assert encoding_link.TELL_S > 1
