"""A look at what a port speaks, TLS or MQTT without TLS, to name the cause of a failed connection.

The connections that it makes carry no data of this client.
"""

from __future__ import annotations

import socket
import ssl

from fedclip_edge.config.broker import BrokerAddress

# CONNECT of MQTT 3.1.1 with an empty client id and a clean session; a broker accepts or refuses it.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00"
_CONNACK = b"\x20"


def mismatch(address: BrokerAddress, timeout_s: float) -> str:
    """The cause and the remedy, if the port speaks TLS and the address does not, or vice versa.

    Empty if that is not so, or cannot be seen. `timeout_s` limits each step, in seconds.
    """
    where = f"{address.host}:{address.port}"
    if address.ca is None and _speaks_tls(address, timeout_s):
        return (
            f"{where} speaks TLS; set ca under [broker] to the certificate of the broker's "
            "authority, and certificate and key if the broker asks for them"
        )
    if address.ca is not None and _speaks_plain_mqtt(address, timeout_s):
        return (
            f"{where} speaks MQTT without TLS; set port under [broker] to the broker's TLS port, or "
            "remove ca, certificate and key to connect without encryption"
        )
    return ""


def _speaks_tls(address: BrokerAddress, timeout_s: float) -> bool:
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname = False
    settings.verify_mode = ssl.CERT_NONE  # any certificate shows that the port speaks TLS
    try:
        with (
            socket.create_connection((address.host, address.port), timeout_s) as plain,
            settings.wrap_socket(plain, server_hostname=address.host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # the other side refuses in the language of TLS
    except (OSError, ValueError):  # ValueError: not a host name
        return False


def _speaks_plain_mqtt(address: BrokerAddress, timeout_s: float) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout_s) as plain:
            plain.sendall(_CONNECT)
            return plain.recv(1) == _CONNACK
    except (OSError, ValueError):
        return False
