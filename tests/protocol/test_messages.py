"""The control messages: values that each of them refuses."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
from capable import CAPABLE
from example_manifest import BLOB, KEY, SHA, manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.protocol import message_parts, messages
from fedclip_edge.protocol.message_parts import CHUNK_BYTES, Blob, Capabilities, Encoding
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    DeviceState,
    Hello,
    Kept,
    Offer,
    Refused,
    Want,
)


@settings(max_examples=100)
@given(st.integers(1, 2**32), st.integers(1, CHUNK_BYTES))
def test_a_blob_is_as_many_chunks_as_cover_it(size_bytes: int, chunk_bytes: int) -> None:
    try:
        blob = Blob(SHA, size_bytes, "model", chunk_bytes)
    except ValueError:
        assert size_bytes / chunk_bytes > 2**16
        return
    assert (blob.chunks - 1) * chunk_bytes < size_bytes <= blob.chunks * chunk_bytes
    assert 1 <= blob.chunks <= 2**16


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("a" * 63, 10, "model"), "blob sha256"),
        ((SHA, 0, "model"), "size_bytes"),
        ((SHA, -1, "model"), "size_bytes"),
        ((SHA, 2**32 + 1, "model"), "size_bytes"),
        ((SHA, 10, "model", 0), "chunk_bytes"),
        ((SHA, 10, "model", CHUNK_BYTES + 1), "chunk_bytes"),
        ((SHA, 2**16 + 1, "model", 1), "65537 chunks, limit 65536"),
    ],
)
def test_a_blob_is_checked_at_the_door(values: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Blob(*values)


def test_a_chunk_with_its_header_and_topic_fits_into_128_kb() -> None:
    assert CHUNK_BYTES + 24 + 256 < 128_000


@pytest.mark.parametrize(
    "missing",
    [
        (),
        ((1, 0),),
        ((-1, 0),),
        ((0, 1), (5, 4)),
        ((0, 1, 2),),
        ((0,),),
        ((0, 9), (0, 9)),  # a repeated range: one small message would make the sender send a lot
        ((0, 9), (5, 12)),
        ((5, 6), (0, 1)),
    ],
)
def test_a_want_names_gaps_in_order_and_apart(missing: Any) -> None:
    assert Want(SHA, ((0, 0), (2, 2**40))).missing[0] == (0, 0)
    with pytest.raises(ValueError, match=r"missing|unpack"):
        Want(SHA, missing)


def test_a_want_names_a_blob() -> None:
    with pytest.raises(ValueError, match="sha256"):
        Want("", ((0, 0),))


@pytest.mark.parametrize("key", ["", "b" * 63, "B" * 64])
def test_keys_are_64_hex_digits(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        CoordinatorState("boot", 1, "run-1", online=True, key=key)
    with pytest.raises(ValueError, match="key"):
        Hello("boot", key, "photo", SHA, SHA, CAPABLE)
    with pytest.raises(ValueError, match="key"):
        manifest(key=key)


def test_a_hello_names_a_domain_that_can_be_shown() -> None:
    assert Hello("boot", KEY, "Küche 2", SHA, SHA, CAPABLE).domain == "Küche 2"
    with pytest.raises(ValueError, match="domain"):
        Hello("boot", KEY, "a\nb", SHA, SHA, CAPABLE)


@pytest.mark.parametrize("changes", [{"run": "Run 1"}, {"run": ""}, {"cohort": "f"}])
def test_a_manifest_is_checked_at_the_door(changes: dict[str, str]) -> None:
    assert manifest().takes_part is None
    with pytest.raises(ValueError, match=next(iter(changes))):
        manifest(**changes)


@pytest.mark.parametrize("epoch", [-1, 2**53 + 1])
def test_an_epoch_is_a_number_that_the_journal_and_json_can_hold(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        CoordinatorState("boot", epoch, "run-1", online=True, key=KEY)
    with pytest.raises(ValueError, match="epoch"):
        manifest(epoch=epoch)


def test_every_message_has_one_kind_and_is_frozen() -> None:
    assert set(messages.KINDS.values()) == set(get_args(messages.Message))
    assert len(set(messages.KINDS.values())) == len(messages.KINDS)
    for message in messages.KINDS.values():
        assert dataclasses.fields(message)
        assert vars(message)["__dataclass_params__"].frozen


HELLO = Hello("b", KEY, "photo", "e", "c", CAPABLE)
LOOSE: tuple[tuple[messages.Message | Capabilities | Encoding, str, object], ...] = (
    (CoordinatorState("b", 1, "run-1", online=True, key=KEY), "run", "Run 1"),
    (CoordinatorState("b", 1, "run-1", online=True, key=KEY), "boot", "b" * 129),
    (DeviceState("b", online=True), "boot", "\n"),
    (HELLO, "boot", "b" * 129),
    (HELLO, "boot", "\ud800"),
    (HELLO, "encoder_id", "e" * 129),
    (HELLO, "classes_digest", "\x1b[2J"),
    (CAPABLE, "roles", ("train", "train")),
    (CAPABLE, "methods", ("ridge", "ridge")),
    (CAPABLE, "codecs", tuple(f"c{n}" for n in range(65))),
    (CAPABLE, "min_per_class", -1),
    (manifest(), "attempt", -1),
    (manifest(), "closed", 2**53 + 1),
    (manifest(), "deadline_s", 0.0),
    (manifest(), "devices", 0),
    (manifest(), "devices", messages.MAX_DEVICES + 1),
    (manifest(), "answers", "b" * 129),
    (Offer("run-1", 1, BLOB), "run", ""),
    (Kept("run-1", 1, SHA), "run", "a/b"),
    (Kept("run-1", 1, SHA), "number", -1),
    (Kept("run-1", 1, SHA), "sha256", ""),
    (Refused("no", "contribution"), "reason", "x" * (messages.MAX_REASON + 1)),
    (Refused("no", "run"), "classes", ("c",) * (message_parts.MAX_CLASSES + 1)),
    (Refused("no", "run"), "classes", ("c" * 129,)),
    (Refused("no", "run"), "classes", ("\x1b[2J",)),
    (Encoding(0, 1), "done", -1),
    (Encoding(0, 1), "total", 2**53 + 1),
    (Refused("no", "contribution"), "sha256", "x"),
    (Refused("no", "contribution"), "key", "x"),
    (Want(SHA, ((0, 1),)), "missing", tuple((2 * n, 2 * n) for n in range(messages.MAX_GAPS + 1))),
)


@pytest.mark.parametrize(("message", "name", "value"), LOOSE)
def test_no_field_takes_what_nobody_would_say(
    message: messages.Message | Capabilities | Encoding, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=name):
        type(message)(**{**vars(message), name: value})
