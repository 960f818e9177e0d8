"""Tests that docs/reference/protocol.md matches the code: tables, examples, dumps and constants."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import protocol_examples as examples
import pytest
from protocol_examples import PAGE, PARTS, names_in, rewritten
from protocol_fields import CONSTANTS, FIELDS, MEANINGS, RULES

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.protocol import message_parts, messages, wire
from fedclip_edge.protocol.hand_over import HandOver
from fedclip_edge.records import Plan

pytestmark = pytest.mark.one_python
TEXT = PAGE.read_text(encoding="utf-8")
RECORDS: dict[type[Any], dict[str, Any]] = {
    type(message): json.loads(json.dumps(message, default=vars))
    for message in examples.EXAMPLES.values()
}
RECORDS[message_parts.Blob] = RECORDS[messages.Offer]["blob"]
RECORDS[message_parts.Encoding] = RECORDS[messages.DeviceState]["encoding"]
RECORDS[message_parts.Address] = RECORDS[messages.CoordinatorState]["moved_to"]
RECORDS[HandOver] = RECORDS[messages.CoordinatorState]["hand_overs"][0]
RECORDS[Plan] = RECORDS[messages.Manifest]["plan"]
RECORDS[message_parts.Exchange] = RECORDS[messages.Manifest]["exchange"]
RECORDS[message_parts.Capabilities] = RECORDS[messages.Hello]["capabilities"]
RECORDS[message_parts.Pictures] = RECORDS[message_parts.Capabilities]["pictures"]
EVERY_FIELD = [(cls, name) for cls, names in FIELDS.items() for name in names]


def test_every_part_of_the_page_is_what_the_code_makes() -> None:
    assert sorted(names_in(TEXT)) == sorted(PARTS)
    made = rewritten(TEXT)
    assert made == TEXT, "run `python tests/support/protocol_examples.py --write`"


@pytest.mark.parametrize(
    ("old", "new"), [("0 to 2^53", "0 to 2^54"), ("7b 22", "7b 23"), ("30.0", "31.0")]
)
def test_a_page_that_differs_is_seen(old: str, new: str) -> None:
    changed = TEXT.replace(old, new)
    assert changed != TEXT
    assert rewritten(changed) == TEXT


def test_a_page_with_an_unknown_part_is_refused() -> None:
    with pytest.raises(KeyError):
        rewritten(TEXT.replace("from the code: topics", "from the code: subjects"))


def test_every_field_of_every_message_is_described() -> None:
    assert set(FIELDS) == {*messages.KINDS.values(), *examples.NESTED}
    for cls, described in FIELDS.items():
        assert list(described) == [field.name for field in dataclasses.fields(cls)]
        assert {limit for limit, _ in described.values()} <= set(MEANINGS)
    assert {limit for names in FIELDS.values() for limit, _ in names.values()} == set(MEANINGS)


@pytest.mark.parametrize(("cls", "name"), EVERY_FIELD, ids=lambda v: getattr(v, "__name__", v))
def test_each_limit_is_the_one_that_holds(cls: type[Any], name: str) -> None:
    _, taken, refused = MEANINGS[FIELDS[cls][name][0]]
    right = RECORDS[cls]
    for value in taken:
        # The limits on two fields of a blob depend on each other.
        chunks = {"chunk_bytes": message_parts.CHUNK_BYTES} if name == "size_bytes" else {}
        read_table(cls, {**right, **chunks, name: value}, "x")
    for value in refused:
        with pytest.raises(ConfigError):
            read_table(cls, {**right, name: value}, "x")


def test_values_named_in_a_table_are_all_there_are() -> None:
    chosen = [(cls, name) for cls, name in EVERY_FIELD if FIELDS[cls][name][0] == "one of these"]
    assert {name for _, name in chosen} == {
        "activity",
        "phase",
        "codec_up",
        "codec_down",
        "kind",
        "scope",
        "vote",
    }
    for cls, name in chosen:
        row = next(line for line in examples.field_table(cls).splitlines() if f"`{name}`" in line)
        values = re.findall(r'`"(\w+)"`', row.split("|")[2])
        assert values
        for value in values:
            read_table(cls, {**RECORDS[cls], name: value}, "x")


def test_every_example_is_believed() -> None:
    for kind in messages.KINDS:
        topic, sender, identity = examples.place_of(kind)
        signed = wire.unpack_control(topic, examples.payload_of(kind))
        signed.check(identity.key)
        examples.TOPICS.check_kind(topic, signed.kind)
        assert (signed.kind, signed.sender) == (kind, sender)


def test_the_example_bodies_are_taken() -> None:
    model = wire.unpack_model(examples.MODEL, "fp16", examples.SHAPES)
    assert model.parameters["gate"].tolist() == examples.TERM.tolist()
    found = wire.unpack_contribution(examples.UPDATE, "int8", examples.SHAPES)
    assert found.exchange == examples.EXCHANGE.sha256


def test_every_constant_in_the_text_is_in_the_table_and_used() -> None:
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", TEXT)) - set(CONSTANTS)
    assert not named, "the text names a constant that is not in the table"
    for name in CONSTANTS:
        assert len(re.findall(rf"\b{name}\b", TEXT)) > 1, (
            f"{name} is in the table, but not in the text"
        )


def test_every_setting_in_the_rules_is_described() -> None:
    assert list(RULES) == [field.name for field in dataclasses.fields(RunRules)]


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors
