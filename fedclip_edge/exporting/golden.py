"""Trial runs on noise pictures for an encoder that is not in a bundle yet."""

from __future__ import annotations

import numpy as np

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ExportError
from fedclip_edge.records import F32
from fedclip_edge.vision.bundle import Golden
from fedclip_edge.vision.encoder import Encoder, open_onnx
from fedclip_edge.vision.pictures import Preprocessing

_PICTURES = 4  # enough to find a wrong layout or precision; each takes S x S x 12 bytes


def open_candidate(
    onnx_file: bytes, preprocessing: Preprocessing, name: str, precision: str
) -> Encoder:
    """Open an encoder on the CPU from the bytes of its ONNX file, which is in `precision`.

    `name` appears in messages. Raises ExportError if the file cannot be loaded, or if its input or
    output is not that of an encoder for this preprocessing.
    """
    side = preprocessing.image_size
    try:
        return open_onnx(
            onnx_file, EncoderConfig(), image_size=side, name=name, precision=precision
        )
    except BundleError as error:
        raise ExportError(str(error)) from error


def noise_pixels(count: int, preprocessing: Preprocessing, seed: int = 0) -> F32:
    """Noise pictures from `seed`, normalised for the encoder: float32 (count, 3, S, S).

    The noise is a sum over blocks of 1, 4 and 16 pixels, so that it has structure at every scale.
    """
    rng = np.random.default_rng(seed)
    side = preprocessing.image_size
    levels = np.zeros((count, 3, side, side))  # (N, 3, S, S)
    for block in (1, 4, 16):
        cells = -(-side // block)  # rounded up
        noise = rng.random((count, 3, cells, cells)).repeat(block, 2).repeat(block, 3)
        levels += noise[:, :, :side, :side] - 0.5
    levels = np.clip(0.5 + levels, 0, 1)  # pixels scaled to 0..1
    mean = np.reshape(preprocessing.mean, (3, 1, 1))
    std = np.reshape(preprocessing.std, (3, 1, 1))
    return np.asarray((levels - mean) / std, np.float32)


def golden_vectors(encoder: Encoder, preprocessing: Preprocessing) -> Golden:
    """Four noise pictures float32 (4, 3, S, S) and their raw features float32 (4, D).

    Raises ExportError if the encoder fails or returns NaN or infinity.
    """
    pixels = noise_pixels(_PICTURES, preprocessing)  # (4, 3, S, S)
    try:
        return Golden(pixels, encoder.embed(pixels))
    except BundleError as error:
        raise ExportError(str(error)) from error
