"""The journal: everything that was acknowledged is there, whole, after any failure."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import system
from denied import needs_denial, without_root
from drawn_records import PLANS, REPORTS, report
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.coordinator.journal import Journal, open_journal, open_journal_to_read
from fedclip_edge.coordinator.journal_tables import SCHEMA, Run, Sent, StoredModel
from fedclip_edge.errors import ConfigError, JournalError, RunError
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan

RUN = Run("run-1", Plan("fedclip", rounds=3, vote="off", options={"lr": 0.1}), "e" * 64, "c" * 64)


def model(round: int, body: bytes = b"body", state: bytes = b"") -> StoredModel:
    return StoredModel(round, sha256_of(body), body, state)


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def same(left: StoredModel, right: StoredModel) -> bool:
    return all(getattr(left, name) == getattr(right, name) for name in vars(left))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = open_journal(path)
    opened.runs.add(RUN, model(0))
    yield opened
    opened.close()


def database(journal: Journal) -> sqlite3.Connection:
    return journal._database


def break_with(journal: Journal, statement: str, error: Exception) -> None:
    """Make every statement that begins with `statement` fail, as a disk would."""

    class Broken:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if query.startswith(statement):
                raise error
            return self._connection.execute(query, *values)

        def __enter__(self) -> None:
            self._connection.__enter__()

        def __exit__(self, *error: object) -> None:
            self._connection.__exit__(*error)  # type: ignore[arg-type]

        def close(self) -> None:
            self._connection.close()

    vars(journal)["_database"] = Broken(journal._database)


def test_what_is_kept_survives_reopening(journal: Journal, path: Path) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one\0"), b"one\0", 0.5, 1)
    journal.contributions.keep("run-1", 1, "cam-02", sha256_of(b"two"), b"two", 0.5, 1)
    journal.contributions.keep("run-1", 2, "cam-01", "c" * 64, b"later", 0.5, 1)
    journal.reports.add(report(run="run-1"))
    journal.devices.pin_key("run-1", "cam-01", "d" * 64)
    # Not closed, as after a kill.
    again = open_journal(path)
    assert again.runs.unfinished() == again.runs.last() == RUN
    assert again.contributions.kept("run-1", 1) == {
        "cam-01": sha256_of(b"one\0"),
        "cam-02": sha256_of(b"two"),
    }
    assert list(again.contributions.payloads("run-1", 1)) == [
        ("cam-01", b"one\0"),
        ("cam-02", b"two"),
    ]
    assert list(again.contributions.payloads("run-2", 1)) == []
    assert again.reports.all("run-1") == (report(run="run-1"),)
    assert again.devices.keys("run-1") == {"cam-01": "d" * 64}
    assert same(again.rounds.newest_model("run-1"), model(0))
    again.close()


KILLED = """
import hashlib, os, sys
from pathlib import Path
from fedclip_edge.coordinator.journal import open_journal
journal = open_journal(Path(sys.argv[1]))
body = bytes(1 << 20)
journal.contributions.keep("run-1", 1, "cam-01", hashlib.sha256(body).hexdigest(), body, 0.5, 1)
os.kill(os.getpid(), 9)
"""


def test_what_is_kept_survives_a_kill(journal: Journal, path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    body = bytes(1 << 20)
    assert journal.contributions.kept("run-1", 1) == {"cam-01": sha256_of(body)}
    assert list(journal.contributions.payloads("run-1", 1)) == [("cam-01", body)]


def test_every_commit_is_synced(journal: Journal) -> None:
    assert database(journal).execute("PRAGMA synchronous").fetchone() == (2,)
    assert database(journal).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run-1", "run-2"]),
            st.integers(1, 2),
            st.sampled_from(["a", "b", "c"]),
            st.binary(min_size=1, max_size=40),
        ),
        max_size=12,
    )
)
def test_the_first_contribution_per_run_round_and_device_stays(
    tmp_path_factory: pytest.TempPathFactory, offered: list[tuple[str, int, str, bytes]]
) -> None:
    journal = open_journal(tmp_path_factory.mktemp("journal") / "journal.sqlite")
    first: dict[tuple[str, int, str], bytes] = {}
    for run, number, device, body in offered:
        sha256 = hashlib.sha256(body).hexdigest()
        if (run, number, device) in first:
            with pytest.raises(sqlite3.IntegrityError):
                journal.contributions.keep(run, number, device, sha256, body, 0.5, 1)
        else:
            journal.contributions.keep(run, number, device, sha256, body, 0.5, 1)
            first[run, number, device] = body
    for run in ("run-1", "run-2"):
        for number in (1, 2):
            found = dict(journal.contributions.payloads(run, number))
            assert list(found) == list(journal.contributions.kept(run, number))
            assert found == {d: b for (r, n, d), b in first.items() if (r, n) == (run, number)}
    journal.close()


def test_closing_a_round_adds_the_model_and_deletes_what_made_it(journal: Journal) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    journal.contributions.keep("run-1", 2, "cam-01", sha256_of(b"two"), b"two", 0.5, 1)
    assert journal.rounds.closed("run-1") == 0
    closed = model(1, b"next\0", b"moments")
    journal.rounds.close("run-1", closed)
    assert same(journal.rounds.newest_model("run-1"), closed)
    assert journal.rounds.closed("run-1") == 1
    rows = database(journal).execute("SELECT round, size_bytes FROM contribution").fetchall()
    assert rows == [(1, 3), (2, 3)]
    assert database(journal).execute("SELECT body FROM payload").fetchall() == [(b"two",)]
    assert list(journal.contributions.payloads("run-1", 2)) == [("cam-01", b"two")]
    # A counted contribution stays known after its payload is deleted.
    with pytest.raises(sqlite3.IntegrityError):
        journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)


def test_a_round_cannot_close_twice(journal: Journal) -> None:
    journal.rounds.close("run-1", model(1, b"first"))
    with pytest.raises(sqlite3.IntegrityError):
        journal.rounds.close("run-1", model(1, b"second"))
    assert journal.rounds.newest_model("run-1").payload == b"first"


@pytest.mark.parametrize("statement", ["INSERT INTO model", "DELETE FROM payload"])
def test_closing_a_round_happens_whole_or_not_at_all(
    journal: Journal, path: Path, statement: str
) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one"), b"one", 0.5, 1)
    break_with(journal, statement, sqlite3.OperationalError("database or disk is full"))
    with pytest.raises(JournalError, match=r"journal\.sqlite cannot be written \(database or disk"):
        journal.rounds.close("run-1", model(1))
    for opened in (journal, open_journal(path)):
        assert opened.rounds.closed("run-1") == 0
        assert list(opened.contributions.payloads("run-1", 1)) == [("cam-01", b"one")]
    opened.close()


def test_a_bug_in_the_middle_changes_nothing_either(journal: Journal, path: Path) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    break_with(journal, "DELETE FROM payload", KeyError("no such thing"))
    with pytest.raises(KeyError):
        journal.rounds.close("run-1", model(1))
    again = open_journal(path)
    assert again.rounds.closed("run-1") == 0
    again.close()


def test_a_full_disk_is_said_and_nothing_is_half_there(journal: Journal) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    (pages,) = database(journal).execute("PRAGMA page_count").fetchone()
    database(journal).execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="free or repair the disk and start again"):
        journal.contributions.keep("run-1", 1, "cam-02", "b" * 64, bytes(1 << 20), 0.5, 1)
    assert list(journal.contributions.kept("run-1", 1)) == ["cam-01"]


WRITES: list[Any] = [
    lambda journal: journal.next_epoch(),
    lambda journal: journal.runs.add(replace(RUN, id="run-2"), model(0)),
    lambda journal: journal.runs.finish("run-1"),
    lambda journal: journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1),
    lambda journal: journal.rounds.close("run-1", model(1)),
    lambda journal: journal.reports.add(report(run="run-1")),
    lambda journal: journal.devices.pin_key("run-1", "cam-01", "d" * 64),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_the_database_refuses_is_a_store_error(journal: Journal, write: Any) -> None:
    database(journal).execute("PRAGMA query_only = ON")
    with pytest.raises(JournalError, match="readonly"):
        write(journal)
    database(journal).execute("PRAGMA query_only = OFF")
    write(journal)


def test_a_damaged_file_is_a_store_error(journal: Journal, path: Path) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, bytes(100_000), 0.5, 1)
    (page_bytes,) = database(journal).execute("PRAGMA page_size").fetchone()
    journal.close()
    raw = bytearray(path.read_bytes())
    # Opening the file reads only the first page.
    raw[page_bytes:] = b"\xff" * (len(raw) - page_bytes)
    path.write_bytes(raw)
    damaged = open_journal(path)
    with pytest.raises(JournalError, match="malformed"):
        damaged.contributions.keep("run-1", 1, "cam-02", "b" * 64, b"two", 0.5, 1)
    damaged.close()


def test_what_is_added_while_the_journal_holds_is_on_disk_after_a_sync(
    journal: Journal, path: Path
) -> None:
    other = open_journal(path)
    journal.hold()
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one"), b"one", 0.5, 1)
    journal.reports.add(report(run="run-1"))
    journal.contributions.keep("run-1", 1, "cam-02", sha256_of(b"two"), b"two", 0.5, 1)
    assert (other.contributions.kept("run-1", 1), other.reports.all("run-1")) == ({}, ())
    other.runs.finish("run-1")  # another process can write meanwhile
    journal.sync()
    assert list(other.contributions.kept("run-1", 1)) == ["cam-01", "cam-02"]
    assert other.reports.all("run-1") == (report(run="run-1"),)
    journal.contributions.keep(
        "run-1", 1, "cam-03", "c" * 64, b"three", 0.5, 1
    )  # does not wait any more
    assert list(other.contributions.kept("run-1", 1)) == ["cam-01", "cam-02", "cam-03"]
    other.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.rounds.close("run-1", model(1)),
        lambda journal: journal.devices.pin_key("run-1", "cam-01", "d" * 64),
        lambda journal: journal.next_epoch(),
    ],
)
def test_any_other_write_puts_what_was_held_on_disk_first(
    journal: Journal, path: Path, write: Any
) -> None:
    journal.hold()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    write(journal)
    journal.close()
    again = open_journal(path)
    assert list(again.contributions.kept("run-1", 1)) == ["cam-01"]
    again.close()


def test_an_addition_that_fails_takes_all_that_was_held_with_it(
    journal: Journal, path: Path
) -> None:
    """The process ends then, and nothing of it was acknowledged."""
    journal.hold()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    journal.contributions.keep("run-1", 1, "cam-01", "b" * 64, b"two", 0.5, 1)
    with pytest.raises(sqlite3.IntegrityError):
        journal.sync()
    again = open_journal(path)
    assert again.contributions.kept("run-1", 1) == {}
    again.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1),
        lambda journal: journal.reports.add(report(run="run-1")),
    ],
)
def test_who_was_taken_over_from_holds_nothing(journal: Journal, path: Path, write: Any) -> None:
    journal.next_epoch()
    other = open_journal(path)
    other.next_epoch()
    journal.hold()
    write(journal)
    with pytest.raises(RunError, match="took over"):
        journal.sync()
    assert (other.contributions.kept("run-1", 1), other.reports.all("run-1")) == ({}, ())
    other.close()


def test_epochs_grow_across_processes_and_above_any_that_was_seen(
    journal: Journal, path: Path
) -> None:
    assert [journal.next_epoch(), journal.next_epoch()] == [1, 2]
    assert journal.next_epoch(above=40) == 41
    assert journal.next_epoch(above=5) == 42
    again = open_journal(path)
    assert again.next_epoch() == 43
    again.close()


_CLAIMS = """
import sys
from pathlib import Path
from fedclip_edge.coordinator.journal import open_journal
print("ready", flush=True)
for path in sys.stdin:
    journal = open_journal(Path(path.strip()))
    print(journal.next_epoch(), flush=True)
    journal.close()
