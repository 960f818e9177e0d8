"""The model that a device holds, and the next one on its way to it.

Law: a model larger than the plan's can be is refused before a chunk of it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learner import Learner
from fedclip_edge.messaging import wire
from fedclip_edge.messaging.download import Download
from fedclip_edge.messaging.messages import Manifest, Want
from fedclip_edge.records import Model, Plan, Shapes


@dataclass(frozen=True, eq=False)
class Held:
    """A model as it was published."""

    version: str
    model: Model

    @property
    def size_bytes(self) -> int:
        return sum(term.nbytes for term in self.model.terms.values())


@dataclass(eq=False)
class Fetching:
    """One device's."""

    learner: Learner
    held: Held | None = None
    _download: Download = field(default_factory=Download)
    _shapes: tuple[Plan | None, Shapes] = (None, {})  # of the plan last asked for

    def has(self, manifest: Manifest) -> bool:
        """Whether the manifest's model is held."""
        return self.held is not None and self.held.version == manifest.model.sha256

    def check_size(self, manifest: Manifest) -> None:
        """Raises PeerError for a model larger than the plan's can be."""
        try:
            shapes = self._shapes_of(manifest.plan)
        except ConfigError:
            return  # `take` raises it, where nothing has been taken yet
        limit = wire.body_limit_bytes(shapes, manifest.plan.codec_down)
        size_bytes = manifest.model.size_bytes
        if size_bytes > limit:
            raise PeerError(f"announces a model of {size_bytes} bytes, limit {limit}")

    def expect(self, manifest: Manifest, now: float, *, missed: bool) -> None:
        """From now on the model's chunks count; `missed` where its broadcast is over."""
        if not self.has(manifest):
            self._download.expect(manifest.model, now)
            if missed:
                self._download.hurry(now)

    def receive(self, chunk: bytes, now: float) -> None:
        """Takes a chunk in; raises PeerError for a wrong one."""
        self._download.receive(chunk, now)

    def take(self, manifest: Manifest) -> Held | None:
        """Holds the manifest's model from now on, where all of it is here; None where nothing came.

        Raises PeerError where what came is no such model, and all of it is fetched anew;
        ConfigError for a plan that the learner does not know.
        """
        shapes = self._shapes_of(manifest.plan)
        if not self._download.has(manifest.model):
            return None
        model = wire.unpack_model(self._download.take(), manifest.plan.codec_down, shapes)
        if model.method != manifest.plan.method:
            raise PeerError(
                f"a model of {model.method[:40]!r} in a run of {manifest.plan.method!r}"
            )
        self.held = Held(manifest.model.sha256, model)
        return self.held

    def due(self, manifest: Manifest, now: float) -> Want | None:
        """What to ask for now."""
        if self.has(manifest):
            return None
        self._download.expect(manifest.model, now)
        return self._download.due(now)

    def _shapes_of(self, plan: Plan) -> Shapes:
        known, shapes = self._shapes
        if known != plan:
            shapes = self.learner.shapes(plan)
            self._shapes = (plan, shapes)
        return shapes
