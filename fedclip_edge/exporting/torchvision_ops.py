"""Lets `import open_clip` succeed where torchvision's compiled part cannot load.

PyPI's torchvision wheels for Linux link against CUDA libraries. Beside a CPU build of torch
their `_C.so` fails to load, and torchvision then fails on its first line, because the operators
that it registers fake kernels for do not exist. Image classification needs none of them, so it
is enough that they are declared.

Law: torchvision's own library is tried first, because declaring an operator that a real library
then declares again aborts the process.
"""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Literal

import torch

# `qnms` is asked for from torchvision 0.28 on, `nms` by every version before it as well.
_OPERATORS = ("nms", "qnms")
_libraries: list[torch.library.Library] = []  # an operator lives as long as its Library


def declare_missing() -> Literal["absent", "native", "declared"]:
    """Makes torchvision importable. Call before open_clip, timm or torchvision is imported.

    Returns "absent" without torchvision, "native" where its own library loads, "declared"
    where stand-in declarations were needed. Calling it again changes nothing.
    """
    spec = importlib.util.find_spec("torchvision")  # locates, does not import
    if spec is None or spec.origin is None:
        return "absent"
    if _libraries:
        return "declared"
    for library in sorted(pathlib.Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:  # linked against CUDA libraries that are not here
            continue
        return "native"
    stand_in = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        stand_in.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(stand_in)
    return "declared"
