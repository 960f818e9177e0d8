"""The revision of the protocol, and the record of what is sent in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import protocol_schema
import pytest

from fedclip_edge.protocol.messages import Hello
from fedclip_edge.protocol.revision import REVISION, difference


def test_nothing_that_is_sent_has_changed_in_this_revision() -> None:
    recorded = protocol_schema.RECORD.read_text(encoding="utf-8")
    assert protocol_schema.schema() == recorded, (
        "what is sent has changed: raise REVISION in fedclip_edge/protocol/revision.py, and run "
        "`python tests/support/protocol_schema.py --write`"
    )


def test_a_field_more_and_another_type_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = protocol_schema.schema()
    monkeypatch.setitem(Hello.__annotations__, "epoch", "str")
    assert protocol_schema.schema() != before


def test_the_record_of_a_revision_is_never_replaced(tmp_path: Path) -> None:
    record = tmp_path / "revision.txt"
    record.write_text(f"revision {REVISION}\nmessage hello: other\n")
    source = Path(protocol_schema.__file__)
    code = source.read_text().replace(
        'RECORD = ROOT / "tests" / "protocol" / "revision.txt"', f"RECORD = ROOT / {str(record)!r}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--write"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{source.parent}:{source.parents[2]}"},
    )
    assert "raise REVISION first" in done.stderr
    assert record.read_text().endswith("message hello: other\n")


def test_the_reason_names_the_earlier_side_and_what_to_do() -> None:
    earlier = difference(0, "the device", "the coordinator")
    assert "the device has an earlier version" in earlier
    assert (
        f"no revision of protocol v2, and those of the coordinator revision {REVISION}" in earlier
    )
    later = difference(REVISION + 1, "the sender", "this program")
    assert "the sender has a later version" in later
    assert later.endswith("install the same version on the coordinator and on its devices")
