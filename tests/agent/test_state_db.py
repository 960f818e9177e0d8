"""The device's state file: its contents survive a kill, and each update counts once."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.agent.state_db import (
    RUNS,
    PendingUpdate,
    RunPosition,
    StateDb,
    open_state_db,
)
from fedclip_edge.agent.state_db_file import DamagedStateError
from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.protocol import codec
from fedclip_edge.protocol.hand_over import hand_over
from fedclip_edge.protocol.signing import create_identity
from fedclip_edge.records import Arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "parked.sqlite"


@pytest.fixture
def state_db(path: Path) -> Iterator[StateDb]:
    opened = open_state_db(path)
    yield opened
    opened.close()


def update(round: int, run: str = "run-1", body: bytes | None = None) -> PendingUpdate:
    body = body or f"{run}/{round}".encode()
    return PendingUpdate(run, round, "b" * 64, hashlib.sha256(body).hexdigest(), body, 5)


def left(value: float) -> Arrays:
    return {"gate": np.full(3, value, np.float32)}


def value(residual: Arrays) -> float:
    """The value that `left` was made with; 0 if there is no residual."""
    assert residual.keys() == ({"gate"} if residual else set())
    return float(residual["gate"][0]) if residual else 0.0


def test_the_very_same_bytes_are_there_after_a_restart(state_db: StateDb, path: Path) -> None:
    made = update(3, body=b"one\0two")
    state_db.keep_update(made, left(1))
    again = open_state_db(path)  # nothing was closed, as in a killed process
    found = again.pending_update("run-1")
    assert found is not None
    assert vars(found) == vars(made)
    assert again.pending_update("run-2") is None
    assert (again.kept_round("run-1"), value(again.residual("run-1"))) == (0, 0)
    again.close()


KILLED = """
import os, sys
from pathlib import Path
from fedclip_edge.agent.state_db import PendingUpdate, open_state_db
state_db = open_state_db(Path(sys.argv[1]))
state_db.keep_update(PendingUpdate("run-1", 1, "b" * 64, sys.argv[2], bytes(1 << 19), 5), {})
os.kill(os.getpid(), 9)
"""


def test_what_is_parked_survives_a_kill(path: Path) -> None:
    sha256 = hashlib.sha256(bytes(1 << 19)).hexdigest()
    subprocess.run([sys.executable, "-c", KILLED, str(path), sha256], check=False, timeout=60)
    state_db = open_state_db(path)
    found = state_db.pending_update("run-1")
    assert found is not None
    assert (found.sha256, found.payload) == (sha256, bytes(1 << 19))
    state_db.close()


def test_every_commit_is_synced(state_db: StateDb) -> None:
    assert state_db._rows("PRAGMA synchronous") == [(2,)]
    assert state_db._rows("PRAGMA journal_mode") == [("wal",)]


def test_what_is_left_counts_from_kept_on(state_db: StateDb) -> None:
    state_db.keep_update(update(1), left(1))
    assert value(state_db.residual("run-1")) == 0
    state_db.resolve("run-1", update(1).sha256, kept=True)
    assert (value(state_db.residual("run-1")), state_db.kept_round("run-1")) == (1, 1)
    assert state_db.pending_update("run-1") is None


def test_what_is_left_is_kept_by_value_not_by_layout(state_db: StateDb) -> None:
    term = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    state_db.keep_update(update(1), {"a": term, "b": term.T})
    state_db.resolve("run-1", update(1).sha256, kept=True)
    residual = state_db.residual("run-1")
    np.testing.assert_array_equal(residual["a"], term)
    np.testing.assert_array_equal(residual["b"], term.T)


def test_where_it_is_refused_what_was_left_before_stays(state_db: StateDb) -> None:
    state_db.keep_update(update(1), left(1))
    state_db.resolve("run-1", update(1).sha256, kept=True)
    state_db.keep_update(update(2), left(2))
    assert value(state_db.residual("run-1")) == 1
    state_db.resolve("run-1", update(2).sha256, kept=False)
    assert (value(state_db.residual("run-1")), state_db.kept_round("run-1")) == (1, 1)
    assert state_db.pending_update("run-1") is None


def test_the_same_bytes_made_again_leave_what_they_left_the_first_time(state_db: StateDb) -> None:
    """A coordinator with an old copy of its journal may ask for the same round again."""
    state_db.keep_update(update(1), left(1))
    state_db.resolve("run-1", update(1).sha256, kept=True)
    state_db.keep_update(update(1), left(2))
    state_db.resolve("run-1", update(1).sha256, kept=True)
    assert value(state_db.residual("run-1")) == 1


def test_an_answer_to_another_update_settles_nothing(state_db: StateDb) -> None:
    state_db.keep_update(update(2), left(2))
    for kept in (True, False):
        state_db.resolve("run-1", update(1).sha256, kept=kept)
        state_db.resolve("run-2", update(2).sha256, kept=kept)
    assert state_db.pending_update("run-1") is not None
    assert (value(state_db.residual("run-1")), state_db.kept_round("run-1")) == (0, 0)
    state_db.resolve("run-1", update(2).sha256, kept=True)
    assert value(state_db.residual("run-1")) == 2


def test_runs_are_apart_and_an_update_waits_for_its_own(state_db: StateDb) -> None:
    state_db.keep_update(update(1), left(1))
    state_db.resolve("run-1", update(1).sha256, kept=True)
    state_db.keep_update(update(2), left(2))
    state_db.keep_update(update(1, "run-2"), left(9))
    assert value(state_db.residual("run-2")) == 0
    state_db.resolve("run-2", update(1, "run-2").sha256, kept=True)
    assert (value(state_db.residual("run-1")), value(state_db.residual("run-2"))) == (1, 9)
    waiting = state_db.pending_update("run-1")
    assert waiting is not None
    assert waiting.payload == update(2).payload
    state_db.forget("run-2")
    assert value(state_db.residual("run-2")) == 0
    state_db.resolve("run-1", update(2).sha256, kept=True)
    assert value(state_db.residual("run-1")) == 2


def test_only_the_newest_few_runs_stay(state_db: StateDb) -> None:
    names = [f"run-{n}" for n in range(RUNS + 3)]
    for name in names:
        state_db.keep_update(update(1, name), left(1))
    assert [name for name in names if state_db.pending_update(name)] == names[-RUNS:]
    assert state_db._rows("SELECT COUNT(*) FROM residual") == [(RUNS,)]
    state_db.keep_update(update(1, names[-RUNS]), left(1))  # the oldest run is used again
    assert [name for name in names if state_db.pending_update(name)] == names[-RUNS:]


def test_the_file_does_not_grow_with_the_rounds(state_db: StateDb) -> None:
    sizes = []
    for number in range(1, 40):
        state_db.keep_update(update(number, body=bytes([number]) * 50_000), left(number))
        state_db.resolve("run-1", hashlib.sha256(bytes([number]) * 50_000).hexdigest(), kept=True)
        state_db._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(state_db.path.stat().st_size)
    assert max(sizes[10:]) <= max(sizes[:10])


# The run position.


def test_the_last_manifest_is_remembered(state_db: StateDb, path: Path) -> None:
    assert state_db.position == RunPosition()
    state_db.move_position(RunPosition(7, "run-1", 3, over=True))
    again = open_state_db(path)
    assert again.position == RunPosition(7, "run-1", 3, over=True)
    again.close()


@pytest.mark.parametrize(
    ("other", "older"),
    [
        (RunPosition(7, "run-1", 3), False),
        (RunPosition(7, "run-1", 4), False),
        (RunPosition(8, "run-1", 1), False),  # the journal was replaced by an older copy
        (RunPosition(8, "run-2", 1), False),
        (RunPosition(7, "run-2", 4), True),  # two runs in one epoch: from two journals
        (RunPosition(7, "run-1", 2), True),
        (RunPosition(6, "run-1", 9), True),
        (RunPosition(6, "run-2", 9), True),
    ],
)
def test_what_is_older_than_the_floor(other: RunPosition, older: bool) -> None:
    assert RunPosition(7, "run-1", 3).is_newer_than(other) == older


def test_nothing_of_a_run_comes_after_its_end() -> None:
    end = RunPosition(7, "run-1", 3, over=True)
    assert end.is_newer_than(RunPosition(7, "run-1", 3))
    assert not end.is_newer_than(end)
    assert not end.is_newer_than(RunPosition(8, "run-1", 3)), (
        "the journal was replaced by a copy from before the end"
    )


# Disk errors.


def break_with(state_db: StateDb, statement: str) -> None:
    """Make every statement that begins with `statement` fail, as a full disk does."""

    class Broken:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, query: str, *values: object) -> sqlite3.Cursor:
            if query.startswith(statement):
                raise sqlite3.OperationalError("database or disk is full")
            return self._connection.execute(query, *values)  # type: ignore[arg-type]

        def __enter__(self) -> None:
            self._connection.__enter__()

        def __exit__(self, *error: object) -> None:
            self._connection.__exit__(*error)  # type: ignore[arg-type]

        def close(self) -> None:
            self._connection.close()

    vars(state_db)["_database"] = Broken(state_db._database)


@pytest.mark.parametrize("statement", ["INSERT", "DELETE", "INSERT OR IGNORE INTO residual"])
def test_a_full_disk_is_said_and_changes_nothing(
    state_db: StateDb, path: Path, statement: str
) -> None:
    state_db.keep_update(update(1), left(1))
    state_db.resolve("run-1", update(1).sha256, kept=True)
    break_with(state_db, statement)
    with pytest.raises(DiskError, match=r"parked.sqlite cannot be written \(.* is full\); free"):
        state_db.keep_update(update(2), left(2))
    again = open_state_db(path)
    assert again.pending_update("run-1") is None
    assert (value(again.residual("run-1")), again.kept_round("run-1")) == (1, 1)
    again.close()


def test_an_answer_that_cannot_be_written_is_asked_for_again(state_db: StateDb, path: Path) -> None:
    state_db.keep_update(update(1), left(1))
    break_with(state_db, "DELETE FROM residual")
    with pytest.raises(DiskError, match="cannot be written"):
        state_db.resolve("run-1", update(1).sha256, kept=True)
    again = open_state_db(path)
    assert again.pending_update("run-1") is not None
    assert again.kept_round("run-1") == 0
    again.close()


def test_a_file_of_something_else_is_refused_in_words(path: Path) -> None:
    path.write_bytes(b"no database" * 100)
    with pytest.raises(DamagedStateError, match=r"is damaged .* start the agent again"):
        open_state_db(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ConfigError, match="format version 9, this program uses 5"):
        open_state_db(path)


def test_a_damaged_update_is_never_offered(
    state_db: StateDb, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite does not notice a flipped bit inside a value."""
    for name in ("run-1", "run-2"):
        state_db.keep_update(update(1, name), left(1))
    with state_db._database:
        state_db._database.execute("UPDATE parked SET body = x'00' WHERE run = 'run-1'")
    for _ in range(2):
        assert state_db.pending_update("run-1") is None
    assert state_db.pending_update("run-2") is not None
    assert capsys.readouterr().out.count("parked_update_damaged") == 1


