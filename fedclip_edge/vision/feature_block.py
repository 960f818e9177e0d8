"""Features of some pictures as one array with a checksum, as the feature cache stores them."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fedclip_edge.records import F32

_BETWEEN = " "  # two picture hashes


@dataclass(frozen=True, eq=False)
class Block:
    """Raw features of n pictures under one feature key."""

    key: str
    pictures: Sequence[str]  # n hashes
    vectors: F32  # (n, D)

    def fits(self, other: Block, most: int) -> bool:
        """True if both together have at most `most` pictures, and features of one width."""
        is_small = len(self.pictures) + len(other.pictures) <= most
        return is_small and self.vectors.shape[1:] == other.vectors.shape[1:]

    def joined(self, other: Block) -> Block:
        """Return a block with the pictures of both, which have the same key."""
        vectors = np.concatenate([self.vectors, other.vectors])
        return Block(self.key, [*self.pictures, *other.pictures], vectors)

    def without(self, pictures: Collection[str]) -> Block:
        """Return the block without some pictures."""
        keep = [row for row, picture in enumerate(self.pictures) if picture not in pictures]
        return Block(self.key, [self.pictures[row] for row in keep], self.vectors[keep])

    def packed(self) -> tuple[str, str, int, bytes]:
        """Return key, hashes, checksum and features, to be stored; `unpack` reads them."""
        hashes = _BETWEEN.join(self.pictures)
        content = np.ascontiguousarray(self.vectors, "<f4").tobytes()
        return self.key, hashes, _checksum(self.key, hashes, content), content


def unpack(key: object, hashes: object, checksum: object, content: object) -> Block | None:
    """Return the block that was packed; None if one of its parts is not what it was."""
    if not (isinstance(key, str) and isinstance(hashes, str) and isinstance(content, bytes)):
        return None
    if _checksum(key, hashes, content) != checksum:
        return None
    pictures = hashes.split(_BETWEEN)
    vectors = np.frombuffer(content, "<f4").reshape(len(pictures), -1)
    return Block(key, pictures, vectors)  # on all machines that run this, <f4 is float32


def _checksum(key: str, hashes: str, content: bytes) -> int:
    """CRC-32, which finds each change of up to 32 bits in a row."""
    return zlib.crc32(content, zlib.crc32(f"{key} {hashes}".encode()))
