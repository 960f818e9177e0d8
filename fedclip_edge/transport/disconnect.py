"""The end of another client's connection, by way of the broker."""

from __future__ import annotations

from fedclip_edge.config import BrokerAddress
from fedclip_edge.transport.mqtt import PahoTransport

_CONNECT_S = 5.0


def disconnect_client(address: BrokerAddress, client_id: str) -> None:
    """Have the broker end the connection of that client id: connect under the id, and leave again.

    A broker ends the older of two connections with one client id. Raises LinkError or RefusedError as
    `PahoTransport.connect` does.
    """
    link = PahoTransport(address, client_id, (), None)
    link.connect(_CONNECT_S)
    link.close()
