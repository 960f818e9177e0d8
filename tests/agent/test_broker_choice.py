"""The choice between the broker's address in agent.toml and the one that it moved to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from session_scene import state

from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.state_db import StateDb, open_state_db
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.protocol.message_parts import Address

OLD = BrokerAddress("old.example", 8883, keepalive_s=7)
NEW = replace(OLD, host="new.example", port=9883)
NOTICE = Address("new.example", 9883)


@pytest.fixture
def state_db(tmp_path: Path) -> Iterator[StateDb]:
    opened = open_state_db(tmp_path / "parked.sqlite")
    yield opened
    opened.close()


def session(*, online: bool = True, notice: Address | None = NOTICE, up: bool = True) -> Any:
    """A stand-in for a session, with the coordinator's last state and the state of the link."""
    known = replace(state(), online=online, moved_to=notice)
    return SimpleNamespace(
        trust=SimpleNamespace(coordinator=known), handshake=SimpleNamespace(is_connected=up)
    )


def test_a_device_goes_when_the_coordinator_has_gone(state_db: StateDb) -> None:
    choice = BrokerChoice(OLD, state_db)
    assert (choice.current, choice.other()) == (OLD, None)
    assert not choice.look(session(online=False, notice=None), 0.0)
    assert not choice.switch("there is no other")
    assert not choice.look(session(), 1.0)  # it remembers, and stays
    assert choice.look(session(online=False), 2.0)
    assert choice.switch("it moved")
    assert (choice.current, choice.other()) == (NEW, OLD)
    # There, a coordinator that restarts is no reason to leave.
    assert not choice.look(session(online=False), 3.0)
    # After a restart, the new address comes first.
    assert BrokerChoice(OLD, state_db).current == NEW


def test_an_address_that_does_not_answer_is_left_and_tried_again_later(state_db: StateDb) -> None:
    choice = BrokerChoice(OLD, state_db)
    assert choice.look(session(online=False), 0.0)
    choice.switch("it moved")
    choice.note_failure(10.0)
    choice.switch("no answer")
    assert choice.current == OLD
    assert not choice.look(session(online=False), 11.0)
    assert choice.look(session(online=False), 71.0)


def test_a_link_that_stays_down_is_a_reason_to_try_the_other_address(state_db: StateDb) -> None:
    choice = BrokerChoice(OLD, state_db)
    choice.look(session(), 0.0)
    assert not choice.look(session(up=False), 1.0)
    assert not choice.look(session(up=False), 30.0)
    assert not choice.look(session(), 30.5)  # back
    assert not choice.look(session(up=False), 31.0)
    assert choice.look(session(up=False), 61.0)


def test_another_address_in_the_configuration_counts(state_db: StateDb) -> None:
    BrokerChoice(OLD, state_db).look(session(), 0.0)
    third = replace(OLD, host="third.example")
    choice = BrokerChoice(third, state_db)
    assert (choice.current, choice.other()) == (third, None)


def test_a_move_back_and_a_second_move_are_followed(state_db: StateDb) -> None:
    choice = BrokerChoice(OLD, state_db)
    choice.look(session(), 0.0)
    back = Address("old.example", 8883)
    choice.look(session(notice=back), 1.0)  # the operator thinks again
    assert choice.other() is None
    assert choice.look(session(online=False), 2.0)
    choice.switch("it moved")
    assert choice.look(session(online=False, notice=back), 3.0)  # again, when it is there already
    choice.switch("it moved back")
    assert (choice.current, choice.other()) == (OLD, None)
    assert choice.look(session(online=False), 4.0)
    choice.switch("it moved")
    further = Address("further.example", 8883)
    assert choice.look(session(online=False, notice=further), 5.0)
    choice.switch("it moved once more")
    assert choice.current == replace(OLD, host="further.example")
    assert choice.other() == OLD
