"""The state of the agent on top of every page of a box."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from opened_box import BoxScene

from fedclip_edge.agent.now_file import NOW, Now
from fedclip_edge.storage.lock import lock_file

RUNNING = Now(
    1,
    1_790_000_000.0,
    is_connected=True,
    has_coordinator=True,
    run="run-1",
    phase="open",
    round=3,
    model="own",
    model_run="run-0",
    accuracy={"zero_shot": 0.5, "federated": 0.625, "personal": 0.75},
    accuracy_run="run-0",
    accuracy_round=10,
    train=60,
    validation=20,
    test=20,
    provider="openvino",
)


@pytest.fixture
def box(tmp_path: Path) -> BoxScene:
    return BoxScene(tmp_path)


def shown(box: BoxScene, now: Now | None, *, runs: bool = True) -> str:
    """The piece on top of the page, with the agent in this state."""
    if now is not None:
        (box.state / NOW).write_text(json.dumps(dataclasses.asdict(now)))
    lock = lock_file(box.state / "lock", "the state_dir") if runs else None
    with box.opened() as client:
        page = client.get("/health").text
    if lock is not None:
        lock.close()
    return page.partition('<div id="now"')[2].partition("<h1>")[0]


def test_it_names_the_run_the_model_and_accuracies_beside_zero_shot(box: BoxScene) -> None:
    piece = shown(box, RUNNING)
    assert "Connected</span>" in piece
    assert "run-1: round 3" in piece
    assert "this box&#39;s own model, of run-0" in piece
    assert "zero-shot 50.0 %, shared 62.5 %, own 75.0 % (run-0, round 10" in piece
    assert "60 train, 20 validation, 20 test" in piece
    assert "openvino" in piece


@pytest.mark.parametrize(("change", "words", "severity"), [
    ({"activity": "training"}, "run-1: trains, round 3", "well"),
    ({"activity": "waiting"}, "run-1: round 3", "well"),
    ({"paused": "the box has 90 degrees"}, 'Pauses</span> <span class="why">the box has 90', "warning"),
    ({"is_connected": False, "doing": "no link to the broker"}, "Not connected", "warning"),
    ({"is_connected": False}, "it starts, and reads its pictures", "warning"),
    ({"left_out": "another encoder"}, "Takes no part in the run", "warning"),
    ({"has_coordinator": False}, "the coordinator does not answer", "warning"),
    ({"encoded": 20, "to_encode": 80, "is_connected": False}, "20 of 80 done", "well"),
    ({"phase": "done"}, "run-1 is over", "well"),
    ({"run": "", "phase": ""}, "no run yet", "well"),
])  # fmt: skip
def test_each_state_has_its_words(
    box: BoxScene, change: dict[str, object], words: str, severity: str
) -> None:
    piece = shown(box, dataclasses.replace(RUNNING, **change))  # type: ignore[arg-type]
    assert words in piece
    assert f'class="box-now {severity}"' in piece


def test_of_an_agent_that_does_not_run_the_last_state_is_shown_as_old(box: BoxScene) -> None:
    piece = shown(box, RUNNING, runs=False)
    assert "The agent does not run" in piece
    assert "Connected" not in piece
    assert 'Last known, <time data-at="1790000000">' in piece
    assert "zero-shot 50.0 %" in piece


@pytest.mark.parametrize("content", [None, "", "[]", '{"pid": 1}', '{"pid": 1, "at": 0.0, "x": 1}'])
def test_a_file_that_is_missing_or_of_another_version_is_no_error(
    box: BoxScene, content: str | None
) -> None:
    if content is not None:
        (box.state / NOW).write_text(content)
    assert "The agent starts" in shown(box, None)


def test_a_text_from_outside_cannot_become_markup(box: BoxScene) -> None:
    piece = shown(box, dataclasses.replace(RUNNING, paused="<script>", provider="<script>"))
    assert "<script>" not in piece
    assert piece.count("&lt;script&gt;") == 2


def test_the_login_asks_for_the_token_and_a_name_for_the_log(box: BoxScene) -> None:
    with box.opened(logs_in=False) as client:
        page = client.get("/login").text
    assert 'name="token"' in page
    assert "Your name, for the log" in page
