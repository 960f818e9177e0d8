"""Versions of the packages that made a bundle, so that it can be reproduced."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from fedclip_edge import __version__


def versions(*packages: str) -> Mapping[str, str]:
    """Versions, by name, of this package and of the installed ones among `packages`."""
    found = {"fedclip-edge": __version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # such as onnxruntime, if the GPU build is used
            continue
    return found
