"""What logits say: probabilities, and how often the most likely class is the right one.

An accuracy is never taken on training pictures.
"""

from __future__ import annotations

import numpy as np

from fedclip_edge.records import F32, I64


def probabilities(logits: F32) -> F32:
    """Softmax over the classes: f32 (N, C), rows sum to 1."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def top1(logits: F32, labels: I64) -> float:
    """The share of pictures whose largest logit is their label's; logits (N, C), labels (N,).

    Raises ValueError without pictures: an accuracy of nothing is no number.
    """
    if not len(labels):
        raise ValueError("no test pictures to evaluate on")
    return float(np.mean(logits.argmax(axis=1) == labels))
