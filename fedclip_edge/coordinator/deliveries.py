"""Delivery of a run's bundle to the devices that have another one.

Laws:
- All devices that ask for a file get one copy together, on the topic of its blob.
- Deliveries come after everything else: a chunk is sent only while no other message waits, except
  one every _STARVING_S seconds. All of them together take `bytes_per_s` at most.
- The files stay open, so a run goes on with its bundle when its folder gets another one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.coordinator.distribution import WantedChunks, parts_of
from fedclip_edge.errors import BundleError
from fedclip_edge.pki.bundle_description import describe, read_description
from fedclip_edge.pki.bundle_signature import read_signature
from fedclip_edge.protocol import chunks
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Want
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Transport

_AT_ONCE_BYTES = 2**20  # so that a round's message never waits for more than this
_STARVING_S = 5.0


@dataclass(frozen=True, eq=False)
class Release:
    """A signed bundle, open for reading."""

    serial: int
    description: bytes
    export_key: str
    files: dict[str, int]  # file descriptors, by name

    def close(self) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):
                os.close(file)


def open_release(folder: Path, export_key: str) -> Release | None:
    """Open the bundle in `folder`, which `read_bundle` has checked.

    None, with a line in the log, if it has no signature, or not that of `export_key` (64 hex
    digits; empty: of any key).
    """
    try:
        signed = read_signature(folder)
        if signed is None:
            if export_key:  # without one, no box fetches it
                reason = f"{folder} is not signed; sign it with `fedclip-edge bundle sign`"
                log.event("bundle_not_offered", reason=reason)
            return None
        described = describe(folder)
        read = read_description(described, export_key or signed.key)
    except (BundleError, OSError) as error:
        log.event("bundle_not_offered", reason=str(error))
        return None
    files = {name: os.open(folder / name, os.O_RDONLY) for name in read.signature.sizes}
    log.event("bundle_offered", bundle=folder, serial=signed.serial, signer=signed.key[:16])
    return Release(signed.serial, described, signed.key, files)


@dataclass(eq=False)
class Deliveries:
    """The deliveries of one coordinator. `now` is monotonic, in seconds."""

    release: Release
    bytes_per_s: float
    topics: Topics
    transport: Transport
    _wanted: dict[str, WantedChunks] = field(default_factory=dict)  # by the blob's hash
    _blobs: dict[str, tuple[Blob, Callable[[int], bytes]]] = field(default_factory=dict)
    _polled_at: float | None = None
    _sent_at: float = 0.0
    _credit: float = 0.0  # bytes that may be sent now

    @property
    def blob(self) -> Blob:
        """The blob of the bundle's description, in chunks that fit this link's packets."""
        made = chunks.blob_of(self.release.description, "bundle")
        return chunks.fit_to_packets(made, self.transport.packet_bytes())

    def add(self, want: Want) -> bool:
        """Queue the chunks of a want; False if it names no blob of this bundle."""
        blob = self.blob
        if not self._blobs or self._blobs[blob.sha256][0] != blob:
            self._blobs, self._wanted = self._all(blob), {}
        if want.sha256 not in self._blobs:
            return False
        if want.sha256 not in self._wanted:
            self._wanted[want.sha256] = WantedChunks(*self._blobs[want.sha256])
        self._wanted[want.sha256].add(want.missing)
        return True

    def poll(self, now: float) -> None:
        """Send what may be sent now; call it several times a second."""
        passed_s = 0.0 if self._polled_at is None else now - self._polled_at
        self._polled_at = now
        self._credit = min(self._credit + passed_s * self.bytes_per_s, _AT_ONCE_BYTES)
        if not any(map(len, self._wanted.values())):
            return
        if self.transport.backlog():
            if now - self._sent_at >= _STARVING_S:
                self._send(now)
            return
        while self._credit > 0 and self._send(now):
            pass

    def _send(self, now: float) -> bool:
        """Send one chunk, of the files in turn; False if none is wanted."""
        for sha256, wanted in list(self._wanted.items()):
            chunk = next(wanted, None)
            if chunk is not None:
                self._credit -= len(chunk)
                self._sent_at = now
                self.transport.publish(self.topics.blob(sha256), chunk)
                self._wanted[sha256] = self._wanted.pop(sha256)  # to the end
                return True
        return False

    def _all(self, blob: Blob) -> dict[str, tuple[Blob, Callable[[int], bytes]]]:
        release = self.release
        described = read_description(release.description, release.export_key)
        found = {blob.sha256: (blob, parts_of(release.description, blob))}
        for name, one in described.blobs(blob.chunk_bytes).items():
            found[one.sha256] = (one, _reader(release.files[name], one.chunk_bytes))
        return found


def _reader(file: int, chunk_bytes: int) -> Callable[[int], bytes]:
    return lambda index: os.pread(file, chunk_bytes, index * chunk_bytes)
