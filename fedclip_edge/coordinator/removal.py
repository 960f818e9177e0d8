"""Deletion of a device, and of models made with it: the journal's tables (forgetting.py decides).

All functions work inside a transaction of the journal. `round` counts exchanges, votes included.
"""

from __future__ import annotations

from fedclip_edge.coordinator.journal_tables import Course
from fedclip_edge.storage.sqlite import Connection

# The contributions that counted in each exchange: its own, and those of devices that were absent.
_COUNTED = (
    "(SELECT id, run, round, device FROM contribution UNION ALL "
    "SELECT id, counted_last.run, counted_last.round, device "
    "FROM counted_last JOIN contribution ON id = contribution)"
)


def known_devices(database: Connection) -> list[str]:
    """Every device that the journal has data of."""
    rows = database.execute(
        "SELECT device FROM contribution UNION SELECT device FROM report "
        "UNION SELECT device FROM pinned_key UNION SELECT device FROM forgotten ORDER BY device"
    )
    return [device for (device,) in rows]


def first_exchanges(database: Connection, device: str) -> dict[str, int]:
    """The first exchange of each run in which a contribution of the device counts."""
    query = f"SELECT run, MIN(round) FROM {_COUNTED} WHERE device = ? GROUP BY run"  # noqa: S608
    return dict(database.execute(query, (device,)).fetchall())


def runs_with(database: Connection, device: str) -> list[str]:
    """The runs that have any data of the device."""
    rows = database.execute(
        f"SELECT run FROM {_COUNTED} WHERE device = ? "  # noqa: S608 - constants
        "UNION SELECT run FROM report WHERE device = ? "
        "UNION SELECT run FROM pinned_key WHERE device = ?",
        (device, device, device),
    )
    return [run for (run,) in rows]


def devices_in(database: Connection, run: str) -> list[str]:
    """The devices with a contribution that counts in the run."""
    query = f"SELECT DISTINCT device FROM {_COUNTED} WHERE run = ? ORDER BY device"  # noqa: S608
    return [device for (device,) in database.execute(query, (run,))]


def without_payload(database: Connection, run: str, round: int, device: str) -> list[str]:
    """The other devices whose contribution to an exchange is not in the journal any more."""
    query = (
        f"SELECT device FROM {_COUNTED} WHERE run = ? AND round = ? AND device != ? "  # noqa: S608
        "AND id NOT IN (SELECT contribution FROM payload) ORDER BY device"
    )
    return [other for (other,) in database.execute(query, (run, round, device))]


def remove_device(database: Connection, device: str) -> tuple[int, int]:
    """Delete all data of a device; returns the numbers of its contributions and reports."""
    mine = "(SELECT id FROM contribution WHERE device = ?)"
    for table in ("payload", "last_contribution", "counted_last"):
        database.execute(
            f"DELETE FROM {table} WHERE contribution IN {mine}",  # noqa: S608 - constants
            (device,),
        )
    contributions, reports, _ = (
        database.execute(f"DELETE FROM {table} WHERE device = ?", (device,)).rowcount  # noqa: S608
        for table in ("contribution", "report", "pinned_key")
    )
    return contributions, reports


def mark(database: Connection, run: str, device: str, *, in_models: bool) -> None:
    """Record that the device was removed from the run."""
    row = (run, device, int(in_models))
    database.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?)", row)


def marked(database: Connection, device: str) -> dict[str, bool]:
    """The runs that the device was removed from; True if their models still contain it."""
    query = "SELECT run, in_models FROM forgotten WHERE device = ?"
    return {run: bool(in_models) for run, in_models in database.execute(query, (device,))}


def remove_models(database: Connection, run: str, after: int) -> None:
    """Delete the models of a run after an exchange, and all reports on them."""
    for table in ("model", "report"):
        database.execute(
            f"DELETE FROM {table} WHERE run = ? AND round > ?",  # noqa: S608 - constants
            (run, after),
        )


def remove_counted(database: Connection, run: str, round: int) -> None:
    """Delete the list of earlier contributions that counted in an exchange."""
    database.execute("DELETE FROM counted_last WHERE run = ? AND round = ?", (run, round))


def remove_answers(database: Connection, run: str, after: int) -> None:
    """Delete the contributions to the exchanges of a run that come after one."""
    late = "(SELECT id FROM contribution WHERE run = ? AND round > ?)"
    for table in ("payload", "last_contribution"):
        database.execute(
            f"DELETE FROM {table} WHERE contribution IN {late}",  # noqa: S608 - constants
            (run, after),
        )
    database.execute("DELETE FROM contribution WHERE run = ? AND round > ?", (run, after))


def empty_run(database: Connection, run: str) -> None:
    """Record that no model of the run contains a removed device any more."""
    database.execute("UPDATE forgotten SET in_models = 0 WHERE run = ?", (run,))


def reopen(database: Connection, run: str) -> None:
    """Mark a run as under way again."""
    database.execute("UPDATE run SET state = 'open', ended_at = NULL WHERE id = ?", (run,))


def end_again(database: Connection, run: str, course: Course) -> None:
    """Give a run the end back that it had before `reopen`."""
    database.execute(
        "UPDATE run SET state = ?, ended_at = ? WHERE id = ?", (course.state, course.ended_at, run)
    )


def delete_run(database: Connection, run: str) -> None:
    """Delete a run with everything that belongs to it."""
    mine = "(SELECT id FROM contribution WHERE run = ?)"
    for table in ("payload", "last_contribution", "counted_last"):
        database.execute(
            f"DELETE FROM {table} WHERE contribution IN {mine}",  # noqa: S608 - constants
            (run,),
        )
    for table in ("counted_last", "contribution", "model", "report", "pinned_key", "forgotten"):
        database.execute(f"DELETE FROM {table} WHERE run = ?", (run,))  # noqa: S608 - constants
    database.execute("DELETE FROM run WHERE id = ?", (run,))
