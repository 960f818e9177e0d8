"""The upload of a contribution: written to disk before it is offered, and resolved once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import example_manifest
import numpy as np
import pytest

from fedclip_edge.agent.state_db import PendingUpdate, StateDb, open_state_db
from fedclip_edge.agent.upload import REPEAT_S, Upload
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.messages import Kept, Offer, Refused, Want
from fedclip_edge.records import Contribution, Plan, Update


@pytest.fixture
def state_db(tmp_path: Path) -> Iterator[StateDb]:
    opened = open_state_db(tmp_path / "parked.sqlite")
    yield opened
    opened.close()


def make(mine: Upload, round: int = 1, seed: int = 0) -> Offer:
    term = np.random.default_rng(seed).normal(size=(30, 40)).astype(np.float32)
    made = Contribution("run-1", round, "cam-0", "b" * 64, Update("sum", 1, {"gate": term}))
    return mine.make_offer(made, example_manifest.manifest(), now=0.0)


def sent(mine: Upload, offer: Offer, now: float = 0.0, *, sending: bool = False) -> bytes:
    incoming = chunks.Incoming(offer.blob)
    wanted = Want(offer.blob.sha256, incoming.missing)
    for chunk in mine.chunks_for(wanted, now, sending=sending):
        incoming.add_chunk(chunk)
    return incoming.assemble() if incoming.complete else b""


def test_it_is_on_disk_before_it_is_offered(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    offer = make(mine)
    found = state_db.pending_update("run-1")
    assert found is not None
    assert found.sha256 == offer.blob.sha256
    assert sent(mine, offer) == found.payload


def test_no_other_is_made_before_it_is_settled(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    offer = make(mine)
    assert mine.pending is not None
    assert not mine.owes(1)
    assert not mine.owes(2)
    mine.resolve(Kept("run-1", 1, "0" * 64))
    assert not mine.owes(2), "this answers another contribution"
    mine.resolve(Kept("run-1", 1, offer.blob.sha256))
    assert not mine.owes(1)
    assert mine.owes(2)


def test_after_a_kill_the_very_same_one_is_offered(state_db: StateDb) -> None:
    offer = make(Upload(state_db, 5))
    again = Upload(state_db, 5)
    again.resume_run("run-1")
    assert again.poll_offer(0.0, sending=False) == offer
    again.resolve(Kept("run-1", 1, offer.blob.sha256))
    after = Upload(state_db, 5)
    after.resume_run("run-1")
    assert after.pending is None
    assert not after.owes(1)


def test_what_is_left_behind_counts_once_it_is_kept(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    refused = make(mine)
    mine.resolve(Refused("late", "contribution", sha256=refused.blob.sha256, closed=1))
    assert state_db.residual("run-1") == {}
    kept = make(mine, round=2, seed=1)
    mine.resolve(Kept("run-1", 2, kept.blob.sha256))
    assert state_db.residual("run-1")["gate"].any()


def test_it_is_said_again_but_not_while_its_answer_is_on_its_way(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    offer = make(mine)
    assert mine.poll_offer(REPEAT_S - 0.1, sending=False) is None
    assert mine.poll_offer(REPEAT_S, sending=True) == offer
    sent(mine, offer, now=REPEAT_S)
    assert mine.poll_offer(2 * REPEAT_S, sending=True) is None
    assert sent(mine, offer, now=2 * REPEAT_S, sending=True) == b""
    mine.start_link(None)
    assert mine.poll_offer(2 * REPEAT_S, sending=True) == offer


def test_it_is_offered_again_in_chunks_that_the_next_link_takes(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    before = make(mine)
    body = sent(mine, before)
    mine.start_link(1_500)
    after = mine.poll_offer(REPEAT_S, sending=False)
    assert after is not None
    assert after.blob.sha256 == before.blob.sha256
    assert 24 + after.blob.chunk_bytes < 1_500 < before.blob.chunk_bytes
    assert sent(mine, after) == body != b""
    again = Upload(state_db, 5)
    again.start_link(1_500)
    again.resume_run("run-1")
    assert again.poll_offer(0.0, sending=False) == after


def test_a_refusal_in_an_open_round_settles_nothing(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    offer = make(mine)
    mine.resolve(Refused("no", "contribution", sha256=offer.blob.sha256))
    assert mine.pending is not None
    assert mine.poll_offer(100.0, sending=False) is None
    assert sent(mine, offer) == b""


def test_the_end_of_a_run_forgets_it(state_db: StateDb) -> None:
    mine = Upload(state_db, 5)
    make(mine)
    mine.end_run("run-1")
    assert mine.pending is None
    assert state_db.pending_update("run-1") is None


def test_a_lossless_update_sends_the_whole_residual(state_db: StateDb) -> None:
    residual = {"gate": np.full((2, 2), 0.2, np.float32)}
    state_db.keep_update(PendingUpdate("run-1", 1, "b" * 64, "a" * 64, b"", 5), residual)
    state_db.resolve("run-1", "a" * 64, kept=True)
    mine = Upload(state_db, 5)
    term = np.full((2, 2), 0.3, np.float32)
    made = Contribution("run-1", 2, "cam-0", "b" * 64, Update("sum", 1, {"gate": term}))
    lossless = Plan(rounds=2, vote="off", codec_up="fp32")
    offer = mine.make_offer(made, example_manifest.manifest(plan=lossless), now=0.0)
    body = sent(mine, offer)
    found = wire.unpack_contribution(body, "fp32", {"gate": (2, 2)}).update
    np.testing.assert_allclose(found.delta["gate"], 0.5, atol=1e-6)
    mine.resolve(Kept("run-1", 2, offer.blob.sha256))
    assert state_db.residual("run-1") == {}


def test_an_update_from_below_a_raised_floor_is_not_offered_again(
    state_db: StateDb, capsys: pytest.CaptureFixture[str]
) -> None:
    make(Upload(state_db, 5))
    same = Upload(state_db, 5)
    same.resume_run("run-1")
    assert same.poll_offer(0.0, sending=False) is not None
    raised = Upload(state_db, 6)
    raised.resume_run("run-1")
    assert raised.poll_offer(0.0, sending=False) is None
    assert state_db.pending_update("run-1") is None
    assert raised.owes(1)
    assert "update_withdrawn run=run-1 round=1" in capsys.readouterr().out
