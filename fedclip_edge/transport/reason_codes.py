"""Reason codes of brokers, named as in MQTT 5, section 2.4: the permanent ones, and advice."""

from __future__ import annotations

from fedclip_edge.config.broker import BrokerAddress

_LOGIN = (
    "correct username and password under [broker], or let this user in at the broker; with "
    "certificates, the user name is the name in the certificate"
)
# Permanent reasons in an answer to CONNECT, and what to do: waiting does not help.
FOR_GOOD = {
    "Bad user name or password": "correct username and password under [broker]",
    "Not authorized": _LOGIN,
    "Client identifier not valid": (
        "the broker must accept client ids with '.' and '-', of up to 200 characters; change its "
        "limits on client ids, or use a shorter id and fleet name"
    ),
}
# Reasons in an answer to SUBSCRIBE that only the broker's operator can change.
NEVER_SUBSCRIBED = frozenset(("Not authorized", "Topic filter invalid"))

_ADVICE = {
    "Session taken over": "another client connected with the same client id",
    "Packet too large": (
        "raise the broker's limit (mosquitto: max_packet_size), or set max_packet_bytes under "
        "[broker] to it"
    ),
    "Not authorized": "the broker's access list denies it",
    "Retain not supported": "turn on retained messages in the broker (mosquitto: retain_available)",
    "QoS not supported": "allow QoS 1 in the broker (mosquitto: max_qos)",
    "Quota exceeded": "this client exceeded a limit of the broker; raise the limit",
    "Message rate too high": "this client sends faster than the broker allows; raise the limit",
}
# For an end without a reason, which paho calls "Unspecified error".
_BROKE = "the connection broke, or the broker ended it without a reason; its log may say more"


def advised(reason: str, address: BrokerAddress) -> str:
    """The reason, followed by advice if there is any."""
    advice = f"{reason}: {_ADVICE[reason]}" if reason in _ADVICE else reason
    return f"{advice}; {address.access_advice}" if reason == "Not authorized" else advice


def of_lost_link(reason: str, address: BrokerAddress) -> str:
    """The reason why a link ended, followed by advice if there is any."""
    return _BROKE if reason == "Unspecified error" else advised(reason, address)
