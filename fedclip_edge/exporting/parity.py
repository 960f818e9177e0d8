"""ONNX Runtime against PyTorch, number by number, before a bundle may be written.

The figure is the worst picture's ‖onnx - torch‖ / ‖torch‖ on raw features, so that a wrong norm
shows as well as a wrong direction.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedclip_edge.errors import ExportError
from fedclip_edge.exporting.golden import noise_pixels
from fedclip_edge.records import Scalar
from fedclip_edge.vision.encoder import Encoder
from fedclip_edge.vision.pictures import Preprocessing

TOLERANCE = 1e-5  # two orders above what fp32 rounding gives; a wrong operator is far beyond
_BATCHES = (1, 2, 5, 8)  # the exporter saw 2; one picture and odd counts must work too


def check_parity(
    encoder: Encoder, tower: torch.nn.Module, preprocessing: Preprocessing
) -> Mapping[str, Scalar]:
    """The report for the manifest; raises ExportError with the figure above TOLERANCE."""
    pixels = noise_pixels(sum(_BATCHES), preprocessing, seed=1)  # (n, 3, S, S)
    worst, start = 0.0, 0
    for count in _BATCHES:
        some = pixels[start : start + count]
        start += count
        with torch.no_grad():
            theirs = tower(torch.from_numpy(some)).double().numpy()  # (count, D)
        ours = encoder.embed(some).astype(np.float64)  # (count, D)
        if ours.shape != theirs.shape:
            raise ExportError(
                f"ONNX Runtime gives features {list(ours.shape)} where PyTorch gives "
                f"{list(theirs.shape)}; nothing was written"
            )
        gaps = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        worst = max(worst, float(np.nan_to_num(gaps, nan=np.inf).max()))
    if worst > TOLERANCE:
        raise ExportError(
            f"ONNX Runtime's features differ from PyTorch's by {worst:.2g} relative, more than "
            f"{TOLERANCE:g}; nothing was written. Another version of torch or onnxruntime may "
            "compute an operator differently: export with the versions in constraints.txt"
        )
    return {
        "worst_relative": worst,
        "tolerance": TOLERANCE,
        "pictures": len(pixels),
        "batches": ", ".join(map(str, _BATCHES)),
        "input": "seeded noise",
    }
