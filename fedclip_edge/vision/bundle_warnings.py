"""Warnings about a bundle that is intact, but must be used with caution."""

from __future__ import annotations

from fedclip_edge.vision.manifest import RANDOM, Manifest


def bundle_warnings(manifest: Manifest) -> tuple[str, ...]:
    """Return the warnings about a bundle, one sentence each; most bundles have none."""
    found = []
    if manifest.pretrained == RANDOM:
        found.append(
            "the encoder's weights are random, so its features and accuracies mean nothing"
        )
    if manifest.parity is not None and manifest.parity.get("accepted"):
        found.append(
            "the encoder's features missed the parity gate, and it was exported nevertheless "
            "(--accept-parity)"
        )
    return tuple(found)
