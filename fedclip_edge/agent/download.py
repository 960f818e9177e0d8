"""Download of one blob at a time to a device, and the timing of its requests for missing chunks.

Models and the files of a bundle all arrive through it. Sans-I/O: the clock is passed in, and
messages are returned. `now` is monotonic, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.agent.lost_parts import LostParts
from fedclip_edge.protocol.chunks import Incoming, Parts, Ranges, count_chunks, first_chunks
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Want

REPAIR_S = 1.0  # after this long without a chunk, the missing chunks are requested
_REPAIR_MAX_S = 16.0  # about the time of one chunk of 120 KiB at 8 kB/s
_REPAIR_CHUNKS = 4  # in a repeated request for the same blob; twice as many if all of them come
_REPAIR_CHUNKS_MAX = 64


@dataclass(eq=False)
class Download:
    """The chunks of one blob at a time. The repair interval carries over to the next blob."""

    _incoming: Incoming | None = None
    _chunk_at: float = 0.0
    _asked_for: str = ""  # hash of the blob whose chunks were asked for last
    _repair_s: float = REPAIR_S  # doubles with each want that is not fulfilled, halves with others
    _batch: int = _REPAIR_CHUNKS  # chunks in the next repeated want
    _goal: int = 0  # chunks that are missing once the last repeated want is fulfilled
    _lost: LostParts = field(default_factory=lambda: LostParts("model"))

    def expect(self, blob: Blob, since: float, parts: Parts | None = None) -> None:
        """Expect the chunks of this blob and of no other, from the time `since` on, in seconds.

        They are kept in `parts`, by default in memory.
        """
        if self._incoming is None or self._incoming.blob != blob:
            self._incoming = Incoming(blob) if parts is None else Incoming(blob, parts)
            self._chunk_at = since

    def hurry(self, now: float) -> None:
        """Have `poll_want` request all missing chunks now, because the broadcast was missed."""
        self._chunk_at, self._asked_for = now - self._repair_s, ""

    def receive_chunk(self, chunk: bytes, now: float) -> None:
        """Add one chunk; raises PeerError for a wrong one."""
        if self._incoming is not None and self._incoming.add_chunk(chunk):
            self._chunk_at = now
            self._lost.arrived()

    def has(self, blob: Blob) -> bool:
        """True if all chunks of the blob have arrived."""
        incoming = self._incoming
        return incoming is not None and incoming.blob == blob and incoming.complete

    def poll_want(self, now: float) -> Want | None:
        """The want to send now, or None."""
        if self._incoming is None or now - self._chunk_at < self._repair_s:
            return None
        self._chunk_at = now
        self._lost.requested(count_chunks(self._incoming.missing))
        return Want(self._incoming.blob.sha256, self._missing(self._incoming))

    def assemble(self) -> bytes:
        """Return the whole payload and forget its chunks.

        Raises PeerError if its hash is wrong; all chunks must then be downloaded again.
        """
        assert self._incoming is not None
        incoming = self._incoming
        self.end()
        return incoming.assemble()

    def end(self) -> None:
        """Expect no blob any more."""
        self._incoming = None
        self._repair_s = max(REPAIR_S, self._repair_s / 2)

    def _missing(self, incoming: Incoming) -> Ranges:
        """Return all gaps in the first request for a blob, later only a few chunks at a time.

        Repeated requests also come at growing intervals, unless all of the chunks come. Otherwise a
        link that needs more than REPAIR_S for one chunk would transfer all chunks again after each
        request.
        """
        count = incoming.blob.chunks - len(incoming.parts)
        if self._asked_for != incoming.blob.sha256:
            self._asked_for, self._goal, self._batch = incoming.blob.sha256, 0, _REPAIR_CHUNKS
            return incoming.missing
        if count <= self._goal:
            self._repair_s = max(REPAIR_S, self._repair_s / 2)
            self._batch = min(2 * self._batch, _REPAIR_CHUNKS_MAX)
        else:
            self._repair_s = min(2 * self._repair_s, _REPAIR_MAX_S)
            self._batch = _REPAIR_CHUNKS
        self._goal = count - min(self._batch, count)
        return first_chunks(incoming.missing, self._batch)
