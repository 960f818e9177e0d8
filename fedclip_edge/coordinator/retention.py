"""The contributions whose payloads stay in the journal after their round is closed.

All functions work inside a transaction of the journal.

Laws:
- Sums over pictures, which do not depend on a model, stay as the last contribution of their device,
  until a later one for the same encoder and classes replaces them.
- All last contributions together have at most a given number of bytes. The oldest go first.
- The answers to a vote stay until a later run closes an exchange.
- No other payload of a closed round stays, and none of an earlier run.
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
    for one in counted:
        database.execute("INSERT INTO counted_last VALUES (?, ?, ?)", (run, round, one))
    dropped = 0
    if stays == "sums":
        database.execute(
            "INSERT OR REPLACE INTO last_contribution "
            "SELECT device, encoder_id, classes_digest, contribution.id "
            "FROM contribution JOIN run ON run.id = run WHERE run = ? AND round = ?",
            (run, round),
        )
        dropped = _limit(database, most)
    closes = "" if stays == "answers" else "OR (run = :run AND round = :round)"
    database.execute(
        "DELETE FROM payload WHERE contribution IN ("  # noqa: S608 - constants
        "SELECT contribution.id FROM payload JOIN contribution ON id = contribution "
        "WHERE run IN (SELECT id FROM run WHERE rowid < "
        f"(SELECT rowid FROM run WHERE id = :run)) {closes}"
        ") AND contribution NOT IN (SELECT contribution FROM last_contribution)",
        {"run": run, "round": round},
    )
    return dropped


def end_run(database: Connection, run: str) -> None:
    """Delete the models of a run but the last one, and the payloads of a round that was open."""
    last = "(SELECT MAX(round) FROM model WHERE run = :run)"
    database.execute(
        f"DELETE FROM model WHERE run = :run AND round < {last}",  # noqa: S608 - constants
        {"run": run},
    )
    database.execute(
        "DELETE FROM payload WHERE contribution IN ("  # noqa: S608 - constants
        f"SELECT id FROM contribution WHERE run = :run AND round > {last})",
        {"run": run},
    )


def _limit(database: Connection, most: int) -> int:
    """Drop the oldest last contributions beyond `most` bytes; returns their number."""
    total = 0
    beyond: list[int] = []
    for one, size_bytes in database.execute(
        "SELECT id, size_bytes FROM last_contribution JOIN contribution ON id = contribution "
        "ORDER BY id DESC"
    ):
        total += size_bytes
        if total > most:
            beyond.append(one)
    for one in beyond:
        database.execute("DELETE FROM last_contribution WHERE contribution = ?", (one,))
    return len(beyond)
