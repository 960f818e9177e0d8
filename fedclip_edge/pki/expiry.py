"""Warning, at start and then daily, that the certificate of this process expires soon."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from fedclip_edge import log

WARN_DAYS = 30
_DAY_S = 24 * 3600.0


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
        try:
            ends = x509.load_pem_x509_certificate(self.certificate.read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
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
