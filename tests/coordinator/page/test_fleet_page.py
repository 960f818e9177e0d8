"""The fleet's page: what it shows of a status and a journal, and the commands that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opened_page import ADDRESS, log_in, opened_page
from starlette.testclient import TestClient
from status_scene import SceneFleet, device_row, fleet_of, status

from fedclip_edge.coordinator import control, snapshot
from fedclip_edge.reporting.status_words import SEVERITY

OURS = {"Origin": ADDRESS}


@pytest.fixture
def drawn(tmp_path: Path) -> Iterator[SceneFleet]:
    made = SceneFleet(tmp_path, status(fleet_of(40)))
    with made.serving():
        yield made


@pytest.fixture
def client(drawn: SceneFleet) -> Iterator[TestClient]:
    with opened_page(drawn) as made:
        log_in(made, drawn.folder)
        yield made


def test_every_state_has_a_severity_in_the_same_order() -> None:
    assert tuple(SEVERITY) == snapshot.STATES


def test_the_first_page_has_every_device_and_what_the_round_waits_for(client: TestClient) -> None:
    page = client.get("/").text
    assert page.count('<tr role="row" id="device-') == 40
    assert page.index("device-cam-0000") < page.index("device-cam-0001") < page.index("cam-0039")
    assert "round 1 of 3 open; 12 of 40 contributions, needs 30; 9 min to the deadline" in page
    assert "<b>2</b> refused: its bundle has another encoder" in page
    assert "<b>7</b> in the queue" in page
    assert "<img" not in page


def test_a_name_from_outside_cannot_become_markup(client: TestClient, drawn: SceneFleet) -> None:
    hostile = "<script>alert(1)</script>"
    row = device_row(1, "refused", hostile, domain=hostile, provider=hostile)
    drawn.status = status([row])
    for path in ("/", "/devices/cam-0001"):
        page = client.get(path).text
        assert hostile not in page
        assert "&lt;script&gt;" in page


def test_a_device_and_the_classes_are_shown_with_pictures(client: TestClient) -> None:
    page = client.get("/devices/cam-0030").text
    assert '<th scope="row">circle</th><td>200</td>' in page
    assert client.get("/devices/cam-9999").status_code == 404
    assert '<th scope="row">circle</th><td>40</td><td>8,000</td>' in client.get("/classes").text


def test_without_a_coordinator_it_says_so_and_shows_the_runs(tmp_path: Path) -> None:
    drawn = SceneFleet(tmp_path, status([]))
    with drawn.serving():
        pass  # a journal
    with opened_page(drawn) as client:
        log_in(client, tmp_path)
        assert "no coordinator serves behind" in client.get("/").text
        assert client.get("/devices/cam-0001").status_code == 409
        assert "run-1" in client.get("/runs").text


def test_runs_are_listed_compared_and_downloaded(client: TestClient, drawn: SceneFleet) -> None:
    assert "run-1" in client.get("/runs").text
    assert "fedclip-edge: run-1 of the fleet lab" in client.get("/runs/run-1/report").text
    figures = client.get("/runs/run-1/report.json")
    assert figures.json()["run"] == "run-1"
    assert figures.headers["content-disposition"] == 'attachment; filename="run-1.json"'
    assert client.get("/runs/run-1/figures.csv").text.startswith("run,round,device,")
    assert client.get("/runs/run-1/model.safetensors").status_code == 404
    models = drawn.folder / "models"
    models.mkdir()
    (models / "run-1.safetensors").write_bytes(b"model")
    assert client.get("/runs/run-1/model.safetensors").content == b"model"
    assert client.get("/compare?run=run-1&run=run-1").status_code == 200
    assert client.get("/compare?run=run-1").status_code == 400
    for wrong in ("run-2", "..%2F..%2Fjournal", "%00"):
        assert client.get(f"/runs/{wrong}/model.safetensors").status_code in (404, 409)


@pytest.mark.parametrize(
    ("name", "form", "command", "arguments"),
    [
        ("start", {"start": "last"}, "start", {"start": "last"}),
        ("pause", {}, "pause", {}),
        ("resume", {}, "resume", {}),
        ("end", {}, "close", {"now": True}),
        ("abandon", {}, "abandon", {}),
        ("classes", {"bundle": "/b"}, "publish", {"bundle": "/b"}),
        (
            "forget",
            {"device": "cam-0001", "delete_models": "yes"},
            "forget",
            {"device": "cam-0001", "without_vote": False, "delete_models": True},
        ),
    ],
)
def test_a_button_asks_once_and_gives_the_command(
    client: TestClient,
    drawn: SceneFleet,
    name: str,
    form: dict[str, str],
    command: str,
    arguments: dict[str, object],
) -> None:
    change = {"run": "run-1", "closed": 1, "rounds": 3, "started_from": "zero-shot"}
    publish = {"classes": 3, "serial": 2}
    forget = {
        "device": "cam-0001",
        "contributions": 3,
        "reports": 2,
        "remaining": [],
        "failures": [],
    }
    drawn.answers[command] = control.success({**change, **publish, **forget})
    assert client.get(f"/actions/{name}").status_code == 200
    assert command not in [one.command for one in drawn.requests]
    answer = client.post(f"/actions/{name}", data=form, headers=OURS)
    assert answer.status_code == 200, answer.text
    given = drawn.requests[-1]
    assert (given.command, given.arguments) == (command, arguments)
    assert given.user.endswith(" via page (anna)")
    assert "who gave it: anna" in answer.text


def test_what_the_coordinator_refuses_is_said(client: TestClient, drawn: SceneFleet) -> None:
    drawn.answers["pause"] = control.failure("run-1 is paused; <b>")
    answer = client.post("/actions/pause", headers=OURS)
    assert answer.status_code == 409
    assert "run-1 is paused; &lt;b&gt;" in answer.text
    empty = client.post("/actions/forget", data={"device": " "}, headers=OURS)
    assert "a field is empty" in empty.text
    assert client.get("/actions/delete").status_code == 404
