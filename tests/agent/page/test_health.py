"""The health of a box on its page: the findings of the doctor, on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from opened_box import ADDRESS, BoxScene
from starlette.testclient import TestClient
from system import wait_until

from fedclip_edge.agent.page import health

OURS = {"Origin": ADDRESS}
CHECKS = [
    {"name": "disk", "state": "ok", "said": "9 GB are free", "todo": ""},
    {"name": "<i>clock</i>", "state": "todo", "said": "it is 1970", "todo": "set the clock"},
    {"name": "cache", "state": "skipped", "said": "there are no features", "todo": ""},
]


@pytest.fixture
def box(tmp_path: Path) -> BoxScene:
    return BoxScene(tmp_path)


def doctor(monkeypatch: pytest.MonkeyPatch, code: str) -> list[Sequence[str]]:
    """Let a program of these lines run in place of the doctor; returns the commands."""
    asked: list[Sequence[str]] = []

    def command(*words: str) -> list[str]:
        asked.append(words)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(health, "own_command", command)
    return asked


def found(client: TestClient) -> str:
    page = client.get("/health")
    assert page.status_code == 200
    return page.text.partition('<div id="findings">')[2]


def test_it_is_checked_when_somebody_asks_and_once_a_minute(
    box: BoxScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.dumps({"config": "agent.toml", "passes": False, "checks": CHECKS})
    asked = doctor(monkeypatch, f"print({said!r}); raise SystemExit('2 of 3 checks')")
    with box.opened() as client:
        assert "was not checked" in found(client)
        assert asked == []
        assert client.post("/health", headers=OURS).headers["location"] == "/health"
        wait_until(lambda: "it is 1970" in found(client), "the findings")
        page = found(client)
        assert page.index("set the clock") < page.index("9 GB are free") < page.index("no features")
        assert "&lt;i&gt;clock" in page
        client.post("/health", headers=OURS)
        assert asked == [("doctor", str(box.settings), "--json")]


def test_checks_that_fail_are_reported(box: BoxScene, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor(monkeypatch, "raise SystemExit('no memory left')")
    with box.opened() as client:
        client.post("/health", headers=OURS)
        wait_until(lambda: "The checks failed: no memory left" in found(client), "the reason")


def test_checks_that_hang_end_with_the_page(box: BoxScene, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = box.folder / "begun"
    doctor(monkeypatch, f"import time; open({str(begun)!r}, 'w'); time.sleep(600)")
    with box.opened() as client:
        client.post("/health", headers=OURS)
        wait_until(begun.exists, "the checks")
        assert "is being checked" in found(client)


def test_the_doctor_itself_is_understood(box: BoxScene) -> None:
    with box.opened() as client:
        client.post("/health", headers=OURS)
        wait_until(lambda: "is being checked" not in found(client), "the findings")
        page = found(client)
        assert "it does not run" in page
        assert "does not answer" in page, "there is no broker"


def test_another_origin_cannot_ask(box: BoxScene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = doctor(monkeypatch, "")
    with box.opened() as client:
        answer = client.post("/health", headers={"Origin": "http://evil.example"})
        assert answer.status_code == 403
        assert asked == []
