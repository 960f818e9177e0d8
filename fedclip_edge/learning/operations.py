"""The few array operations that a method's `logits` is written in, and those of numpy.

numpy and torch arrays share `+ - * / ** @`, `.T` and `.mean(1)`. The operations that they do not
share are the fields of `Operations`. So a formula is written once: training differentiates it with
torch (torch_operations.py), the exported classifier traces it, and evaluation and prediction
compute it with numpy, without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedclip_edge.records import F32

Array: TypeAlias = Any  # float32, of numpy or of torch
_LEAST_NORM = 1e-12  # as in torch


@dataclass(frozen=True)
class Operations:
    """The operations of one library, on float32 arrays."""

    normalize: Callable[[Array], Array]  # scales rows (N, D) to length 1; rows of zeros stay
    linear: Callable[..., Array]  # x (N, D), weight (M, D), optional bias (M,): x weight^T + bias
    relu: Callable[[Array], Array]
    tanh: Callable[[Array], Array]
    exp: Callable[[Array], Array]
    log: Callable[[Array], Array]  # of positive numbers
    softmax: Callable[[Array], Array]  # over each row of (N, D)
    largest: Callable[[Array], Array]  # of each row of (N, D): (N, 1)


def cosine_logits(ops: Operations, features: Array, texts: Array, scale: float) -> Array:
    """Compute CLIP's logits float32 (N, C): scaled cosines of features (N, D) and texts (C, D).

    The features may have any norm and are normalised here. The texts must have unit rows; this is
    not checked.
    """
    return scale * ops.normalize(features) @ texts.T


def _normalize(x: F32) -> F32:
    norms = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]  # (N, 1)
    return np.asarray(x / np.maximum(norms, np.float32(_LEAST_NORM)))


def _linear(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    product = x @ weight.T
    if bias is not None:
        product += bias
    return np.asarray(product)


def _relu(x: F32) -> F32:
    return np.maximum(x, np.float32(0))


def _softmax(x: F32) -> F32:
    raised = np.exp(x - x.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return np.asarray(raised)


def _largest(x: F32) -> F32:
    return np.asarray(x.max(axis=1, keepdims=True))


NUMPY = Operations(_normalize, _linear, _relu, np.tanh, np.exp, np.log, _softmax, _largest)
