"""The journal: everything that was acknowledged is there, whole, after any failure."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import system
from denied import needs_denial, without_root
from drawn_records import PLANS, REPORTS, report
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_scene import RUN, database, kept, model, same, sha256_of

from fedclip_edge.coordinator.journal import Journal, open_journal, open_journal_to_read
from fedclip_edge.coordinator.journal_tables import SCHEMA
from fedclip_edge.errors import ConfigError, JournalError
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan


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
