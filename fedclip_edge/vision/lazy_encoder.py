"""An encoder that is loaded when the first picture needs it.

A box whose features are all cached never loads onnxruntime.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError
from fedclip_edge.records import F32
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.manifest import AGAIN, MANIFEST, read_manifest

if TYPE_CHECKING:
    from fedclip_edge.vision.encoder import Encoder


class LazyEncoder:
    """A `PictureEncoder` (embedding.py) for a bundle; the first `embed` loads the encoder."""

    def __init__(self, bundle: Bundle, config: EncoderConfig) -> None:
        self._bundle = bundle
        self._config = config
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    @property
    def dim(self) -> int:
        return self._bundle.manifest.dim

    @property
    def feature_key(self) -> str:
        return key_of(self._bundle, self._config)

    def embed(self, pixels: F32) -> F32:
        """Return raw features float32 (N, D) of `pixels` float32 (N, 3, S, S).

        Raises the errors of `Encoder.embed`, and at the first call those of `load`.
        """
        return self.load().embed(pixels)

    def load(self) -> Encoder:
        """Return the encoder; the first call loads it, and another thread waits for that.

        Raises the errors of `open_encoder`, and BundleError if the folder has another bundle by
        now.
        """
        with self._loading:
            if self._encoder is None:
                from fedclip_edge.vision.encoder import open_encoder

                self._check_bundle()
                self._encoder = open_encoder(self._bundle, self._config)
            return self._encoder

    def _check_bundle(self) -> None:
        """Raise BundleError if features would be stored under the key of another encoder."""
        folder = self._bundle.folder
        try:
            found = read_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
        except OSError as error:
            raise BundleError(
                f"{folder / MANIFEST} cannot be read: {error.strerror or error}; {AGAIN}"
            ) from error
        if found.files != self._bundle.manifest.files:
            raise BundleError(
                f"the bundle {folder} was replaced while it was in use; restart this program, so "
                "that it uses the new one"
            )
