"""Chunks in any order and number, and upload slots that are lost without progress."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.chunks import Incoming, blob_of, fit_to_packets, is_chunk, split
from fedclip_edge.protocol.message_parts import CHUNK_BYTES, MAX_CHUNKS, Blob
from fedclip_edge.protocol.messages import MAX_GAPS, Want
from fedclip_edge.transport.outbox import packet_size_bytes

DATA = bytes(range(100))
BLOB = blob_of(DATA, "model", 16)
ALL = list(split(DATA, BLOB))


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 40), st.data())
def test_any_order_and_any_repetition_gives_the_same_bytes(
    sent: bytes, chunk_bytes: int, data: st.DataObject
) -> None:
    blob = blob_of(sent, "model", chunk_bytes)
    made = list(split(sent, blob))
    assert len(made) == blob.chunks
    repeated = data.draw(st.lists(st.sampled_from(made), max_size=10))
    incoming, came = Incoming(blob), set[bytes]()
    for chunk in data.draw(st.permutations(made + repeated)):
        assert is_chunk(chunk)
        assert incoming.add_chunk(chunk) == (chunk not in came)
        came.add(chunk)
        assert incoming.complete == (len(came) == blob.chunks) == (not incoming.missing)
    assert incoming.assemble() == sent


@settings(max_examples=100)
@given(st.sets(st.integers(0, 19)), st.integers(0, 39))
def test_what_is_missing_is_exactly_what_completes_it(lost: set[int], tail: int) -> None:
    sent = bytes(40 * 19 + tail + 1)
    blob = blob_of(sent, "model", 40)
    assert blob.chunks == 20
    incoming = Incoming(blob)
    for index, chunk in enumerate(split(sent, blob)):
        if index not in lost:
            incoming.add_chunk(chunk)
    gaps = incoming.missing
    assert {i for first, last in gaps for i in range(first, last + 1)} == lost
    assert all(after > last + 1 for (_, last), (after, _) in itertools.pairwise(gaps))
    for chunk in split(sent, blob, gaps) if gaps else ():
        assert incoming.add_chunk(chunk)
    assert incoming.assemble() == sent


def test_only_what_is_wanted_is_sent_and_nothing_beyond_the_end() -> None:
    assert list(split(DATA, BLOB, ((1, 2), (6, 6)))) == [ALL[1], ALL[2], ALL[6]]
    assert list(split(DATA, BLOB, ((5, 10**18),))) == [ALL[5], ALL[6]]
    assert list(split(DATA, BLOB, ((7, 9),))) == []
    assert list(split(DATA, BLOB, ())) == []


def test_the_header_is_as_documented() -> None:
    assert ALL[6] == (
        b"\xfc\x1e\x02\x00"
        + hashlib.sha256(DATA).digest()[:8]
        + struct.pack("<III", 6, 7, zlib.crc32(DATA[96:]))
        + DATA[96:]
    )


def test_a_chunk_is_never_a_control_message() -> None:
    assert is_chunk(ALL[0])
    for text in (b"", b"{", b"\xfc", '{"kind": "ü"}'.encode(), "\u1efc".encode()):
        assert not is_chunk(text)
    with pytest.raises(UnicodeDecodeError):
        ALL[0][:2].decode()


def test_a_blob_is_announced_with_its_hash_and_size() -> None:
    assert Blob(hashlib.sha256(DATA).hexdigest(), 100, "model", 16) == BLOB
    assert blob_of(DATA, "model").chunk_bytes == CHUNK_BYTES


def header(
    index: int = 0, count: int = 7, part: bytes = DATA[:16], crc: int | None = None
) -> bytes:
    digest = bytes.fromhex(BLOB.sha256)[:8]
    check = zlib.crc32(part) if crc is None else crc
    return b"\xfc\x1e\x02\x00" + digest + struct.pack("<III", index, count, check) + part


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (ALL[0][:23], "shorter than its header"),
        (b"\xfc\x1e", "shorter than its header"),
        (ALL[0].replace(b"\xfc\x1e\x02", b"\xfc\x1e\x01"), "chunk of version 1"),
        (ALL[0].replace(b"\xfc\x1e\x02\x00", b"\xfc\x1e\x02\x01"), "chunk of version 2"),
        (header(count=8), "chunk 0 of 8, but the payload has 7"),
        (header(index=7), "chunk 7 of 7, but the payload has 7"),
        (header(index=2**32 - 1), "chunk 4294967295 of 7"),
        (header(part=DATA[:15]), "chunk 0 has 15 bytes, expected 16"),
        (header(part=DATA[:17]), "chunk 0 has 17 bytes, expected 16"),
        (header(index=6), "chunk 6 has 16 bytes, expected 4"),
        (header(part=b""), "chunk 0 has 0 bytes, expected 16"),
        (header(crc=1), "chunk 0 has a wrong CRC-32"),
    ],
)
def test_a_chunk_that_contradicts_the_blob_is_refused_and_not_stored(
    chunk: bytes, said: str
) -> None:
    assert header() == ALL[0]
    incoming = Incoming(BLOB)
    with pytest.raises(PeerError, match=said):
        incoming.add_chunk(chunk)
    assert incoming.missing == ((0, 6),)


@settings(max_examples=100)
@given(st.integers(0, len(ALL[3]) * 8 - 1))
def test_one_bit_changed_on_the_way_is_never_stored(bit: int) -> None:
    damaged = bytearray(ALL[3])
    damaged[bit // 8] ^= 1 << bit % 8
    incoming = Incoming(BLOB)
    stored = False
    with contextlib.suppress(PeerError):
        stored = incoming.add_chunk(bytes(damaged))
    if stored:  # the index changed: only the hash of the whole shows it
        assert 12 * 8 <= bit < 16 * 8
        for index, chunk in enumerate(ALL):
            if index != 3:
                incoming.add_chunk(chunk)
        assert incoming.add_chunk(ALL[3])
        with pytest.raises(PeerError):
            incoming.assemble()


def test_a_chunk_of_another_blob_is_not_ours() -> None:
    other = bytes(100)
    incoming = Incoming(BLOB)
    assert not incoming.add_chunk(next(split(other, blob_of(other, "model", 16))))
    assert incoming.missing == ((0, 6),)


def test_a_wrong_hash_fetches_everything_again() -> None:
    forged = replace(BLOB, sha256=BLOB.sha256[:16] + "0" * 48)  # the chunks themselves are valid
    incoming = Incoming(forged)
    for chunk in ALL:
        assert incoming.add_chunk(chunk)
    came = incoming.complete
    assert came
    with pytest.raises(PeerError, match="arrived with another SHA-256"):
        incoming.assemble()
    assert not incoming.complete
    assert incoming.missing == ((0, 6),)
    assert all(incoming.add_chunk(chunk) for chunk in ALL)


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_chunk_or_refused(payload: bytes) -> None:
    incoming = Incoming(BLOB)
    for candidate in (payload, b"\xfc\x1e\x02\x00" + payload, ALL[0][:12] + payload):
        with contextlib.suppress(PeerError):
            incoming.add_chunk(candidate)
    assert isinstance(incoming.parts, dict)
    held = sum(len(part) for part in incoming.parts.values())
    assert held <= BLOB.size_bytes


DEVICES = st.sampled_from("abcdef")


class SlotsMachine(RuleBasedStateMachine):
    """Random requests: there are never more holders than slots."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(count=2, lease_s=10.0)
        self.now = 0.0
        self.queue: list[str] = []  # devices in the order in which they must be served
        self.held: dict[str, float] = {}

    @rule(device=DEVICES)
    def request(self, device: str) -> None:
        self.slots.request(device)
        if device not in self.held and device not in self.queue:
            self.queue.append(device)

    @rule()
    def grant(self) -> None:
        free = 2 - len(self.held)
        expected, self.queue = tuple(self.queue[:free]), self.queue[free:]
        assert self.slots.grant(self.now) == expected
        self.held.update(dict.fromkeys(expected, self.now))

    @rule(device=DEVICES)
    def progress(self, device: str) -> None:
        self.slots.progress(device, self.now)
        if device in self.held:
            self.held[device] = self.now

    @rule(device=DEVICES)
    def release(self, device: str) -> None:
        self.slots.release(device)
        self.held.pop(device, None)
        self.queue = [waiting for waiting in self.queue if waiting != device]

    @rule(by=st.sampled_from([0.0, 1.0, 9.0, 10.0]))
    def wait(self, by: float) -> None:
        self.now += by

    @precondition(lambda self: self.held)
    @rule()
    def expire(self) -> None:
        lost = {device for device, since in self.held.items() if self.now - since >= 10}
        assert set(self.slots.expire(self.now)) == lost
        for device in lost:
            del self.held[device]

    @invariant()
    def never_more_than_count(self) -> None:
        assert set(self.slots.holders) == set(self.held)
        assert len(self.slots.holders) <= 2
        assert all(self.slots.holds(device) == (device in self.held) for device in "abcdef")


