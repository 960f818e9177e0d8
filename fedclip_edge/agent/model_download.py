"""Download of models to a device: the model that it has, and the one that is arriving.

Sans-I/O: the clock is passed in, and messages are returned. `now` is monotonic, in seconds.

Law: a model that is larger than the plan allows is refused before any of its chunks is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.agent.download import Download
from fedclip_edge.agent.learner import Learner
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Manifest, Want
from fedclip_edge.records import Model, Plan, Shapes


@dataclass(frozen=True, eq=False)
class Held:
    """A model as the device received it."""

    version: str  # SHA-256 of its payload
    model: Model  # decoded to float32

    @property
    def size_bytes(self) -> int:
        """Bytes of its parameters in memory."""
        return sum(term.nbytes for term in self.model.parameters.values())


@dataclass(eq=False)
class ModelDownload:
    """One device's models: the one that it has, and the one that is arriving."""

    learner: Learner
    held: Held | None = None
    _download: Download = field(default_factory=Download)
    # The last plan and number of closed exchanges, and the shapes of the model after them.
    _shapes: tuple[tuple[Plan, int] | None, Shapes] = (None, {})

    def has(self, manifest: Manifest) -> bool:
        """True if the device holds the manifest's model."""
        return self.held is not None and self.held.version == manifest.model.sha256

    def check_size(self, manifest: Manifest) -> None:
        """Raise PeerError if the blob is no model, or larger than any model of the plan can be.

        Raises ConfigError if the learner does not support the plan.
        """
        shapes = self._shapes_of(manifest)
        if manifest.model.kind != "model":
            raise PeerError(f"the manifest's blob is of kind {manifest.model.kind!r}")
        limit = wire.payload_limit_bytes(shapes, manifest.plan.codec_down)
        size_bytes = manifest.model.size_bytes
        if size_bytes > limit:
            raise PeerError(f"the manifest announces a model of {size_bytes} bytes, limit {limit}")

    def expect(self, manifest: Manifest, now: float, *, missed: bool) -> None:
        """Expect the chunks of the manifest's model; `missed` is true if its broadcast is over."""
        if not self.has(manifest):
            self._download.expect(manifest.model, now)
            if missed:
                self._download.hurry(now)

    def receive_chunk(self, chunk: bytes, now: float) -> None:
        """Add one chunk; raises PeerError for a wrong one."""
        self._download.receive_chunk(chunk, now)

    def complete(self, manifest: Manifest) -> Held | None:
        """Decode and hold the manifest's model once all of it has arrived; None until then.

        Raises PeerError if the payload is not a model of this plan (all of it is then downloaded
        again), ConfigError if the learner does not support the plan.
        """
        shapes = self._shapes_of(manifest)
        if not self._download.has(manifest.model):
            return None
        payload = self._download.assemble()
        model = wire.unpack_model(payload, manifest.plan.codec_down, shapes)
        if model.method != manifest.plan.method:
            raise PeerError(
                f"the model's method is {model.method[:40]!r}, but the run's is "
                f"{manifest.plan.method!r}"
            )
        self.held = Held(manifest.model.sha256, model)
        return self.held

    def poll_want(self, manifest: Manifest, now: float) -> Want | None:
        """The want to send now, or None."""
        if self.has(manifest):
            return None
        self._download.expect(manifest.model, now)
        return self._download.poll_want(now)

    def _shapes_of(self, manifest: Manifest) -> Shapes:
        wanted = (manifest.plan, manifest.closed)
        known, shapes = self._shapes
        if known != wanted:
            shapes = self.learner.shapes(*wanted)
            self._shapes = (wanted, shapes)
        return shapes
