"""Reason codes of brokers, named as in MQTT 5, section 2.4: the permanent ones, and advice."""

from __future__ import annotations

# Permanent reasons in an answer to CONNECT: waiting does not help.
FOR_GOOD = frozenset(("Bad user name or password", "Not authorized", "Client identifier not valid"))
# Reasons in an answer to SUBSCRIBE that only the broker's operator can change.
NEVER_SUBSCRIBED = frozenset(("Not authorized", "Topic filter invalid"))

_ADVICE = {
    "Session taken over": "another client connected with the same client id",
    "Packet too large": (
        "raise the broker's limit (mosquitto: max_packet_size), or set max_packet_bytes under "
        "[broker] to it"
    ),
    "Not authorized": (
        "the broker's access list denies it; use the access list of broker/, with a device's id "
        "as its user name"
    ),
    "Retain not supported": "turn on retained messages in the broker (mosquitto: retain_available)",
    "QoS not supported": "allow QoS 1 in the broker (mosquitto: max_qos)",
    "Quota exceeded": "this client exceeded a limit of the broker; raise the limit",
    "Message rate too high": "this client sends faster than the broker allows; raise the limit",
}


def advised(reason: str) -> str:
    """The reason, followed by advice if there is any."""
    return f"{reason}: {_ADVICE[reason]}" if reason in _ADVICE else reason
