"""Addresses on which a program listens: HOST:PORT."""

from __future__ import annotations

import ipaddress

from fedclip_edge.config.reading import require


def check_listen(listen: str, example: str) -> None:
    """Raise ValueError unless `listen` is HOST:PORT, with an IPv6 host in brackets."""
    host, colon, port = listen.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and len(port) < 6 and 1 <= int(port) <= 65535
    require(
        bool(colon and host.strip("[] ")) and is_port and (":" not in host or host[0] == "["),
        f"listen: expected HOST:PORT, such as {example}, got {listen!r}",
    )


def host_and_port(listen: str) -> tuple[str, int]:
    """Split a checked address. The host of an IPv6 address has no brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
