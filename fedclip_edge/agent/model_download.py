"""The model that a device holds, and the next one on its way to it.

Sans-I/O: the clock is passed in, and messages are returned. Law: a model larger than the plan's can
be is refused before a chunk of it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.agent.learner import Learner
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.chunks import Incoming, Ranges, first_chunks
from fedclip_edge.protocol.messages import Blob, Manifest, Want
from fedclip_edge.records import Model, Plan, Shapes

REPAIR_S = 1.0  # without a chunk for this long, ask for the missing ones
_REPAIR_MAX_S = 16.0  # 120 KiB at 8 kB/s
_REPAIR_CHUNKS = 4


@dataclass(frozen=True, eq=False)
class Held:
    """A model as it was published."""

    version: str
    model: Model

    @property
    def size_bytes(self) -> int:
        return sum(term.nbytes for term in self.model.parameters.values())


@dataclass(eq=False)
class Download:
    """The chunks of one model at a time; its patience with the link outlasts each."""

    _incoming: Incoming | None = None
    _chunk_at: float = 0.0
    _asked_for: str = ""  # the model whose chunks were asked for last
    _repair_s: float = REPAIR_S

    def expect(self, blob: Blob, since: float) -> None:
        """From now on its chunks count, and those of no other."""
        if self._incoming is None or self._incoming.blob != blob:
            self._incoming = Incoming(blob)
            self._chunk_at = since

    def hurry(self, now: float) -> None:
        """Its broadcast was missed: all missing chunks are due at once."""
        self._chunk_at, self._asked_for = now - self._repair_s, ""

    def receive_chunk(self, chunk: bytes, now: float) -> None:
        """Add one chunk; raises PeerError for a wrong one."""
        if self._incoming is not None and self._incoming.add_chunk(chunk):
            self._chunk_at = now

    def has(self, blob: Blob) -> bool:
        """True where all of its chunks are here."""
        incoming = self._incoming
        return incoming is not None and incoming.blob == blob and incoming.complete

    def poll_want(self, now: float) -> Want | None:
        """The chunks to ask for now."""
        if self._incoming is None or now - self._chunk_at < self._repair_s:
            return None
        self._chunk_at = now
        return Want(self._incoming.blob.sha256, self._missing(self._incoming))

    def assemble(self) -> bytes:
        """The whole. Raises PeerError where its hash is another; all of it is then fetched anew."""
        assert self._incoming is not None
        incoming, self._incoming = self._incoming, None
        payload = incoming.assemble()
        self._repair_s = max(REPAIR_S, self._repair_s / 2)
        return payload

    def _missing(self, incoming: Incoming) -> Ranges:
        """All gaps at first; after that a few and less and less often, since a link that is slower
        than a chunk in REPAIR_S would otherwise carry everything again and again.
        """
        if self._asked_for != incoming.blob.sha256:
            self._asked_for = incoming.blob.sha256
            return incoming.missing
        self._repair_s = min(2 * self._repair_s, _REPAIR_MAX_S)
        return first_chunks(incoming.missing, _REPAIR_CHUNKS)


@dataclass(eq=False)
class ModelDownload:
    """One device's models, the one it holds and the one on its way."""

    learner: Learner
    held: Held | None = None
    _download: Download = field(default_factory=Download)
    _shapes: tuple[Plan | None, Shapes] = (None, {})  # of the plan last asked for

    def has(self, manifest: Manifest) -> bool:
        """True where the manifest's model is held."""
        return self.held is not None and self.held.version == manifest.model.sha256

    def check_size(self, manifest: Manifest) -> None:
        """Raises PeerError for a model larger than the plan's can be."""
        try:
            shapes = self._shapes_of(manifest.plan)
        except ConfigError:
            return  # `complete` raises it, where nothing has been taken yet
        limit = wire.payload_limit_bytes(shapes, manifest.plan.codec_down)
        size_bytes = manifest.model.size_bytes
        if size_bytes > limit:
            raise PeerError(f"announces a model of {size_bytes} bytes, limit {limit}")

    def expect(self, manifest: Manifest, now: float, *, missed: bool) -> None:
        """From now on the model's chunks count; `missed` where its broadcast is over."""
        if not self.has(manifest):
            self._download.expect(manifest.model, now)
            if missed:
                self._download.hurry(now)

    def receive_chunk(self, chunk: bytes, now: float) -> None:
        """Add one chunk; raises PeerError for a wrong one."""
        self._download.receive_chunk(chunk, now)

    def complete(self, manifest: Manifest) -> Held | None:
        """Hold the manifest's model from now on, where all of it is here; None where it is not.

        Raises PeerError where the bytes are no such model, and all of it is fetched anew;
        ConfigError for a plan that the learner does not know.
        """
        shapes = self._shapes_of(manifest.plan)
        if not self._download.has(manifest.model):
            return None
        payload = self._download.assemble()
        model = wire.unpack_model(payload, manifest.plan.codec_down, shapes)
        if model.method != manifest.plan.method:
            raise PeerError(
                f"a model of {model.method[:40]!r} in a run of {manifest.plan.method!r}"
            )
        self.held = Held(manifest.model.sha256, model)
        return self.held

    def poll_want(self, manifest: Manifest, now: float) -> Want | None:
        """The chunks to ask for now."""
        if self.has(manifest):
            return None
        self._download.expect(manifest.model, now)
        return self._download.poll_want(now)

    def _shapes_of(self, plan: Plan) -> Shapes:
        known, shapes = self._shapes
        if known != plan:
            shapes = self.learner.shapes(plan)
            self._shapes = (plan, shapes)
        return shapes
