"""The capabilities of a device that may take part in any run."""

from __future__ import annotations

from fedclip_edge.learning import methods
from fedclip_edge.protocol.codec import CODECS
from fedclip_edge.protocol.message_parts import Capabilities, Pictures

CAPABLE = Capabilities(
    ("train", "evaluate"), methods.names(), tuple(CODECS), 5, Pictures(train=1, test=1)
)
