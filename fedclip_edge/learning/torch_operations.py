"""The operations of `operations.py` in torch, for training and for the exported classifier."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedclip_edge.learning.operations import Operations


def _normalize(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=1)


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=1)


def _largest(x: Tensor) -> Tensor:
    return x.amax(dim=1, keepdim=True)


TORCH = Operations(
    _normalize,
    functional.linear,
    functional.relu,
    torch.tanh,
    torch.exp,
    torch.log,
    _softmax,
    _largest,
)
