"""The revision of the protocol, and the record of what is sent in it."""

from __future__ import annotations

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
    other = f"revision {REVISION}\nmessage hello: Other\n"
    record.write_text(other)
    with pytest.raises(SystemExit, match="raise REVISION first"):
        protocol_schema.write(record)
    assert record.read_text() == other
    record.write_text(f"revision {REVISION - 1}\nmessage hello: Other\n")
    protocol_schema.write(record)
    assert record.read_text() == protocol_schema.schema()


def test_the_reason_names_the_earlier_side_and_what_to_do() -> None:
    earlier = difference(0, "the device", "the coordinator")
    assert "the device has an earlier version" in earlier
    assert (
        f"no revision of protocol v2, and those of the coordinator revision {REVISION}" in earlier
    )
    later = difference(REVISION + 1, "the sender", "this program")
    assert "the sender has a later version" in later
    assert later.endswith("install the same version on the coordinator and on its devices")
