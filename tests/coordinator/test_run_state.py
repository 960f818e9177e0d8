"""The run state: stored before it changes, and equal after a restart at any point."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import ENCODER, class_texts
from opened import opened

from fedclip_edge import model_file
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.journal_contributions import Contributions
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.errors import ConfigError, JournalError, PeerError
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.records import Contribution, Plan, Update

CLASSES, D = class_texts(), 8
PLAN = Plan("fedclip", rounds=3, vote="off")


def config(folder: Path, plan: Plan = PLAN) -> FleetConfig:
    return FleetConfig("lab", bundle=folder, journal=folder / "journal.sqlite", plan=plan)


def open_books(folder: Path) -> run_state.RunState:
    """The run state of a process that has just started."""
    settings = config(folder)
    journal = opened(open_journal(settings.journal))
    run = choose_run(settings, CLASSES, D, ENCODER, journal).begin()
    return run_state.open_run_state(run, journal, Schedule(run.plan, CLASSES, D))


def contribution(
    state: run_state.RunState, device: str, seed: int
) -> tuple[Contribution, str, bytes]:
    random = np.random.default_rng(seed)
    terms = {
        name: (0.001 * random.normal(size=shape)).astype(np.float32)
        for name, shape in state.layout.parameters.items()
    }
    made = Contribution(
        run=state.run.id,
        round=state.model.round + 1,
        device=device,
        exchange=state.exchange.sha256,
        update=Update("sum", 1, terms),
    )
    body = wire.pack_contribution(made, PLAN.codec_up)
    made = wire.unpack_contribution(body, PLAN.codec_up, state.layout.parameters)
    return made, chunks.blob_of(body, "update").sha256, body


def test_a_process_that_starts_again_comes_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "again").mkdir()
    undisturbed = open_books(tmp_path / "once")
    restarted = open_books(tmp_path / "again")
    for number in range(PLAN.rounds):
        for device in ("cam-0", "cam-1", "cam-2"):
            seed = 10 * number + int(device[-1])
            undisturbed.keep(*contribution(undisturbed, device, seed))
            restarted.keep(*contribution(restarted, device, seed))
            # As if the process was killed after each contribution.
            restarted = open_books(tmp_path / "again")
        assert list(restarted.kept()) == ["cam-0", "cam-1", "cam-2"]
        undisturbed.close_round()
        restarted.close_round()
        restarted = open_books(tmp_path / "again")
        assert restarted.stored.payload == undisturbed.stored.payload
        assert restarted.stored.master == undisturbed.stored.master
        assert restarted.kept() == {}
    assert restarted.model.round == PLAN.rounds


def test_the_model_is_kept_in_float32_whatever_it_is_published_in(tmp_path: Path) -> None:
    """Otherwise a change below half a step of the codec would be lost in every round."""
    state = open_books(tmp_path)
    published = wire.unpack_model(state.stored.payload, PLAN.codec_down, state.layout.parameters)
    assert any((published.parameters[n] != t).any() for n, t in state.model.parameters.items())
    assert state.version == hashlib.sha256(state.stored.payload).hexdigest()
    tiny = {
        name: np.full(shape, 1e-7, np.float32) for name, shape in state.layout.parameters.items()
    }
    before = state.model
    for _ in range(PLAN.rounds):
        exchange, number = state.exchange.sha256, state.model.round + 1
        update = Update("sum", 1, tiny)
        made = Contribution(state.run.id, number, "cam-0", exchange, update)
        body = wire.pack_contribution(made, PLAN.codec_up)
        made = wire.unpack_contribution(body, PLAN.codec_up, state.layout.parameters)
        state.keep(made, chunks.blob_of(body, "update").sha256, body)
        state.close_round()
        state = open_books(tmp_path)
    for name, term in before.parameters.items():
        moved = state.model.parameters[name].astype(np.float64) - term
        assert moved.mean() == pytest.approx(PLAN.rounds * 1e-7, rel=0.1)


@pytest.mark.parametrize(("name", "stored_twice"), [("fp32", False), ("fp16", True)])
def test_only_a_lossy_codec_costs_a_second_copy(
    tmp_path: Path, name: Any, stored_twice: bool
) -> None:
    settings = config(tmp_path, dataclasses.replace(PLAN, codec_up="fp32", codec_down=name))
    journal = opened(open_journal(settings.journal))
    run = choose_run(settings, CLASSES, D, ENCODER, journal).begin()
    shapes = {"0.weight": (D, D), "0.bias": (D,), "2.weight": (D, D), "2.bias": (D,)}
    state = run_state.open_run_state(run, journal, Schedule(run.plan, CLASSES, D))
    assert (state.stored.master is not None) == stored_twice
    small = {name: np.full(shape, 0.001, np.float32) for name, shape in shapes.items()}
    state.total.add(Update("sum", 1, small))
    state.close_round()
    sizes = journal.rows("SELECT LENGTH(body), master IS NOT NULL FROM model ORDER BY round")
    assert [bool(master) for _, master in sizes] == [stored_twice] * 2
    assert sizes[1][0] == len(state.stored.payload)


def test_what_was_kept_is_known_after_its_round_closed(tmp_path: Path) -> None:
    state = open_books(tmp_path)
    made, sha256, body = contribution(state, "cam-0", 1)
    assert not state.has_kept("cam-0", 1, sha256)
    state.keep(made, sha256, body)
    state.close_round()
    state = open_books(tmp_path)
    assert state.has_kept("cam-0", 1, sha256)
    assert not state.has_kept("cam-0", 2, sha256)
    assert not state.has_kept("cam-1", 1, sha256)
    assert not state.has_kept("cam-0", 1, "a" * 64)
    assert state.journal.contributions.kept_bytes(state.run.id, 1) == len(body)
    assert state.journal.contributions.kept_bytes(state.run.id, 2) == 0


def test_what_the_disk_refuses_is_not_in_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = open_books(tmp_path)

    def full(*_: object) -> None:
        raise JournalError("full")

    monkeypatch.setattr(Contributions, "keep", full)
    with pytest.raises(JournalError):
        state.keep(*contribution(state, "cam-0", 0))
    assert state.total.weight == 0
    assert state.kept() == {}


def test_an_update_out_of_bounds_is_refused_before_it_is_kept(tmp_path: Path) -> None:
    state = open_books(tmp_path)
    made, _, _ = contribution(state, "cam-0", 0)
    huge = {name: term * np.float32(1e6) for name, term in made.update.delta.items()}
    with pytest.raises(PeerError, match="max_norm"):
        state.check("cam-0", 1, dataclasses.replace(made, update=Update("sum", 1, huge)))
    state.check("cam-0", 1, made)


def test_what_is_not_for_this_device_round_and_model_is_refused(tmp_path: Path) -> None:
    state = open_books(tmp_path)
    made, _, _ = contribution(state, "cam-0", 0)
    for name, other in (
        ("device", "cam-1"),
        ("round", 2),
        ("exchange", "0" * 64),
        ("run", "run-0"),
    ):
        with pytest.raises(PeerError, match=f"contribution: {name} is"):
            state.check("cam-0", 1, dataclasses.replace(made, **{name: other}))  # type: ignore[arg-type]


def test_a_run_is_finished_with_its_model_in_a_file(tmp_path: Path) -> None:
    state = open_books(tmp_path)
    state.keep(*contribution(state, "cam-0", 1))
    state.close_round()
    path = state.finish()
    assert path == tmp_path / "models" / f"{state.run.id}.safetensors"
    found = model_file.read(path)
    assert (found.run, found.plan, found.model.round) == (state.run.id, PLAN, 1)
    for name, term in state.model.parameters.items():
        np.testing.assert_array_equal(found.model.parameters[name], term)
    assert state.journal.runs.unfinished() is None


def test_a_run_whose_model_cannot_be_written_stays_unfinished(tmp_path: Path) -> None:
    state = open_books(tmp_path)
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(JournalError, match=r"the model .* cannot be written .*start again"):
        state.finish()
    assert state.journal.runs.unfinished() == state.run
    (tmp_path / "models").unlink()
    again = open_books(tmp_path)
    assert again.run == state.run
    assert again.finish().is_file()


DEVICES = ("cam-0", "cam-1")


def half_a_round(folder: Path) -> run_state.RunState:
    """A run in its second round, with one of two contributions."""
    state = open_books(folder)
    state.journal.next_epoch()
    for number, device in enumerate(DEVICES):
        state.journal.devices.pin_key(state.run.id, device, str(number) * 64)
        state.keep(*contribution(state, device, number))
    state.close_round()
    state.keep(*contribution(state, "cam-0", 2))
    return state


def second_round(folder: Path, *, lost: bool = False) -> tuple[str, bytes]:
    """The run, and its published model of round 2, from a journal that `half_a_round` made.

    With `lost`, the journal may be in an earlier state. The devices then make the same
    contributions again.
    """
    journal = opened(open_journal(config(folder).journal))
    try:
        journal.check()
        state = open_books(folder)
        if not lost:
            assert (state.model.round, list(state.kept())) == (1, ["cam-0"])
            assert state.journal.devices.keys(state.run.id) == {
                "cam-0": "0" * 64,
                "cam-1": "1" * 64,
            }
        state.journal.next_epoch()
        while state.model.round < 2:
            for number, device in enumerate(DEVICES):
                if device not in state.kept():
                    state.keep(*contribution(state, device, 2 * state.model.round + number))
            state.close_round()
        state.journal.close()
        return state.run.id, state.stored.payload
    finally:
        journal.close()


@functools.cache
def undamaged() -> tuple[bytes, bytes, bytes, tuple[str, bytes]]:
    """The journal that `half_a_round` makes, and the run with the model of its second round.

    The journal is given as one file, and as the file and the log that a kill leaves.
    """
    with TemporaryDirectory() as name:
        path = config(Path(name)).journal
        state = half_a_round(Path(name))
        killed, log = path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()
        state.journal.close()
        return path.read_bytes(), killed, log, second_round(Path(name))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_is_found_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, flip: int, used: bool
) -> None:
    content, _, _, expected = undamaged()
    places = [at for at, byte in enumerate(content) if byte] if used else range(len(content))
    at = data.draw(st.sampled_from(places))
    damaged = bytearray(content)
    damaged[at] ^= flip
    folder = tmp_path_factory.mktemp("damaged")
    config(folder).journal.write_bytes(damaged)
    with contextlib.suppress(JournalError, ConfigError):
        assert second_round(folder) == expected


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 255))
def test_a_flipped_byte_in_the_log_loses_no_more_than_its_end(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, flip: int
) -> None:
    _, content, log, expected = undamaged()
    damaged = bytearray(log)
    damaged[data.draw(st.integers(0, len(log) - 1))] ^= flip
    path = config(tmp_path_factory.mktemp("damaged")).journal
    path.write_bytes(content)
    path.with_name(f"{path.name}-wal").write_bytes(damaged)
    assert second_round(path.parent, lost=True) == expected


def change(folder: Path, statement: str) -> None:
    """Change the journal as damage would, which SQLite itself does not notice."""
    with contextlib.closing(sqlite3.connect(config(folder).journal)) as database, database:
        assert database.execute(statement).rowcount == 1


# The parts of a row that neither an index nor a constraint protects.
DAMAGE = {
    "model": "UPDATE model SET body = CAST(body || x'00' AS BLOB) WHERE round = 1",
    "master": "UPDATE model SET master = x'00' || substr(master, 2) WHERE round = 1",
    "server state": "UPDATE model SET server_state = server_state || x'00' WHERE round = 1",
    "contribution": "UPDATE payload SET body = CAST(body || x'00' AS BLOB)",
    "lost contribution": "DELETE FROM payload",
    "run of a contribution": "UPDATE contribution SET device = 'cam-7' WHERE round = 2",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_with_the_round_to_go_back_to(tmp_path: Path, what: str) -> None:
    whole = 0 if what in ("model", "master", "server state") else 1
    state = half_a_round(tmp_path)
    change(tmp_path, DAMAGE[what])
    with pytest.raises(JournalError, match=rf"is damaged: .*: add --from-round {whole} to `serve`"):
        open_books(tmp_path)
    journal = opened(open_journal(config(tmp_path).journal))
    if whole == 0:
        with pytest.raises(ConfigError, match=r"models are of the rounds 0; name one"):
            journal.rounds.rewind(state.run.id, 1)
    journal.rounds.rewind(state.run.id, whole)
    again = open_books(tmp_path)
    assert again.run == state.run
    assert (again.model.round, again.kept()) == (whole, {})


def test_without_a_whole_model_the_run_is_said_to_be_lost(tmp_path: Path) -> None:
    half_a_round(tmp_path)
    change(tmp_path, "UPDATE model SET body = x'00' WHERE round = 0")
    change(tmp_path, "UPDATE model SET body = x'00' WHERE round = 1")
    with pytest.raises(JournalError, match=r"its runs are lost unless you restore a copy"):
        open_books(tmp_path)


def test_after_going_back_the_same_contributions_give_the_same_model(tmp_path: Path) -> None:
    half_a_round(tmp_path)
    *_, (_, model) = undamaged()
    state = open_books(tmp_path)
    state.journal.rounds.rewind(state.run.id, 0)
    state = open_books(tmp_path)
    for seeds in ((0, 1), (2, 3)):
        for number, seed in enumerate(seeds):
            state.keep(*contribution(state, f"cam-{number}", seed))
        state.close_round()
        state = open_books(tmp_path)
    assert state.stored.payload == model
