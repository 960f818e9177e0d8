"""Encoding of pictures into the feature cache of a device: the work of its encoder process.

The process is `encoder_process.py`. The same work can be done in the caller's process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.agent.feature_cache import with_cache
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.embedding import Embedded, Progress, embed_pictures
from fedclip_edge.vision.lazy_encoder import LazyEncoder


@dataclass(frozen=True)
class Encoded:
    """Counts of distinct pictures, and the reasons why some have no features, by picture hash."""

    encoded: int  # now; the others were in the cache
    skipped: Mapping[str, str]


# Takes pictures, and is told the numbers of distinct pictures that are done, and that were missing.
Encode = Callable[[Sequence[Picture], Progress | None], Encoded]


@dataclass(eq=False)
class Encoding:
    """The encoder of a bundle, and a feature cache; the encoder is loaded by the first picture."""

    bundle: Bundle
    config: EncoderConfig
    cache: Path

    def __post_init__(self) -> None:
        self._encoder = LazyEncoder(self.bundle, self.config)

    def load(self) -> None:
        """Load the encoder before the first picture needs it; raises as `LazyEncoder.load`."""
        self._encoder.load()

    def encode(self, pictures: Sequence[Picture], progress: Progress | None = None) -> Encoded:
        """Put the features of `pictures` into the cache, if they are not in it.

        Raises the errors of `with_cache` and of `embed_pictures`.
        """

        def embed(cache: FeatureCache) -> Embedded:
            return embed_pictures(
                pictures,
                self._encoder,
                cache,
                self.bundle.manifest.preprocessing,
                self.config,
                progress=progress,
            )

        made = with_cache(self.cache, embed)
        hashes = {picture.path: picture.hash for picture in pictures}
        return Encoded(
            encoded=made.encoded,
            skipped={hashes[one.path]: one.reason for one in made.skipped},
        )
