"""The standby of a device: its reason, and how often the log has it."""

from __future__ import annotations

import pytest

from fedclip_edge.agent.standby import REPEAT_S, Standby
from fedclip_edge.protocol.messages import Refused


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert all(" not_in_run reason=" in line for line in lines)
    return [line.partition(" not_in_run ")[2] for line in lines]


def refusal(*classes: str, reason: str = "its bundle has other classes") -> Refused:
    return Refused(reason, "run", classes=classes)


def test_the_reason_is_said_at_once_and_then_every_hour(
    capsys: pytest.CaptureFixture[str],
) -> None:
    standby = Standby(("ant",))
    for minute in range(0, 125, 5):
        standby.refuse(refusal(), 60.0 * minute)
        standby.end()  # the manifest before each refusal
    assert len(said(capsys)) == 3
    standby.refuse(refusal(reason="another one"), 60.0 * 126)
    assert len(said(capsys)) == 1
    assert standby.reason == "another one"
    standby.fail("its plan", 60.0 * 127)
    assert len(said(capsys)) == 1
    assert REPEAT_S == 3600


def test_it_names_the_classes_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    standby = Standby(("ant", "bee", "cow"))
    standby.refuse(refusal("ant", "cow", "dog", "eel"), 0.0)
    (line,) = said(capsys)
    assert 'run_adds="dog, eel" run_lacks=bee hint=' in line


def test_it_names_ten_classes_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    standby = Standby(tuple(f"ours-{n}" for n in range(10)))
    standby.refuse(refusal(*(f"theirs-{n}" for n in range(500))), 0.0)
    (line,) = said(capsys)
    assert 'theirs-8, theirs-9 and 490 more"' in line
    assert 'ours-8, ours-9" hint=' in line


@pytest.mark.parametrize("theirs", [(), ("bee", "ant")])
def test_without_names_or_with_the_same_names_it_names_none(
    theirs: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    Standby(("ant", "bee")).refuse(refusal(*theirs), 0.0)
    (line,) = said(capsys)
    assert "run_" not in line
