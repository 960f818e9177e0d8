"""The ends of a link's connections: sockets that refuse, reset and are slow."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from asyncio.trsock import TransportSocket
from collections.abc import Iterable
from dataclasses import dataclass

HOST = "127.0.0.1"
# More in the kernel would hide from the sender how slow a link is; with less, loopback's segments
# of 64 kB do not fit and wait for timers.
_SLOW_BUFFER_BYTES, _BUFFER_BYTES = 2**16, 2**20
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, and forgets what was queued


@dataclass(frozen=True)
class Encryption:
    """Both ends of what the link decrypts: the broker to the client, the client to the broker."""

    as_broker: ssl.SSLContext
    as_client: ssl.SSLContext


def bound(port: int) -> socket.socket:
    """A socket that holds `port` (0: a free one), and refuses until it or another listens on it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((HOST, port))
    made.setblocking(False)
    return made


async def accepted(
    client: socket.socket, encryption: Encryption | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of a connection that was accepted; raises OSError where its handshake fails."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    context = None if encryption is None else encryption.as_broker
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def reset(writers: Iterable[asyncio.StreamWriter]) -> None:
    """Ends these connections with RST."""
    for writer in writers:
        if not writer.transport.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


def tighten(connection: socket.socket | TransportSocket, *, tight: bool = True) -> None:
    """Lets the kernel take in little at a time, or much again."""
    size = _SLOW_BUFFER_BYTES if tight else _BUFFER_BYTES
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