@pytest.mark.parametrize("damage", [b"", b"no safetensors", "nan"])
def test_a_damaged_residual_counts_as_none(
    state_db: StateDb, capsys: pytest.CaptureFixture[str], damage: bytes | str
) -> None:
    state_db.keep_update(update(1), left(float("nan") if damage == "nan" else 1))
    state_db.resolve("run-1", update(1).sha256, kept=True)
    if damage != "nan":
        with state_db._database:
            state_db._database.execute("UPDATE residual SET terms = ?", (damage,))
    again = open_state_db(state_db.path)  # not from memory
    assert again.residual("run-1") == {}
    again.close()
    assert "residual_damaged" in capsys.readouterr().out


def test_a_damaged_page_is_found_when_the_file_is_opened(state_db: StateDb, path: Path) -> None:
    state_db.keep_update(update(1, body=bytes(200_000)), left(1))
    state_db.close()
    content = path.read_bytes()
    path.write_bytes(content[:40_000] + b"\x55" * 90_000 + content[130_000:])
    with pytest.raises(DamagedStateError):
        open_state_db(path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="unable to open"):
        open_state_db(tmp_path / "missing" / "parked.sqlite")


# The law of the residual: no loss is dropped, and none is added twice.

FATES = st.lists(
    st.tuples(
        st.floats(-8, 8, width=32),
        # The fate of an update: kept; kept, but the device is killed once or more before it hears
        # of it; refused; refused after a restart.
        st.sampled_from(["kept", "killed, kept", "refused", "killed, refused"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(FATES, st.sampled_from(["fp32", "fp16", "int8"]))
def test_no_residual_is_lost_or_doubled_whatever_becomes_of_the_answer(
    fates: list[tuple[float, str]], name: str
) -> None:
    """The sum of what the coordinator kept and the residual equals the sum of the kept updates."""
    shapes = {"gate": (40,)}
    random = np.random.default_rng(0)
    arrived, meant = np.zeros(40), np.zeros(40)
    database = open_state_db(Path(":memory:"))
    for number, (size, fate) in enumerate(fates, start=1):
        made = {"gate": (size * random.normal(size=40)).astype(np.float32)}
        sent, residual = codec.with_feedback(name, made, database.residual("run-1"))
        database.keep_update(update(number), residual)
        if fate.startswith("killed"):  # the memory is lost; the file says what to offer
            again = database.pending_update("run-1")
            assert again is not None
            assert again.payload == update(number).payload
        kept = fate.endswith("kept")
        if kept:
            received: Arrays = codec.restore(name, sent, shapes)
            arrived += received["gate"]
            meant += made["gate"]
        database.resolve("run-1", update(number).sha256, kept=kept)
        database.resolve("run-1", update(number).sha256, kept=kept)  # the answer arrived twice
    residual = database.residual("run-1")
    held = residual["gate"] if residual else 0
    np.testing.assert_allclose(arrived + held, meant, rtol=0, atol=1e-4)
    database.close()


def test_what_is_remembered_in_memory_is_what_the_file_says(path: Path) -> None:
    state_db = open_state_db(path)
    for number, kept in ((1, True), (2, False), (3, True)):
        state_db.keep_update(update(number), left(number))
        state_db.resolve("run-1", update(number).sha256, kept=kept)
        again = open_state_db(path)
        assert value(state_db.residual("run-1")) == value(again.residual("run-1"))
        again.close()
    state_db.forget("run-1")
    assert state_db.residual("run-1") == {}
    state_db.close()


def test_only_what_a_power_cut_may_undo_is_not_waited_for(path: Path) -> None:
    state_db = open_state_db(path)
    said: list[str] = []
    state_db._database.set_trace_callback(said.append)

    def waited_for() -> bool:
        """True if the commits since the last call waited for the disk."""
        waits = not any("synchronous = NORMAL" in statement for statement in said)
        said.clear()
        return waits

    state_db.move_position(RunPosition(1, "run-1", 1))
    assert waited_for()
    state_db.move_position(RunPosition(1, "run-1", 2))
    assert not waited_for()
    state_db.move_position(RunPosition(2, "run-1", 2))
    assert waited_for()
    state_db.keep_update(update(1), left(1))
    assert waited_for()
    state_db.resolve("run-1", update(1).sha256, kept=True)
    assert not waited_for()
    state_db.forget("run-1")
    assert waited_for()
    state_db.close()


def test_statements_about_keys_are_there_after_a_restart(state_db: StateDb, path: Path) -> None:
    keys = [create_identity() for _ in range(3)]
    one, two = hand_over(keys[0], keys[1].key), hand_over(keys[1], keys[2].key)
    state_db.add_hand_overs([one])
    state_db.add_hand_overs([one, two])
    again = open_state_db(path)
    assert set(again.hand_overs()) == {one, two}
    again._database.execute("UPDATE hand_over SET signature = 'x' WHERE old = ?", (one.old,))
    assert again.hand_overs() == (two,)  # what is damaged is asked for again
    again._database.rollback()
    again.close()
