"""Chunks: the parts in which a payload travels over MQTT.

A chunk is a 24-byte header, little-endian, followed by its part of the payload:

    0   2  0xFC 0x1E
    2   1  version, 2
    3   1  zero
    4   8  first 8 bytes of the payload's SHA-256
    12  4  index, from 0
    16  4  number of chunks
    20  4  CRC-32 of the part

Laws:
- A chunk is checked against the announced blob before it is stored.
- Chunks may arrive in any order, and each chunk any number of times.
- The payload is accepted only if its SHA-256 is the announced one. If it is not, every chunk is
  fetched again.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.message_parts import CHUNK_BYTES, MAX_CHUNKS, Blob, BlobKind
from fedclip_edge.protocol.messages import MAX_GAPS

_HEADER = struct.Struct("<2sBB8sIII")
HEADER_BYTES = _HEADER.size
_MAGIC = b"\xfc\x1e"
_VERSION = 2
# Upper bound on the bytes of a packet other than the chunk's part: the longest topic that every
# broker accepts (256 bytes), MQTT's own fields, and the chunk's header.
_OVERHEAD_BYTES = 256 + 16 + _HEADER.size
# A broker with smaller packets than this cannot be used: a manifest does not fit into them, and
# publishing one raises ConfigError.
_MIN_CHUNK_BYTES = 1024

Ranges = tuple[tuple[int, int], ...]


def is_chunk(payload: bytes) -> bool:
    """True if a payload is a chunk, not a control message."""
    return payload.startswith(_MAGIC)


def blob_of(data: bytes, kind: BlobKind, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """The blob that announces `data` before it is sent.

    Raises ValueError for empty data, data above 4 GiB, more than MAX_CHUNKS chunks, or a
    `chunk_bytes` outside 1 to CHUNK_BYTES.
    """
    return Blob(hashlib.sha256(data).hexdigest(), len(data), kind, chunk_bytes)


def fit_to_packets(blob: Blob, packet_bytes: int | None) -> Blob:
    """The blob with chunks small enough for packets of `packet_bytes`; None means no limit.

    The chunk size is never increased. It is not reduced below 1 KiB, nor to a size that needs more
    than MAX_CHUNKS chunks; the chunks may then be too large for the packets.
    """
    if packet_bytes is None:
        return blob
    least = max(_MIN_CHUNK_BYTES, -(-blob.size_bytes // MAX_CHUNKS))
    room = max(least, packet_bytes - _OVERHEAD_BYTES)
    return replace(blob, chunk_bytes=min(blob.chunk_bytes, room))


def split(data: bytes, blob: Blob, wanted: Ranges | None = None) -> Iterator[bytes]:
    """The chunks of `data`, header included: all of them, or those in the ranges `wanted`.

    Indices beyond the last chunk are left out.
    """
    ranges = ((0, blob.chunks - 1),) if wanted is None else wanted
    for index in indices(ranges, blob.chunks):
        part = data[index * blob.chunk_bytes : (index + 1) * blob.chunk_bytes]
        yield pack_chunk(blob, index, part)


def pack_chunk(blob: Blob, index: int, part: bytes) -> bytes:
    """The chunk with this index, header included; `part` is its part of the payload."""
    digest = bytes.fromhex(blob.sha256)[:8]
    crc = zlib.crc32(part)
    return _HEADER.pack(_MAGIC, _VERSION, 0, digest, index, blob.chunks, crc) + part


class Parts(Protocol):
    """The received parts of a payload by chunk index: a dictionary, or a file on disk."""

    def __contains__(self, index: object, /) -> bool:
        """True if this part was received."""

    def __setitem__(self, index: int, part: bytes, /) -> None:
        """Keep a part."""

    def __len__(self) -> int:
        """The number of parts received."""


@dataclass(eq=False)
class Incoming:
    """A payload that is being received; `parts` keeps what has arrived, by default in memory.

    Memory is allocated chunk by chunk, and never more than the blob announced.
    """

    blob: Blob
    parts: Parts = field(default_factory=dict[int, bytes])

    def add_chunk(self, payload: bytes) -> bool:
        """Add one chunk, header included; False if it belongs to another blob or is a repeat.

        Raises PeerError for a chunk that is shorter than its header, has another magic or version,
        contradicts the blob in its index, count or length, or fails its CRC-32.
        """
        if len(payload) < _HEADER.size:
            raise PeerError(f"chunk of {len(payload)} bytes is shorter than its header")
        magic, version, zero, digest, index, count, crc = _HEADER.unpack_from(payload)
        if (magic, version, zero) != (_MAGIC, _VERSION, 0):
            raise PeerError(
                f"chunk of version {version} or with a wrong header, expected version {_VERSION}"
            )
        if digest != bytes.fromhex(self.blob.sha256)[:8]:
            return False
        part = payload[_HEADER.size :]
        if count != self.blob.chunks or index >= count:
            raise PeerError(f"chunk {index} of {count}, but the payload has {self.blob.chunks}")
        if len(part) != self._part_bytes(index):
            raise PeerError(
                f"chunk {index} has {len(part)} bytes, expected {self._part_bytes(index)}"
            )
        if zlib.crc32(part) != crc:
            raise PeerError(f"chunk {index} has a wrong CRC-32")
        if index in self.parts:
            return False
        self.parts[index] = part
        return True

    @property
    def missing(self) -> Ranges:
        """The first MAX_GAPS gaps, as first and last index; empty if no chunk is missing."""
        gaps: list[tuple[int, int]] = []
        for index in range(self.blob.chunks):
            if index in self.parts:
                continue
            if gaps and gaps[-1][1] == index - 1:
                gaps[-1] = (gaps[-1][0], index)
            elif len(gaps) == MAX_GAPS:
                break  # the remaining gaps are requested next time
            else:
                gaps.append((index, index))
        return tuple(gaps)

    @property
    def complete(self) -> bool:
        return len(self.parts) == self.blob.chunks

    def assemble(self) -> bytes:
        """The payload, once `complete` is true, of parts in memory, which are then discarded.

        Raises PeerError if the payload's SHA-256 is not the announced one.
        """
        assert isinstance(self.parts, dict), "parts on disk are read from their file"
        data = b"".join(self.parts[index] for index in range(self.blob.chunks))
        self.parts.clear()
        if hashlib.sha256(data).hexdigest() != self.blob.sha256:
            raise PeerError(f"payload {self.blob.sha256[:16]} arrived with another SHA-256")
        return data

    def _part_bytes(self, index: int) -> int:
        return min(self.blob.chunk_bytes, self.blob.size_bytes - index * self.blob.chunk_bytes)


def count_chunks(ranges: Ranges) -> int:
    """Number of chunks in the ranges."""
    return sum(last - first + 1 for first, last in ranges)


def first_chunks(ranges: Ranges, count: int) -> Ranges:
    """Ranges that hold only the first `count` chunks of `ranges`."""
    some = []
    for begin, end in ranges:
        if count > 0:
            some.append((begin, min(end, begin + count - 1)))
        count -= end - begin + 1
    return tuple(some)


def indices(wanted: Iterable[tuple[int, int]], count: int) -> Iterator[int]:
    """The indices in the ranges `wanted`, without those beyond the last of `count` chunks."""
    for first, last in wanted:
        yield from range(first, min(last, count - 1) + 1)
