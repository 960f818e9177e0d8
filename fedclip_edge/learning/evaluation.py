"""How often the most likely class is the right one; never on training pictures."""

from __future__ import annotations

import numpy as np

from fedclip_edge.records import F32, I64


def top1(logits: F32, labels: I64) -> float:
    """The share of pictures whose largest logit is their label's; logits (N, C), labels (N,).

    Raises ValueError without pictures: an accuracy of nothing is no number.
    """
    if not len(labels):
        raise ValueError("no test pictures to evaluate on")
    return float(np.mean(logits.argmax(axis=1) == labels))
