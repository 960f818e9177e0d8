"""Warnings, at start and then daily, that certificates expire soon."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from fedclip_edge import log
from fedclip_edge.pki.registry import Registry

WARN_DAYS = 30
_DAY_S = 24 * 3600.0
_NAMED = 10  # devices in one line


def end_of(certificate: Path) -> dt.datetime | None:
    """Return the time at which a certificate expires; None if the file cannot be read.

    The file may contain the certificates of several authorities; then the one that expires last
    counts.
    """
    try:
        found = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError):
        return None
    return max(one.not_valid_after_utc for one in found)


@dataclass(eq=False)
class Expiry:
    """Check of one certificate. `certificate` is its file; with None, nothing is checked.

    `remedy` is the advice in the warning.
    """

    certificate: Path | None
    remedy: str
    _looked_at: float = field(default=-math.inf)

    def look(self, now: float) -> None:
        """Log a warning if the certificate expires within WARN_DAYS; check at most once a day.

        `now` is the time of any monotonic clock, in seconds.
        """
        if self.certificate is None or now - self._looked_at < _DAY_S:
            return
        self._looked_at = now
        ends = end_of(self.certificate)
        if ends is None:
            return  # no error now: TLS has already loaded the file; the next start reports it
        days_left = (ends - dt.datetime.now(dt.timezone.utc)) / dt.timedelta(days=1)
        if days_left < WARN_DAYS:
            log.event(
                "certificate_ends",
                certificate=self.certificate,
                ends=ends.date().isoformat(),
                days_left=math.floor(days_left),
                hint=self.remedy,
            )


@dataclass(eq=False)
class DeviceExpiry:
    """Check of the certificates of all devices in a registry, with one line for all of them."""

    _looked_at: float = field(default=-math.inf)

    def look(self, now: float, registry: Registry | None) -> None:
        """Log a warning if devices' certificates expire within WARN_DAYS, or have expired.

        Revoked devices do not count. It checks at most once a day; `now` is the time of any
        monotonic clock, in seconds.
        """
        if registry is None or now - self._looked_at < _DAY_S:
            return
        self._looked_at = now
        last = dt.datetime.now(dt.timezone.utc).date() + dt.timedelta(days=WARN_DAYS)
        ending = sorted(
            (device.expires, name)
            for name, device in registry.devices.items()
            if not device.revoked and dt.date.fromisoformat(device.expires) < last
        )
        if not ending:
            return
        named = [f"{name} ({ends})" for ends, name in ending[:_NAMED]]
        first = dt.date.fromisoformat(ending[0][0])
        log.event(
            "certificate_ends",
            devices=", ".join(named),
            more=max(0, len(ending) - _NAMED) or None,
            ends=first.isoformat(),
            days_left=(first - last).days + WARN_DAYS,
            hint="run `fedclip-edge renew ID` and copy its file to the box, or revoke the device",
        )