TestSlots = SlotsMachine.TestCase
TestSlots.settings = settings(max_examples=50, stateful_step_count=20)


def test_silence_is_counted_from_the_last_progress() -> None:
    slots = Slots(count=3, lease_s=10.0)
    for device in "ab":
        slots.request(device)
    slots.grant(0.0)
    slots.progress("b", 1.5)
    assert slots.idle(2.0, for_s=2.0) == ("a",)
    assert slots.idle(3.5, for_s=2.0) == ("a", "b")


@given(st.integers(1_400, 200_000), st.integers(1, 400_000))
def test_a_chunk_fits_into_a_packet_with_the_longest_topic(packet_bytes: int, size: int) -> None:
    data = bytes(size)
    blob = fit_to_packets(blob_of(data, "model"), packet_bytes)
    sizes = [packet_size_bytes("t" * 256, len(chunk)) for chunk in split(data, blob)]
    assert max(sizes) <= packet_bytes
    # no smaller than necessary
    assert (
        blob.chunk_bytes == CHUNK_BYTES
        or packet_size_bytes("t" * 256, 24 + blob.chunk_bytes) > packet_bytes - 8
    )


def test_nothing_known_of_a_limit_changes_nothing() -> None:
    assert fit_to_packets(blob_of(DATA, "model"), None) == blob_of(DATA, "model")
    assert fit_to_packets(blob_of(DATA, "model"), 2**28) == blob_of(DATA, "model")
    assert fit_to_packets(Blob("a" * 64, 10, "model", 5), 100_000).chunk_bytes == 5


def test_a_limit_too_small_for_any_manifest_makes_no_blob_of_too_many_chunks() -> None:
    for size in (1, 2**20, 2**32):
        blob = fit_to_packets(Blob("a" * 64, size, "model"), 20)
        assert blob.chunks <= MAX_CHUNKS
        assert blob.chunk_bytes >= 1024


def test_no_more_gaps_are_told_than_a_message_holds() -> None:
    data = bytes(4 * MAX_GAPS)
    blob = blob_of(data, "model", 1)
    incoming = Incoming(blob)
    for chunk in itertools.islice(split(data, blob), 1, None, 2):
        incoming.add_chunk(chunk)
    want = Want(blob.sha256, incoming.missing)
    assert want.missing == tuple((2 * n, 2 * n) for n in range(MAX_GAPS))
    said = wire.pack_control(want, "cam-01", "up", signing.create_identity())
    assert len(said) < wire.MAX_CONTROL_BYTES
    for chunk in split(data, blob, incoming.missing):
        incoming.add_chunk(chunk)
    for chunk in split(data, blob, incoming.missing):
        incoming.add_chunk(chunk)
    assert incoming.assemble() == data
