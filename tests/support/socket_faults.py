"""Sockets for the ends of a link that refuse, reset or slow down connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from asyncio.trsock import TransportSocket
from collections.abc import Iterable
from dataclasses import dataclass

HOST = "127.0.0.1"
# A larger buffer in the kernel would hide from the sender how slow the link is. With a smaller one,
# segments of 64 kB on loopback do not fit and wait for timers.
_SLOW_BUFFER_BYTES, _BUFFER_BYTES = 2**16, 2**20
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST and drops queued data


@dataclass(frozen=True)
class Encryption:
    """The TLS contexts of the link: as broker to the client, and as client to the broker."""

    as_broker: ssl.SSLContext
    as_client: ssl.SSLContext


def bound(port: int) -> socket.socket:
    """A socket that holds `port` (0: a free one) and refuses connections."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((HOST, port))
    made.setblocking(False)
    return made


async def accepted(
    client: socket.socket, encryption: Encryption | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of an accepted connection; raises OSError if its handshake fails."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    context = None if encryption is None else encryption.as_broker
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def reset(writers: Iterable[asyncio.StreamWriter]) -> None:
    """End these connections with RST."""
    for writer in writers:
        if not writer.transport.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


def tighten(connection: socket.socket | TransportSocket, *, tight: bool = True) -> None:
    """Set small kernel buffers, or large ones again."""
    size = _SLOW_BUFFER_BYTES if tight else _BUFFER_BYTES
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
