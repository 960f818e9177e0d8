"""Settings of a web page that a program serves: the table [page].

The dataclass raises ValueError for a value out of range.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.config.listen import check_listen, host_and_port, is_loopback
from fedclip_edge.config.reading import require
from fedclip_edge.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class PageSettings:
    """The address of a page, and the certificate that it shows beyond this machine."""

    listen: str  # HOST:PORT, such as "127.0.0.1:8080"
    # Further host names under which a browser may open the page; others are refused, because a
    # foreign site can point a name of its own at this address (DNS rebinding).
    names: tuple[str, ...] = ()
    certificate: Path | None = None  # PEM file with the certificate chain; it turns on HTTPS
    key: Path | None = None  # PEM file with its private key

    def __post_init__(self) -> None:
        check_listen(self.listen, "127.0.0.1:8080")
        for name in self.names:
            require(
                _NAME.fullmatch(name) is not None,
                f"names: expected host names without a port, such as fleet.example, got {name!r}",
            )
        require(
            (self.certificate is None) == (self.key is None),
            "certificate and key: expected both or neither",
        )
        require(
            self.certificate is not None or is_loopback(self.address[0]),
            f"listen: {self.listen} can be reached from other machines, which needs HTTPS; set "
            "certificate and key, or listen on 127.0.0.1",
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. The host of an IPv6 address has no brackets."""
        return host_and_port(self.listen)


def needed(page: PageSettings | None) -> PageSettings:
    """Return the table [page]; raises ConfigError, with what to write, if there is none."""
    if page is None:
        raise ConfigError(
            "the configuration has no table [page]; write `[page]` and below it "
            '`listen = "127.0.0.1:8080"`'
        )
    return page
