"""Bytes to chunks and back.

A chunk is 24 bytes of header, little-endian, then its part of the blob:

    0   2  0xFC 0x1E
    2   1  version, 1
    3   1  zero
    4   8  first 8 bytes of the blob's SHA-256
    12  4  index, from 0
    16  4  number of chunks
    20  4  CRC-32 of the part

Laws: a chunk is checked against the announced blob before it is stored; a chunk may come any
number of times, in any order; the whole is believed only when its SHA-256 is the announced one,
and if it is not, everything is fetched again.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.messages import CHUNK_BYTES, MAX_CHUNKS, MAX_GAPS, Blob

_HEADER = struct.Struct("<2sBB8sIII")
_MAGIC = b"\xfc\x1e"
_VERSION = 1
# Of a packet that carries a chunk: the longest topic that every broker takes, MQTT's own, and the
# chunk's header.
_OVERHEAD_BYTES = 256 + 16 + _HEADER.size
# Where a broker takes less than this, no manifest fits either, and whoever publishes is told.
_MIN_CHUNK_BYTES = 1024

Ranges = tuple[tuple[int, int], ...]


def is_chunk(payload: bytes) -> bool:
    """True where a payload is a chunk rather than a control message."""
    return payload.startswith(_MAGIC)


def blob_of(data: bytes, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """The description of `data` that is announced before it is sent."""
    return Blob(hashlib.sha256(data).hexdigest(), len(data), chunk_bytes)


def fit_to_packets(blob: Blob, packet_bytes: int | None) -> Blob:
    """The blob in chunks that fit into packets of that size; None where nothing limits them."""
    if packet_bytes is None:
        return blob
    least = max(_MIN_CHUNK_BYTES, -(-blob.size_bytes // MAX_CHUNKS))
    room = max(least, packet_bytes - _OVERHEAD_BYTES)
    return replace(blob, chunk_bytes=min(blob.chunk_bytes, room))


def split(data: bytes, blob: Blob, wanted: Ranges | None = None) -> Iterator[bytes]:
    """The chunks of `data`, all or the wanted ranges; indices beyond the end are left out."""
    ranges = ((0, blob.chunks - 1),) if wanted is None else wanted
    for index in _indices(ranges, blob.chunks):
        part = data[index * blob.chunk_bytes : (index + 1) * blob.chunk_bytes]
        yield (
            _HEADER.pack(
                _MAGIC,
                _VERSION,
                0,
                bytes.fromhex(blob.sha256)[:8],
                index,
                blob.chunks,
                zlib.crc32(part),
            )
            + part
        )


@dataclass(eq=False)
class Incoming:
    """A blob on its way in. Memory is taken chunk by chunk, never more than announced."""

    blob: Blob
    _parts: dict[int, bytes] = field(default_factory=dict)

    def add_chunk(self, payload: bytes) -> bool:
        """Add one chunk; False if it is of another blob or was here before.

        Raises PeerError for a chunk that contradicts the blob or its own checksum.
        """
        if len(payload) < _HEADER.size:
            raise PeerError(f"chunk of {len(payload)} bytes is shorter than its header")
        magic, version, zero, digest, index, count, crc = _HEADER.unpack_from(payload)
        if (magic, version, zero) != (_MAGIC, _VERSION, 0):
            raise PeerError(f"chunk of version {version}, this is version {_VERSION}")
        if digest != bytes.fromhex(self.blob.sha256)[:8]:
            return False
        part = payload[_HEADER.size :]
        if count != self.blob.chunks or index >= count:
            raise PeerError(f"chunk {index} of {count}, expected {self.blob.chunks} in all")
        if len(part) != self._part_bytes(index):
            raise PeerError(f"chunk {index} of {len(part)} bytes, not {self._part_bytes(index)}")
        if zlib.crc32(part) != crc:
            raise PeerError(f"chunk {index} has a wrong CRC-32")
        if index in self._parts:
            return False
        self._parts[index] = part
        return True

    @property
    def missing(self) -> Ranges:
        """The first gaps, as first and last index; empty when everything is here."""
        gaps: list[tuple[int, int]] = []
        for index in range(self.blob.chunks):
            if index in self._parts:
                continue
            if gaps and gaps[-1][1] == index - 1:
                gaps[-1] = (gaps[-1][0], index)
            elif len(gaps) == MAX_GAPS:
                break  # the others are asked for the next time
            else:
                gaps.append((index, index))
        return tuple(gaps)

    @property
    def complete(self) -> bool:
        return len(self._parts) == self.blob.chunks

    def assemble(self) -> bytes:
        """The whole blob; raises PeerError and forgets every chunk where the hash is another."""
        data = b"".join(self._parts[index] for index in range(self.blob.chunks))
        self._parts.clear()
        if hashlib.sha256(data).hexdigest() != self.blob.sha256:
            raise PeerError(f"parcel {self.blob.sha256[:16]} arrived with another hash")
        return data

    def _part_bytes(self, index: int) -> int:
        return min(self.blob.chunk_bytes, self.blob.size_bytes - index * self.blob.chunk_bytes)


def first_chunks(ranges: Ranges, count: int) -> Ranges:
    """The first `count` chunks of the ranges."""
    some = []
    for begin, end in ranges:
        if count > 0:
            some.append((begin, min(end, begin + count - 1)))
        count -= end - begin + 1
    return tuple(some)


def _indices(wanted: Iterable[tuple[int, int]], count: int) -> Iterator[int]:
    for first, last in wanted:
        yield from range(first, min(last, count - 1) + 1)
