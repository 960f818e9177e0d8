"""Reason codes of brokers (named as in MQTT 5, section 2.4): advice, and the permanent ones."""

from __future__ import annotations

# In an answer to CONNECT: reasons that waiting will not change.
FOR_GOOD = frozenset(("Bad user name or password", "Not authorized", "Client identifier not valid"))
# In an answer to SUBSCRIBE: reasons that only the broker's operator can change.
NEVER_SUBSCRIBED = frozenset(("Not authorized", "Topic filter invalid"))

_ADVICE = {
    "Session taken over": "another client came under this one's client id",
    "Packet too large": (
        "raise the broker's limit (mosquitto: max_packet_size), or say what it takes with "
        "max_packet_bytes under [broker]"
    ),
    "Not authorized": (
        "the broker's access list denies it: it has to be the one of broker/, and the user name "
        "the device's id"
    ),
    "Retain not supported": "the broker must keep retained messages (mosquitto: retain_available)",
    "QoS not supported": "the broker must take QoS 1 (mosquitto: max_qos)",
    "Quota exceeded": "the broker limits what a client may do",
    "Message rate too high": "the broker limits what a client may send",
}


def advised(reason: str) -> str:
    """The reason, followed by advice if there is any."""
    return f"{reason}: {_ADVICE[reason]}" if reason in _ADVICE else reason
