"""The contributions in a journal: the first one stays, whole, after any failure."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_scene import RUN, database, kept, sha256_of

from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Sent
from fedclip_edge.errors import JournalError

KILLED = """
import hashlib, os, sys
from pathlib import Path
from fedclip_edge.coordinator.journal import open_journal
journal = open_journal(Path(sys.argv[1]))
body = bytes(1 << 20)
journal.contributions.keep("run-1", 1, "cam-01", hashlib.sha256(body).hexdigest(), body, 0.5, 1)
os.kill(os.getpid(), 9)
"""


def test_what_is_kept_survives_a_kill(journal: Journal, path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    body = bytes(1 << 20)
    assert journal.contributions.kept("run-1", 1) == {"cam-01": sha256_of(body)}
    assert list(journal.contributions.payloads("run-1", 1)) == [("cam-01", body)]


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run-1", "run-2"]),
            st.integers(1, 2),
            st.sampled_from(["a", "b", "c"]),
            st.binary(min_size=1, max_size=40),
        ),
        max_size=12,
    )
)
def test_the_first_contribution_per_run_round_and_device_stays(
    tmp_path_factory: pytest.TempPathFactory, offered: list[tuple[str, int, str, bytes]]
) -> None:
    journal = open_journal(tmp_path_factory.mktemp("journal") / "journal.sqlite")
    first: dict[tuple[str, int, str], bytes] = {}
    for run, number, device, body in offered:
        sha256 = hashlib.sha256(body).hexdigest()
        if (run, number, device) in first:
            with pytest.raises(sqlite3.IntegrityError):
                journal.contributions.keep(run, number, device, sha256, body, 0.5, 1)
        else:
            journal.contributions.keep(run, number, device, sha256, body, 0.5, 1)
            first[run, number, device] = body
    for run in ("run-1", "run-2"):
        for number in (1, 2):
            found = dict(journal.contributions.payloads(run, number))
            assert list(found) == list(journal.contributions.kept(run, number))
            assert found == {d: b for (r, n, d), b in first.items() if (r, n) == (run, number)}
    journal.close()


def test_a_contribution_that_differs_from_its_hash_is_not_read(journal: Journal) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one"), b"one", 0.5, 1)
    database(journal).execute("UPDATE payload SET body = CAST('onf' AS BLOB)")
    with pytest.raises(
        JournalError, match=r"the contribution of cam-01 to round 1 .*: add --from-round 0"
    ):
        list(journal.contributions.payloads("run-1", 1))


def test_what_each_device_sent_is_added_up_and_a_vote_has_no_norm(journal: Journal) -> None:
    for number, norm in ((1, 0.5), (2, 0.25), (3, 0.0)):
        kept(journal, number, "cam-1", norm, size=10 * number)
    kept(journal, 1, "cam-2", 0.125)
    assert journal.contributions.sent(RUN.id, votes=(3,)) == {
        "cam-1": Sent(contributions=3, size_bytes=60, norm=0.25),
        "cam-2": Sent(contributions=1, size_bytes=4, norm=0.125),
    }
    assert journal.contributions.sent(RUN.id)["cam-1"].norm == 0.0
    assert journal.contributions.sent("run-2") == {}
