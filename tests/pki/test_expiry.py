"""Expiring certificates: a warning at the start and once a day, with the next step."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from fedclip_edge import log
from fedclip_edge.pki import authority
from fedclip_edge.pki.expiry import WARN_DAYS, DeviceExpiry, Expiry
from fedclip_edge.pki.registry import Device, Registry

DAY_S = 86400.0
CA = authority.create_authority("lab")


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


def test_of_several_authorities_the_last_one_counts(
    tmp_path: Path, said: list[dict[str, Any]]
) -> None:
    path = certificate(tmp_path, 5)
    Expiry(path, "renew it").look(0.0)
    assert len(said) == 1
    path.write_bytes(path.read_bytes() + CA.pem)
    Expiry(path, "renew it").look(0.0)
    assert len(said) == 1


def enrolled(days: dict[str, int], revoked: str = "") -> Registry:
    """A registry of devices whose certificates expire in so many days."""
    today = dt.datetime.now(dt.timezone.utc).date()
    devices = {
        name: Device("1" * 64, (), str(today + dt.timedelta(days=left)), name == revoked)
        for name, left in days.items()
    }
    return Registry("lab", "edge", 8883, "0" * 64, devices=devices)


def test_the_coordinator_names_the_devices_whose_certificates_end_in_one_line(
    said: list[dict[str, Any]],
) -> None:
    registry = enrolled({"late": -3, "soon": 5, "far": WARN_DAYS, "gone": 1}, revoked="gone")
    expiry = DeviceExpiry()
    for at in (0.0, 1.0, DAY_S - 1):
        expiry.look(at, registry)
    assert [event["event"] for event in said] == ["certificate_ends"]
    ends = {name: registry.devices[name].expires for name in ("late", "soon")}
    assert said[0]["devices"] == f"late ({ends['late']}), soon ({ends['soon']})"
    assert (said[0]["ends"], said[0]["days_left"], said[0]["more"]) == (ends["late"], -3, None)
    assert "fedclip-edge renew" in said[0]["hint"]
    expiry.look(DAY_S, enrolled({"late": 700, "soon": 700}))
    assert len(said) == 1


def test_a_thousand_certificates_that_end_are_one_line_a_day(said: list[dict[str, Any]]) -> None:
    registry = enrolled({f"cam-{n}": 20 for n in range(1000)})
    expiry = DeviceExpiry()
    for at in range(0, int(3 * DAY_S), 3600):
        expiry.look(float(at), registry)
    assert len(said) == 3
    assert (said[0]["devices"].count("cam-"), said[0]["more"]) == (10, 990)


def test_without_a_registry_no_device_is_checked(said: list[dict[str, Any]]) -> None:
    DeviceExpiry().look(0.0, None)
    assert said == []
