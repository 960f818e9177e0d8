"""Drawn pictures for the parity gate of an export; used if the operator gives no pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence

from fedclip_edge.demo import world
from fedclip_edge.exporting.calibration import GatePictures, from_bytes
from fedclip_edge.vision.pictures import Preprocessing

_SEED = 0


def draw(preprocessing: Preprocessing, classes: Sequence[str]) -> GatePictures:
    """Draw every class of the drawn world once in every style, for the parity gate of an export.

    The pictures are labelled only if `classes` are those of the drawn world, in its order.
    """
    images: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(world.CLASSES):
        for style in world.STYLES:
            file = io.BytesIO()
            world.draw(name, style, _SEED).save(file, "PNG")
            images.append(file.getvalue())
            labels.append(label)
    return from_bytes(images, preprocessing, labels if tuple(classes) == world.CLASSES else None)
