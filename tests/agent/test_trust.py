"""Trust in messages: the right key, no older epoch or round, no answer to an earlier process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from session_scene import ME, TOPICS, manifest, state

from fedclip_edge.agent.state_db import StateDb, open_state_db
from fedclip_edge.agent.trust import Trust
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.messages import Kept, Message

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
