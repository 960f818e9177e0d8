"""Bodies get smaller on the link, come back exactly, and never grow beyond what was declared."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.errors import PeerError
from fedclip_edge.messaging import codec

CODECS = st.sampled_from(sorted(codec.CODECS))
LIMIT = 1 << 20


@settings(max_examples=100, deadline=None)
@given(CODECS, st.binary(min_size=1, max_size=200))
def test_bytes_of_any_length_come_back_exactly(name: str, body: bytes) -> None:
    coded = codec.encode(name, body)
    assert codec.decode(name, coded, LIMIT) == body
    assert codec.decode(name, coded, len(body)) == body
    assert codec.encode(name, body) == coded


@settings(max_examples=50, deadline=None)
@given(CODECS, st.binary(min_size=2, max_size=200), st.data())
def test_what_declares_more_than_the_limit_is_refused(
    name: str, body: bytes, data: st.DataObject
) -> None:
    limit = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(PeerError, match=f"declares {len(body)} bytes, expected 1 to {limit}"):
        codec.decode(name, codec.encode(name, body), limit)


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 26))
    assert len(bomb) < 10_000
    with pytest.raises(PeerError, match=r"declares 67108864 bytes"):
        codec.decode("fp32", bomb, LIMIT)


def test_a_frame_that_does_not_declare_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(PeerError, match="declares -1 bytes"):
        codec.decode("fp32", compressor.compress(b"body"), LIMIT)


def test_a_frame_that_holds_more_than_it_declares_is_refused() -> None:
    coded = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(bytes(200)))
    assert coded[5] == 200  # RFC 8878: magic, descriptor, one byte of content size
    coded[5] = 100
    with pytest.raises(PeerError, match="not a whole zstd frame"):
        codec.decode("fp32", bytes(coded), LIMIT)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_frame_cut_short_or_followed_by_more_is_refused(body: bytes, data: st.DataObject) -> None:
    coded = codec.encode("fp32", body)
    cut = data.draw(st.integers(0, len(coded) - 1))
    with pytest.raises(PeerError):
        codec.decode("fp32", coded[:cut], LIMIT)
    with pytest.raises(PeerError):
        codec.decode("fp32", coded + data.draw(st.binary(min_size=1, max_size=9)), LIMIT)


@settings(max_examples=100, deadline=None)
@given(CODECS, st.binary(max_size=100))
def test_any_bytes_are_decoded_or_refused(name: str, data: bytes) -> None:
    for candidate in (data, b"\x28\xb5\x2f\xfd" + data):
        with contextlib.suppress(PeerError):
            codec.decode(name, candidate, LIMIT)


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(PeerError, match="declares 0 bytes"):
        codec.decode("fp32", codec.encode("fp32", b""), LIMIT)


def test_floats_shrink_more_than_by_zstd_alone() -> None:
    floats = np.random.default_rng(0).normal(scale=0.02, size=50_000).astype("<f4").tobytes()
    alone = zstandard.ZstdCompressor(level=1).compress(floats)
    assert len(codec.encode("fp32", floats)) < 0.95 * len(alone)


def test_fp32_puts_bytes_of_one_significance_together() -> None:
    body = bytes(range(8)) + b"xy"
    shuffled = zstandard.ZstdDecompressor().decompress(codec.encode("fp32", body))
    assert shuffled == bytes([0, 4, 1, 5, 2, 6, 3, 7]) + b"xy"


def test_a_codec_that_is_not_there_is_the_callers_mistake() -> None:
    with pytest.raises(KeyError):
        codec.encode("int3", b"body")
