"""The handshake: repeated hellos and the detection of a missing coordinator, on a fake clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from session_scene import manifest, state

from fedclip_edge import log
from fedclip_edge.agent.handshake import Handshake
from fedclip_edge.agent.state_db import open_state_db
from fedclip_edge.agent.trust import Trust
from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.errors import PeerError


@pytest.fixture
def trust(tmp_path: Path) -> Iterator[Trust]:
    state_db = open_state_db(tmp_path / "parked.sqlite")
    yield Trust("b1", "", state_db)
    state_db.close()


@pytest.fixture
def handshake(trust: Trust) -> Handshake:
    """Handshake of a device that connected at time 0 and said hello at once."""
    handshake = Handshake("lab", trust)
    handshake.start_link(0.0)
    handshake.note_hello(0.0)
    return handshake


def hellos(handshake: Handshake, until: float) -> list[float]:
    """Times of the repeated hellos; the handshake is polled every half second."""
    said = []
    for half in range(1, int(2 * until) + 1):
        if handshake.poll(half / 2):
            handshake.note_hello(half / 2)
            said.append(half / 2)
    return said


def test_where_nobody_coordinates_hellos_become_rare(handshake: Handshake) -> None:
    said = hellos(handshake, 3600)
    apart = [after - before for before, after in zip([0.0, *said], said, strict=False)]
    assert apart[:5] == [REPEAT_S * 2**n for n in range(5)]
    assert set(apart[7:]) == {300.0}
    assert handshake.is_alone


def test_a_coordinator_that_is_there_is_asked_steadily_until_it_seems_gone(
    handshake: Handshake, trust: Trust
) -> None:
    trust.coordinator = state()
    assert hellos(handshake, 4 * REPEAT_S - 0.5) == [5.0, 10.0, 15.0]
    assert not handshake.is_alone
    assert hellos(handshake, 4 * REPEAT_S)[-1:] == [20.0]
    assert handshake.is_alone


def test_a_good_bye_is_believed_at_once(handshake: Handshake, trust: Trust) -> None:
    trust.coordinator = replace(state(), online=False)
    assert handshake.is_alone


def test_only_a_direct_answer_is_one_and_it_is_one_once(handshake: Handshake) -> None:
    assert not handshake.note_manifest(1.0, direct=False)
    assert handshake.note_manifest(1.0, direct=True)
    assert handshake.is_answered
    assert not handshake.note_manifest(2.0, direct=True)


@pytest.mark.parametrize(
    ("phase", "is_mine", "patience_s"),
    [
        ("open", True, 600.0),
        ("final", True, REPEAT_S),
        ("done", True, REPEAT_S),
        ("done", False, 600.0),
    ],
)
def test_after_too_long_without_a_manifest_it_asks(
    handshake: Handshake, trust: Trust, phase: str, is_mine: bool, patience_s: float
) -> None:
    trust.coordinator, trust.manifest = state(), manifest(phase=phase, deadline_s=600.0)
    trust.is_mine = is_mine
    handshake.note_manifest(10.0, direct=True)
    assert not handshake.poll(10.0 + patience_s - 0.5)
    assert handshake.poll(10.0 + patience_s)
    assert not handshake.poll(10.0 + patience_s + 0.5)  # the interval stays the same
    assert handshake.poll(10.0 + 2 * patience_s)


def test_the_line_about_a_missing_answer_says_which_fleet_to_compare(
    handshake: Handshake, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(log, "event", lambda name, **fields: said.append({"event": name, **fields}))
    hellos(handshake, 3600)
    assert [(event["event"], event["fleet"]) for event in said] == [("no_answer", "lab")]
    assert "compare 'fleet' here with 'fleet' in its fleet.toml" in said[0]["hint"]


def test_a_coordinator_that_is_behind_hears_hellos_steadily_until_it_answers(
    handshake: Handshake, trust: Trust
) -> None:
    trust.coordinator = replace(state(), online=False)
    trust.accept_manifest(manifest(deadline_s=600.0, answers="b1"), direct=True)
    handshake.note_manifest(1.0, direct=True)
    with pytest.raises(PeerError):
        trust.accept_coordinator(state("k2", epoch=4))
    said, alone = hellos(handshake, 4.5), [handshake.is_alone]
    said += hellos(handshake, 104.5)
    alone += [handshake.is_alone, handshake.gets_no_answer]
    assert said == [5.0, 10.0, 15.0, 20.0, 25.0]
    assert handshake.is_answered, "a late message must not stop the work"
    assert alone == [False, True, True]
    handshake.note_manifest(100.0, direct=True)
    assert [handshake.gets_no_answer, handshake.poll(200.0)] == [False, False]


def test_without_a_link_nothing_is_due(handshake: Handshake) -> None:
    assert handshake.is_connected
    handshake.lose_link()
    assert [handshake.is_connected, handshake.poll(1e6)] == [False, False]


def test_a_new_link_needs_a_new_answer_and_the_first_one_is_remembered(
    handshake: Handshake,
) -> None:
    handshake.note_manifest(1.0, direct=True)
    handshake.lose_link()
    handshake.start_link(50.0)
    assert not handshake.is_answered
    assert handshake.since == 0.0


def test_who_coordinates_anew_is_known_by_its_boot_or_by_its_return(
    handshake: Handshake, trust: Trust
) -> None:
    assert handshake.is_new(state("k1"))
    trust.coordinator = state("k1")
    assert not handshake.is_new(state("k1"))
    assert handshake.is_new(state("k2"))
    trust.coordinator = replace(state("k1"), online=False)
    assert handshake.is_new(state("k1"))
