"""Notice of changed files: it goes on after names that are not text, and after nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fedclip_edge import log
from fedclip_edge.agent import file_events
from fedclip_edge.agent.file_events import FileEvents, watch_files

DEADLINE_S = 30.0


@pytest.fixture
def said() -> Iterator[list[tuple[str, object]]]:
    events: list[tuple[str, object]] = []
    with log.observed(
        lambda name, fields: events.append((name, fields.get("file", fields.get("reason"))))
    ):
        yield events


@pytest.fixture(autouse=True)
def short_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_events, "RESTS_S", 0.2)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_name_that_is_not_text_does_not_end_the_watching(
    tmp_path: Path, said: list[tuple[str, object]]
) -> None:
    """The real library: its watch ends with an error at such a name."""
    starts: list[int] = []
    ready = threading.Event()

    def watch(folders: Sequence[Path], stop: threading.Event) -> file_events.Changes:
        starts.append(1)
        for changes in watch_files(folders, stop):
            ready.set()
            yield changes

    events = FileEvents((tmp_path,), watch)
    taken: set[str] = set()

    def has(name: str) -> bool:
        taken.update(events.take())
        return name in taken

    events.start()
    try:
        assert ready.wait(DEADLINE_S)
        odd = tmp_path / os.fsdecode(b"caf\xe9.png")
        for count in (2, 3):
            odd.write_bytes(b"x" * count)
            until(lambda count=count: len(starts) >= count)  # type: ignore[misc]
            ready.clear()
            assert ready.wait(DEADLINE_S)
            until(lambda: events.is_watching)
            # What came in between has to be searched for.
            assert has(str(tmp_path))
            taken.clear()
        plain = tmp_path / "plain.png"
        plain.write_bytes(b"y")
        until(lambda: has(str(plain)))
        assert events.is_watching
    finally:
        events.stop()
    assert [name for name, _ in said] == ["file_name_not_text"]
    assert "caf" in str(said[0][1])
    assert events._thread is None


def test_any_other_error_ends_it_and_is_said(
    tmp_path: Path, said: list[tuple[str, object]]
) -> None:
    def watch(*_: object) -> file_events.Changes:
        raise RuntimeError("something broke")

    events = FileEvents((tmp_path,), watch)
    events.start()
    until(lambda: not events.is_watching)
    events.take()
    events.take()
    events.stop()
    assert said == [("folder_searched", "watching has ended: something broke")]
