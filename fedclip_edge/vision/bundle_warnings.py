"""Warnings about a bundle that its numbers do not show."""

from __future__ import annotations

from fedclip_edge.vision.manifest import RANDOM, Manifest


def bundle_warnings(manifest: Manifest) -> tuple[str, ...]:
    """Return the warnings about a bundle, one sentence each; most bundles have none."""
    found = []
    if manifest.pretrained == RANDOM:
        found.append("its weights are random: no feature and no accuracy of it means anything")
    if manifest.parity is not None and manifest.parity.get("accepted"):
        found.append("its features missed the parity gate and were accepted (--accept-parity)")
    return tuple(found)
