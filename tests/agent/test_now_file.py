"""The file with the state of a running agent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from session_scene import Scene, manifest

from fedclip_edge import log
from fedclip_edge.agent.model_in_use import ModelInUse
from fedclip_edge.agent.now_file import NOW, WRITE_S, Now, NowFile, read_now
from fedclip_edge.agent.pause import Pause
from fedclip_edge.agent.session import Session
from fedclip_edge.config.limits import Limits
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.records import ClassTexts
from fedclip_edge.storage import atomic


class Writer:
    """An agent that writes its state, with a clock that moves by a second for each look."""

    def __init__(self, state_dir: Path) -> None:
        self.file = NowFile(state_dir, "cpu")
        self.state_dir = state_dir
        self.pause = Pause(Limits)
        self.now = 100.0

    def look(
        self,
        session: Session | None = None,
        model: ModelInUse | None = None,
        by_s: float = WRITE_S,
    ) -> Now:
        self.now += by_s
        self.file.look(session, self.pause, model, self.now)
        found = read_now(self.state_dir)
        assert found is not None
        return found


def test_it_follows_the_agent_from_its_start_into_a_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = Writer(tmp_path)
    classes = ClassTexts(("cat", "dog"), np.eye(2, dtype=np.float32), 100.0, "{}")
    monkeypatch.setattr(SYSTEMD, "_status", "")
    SYSTEMD.status("tries the providers of its encoder")
    found = writer.look()
    assert (found.pid, found.provider, found.is_connected) == (os.getpid(), "cpu", False)
    assert found.doing == "tries the providers of its encoder"
    writer.file.name_provider("openvino")
    writer.file.tell(3, 10)
    found = writer.look()
    assert (found.encoded, found.to_encode) == (3, 10)
    assert found.provider == "openvino"
    writer.file.tell(10, 10)
    found = writer.look(scene.session, ModelInUse("fleet", classes, run="run-0", version="v"))
    assert (found.to_encode, found.is_connected, found.has_coordinator) == (None, False, False)
    assert (found.model, found.model_run, found.model_version) == ("fleet", "run-0", "v")
    scene.join()
    found = writer.look(scene.session)
    assert (found.is_connected, found.has_coordinator) == (True, True)
    assert (found.run, found.phase, found.round, found.left_out) == ("run-1", "open", 1, "")
    assert found.accuracy == dict(scene.session.evaluation_queue.report.accuracy)  # type: ignore[union-attr]
    assert (found.accuracy_run, found.accuracy_round) == ("run-1", 0)
    scene.session.publisher.activity = "training"
    assert writer.look(scene.session).activity == "training"
    writer.pause.reason = "the box has 90 degrees"
    assert writer.look(scene.session).paused == "the box has 90 degrees"


def test_what_was_measured_stays_over_a_restart_and_nothing_else(
    scene: Scene, tmp_path: Path
) -> None:
    writer = Writer(tmp_path)
    scene.join()
    before = writer.look(scene.session)
    again = Writer(tmp_path).look()
    assert before.accuracy
    assert again.accuracy == before.accuracy
    assert (again.accuracy_run, again.train) == ("run-1", before.train)
    assert (again.is_connected, again.run, again.phase) == (False, "", "")


def test_it_is_written_when_something_changes_and_once_a_second(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, written = Writer(tmp_path), list[Path]()
    write = atomic.write_file

    def counted(path: Path, data: bytes) -> None:
        written.append(path)
        write(path, data)

    monkeypatch.setattr(atomic, "write_file", counted)
    for _ in range(5):
        writer.look(scene.session)
    assert len(written) == 1
    scene.flow()
    scene.say(manifest())
    scene.flow()
    assert writer.look(scene.session, by_s=0.5).run == ""
    assert writer.look(scene.session, by_s=0.5).run == "run-1"
    assert len(written) == 2


def test_a_disk_error_is_said_once_and_the_agent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, events = Writer(tmp_path), list[str]()
    writer.look()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with log.observed(lambda event, _: events.append(event)):
        with monkeypatch.context() as patched:
            patched.setattr(atomic, "write_file", full)
            for done in range(3):
                writer.file.tell(done, 10)
                assert writer.look().encoded is None
        assert writer.look().encoded == 2
    assert events == ["state_not_written"]


def test_a_file_that_is_no_state_is_none(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"pid": "x", "at": 0.0}'):
        (tmp_path / NOW).write_text(content)
        assert read_now(tmp_path) is None
        NowFile(tmp_path, "cpu")
