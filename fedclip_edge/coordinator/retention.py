"""The contributions whose payloads stay in the journal after their round is closed.

All functions work inside a transaction of the journal.

Laws:
- Sums over pictures, which do not depend on a model, stay as the last contribution of their device,
  until a later one for the same encoder and classes replaces them.
- All last contributions together have at most a given number of bytes. The oldest go first.
- The answers to a vote stay until a later run closes an exchange.
- No other payload of a closed round stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from fedclip_edge.storage.sqlite import Connection

# What stays of a closed exchange: nothing, the answers to a vote, or sums as last contributions.
Stays = Literal["nothing", "answers", "sums"]


def close_round(
    database: Connection, run: str, round: int, stays: Stays, counted: Iterable[int], most: int
) -> int:
    """Keep the payloads of a round that closes as `stays` says, and delete all others.

    `counted` are the ids of earlier contributions that counted again. `most` is the limit in bytes.
    Returns the number of last contributions that went because of the limit.
    """
    database.executemany(
        "INSERT INTO counted_last VALUES (?, ?, ?)", [(run, round, id) for id in counted]
    )
    dropped = 0
    if stays == "sums":
        database.execute(
            "INSERT OR REPLACE INTO last_contribution "
            "SELECT device, encoder_id, classes_digest, contribution.id "
            "FROM contribution JOIN run ON run.id = run WHERE run = ? AND round = ?",
            (run, round),
        )
        dropped = _limit(database, most)
    mine, values = ("", (run,)) if stays == "answers" else ("OR round = ?", (run, round))
    database.execute(
        "DELETE FROM payload WHERE contribution IN ("  # noqa: S608 - constants
        f"SELECT id FROM payload JOIN contribution ON id = contribution WHERE run != ? {mine}"
        ") AND contribution NOT IN (SELECT contribution FROM last_contribution)",
        values,
    )
    return dropped


def _limit(database: Connection, most: int) -> int:
    """Drop the oldest last contributions beyond `most` bytes; returns their number."""
    total, beyond = 0, []
    for id, size_bytes in database.execute(
        "SELECT id, size_bytes FROM last_contribution JOIN contribution ON id = contribution "
        "ORDER BY id DESC"
    ):
        total += size_bytes
        if total > most:
            beyond.append((id,))
    database.executemany("DELETE FROM last_contribution WHERE contribution = ?", beyond)
    return len(beyond)
