"""Disconnection of another client, through the broker."""

from __future__ import annotations

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.transport.mqtt import PahoTransport

_CONNECT_S = 5.0


def disconnect_client(address: BrokerAddress, client_id: str) -> None:
    """Have the broker end the connection of `client_id`.

    This function connects with the same client id and disconnects again: of two connections with
    one client id, a broker ends the older one. Raises ConfigError, LinkError or RefusedError as
    `PahoTransport` and its `connect` do.
    """
    link = PahoTransport(address, client_id, (), None)
    link.connect(_CONNECT_S)
    link.close()
