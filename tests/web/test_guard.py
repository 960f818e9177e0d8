"""Every request to a page is checked: its host, its origin, its session; every answer has rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from opened_page import ADDRESS, TOKEN_FILE, log_in, opened_page
from starlette.testclient import TestClient
from status_scene import SceneFleet, fleet_of, status

from fedclip_edge.web import app as web_app

PAGES = ("/", "/events", "/runs", "/classes", "/devices/cam-0001", "/actions/pause", "/nothing")
OURS = {"Origin": ADDRESS}


@pytest.fixture
def drawn(tmp_path: Path) -> Iterator[SceneFleet]:
    made = SceneFleet(tmp_path, status(fleet_of(20)))
    with made.serving():
        yield made


@pytest.fixture
def client(drawn: SceneFleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(web_app, "_WRONG_TOKEN_S", 0.0)
    with opened_page(drawn, 'names = ["fleet.example"]') as made:
        yield made


def test_without_a_session_there_is_only_the_login(client: TestClient, drawn: SceneFleet) -> None:
    for path in PAGES:
        answer = client.get(path)
        assert (answer.status_code, answer.headers.get("location")) in (
            (303, "/login"),
            (401, None),
        )
        assert "cam-" not in answer.text
    assert client.post("/actions/pause", headers=OURS).status_code == 401
    assert drawn.requests == []
    assert client.get("/login").status_code == 200
    assert client.get("/static/page.css").status_code == 200
    assert client.get("/static/../app.py").status_code in (303, 404)


def test_a_wrong_token_gets_nothing(
    client: TestClient, drawn: SceneFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    for token in ("", "wrong", (drawn.folder / TOKEN_FILE).read_text()[1:], "é"):
        answer = client.post("/login", data={"token": token}, headers=OURS)
        assert answer.status_code == 403
        assert "This is not the token of this page." in answer.text
        assert "set-cookie" not in answer.headers
    assert "page_login_refused" in capsys.readouterr().out
    assert client.get("/").status_code == 303


def test_the_token_is_exchanged_for_a_cookie_that_scripts_and_other_sites_do_not_get(
    client: TestClient, drawn: SceneFleet
) -> None:
    token = (drawn.folder / TOKEN_FILE).read_text().strip()
    answer = client.post("/login", data={"token": token, "name": "anna"}, headers=OURS)
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/"
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert token not in cookie
    assert client.get("/").status_code == 200
    out = client.post("/logout", headers=OURS)
    assert out.status_code == 303
    assert client.get("/").status_code == 303


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""]
)
def test_a_foreign_host_gets_nothing(client: TestClient, drawn: SceneFleet, host: str) -> None:
    log_in(client, drawn.folder)
    for path in (*PAGES, "/login", "/static/page.css"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert "cam-" not in answer.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost:9999", "LOCALHOST", "[::1]:8080", "fleet.example"]
)
def test_its_own_names_are_served_at_any_port_of_a_tunnel(client: TestClient, host: str) -> None:
    assert client.get("/login", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:8081", "https://127.0.0.1:8080", None],
)
def test_a_foreign_origin_changes_nothing(
    client: TestClient, drawn: SceneFleet, origin: str | None
) -> None:
    log_in(client, drawn.folder)
    headers = {} if origin is None else {"Origin": origin}
    asked = len(drawn.requests)
    for path in ("/actions/pause", "/logout", "/login"):
        assert client.post(path, headers=headers).status_code == 403
    assert len(drawn.requests) == asked
    if origin is not None:
        assert client.get("/", headers=headers).status_code == 403


def test_every_answer_forbids_foreign_scripts_and_frames(
    client: TestClient, drawn: SceneFleet
) -> None:
    log_in(client, drawn.folder)
    for path in (*PAGES[:1], *PAGES[2:], "/login", "/static/page.js"):
        answer = client.get(path)
        rules = answer.headers["content-security-policy"]
        assert "default-src 'none'" in rules
        assert "frame-ancestors 'none'" in rules
        assert "unsafe" not in rules
        assert answer.headers["x-content-type-options"] == "nosniff"
        is_static = path.startswith("/static/")
        assert ("no-store" in answer.headers["cache-control"]) == (not is_static)
        assert "<script>" not in answer.text
        assert " style=" not in answer.text
        assert "http://" not in answer.text.replace(ADDRESS, "")
    report = client.get("/runs/run-1/report")
    assert report.status_code == 200
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'" in report.headers["content-security-policy"]


def test_a_form_that_is_too_large_is_refused(client: TestClient, drawn: SceneFleet) -> None:
    log_in(client, drawn.folder)
    answer = client.post("/actions/start", content=b"a" * 100_000, headers=OURS)
    assert answer.status_code == 413
    assert json.dumps("start") not in str(drawn.requests)
