"""What to export and how: the command line's words, or a file in export/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# fp32: weights and arithmetic in float32.
# fp16: weights stored in float16; a CPU computes in float32, TensorRT in float16.
# int8: static, 8-bit activations and weights, calibrated on pictures.
# int8-weights: 8-bit weights alone.
Precision = Literal["fp32", "fp16", "int8", "int8-weights"]

# The prompt of FedCLIP's reference code.
PROMPT = "a picture of a {}"


@dataclass(frozen=True)
class Recipe:
    """One export, apart from the classes, which are the fleet's own."""

    model: str  # open_clip's name, or local-dir:FOLDER
    pretrained: str = ""  # open_clip's tag, or the path of a file of weights
    random_weights: bool = False  # for tests and benchmarks; excludes `pretrained`
    prompts: tuple[str, ...] = (PROMPT,)  # {} where the class name goes; several are averaged
    precision: Precision = "fp32"
