"""What a bundle was made with, for whoever must reproduce it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from fedclip_edge import __version__


def versions(*packages: str) -> Mapping[str, str]:
    """Versions of this package and of those `packages` that are installed under these names."""
    found = {"fedclip-edge": __version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # onnxruntime-gpu in place of onnxruntime, say
            continue
    return found
