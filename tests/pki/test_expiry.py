"""Expiring certificates: a warning at the start and once a day, with the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedclip_edge import log
from fedclip_edge.pki import authority
from fedclip_edge.pki.expiry import WARN_DAYS, Expiry

DAY_S = 86400.0
CA = authority.create_authority()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The fields of all log events."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        log, "event", lambda name, **fields: found.append({"event": name, **fields})
    )
    return found


def certificate(folder: Path, days: int) -> Path:
    path = folder / "device.crt"
    key = authority.new_key().public_key()
    path.write_bytes(authority.certify_device(CA, key, "cam-01", days).pem)
    return path


@pytest.mark.parametrize(
    ("days", "left"), [(WARN_DAYS + 1, None), (WARN_DAYS, WARN_DAYS - 1), (1, 0), (-1, -2)]
)
def test_what_ends_soon_is_said_with_what_to_do(
    tmp_path: Path, said: list[dict[str, Any]], days: int, left: int | None
) -> None:
    expiry = Expiry(certificate(tmp_path, days), "renew it")
    expiry.look(5.0)
    assert [event["days_left"] for event in said] == ([] if left is None else [left])
    for event in said:
        assert (event["event"], event["hint"]) == ("certificate_ends", "renew it")


def test_once_a_day_and_of_the_file_as_it_is_then(
    tmp_path: Path, said: list[dict[str, Any]]
) -> None:
    expiry = Expiry(certificate(tmp_path, 20), "renew it")
    for at in (0.0, 1.0, DAY_S - 1, DAY_S, DAY_S + 1):
        expiry.look(at)
    assert len(said) == 2
    certificate(tmp_path, 400)
    expiry.look(2 * DAY_S)
    (tmp_path / "device.crt").write_text("no certificate")
    expiry.look(3 * DAY_S)
    (tmp_path / "device.crt").unlink()
    expiry.look(4 * DAY_S)
    assert len(said) == 2


def test_without_a_certificate_there_is_nothing_to_say(said: list[dict[str, Any]]) -> None:
    Expiry(None, "renew it").look(0.0)
    assert said == []
