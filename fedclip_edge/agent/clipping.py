"""An update in the plan's codec, scaled down until its decoded norm is within the round's bound.

Laws:

- The coordinator decodes an update whose norm, divided by its weight, is at most the bound.
- An update within the bound is encoded as it is.
- The residual holds only the codec's loss. What was scaled away is not sent later: otherwise it
  would grow from round to round.
"""

from __future__ import annotations

import math

import numpy as np

from fedclip_edge.learning.aggregation import norm_of
from fedclip_edge.protocol import codec
from fedclip_edge.records import Arrays, Update

# Processors add the squares of a norm in different orders. The sums differ by less than this part.
_MARGIN = 2.0**-30
# Above the rounding errors of a norm in float32, also of one of millions of small values.
_ROUGHLY, _TINY = 1 + 2.0**-4, 1e-15


def store_within(
    codec_name: str, update: Update, residual: Arrays, max_norm: float
) -> tuple[codec.Tensors, Arrays]:
    """Return the tensors to send for the update's delta plus `residual`, and the new residual.

    `max_norm` is above 0 and bounds the norm divided by the update's weight. Both residuals are
    float32 arrays with the shapes of the delta, by name, or empty. Raises PeerError for an unknown
    codec.
    """
    shapes = {name: term.shape for name, term in update.delta.items()}
    limit = max_norm * (1 - _MARGIN)
    scale, shrink = 1.0, _MARGIN
    while True:
        tensors, left = codec.with_feedback(
            codec_name, _scaled(update.delta, scale), _scaled(residual, scale)
        )
        if scale == 1 and _rough_norm(update.delta, residual, left) <= limit * update.weight:
            return tensors, left
        norm = norm_of(codec.restore(codec_name, tensors, shapes)) / update.weight
        if norm <= limit:
            return tensors, left
        # Rounding in the codec can leave the norm above the limit. The scale falls faster with each
        # turn, and a delta of zeros is within every limit, so the loop ends.
        scale *= limit / norm * (1 - shrink)
        shrink = min(4 * shrink, 0.5)


def _rough_norm(*parts: Arrays) -> float:
    """Return an upper bound of the norm of a sum, in a fraction of the time of an exact norm.

    What a codec restores is delta + residual - left, so its norm is at most the sum of the three.
    Nearly all updates are far below the bound of their round, and need not be restored.
    """
    norms = (math.sqrt(sum(float(np.vdot(its, its)) for its in one.values())) for one in parts)
    return _ROUGHLY * sum(norms) + _TINY


def _scaled(terms: Arrays, scale: float) -> Arrays:
    return terms if scale == 1 else {name: term * np.float32(scale) for name, term in terms.items()}