"""


def test_two_that_make_it_at_once_have_one_journal(tmp_path: Path) -> None:
    with contextlib.ExitStack() as ends:
        both = [
            ends.enter_context(
                system.running(
                    [sys.executable, "-c", _CLAIMS],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        assert [system.line_of(one) for one in both] == ["ready", "ready"]
        for number in range(30):
            for one in both:
                system.tell(one, str(tmp_path / f"{number}/journal.sqlite"))
            assert {system.line_of(one) for one in both} == {"1", "2"}


@pytest.mark.parametrize("write", WRITES)
def test_who_was_taken_over_from_writes_nothing_more(
    journal: Journal, path: Path, write: Any
) -> None:
    journal.next_epoch()
    other = open_journal(path)
    assert other.epoch == 1
    # Reading and writing do not claim the journal.
    other.contributions.keep("run-1", 2, "cam-02", "b" * 64, b"two", 0.5, 1)
    journal.contributions.keep("run-1", 2, "cam-03", "c" * 64, b"three", 0.5, 1)
    assert other.next_epoch() == 2
    content = list(database(other).iterdump())
    with pytest.raises(RunError, match=r"took over the journal .* \(epoch 2\)"):
        write(journal)
    assert list(database(other).iterdump()) == content
    write(other)
    other.close()


def test_a_run_is_gone_on_with_until_it_is_finished(journal: Journal, path: Path) -> None:
    journal.runs.finish("run-1")
    assert journal.runs.unfinished() is None
    assert journal.runs.last() == RUN
    newer = replace(RUN, id="a-run")  # runs are ordered by age, not by name
    journal.runs.add(newer, model(0))
    assert journal.runs.unfinished() == journal.runs.last() == newer
    again = open_journal(path)
    assert again.runs.unfinished() == newer
    again.close()


def test_runs_are_there_oldest_first(journal: Journal) -> None:
    assert journal.runs.all() == (RUN,)
    journal.runs.add(replace(RUN, id="run-0"), model(0))
    assert [run.id for run in journal.runs.all()] == ["run-1", "run-0"]


def test_an_empty_journal_has_no_run(path: Path) -> None:
    journal = open_journal(path)
    assert journal.runs.unfinished() is None
    assert journal.runs.last() is None
    journal.close()


@settings(max_examples=40)
@given(PLANS, st.lists(REPORTS, max_size=4), st.binary(min_size=1), st.binary())
def test_what_is_read_back_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    plan: Plan,
    reports: list[Report],
    body: bytes,
    state: bytes,
) -> None:
    journal = open_journal(tmp_path_factory.mktemp("journal") / "journal.sqlite")
    run = replace(RUN, plan=plan)
    journal.runs.add(run, model(0, body, state))
    assert journal.runs.last() == run
    assert same(journal.rounds.newest_model("run-1"), model(0, body, state))
    last = {}
    for one in reports:
        journal.reports.add(one)
        last[one.run, one.round, one.device] = one  # a later report replaces an earlier one
    for name in {one.run for one in reports}:
        expected = [last[key] for key in sorted(last) if key[0] == name]
        assert list(journal.reports.all(name)) == expected
    journal.close()


def test_a_device_has_one_key_in_each_run(journal: Journal) -> None:
    for run, device, key in (
        ("run-1", "cam-01", "a" * 64),
        ("run-1", "cam-01", "b" * 64),
        ("run-1", "cam-02", "c" * 64),
        ("run-2", "cam-01", "d" * 64),
    ):
        journal.devices.pin_key(run, device, key)
    assert journal.devices.keys("run-1") == {"cam-01": "b" * 64, "cam-02": "c" * 64}
    assert journal.devices.keys("run-2") == {"cam-01": "d" * 64}


def test_a_journal_of_another_version_is_left_alone(journal: Journal, path: Path) -> None:
    database(journal).execute("PRAGMA user_version = 1")
    journal.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"format version 1, this program uses {SCHEMA.version}"):
        open_journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 1])
def test_a_database_of_something_else_is_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "features.sqlite"
    other = sqlite3.connect(path)
    other.executescript(f"CREATE TABLE feature (a); PRAGMA user_version = {version};")
    other.close()
    with pytest.raises(ConfigError, match=r"features\.sqlite.*set 'journal' to another file"):
        open_journal(path)
    other = sqlite3.connect(path)
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("feature",)]
    other.close()


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_text("no database\n" * 100)
    with pytest.raises(
        JournalError, match=r"is damaged: file is not a database; .* restore a copy"
    ):
        open_journal(path)
    assert path.read_text() == "no database\n" * 100


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match="file is not a folder; set 'journal' to a file in a folder"
    ):
        open_journal(tmp_path / "file" / "journal.sqlite")
    with pytest.raises(ConfigError, match="is a folder; set 'journal' to a file"):
        open_journal(tmp_path)


def test_a_report_alone_is_not_waited_for(journal: Journal) -> None:
    said: list[str] = []
    database(journal).set_trace_callback(said.append)
    journal.reports.add(report())
    assert any("synchronous = NORMAL" in statement for statement in said)
    assert database(journal).execute("PRAGMA synchronous").fetchone() == (2,)
    said.clear()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"body", 0.5, 1)
    assert not any("synchronous" in statement for statement in said)


def test_a_file_that_lost_its_content_is_no_new_journal(journal: Journal, path: Path) -> None:
    journal.close()
    path.write_bytes(b"")
    with pytest.raises(JournalError, match=r"it is empty \(0 bytes\); its runs are lost unless"):
        open_journal(path)
    assert path.read_bytes() == b""
    sqlite3.connect(path).execute(f"PRAGMA user_version = {SCHEMA.version}").connection.close()
    with pytest.raises(JournalError, match="it has no tables"):
        open_journal(path)


def test_a_log_without_its_journal_is_not_read_into_a_new_one(journal: Journal, path: Path) -> None:
    journal.devices.pin_key("run-1", "cam-01", "d" * 64)
    log = path.with_name(f"{path.name}-wal")
    content = log.read_bytes()
    assert b"d" * 64 in content
    journal.close()
    path.unlink()
    log.write_bytes(content)
    again = open_journal(path)
    assert (again.runs.all(), again.devices.keys("run-1")) == ((), {})
    again.close()


def test_a_new_journal_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_journal(tmp_path / "journal.sqlite")
    assert list(tmp_path.iterdir()) == []
    open_journal(tmp_path / "journal.sqlite").close()


# Text as it is in the file, and the number of times: also in an index, if the table has one for it.
FLIPS = [
    (b"cam-01", b"cam-21", 2),  # the device of a contribution
    (b"cam-02" + b"d" * 64, b"cam-02" + b"d" * 63 + b"e", 2),  # a pinned key
    (b"c" * 64 + b"open", b"c" * 64 + b"opeo", 1),  # the state of the run
]


@pytest.mark.parametrize(("text", "flipped", "copies"), FLIPS)
def test_a_row_that_differs_from_its_index_or_its_values_is_found(
    journal: Journal, path: Path, text: bytes, flipped: bytes, copies: int
) -> None:
    journal.check()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    journal.devices.pin_key("run-1", "cam-02", "d" * 64)
    journal.close()
    raw = path.read_bytes()
    assert raw.count(text) == copies
    path.write_bytes(raw.replace(text, flipped, 1))
    damaged = open_journal(path)
    with pytest.raises(JournalError, match=r"is damaged: .*; its runs are lost"):
        damaged.check()
    damaged.close()


def test_damage_to_a_page_is_said_in_one_line(journal: Journal, path: Path) -> None:
    journal.actions.add("operator", "start", "{}")  # its table has the last page
    (page_bytes,) = database(journal).execute("PRAGMA page_size").fetchone()
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[-page_bytes + 7] ^= 1  # number of fragmented bytes: sqlite.org/fileformat.html, 1.6
    path.write_bytes(raw)
    damaged = open_journal(path)
    with pytest.raises(JournalError, match=r"is damaged: (Fragmentation of|Page \d+)") as raised:
        damaged.check()
    assert "\n" not in str(raised.value)
    damaged.close()


def test_a_contribution_that_differs_from_its_hash_is_not_read(journal: Journal) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one"), b"one", 0.5, 1)
    database(journal).execute("UPDATE payload SET body = CAST('onf' AS BLOB)")
    with pytest.raises(
        JournalError, match=r"the contribution of cam-01 to round 1 .*: add --from-round 0"
    ):
        list(journal.contributions.payloads("run-1", 1))


@settings(max_examples=20, deadline=None)
@given(keep=st.integers(1, 5), rounds=st.integers(0, 8))
def test_a_run_keeps_its_newest_models(
    tmp_path_factory: pytest.TempPathFactory, keep: int, rounds: int
) -> None:
    journal = open_journal(tmp_path_factory.mktemp("journal") / "journal.sqlite", keep)
    for run in ("run-1", "run-2"):
        journal.runs.add(replace(RUN, id=run), model(0))
    for number in range(1, rounds + 1):
        journal.rounds.close("run-1", model(number, bytes([number])))
    kept = [(number,) for number in range(rounds + 1)][-keep:]
    query = "SELECT round FROM model WHERE run = ? ORDER BY round"
    assert database(journal).execute(query, ("run-1",)).fetchall() == kept
    assert same(journal.rounds.newest_model("run-2"), model(0))
    journal.close()


def test_the_pages_of_closed_rounds_are_used_again(journal: Journal) -> None:
    """A payload of 25 kB fits into a page of 32 kB, with no room for a second one."""
    pages = []
    for number in range(1, 31):
        for device in range(4):
            journal.contributions.keep(
                "run-1", number, f"cam-{device}", "a" * 64, bytes(25_000), 0.5, 1
            )
        journal.rounds.close("run-1", model(number, bytes(122_000)))
        pages.append(database(journal).execute("PRAGMA page_count").fetchone()[0])
    assert pages[-1] == pages[5]


def test_a_damaged_report_is_said(journal: Journal) -> None:
    journal.reports.add(report(run="run-1"))
    database(journal).execute("UPDATE report SET report = x'00' || substr(report, 2)")
    with pytest.raises(JournalError, match=r"is damaged: a report of run-1 cannot be read"):
        journal.reports.all("run-1")


def kept(journal: Journal, round: int, device: str, norm: float, size: int = 4) -> None:
    payload = b"x" * size
    journal.contributions.keep(RUN.id, round, device, sha256_of(payload), payload, norm, 1)


def test_what_each_device_sent_is_added_up_and_a_vote_has_no_norm(journal: Journal) -> None:
    for number, norm in ((1, 0.5), (2, 0.25), (3, 0.0)):
        kept(journal, number, "cam-1", norm, size=10 * number)
    kept(journal, 1, "cam-2", 0.125)
    assert journal.contributions.sent(RUN.id, votes=(3,)) == {
        "cam-1": Sent(contributions=3, size_bytes=60, norm=0.25),
        "cam-2": Sent(contributions=1, size_bytes=4, norm=0.125),
    }
    assert journal.contributions.sent(RUN.id)["cam-1"].norm == 0.0
    assert journal.contributions.sent("run-2") == {}


def test_the_newest_report_of_each_device_is_found(journal: Journal) -> None:
    reports = [report(device=d, round=n) for d, n in (("cam-1", 1), ("cam-1", 2), ("cam-2", 1))]
    for one in reports:
        journal.reports.add(one)
    newest = journal.reports.newest(RUN.id)
    assert {device: one["round"] for device, one in newest.items()} == {"cam-1": 2, "cam-2": 1}
    assert Report(**newest["cam-2"]) == replace(reports[2], per_class={})
    assert list(journal.reports.as_json(RUN.id)) == [reports[n].to_json() for n in (0, 2, 1)]


# --- reading only --------------------------------------------------------------------------------


def test_a_journal_at_rest_is_read_without_a_trace(journal: Journal, path: Path) -> None:
    kept(journal, 1, "cam-1", 0.5)
    journal.close()
    before = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    with contextlib.closing(open_journal_to_read(path)) as reading:
        assert [run.id for run in reading.runs.all()] == [RUN.id]
        assert reading.contributions.sent(RUN.id)["cam-1"].contributions == 1
        with pytest.raises(JournalError):
            kept(reading, 1, "cam-2", 0.5)
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == before


def test_a_journal_that_is_written_to_is_read_as_it_is_now(journal: Journal, path: Path) -> None:
    with contextlib.closing(open_journal_to_read(path)) as reading:
        assert reading.contributions.sent(RUN.id) == {}
        kept(journal, 1, "cam-1", 0.5)
        assert reading.contributions.sent(RUN.id)["cam-1"].contributions == 1


def test_a_reader_makes_no_journal_and_refuses_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"there is no journal .* yet; start `fedclip-edge serve`"
    ):
        open_journal_to_read(tmp_path / "journal.sqlite")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").touch()
    with pytest.raises(JournalError, match="it is empty"):
        open_journal_to_read(tmp_path / "empty")
    (tmp_path / "text").write_text("not a database " * 100)
    with pytest.raises(JournalError, match="damaged"):
        open_journal_to_read(tmp_path / "text")
    with pytest.raises(ConfigError, match="is a folder"):
        open_journal_to_read(tmp_path)


@needs_denial
def test_a_journal_in_a_folder_without_write_permission_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:  # other users cannot enter pytest's own folders
        path = Path(folder) / "j#1?.sqlite"
        with contextlib.closing(open_journal(path)) as made:
            made.runs.add(RUN, model(0))
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        try:
            with without_root(), contextlib.closing(open_journal_to_read(path)) as reading:
                assert [run.id for run in reading.runs.all()] == [RUN.id]
        finally:
            Path(folder).chmod(0o755)
