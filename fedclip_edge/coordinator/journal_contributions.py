"""The contributions in a journal: what each device sent, and the payloads that are still needed.

Laws:
- The first contribution per (run, round, device) is never replaced.
- A payload is read back as it was written, byte for byte: it is compared with its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fedclip_edge.coordinator.journal_file import JournalFile
from fedclip_edge.coordinator.journal_rounds import Rounds
from fedclip_edge.coordinator.journal_runs import Runs
from fedclip_edge.coordinator.journal_tables import LastContribution, Sent
from fedclip_edge.storage.sqlite import Connection


@dataclass(frozen=True)
class Contributions:
    """The contributions of every run. Errors are those of JournalFile."""

    file: JournalFile

    def keep(
        self,
        run: str,
        round: int,
        device: str,
        sha256: str,
        payload: bytes,
        norm: float,
        weight: int,
    ) -> None:
        """Put a contribution on disk; after `hold`, only `sync` puts it there.

        `norm` is that of its update, divided by its weight.

        Raises sqlite3.IntegrityError if the device already has one in this round; after `hold`,
        `sync` raises it.
        """

        def insert(database: Connection) -> None:
            added = database.execute(
                "INSERT INTO contribution VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
                (run, round, device, sha256, len(payload), norm, weight),
            )
            database.execute("INSERT INTO payload VALUES (?, ?)", (added.lastrowid, payload))

        self.file.add(insert)

    def kept(self, run: str, round: int) -> dict[str, str]:
        """The SHA-256 of each contribution to a round, open or closed, by device, sorted."""
        return dict(
            self.file.rows(
                "SELECT device, sha256 FROM contribution WHERE run = ? AND round = ? "
                "ORDER BY device",
                run,
                round,
            )
        )

    def has_kept(self, run: str, round: int, device: str, sha256: str) -> bool:
        """True if the contribution with this hash was kept; its round may be open or closed."""
        query = "SELECT sha256 FROM contribution WHERE run = ? AND round = ? AND device = ?"
        return self.file.rows(query, run, round, device) == [(sha256,)]

    def norms(self, run: str, round: int) -> list[float]:
        """The norms of the contributions to a round, open or closed, in the order of devices."""
        query = "SELECT norm FROM contribution WHERE run = ? AND round = ? ORDER BY device"
        return [norm for (norm,) in self.file.rows(query, run, round)]

    def all(self, run: str) -> list[tuple[int, str, int, float]]:
        """Round, device, payload bytes and norm of every contribution, by round and device."""
        query = (
            "SELECT round, device, size_bytes, norm FROM contribution WHERE run = ? "
            "ORDER BY round, device"
        )
        return self.file.rows(query, run)

    def sent(self, run: str, votes: Collection[int] = ()) -> dict[str, Sent]:
        """Return the contributions of each device to the run; `votes` have no norms."""
        places = ", ".join("?" * len(votes))
        # SQLite takes the norm from the row with the largest round.
        query = f"WHERE run = ? AND round NOT IN ({places}) GROUP BY device"
        query = f"SELECT device, norm, MAX(round) FROM contribution {query}"  # noqa: S608 - only "?"
        norms = self.file.rows(query, run, *votes)
        last = {device: norm for device, norm, _ in norms}
        rows = self.file.rows(
            "SELECT device, COUNT(*), SUM(size_bytes) FROM contribution WHERE run = ? "
            "GROUP BY device",
            run,
        )
        return {device: Sent(count, size, last.get(device)) for device, count, size in rows}

    def kept_bytes(self, run: str, round: int) -> int:
        """Total payload bytes of the contributions to a round, open or closed, as received."""
        query = "SELECT SUM(size_bytes) FROM contribution WHERE run = ? AND round = ?"
        return int(self.file.one(query, run, round)[0] or 0)

    def payloads(self, run: str, round: int) -> Iterator[tuple[str, bytes]]:
        """Yield device and payload of each contribution to an open round, in the order of `kept`.

        Only one payload is in memory at a time. Raises JournalError if one is not the payload that
        was written.
        """
        query = (
            "SELECT CAST(body AS BLOB) FROM contribution LEFT JOIN payload ON contribution = id "
            "WHERE run = ? AND round = ? AND device = ?"
        )
        for device, sha256 in self.kept(run, round).items():
            (payload,) = self.file.one(query, run, round, device)
            if payload is None or hashlib.sha256(payload).hexdigest() != sha256:
                raise Rounds(self.file).damaged(
                    f"the contribution of {device} to round {round} in {run} is not the one that "
                    "was written",
                    run,
                    round,
                )
            yield device, payload

    def last(self, encoder_id: str, classes_digest: str) -> tuple[LastContribution, ...]:
        """The last contribution of each device for this encoder and these classes, by device."""
        return self._contributions(
            "last_contribution WHERE encoder_id = ? AND classes_digest = ?",
            encoder_id,
            classes_digest,
        )

    def counted_last(self, run: str, round: int) -> tuple[LastContribution, ...]:
        """The contributions of earlier runs that also counted in a closed round, by device."""
        return self._contributions("counted_last WHERE run = ? AND round = ?", run, round)

    def payload_of(self, last: LastContribution) -> bytes:
        """The payload of a contribution; JournalError if it is not the one that was written."""
        query = "SELECT CAST(body AS BLOB) FROM payload WHERE contribution = ?"
        payload = bytes(self.file.one(query, last.id)[0])
        if hashlib.sha256(payload).hexdigest() != last.sha256:
            raise self.file.damaged(
                f"the last contribution of {last.device} is not the one that was written"
            )
        return payload

    def _contributions(self, source: str, *values: object) -> tuple[LastContribution, ...]:
        rows = self.file.rows(
            "SELECT id, device, contribution.run, sha256 FROM contribution "  # noqa: S608 - constants
            f"WHERE id IN (SELECT contribution FROM {source}) ORDER BY device",
            *values,
        )
        codecs = {run.id: run.plan.codec_up for run in Runs(self.file).all()} if rows else {}
        return tuple(
            LastContribution(one, device, run, sha256, codecs[run])
            for one, device, run, sha256 in rows
        )
