"""The choice of the MQTT version: 5 first, then 3.1.1, and no fallback because of a dead broker."""

from __future__ import annotations

import pytest

from fedclip_edge.transport import mqtt_version
from fedclip_edge.transport.mqtt_version import Dialect

HERE, THERE = ("broker", 1883), ("other", 1883)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_version, "_answered", {})


def test_5_comes_first_and_is_kept_where_it_is_answered() -> None:
    first = Dialect(HERE)
    assert first.version == 5
    first.answered()
    # The connection was lost: a broker that spoke MQTT 5 will speak it again.
    assert not first.closed()
    assert first.version == 5


def test_a_broker_that_names_5_as_unsupported_is_spoken_3_1_1_to_by_everybody() -> None:
    first = Dialect(HERE)
    assert first.unsupported()
    assert (first.version, Dialect(HERE).version, Dialect(THERE).version) == (4, 4, 5)


def test_a_broker_that_closes_in_silence_is_believed_once_it_answers_3_1_1() -> None:
    first = Dialect(HERE)
    assert first.closed()
    assert (first.version, Dialect(HERE).version) == (4, 5)
    first.answered()
    assert Dialect(HERE).version == 4


def test_a_broker_that_answers_neither_is_asked_for_5_again_after_a_while() -> None:
    first = Dialect(HERE)
    at_once = [first.closed() for _ in range(4)]
    assert at_once == [True, False, True, False]
    assert first.version == 5
    first.answered()
    assert Dialect(HERE).version == 5


@pytest.mark.parametrize("spoken", [5, 4])
def test_another_broker_in_the_place_of_the_first_is_found_out(spoken: int) -> None:
    link = Dialect(HERE)
    if spoken == 4:
        link.unsupported()
    link.answered()
    found = []
    for _ in range(3):
        found.append(link.version)
        link.closed()
    assert found == [spoken] * 3
    assert link.version == 9 - spoken
    link.answered()
    assert Dialect(HERE).version == 9 - spoken


def test_what_closes_now_and_then_is_not_another_broker() -> None:
    link = Dialect(HERE)
    for _ in range(5):
        link.answered()
        assert not link.closed()
        assert not link.closed()
    assert link.version == 5


def test_a_broker_that_has_3_1_1_no_longer_is_spoken_5_to() -> None:
    link = Dialect(HERE)
    link.unsupported()
    # Not at once, or two brokers that name each other would cause a loop.
    assert not link.unsupported()
    assert (link.version, Dialect(HERE).version) == (5, 5)


def test_only_an_unknown_broker_is_given_up_for_being_silent() -> None:
    assert Dialect(HERE).is_a_guess
    Dialect(HERE).answered()
    assert not Dialect(HERE).is_a_guess
    older = Dialect(THERE)
    older.closed()
    assert not older.is_a_guess
