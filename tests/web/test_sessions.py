"""Sessions of a page are signed, end, and end with the token."""

from __future__ import annotations

import time

import pytest

from fedclip_edge.web.sessions import LASTS_S, NAME_MAX, Session, Sessions

OURS = Sessions("a token of this page")


@pytest.mark.parametrize("name", ["", "anna", "Zoë, 李", "a.b-c_d"])
def test_a_session_has_the_name_of_its_login(name: str) -> None:
    assert OURS.find(OURS.begin(name)) == Session(name)


def test_a_name_is_short_and_has_no_control_characters() -> None:
    found = OURS.find(OURS.begin("\x1b[2J" + "a" * 500))
    assert found is not None
    assert found.name == ("[2J" + "a" * 500)[:NAME_MAX]


@pytest.mark.parametrize(
    "value", ["", ".", "..", "9999999999.YQ==.", "9999999999.YQ==.00", "é.é.é"]
)
def test_a_value_that_was_not_made_here_is_no_session(value: str) -> None:
    assert OURS.find(value) is None


def test_a_changed_value_is_no_session() -> None:
    ends, name, signature = OURS.begin("anna").split(".")
    assert OURS.find(f"{int(ends) + 1}.{name}.{signature}") is None
    assert OURS.find(f"{ends}.{name[:-1]}.{signature}") is None
    assert OURS.find(f"{ends}.{name}.{signature[:-1]}") is None


def test_another_token_ends_all_sessions() -> None:
    assert Sessions("another token of the page").find(OURS.begin("anna")) is None


def test_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    value, now = OURS.begin("anna"), time.time()
    monkeypatch.setattr(time, "time", lambda: now + LASTS_S + 2)
    assert OURS.find(value) is None
