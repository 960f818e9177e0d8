"""Address of the MQTT broker, as fleet.toml and agent.toml have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.config.reading import require

_MQTT_MAX_BYTES = 268_435_460  # the largest remaining length of a packet, plus 5 bytes of header


@dataclass(frozen=True)
class BrokerAddress:
    """Address of the MQTT broker, and the login data. With `ca`, the connection uses TLS."""

    host: str = "127.0.0.1"  # name or IP address of the MQTT broker
    port: int = 1883  # TCP port of the broker; 8883 is usual for TLS
    username: str = ""  # user name, only for a broker that asks for a password
    password: str = ""  # password of `username`
    keepalive_s: int = 30  # MQTT keep-alive in seconds; a lower value detects a lost link sooner
    # largest MQTT packet that the broker accepts, in bytes; set it if the broker announces no limit
    max_packet_bytes: int | None = None
    ca: Path | None = None  # CA certificate that verifies the broker's certificate; enables TLS
    certificate: Path | None = None  # own certificate, signed by `ca`, for login; needs `key`
    key: Path | None = None  # private key of `certificate`; it also signs this program's messages

    def __post_init__(self) -> None:
        require(bool(self.host.strip()), "host: expected a host name or an IP address")
        require(1 <= self.port <= 65535, f"port: expected 1 to 65535, got {self.port}")
        require(
            5 <= self.keepalive_s <= 3600,
            f"keepalive_s: expected 5 to 3600 seconds, got {self.keepalive_s}",
        )
        require(
            self.max_packet_bytes is None or 1 <= self.max_packet_bytes <= _MQTT_MAX_BYTES,
            f"max_packet_bytes: expected 1 to {_MQTT_MAX_BYTES}, got {self.max_packet_bytes}",
        )
        require(
            (self.certificate is None) == (self.key is None),
            "certificate and key: expected both or neither",
        )
        require(
            self.certificate is None or self.ca is not None,
            "ca: missing; a certificate also needs ca, the certificate of its authority",
        )

    @property
    def access_advice(self) -> str:
        """The next step if the access list of the broker denies a topic."""
        return (
            "compare 'fleet' with the fleet in the access list, and the user name with the "
            "device's id"
        )
