"""The hash of an exchange: it stands for everything that an answer to the exchange depends on.

Law: two exchanges have the same hash only if an answer to one is an answer to the other.
"""

from __future__ import annotations

import hashlib
import json

from fedclip_edge.protocol.message_parts import Exchange
from fedclip_edge.records import ExchangeKind, Plan


def open_exchange(
    kind: ExchangeKind,
    *,
    run: str,
    number: int,
    model: str,
    plan: Plan,
    encoder_id: str,
    classes_digest: str,
    max_norm: float,
) -> Exchange:
    """An exchange of a run: a round, or a vote, over the model with hash `model`.

    `max_norm` is the largest L2 norm of an update's change of the model. Raises ValueError if a
    value is outside the range that `Exchange` allows.
    """
    parts = [
        kind,
        run,
        number,
        model,
        plan.to_json(),
        encoder_id,
        classes_digest,
        float(max_norm).hex(),
    ]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return Exchange(kind, number, hashlib.sha256(text.encode()).hexdigest(), max_norm)
