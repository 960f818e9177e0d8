"""Trust in messages: the right key, no older epoch or round, no answer to an earlier process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from session_scene import ME, TOPICS, manifest, state

from fedclip_edge.agent.state_db import RunPosition, StateDb, open_state_db
from fedclip_edge.agent.trust import Trust
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.hand_over import hand_over, newest_key
from fedclip_edge.protocol.messages import CoordinatorState, Kept, Message

STRANGER = signing.create_identity()


@pytest.fixture
def state_db(tmp_path: Path) -> Iterator[StateDb]:
    opened = open_state_db(tmp_path / "parked.sqlite")
    yield opened
    opened.close()


def signed(message: Message, by: signing.Identity = ME, name: str = "coordinator") -> wire.Signed:
    payload = wire.pack_control(message, name, TOPICS.manifest, by)
    return wire.unpack_control(TOPICS.manifest, payload)


def test_the_first_key_of_a_run_is_its_key(state_db: StateDb) -> None:
    believing = Trust("b1", "", state_db)
    believing.check(signed(manifest()))
    with pytest.raises(PeerError):
        believing.check(signed(replace(manifest(), key=STRANGER.key), STRANGER))


def test_the_pinned_key_is_the_only_one(state_db: StateDb) -> None:
    believing = Trust("b1", STRANGER.key, state_db)
    with pytest.raises(PeerError):
        believing.check(signed(manifest()))
    believing.check(signed(replace(manifest(), key=STRANGER.key), STRANGER))


def new_key(old: signing.Identity, new: signing.Identity, *, named: str = "") -> CoordinatorState:
    """The state of a coordinator with the key `new`, and the statement of `old` about it."""
    return replace(state(), key=new.key, hand_overs=(hand_over(old, named or new.key),))


def test_a_pinned_key_is_followed_to_the_one_that_it_names(state_db: StateDb) -> None:
    trust = Trust("b1", ME.key, state_db)
    trust.check(signed(manifest()))
    trust.accept_manifest(manifest(), direct=False)
    trust.check(signed(new_key(ME, STRANGER), STRANGER))
    assert trust.coordinator_key == STRANGER.key
    # From now on only the new key counts, also for messages that do not name a key.
    trust.check(signed(replace(manifest(), key=STRANGER.key), STRANGER))
    trust.check(signed(Kept("run-1", 1, "0" * 64), STRANGER))
    for message in (manifest(), state(), Kept("run-1", 1, "0" * 64)):
        with pytest.raises(PeerError, match="wrong signature"):
            trust.check(signed(message))
    # The earlier key names no other one any more.
    third = signing.create_identity()
    with pytest.raises(PeerError, match="wrong signature"):
        trust.check(signed(new_key(ME, third), third))
    assert newest_key(ME.key, state_db.hand_overs()) == STRANGER.key


def test_no_other_statement_replaces_a_pinned_key(state_db: StateDb) -> None:
    thief = signing.create_identity()
    trust = Trust("b1", ME.key, state_db)
    for forged, by in (
        (new_key(thief, thief), thief),  # not signed by the pinned key
        (new_key(ME, thief, named=STRANGER.key), thief),  # about another key
        (new_key(ME, STRANGER), thief),  # seen on the way, and shown by somebody else
    ):
        with pytest.raises(PeerError, match="wrong signature"):
            trust.check(signed(forged, by))
    with pytest.raises(PeerError, match="only the coordinator may"):
        trust.check(signed(new_key(ME, STRANGER), STRANGER, name="cam-7"))
    assert trust.coordinator_key == ME.key
    assert state_db.hand_overs() == ()


def test_without_enrolment_no_statement_counts(state_db: StateDb) -> None:
    trust = Trust("b1", "", state_db)
    trust.check(signed(manifest()))
    with pytest.raises(PeerError, match="wrong signature"):
        trust.check(signed(new_key(ME, STRANGER), STRANGER))
    assert trust.coordinator_key == ""


def test_nobody_else_speaks_for_the_coordinator(state_db: StateDb) -> None:
    with pytest.raises(PeerError, match="only the coordinator may"):
        Trust("b1", "", state_db).check(signed(manifest(), name="cam-7"))


def test_an_answer_before_any_manifest_is_not_believed(state_db: StateDb) -> None:
    with pytest.raises(PeerError, match="before the first manifest"):
        Trust("b1", "", state_db).check(signed(Kept("run-1", 1, "0" * 64)))


def test_an_older_round_or_epoch_is_refused_also_after_a_restart(state_db: StateDb) -> None:
    newest = manifest(round=2, epoch=3, closed=1)
    Trust("b1", "", state_db).accept_manifest(newest, direct=False)
    after = Trust("b2", "", state_db)
    for older in (
        manifest(epoch=3),
        manifest(round=9, epoch=2, closed=8),
    ):
        with pytest.raises(PeerError, match="older than 1 closed rounds of"):
            after.accept_manifest(older, direct=False)
        assert after.manifest is None
    with pytest.raises(PeerError, match="older than the known epoch 3"):
        after.accept_coordinator(replace(state(), epoch=2))
    after.accept_manifest(newest, direct=False)


def test_an_answer_to_another_process_is_refused(state_db: StateDb) -> None:
    believing = Trust("b2", "", state_db)
    with pytest.raises(PeerError, match="answers the process 'b1'"):
        believing.accept_manifest(manifest(answers="b1"), direct=True)
    believing.accept_manifest(manifest(answers="b2"), direct=True)


def test_each_message_of_a_coordinator_that_is_behind_raises_one_doubt(state_db: StateDb) -> None:
    newest = manifest(round=2, epoch=3, closed=1)
    trust = Trust("b1", "", state_db)
    trust.accept_manifest(newest, direct=False)
    for late in (manifest(epoch=3), newest):  # its own coordinator's
        with contextlib.suppress(PeerError):
            trust.accept_manifest(late, direct=False)
        assert not trust.take_doubt()
    for behind in (replace(newest, epoch=2), replace(newest, run="run-2")):
        for expected in (True, False):  # a retained message comes again
            with pytest.raises(PeerError):
                trust.accept_manifest(behind, direct=False)
            assert [trust.take_doubt(), trust.take_doubt()] == [expected, False]
    for said, expected in (
        (state("k2", epoch=2), True),
        (state("k2", epoch=2), False),
        (state("k3", epoch=2), True),
        (state("k3", epoch=2, online=False), False),
    ):
        with pytest.raises(PeerError):
            trust.accept_coordinator(said)
        assert trust.take_doubt() == expected


def test_the_end_in_an_older_epoch_is_noted_and_ends_the_run_once(state_db: StateDb) -> None:
    trust = Trust("b1", "", state_db)
    trust.accept_manifest(manifest(epoch=3, closed=1), direct=False)
    ended = manifest(epoch=2, phase="done", closed=30)
    for other in (replace(ended, run="run-2"), replace(ended, phase="open"), ended):
        assert trust.older_end is None
        with pytest.raises(PeerError):
            trust.accept_manifest(other, direct=False)
    assert trust.older_end == ended
    assert trust.miss_end() == "run-1"
    assert state_db.position == RunPosition(3, "run-1", 30, over=True)
    assert not trust.is_mine
    with pytest.raises(PeerError):
        trust.accept_manifest(ended, direct=False)
    assert trust.older_end is None, "it ends a second time"


def test_a_manifest_that_is_accepted_makes_an_older_end_void(state_db: StateDb) -> None:
    trust = Trust("b1", "", state_db)
    trust.accept_manifest(replace(manifest(), epoch=3), direct=False)
    with pytest.raises(PeerError):
        trust.accept_manifest(replace(manifest(), epoch=2, phase="done"), direct=False)
    trust.accept_manifest(replace(manifest(), epoch=4), direct=False)
    assert trust.older_end is None
